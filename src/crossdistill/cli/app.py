"""The commands. Each is thin: it reads its arguments, calls the library and prints what came out."""

from __future__ import annotations

import contextlib
import errno
import io
import math
import os
import shlex
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NoReturn, TextIO, cast

import typer
from typer.core import TyperGroup

from crossdistill._version import __version__
from crossdistill.errors import ConfigError, CrossDistillError, Interrupted, printable, told

TRACEBACK = "CROSSDISTILL_TRACEBACK"
"""Environment variable: show where errors come from, and the warnings of libraries."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says of a disk that takes no more."""

MEMORY = ("DefaultCPUAllocator: can't allocate memory", "CUDA out of memory", "MPS backend out of memory")
"""What torch says of memory that is not there, beside Python's MemoryError."""

GRACE = 10.0
"""Seconds in which a further SIGTERM or SIGHUP is passed over; who cannot wait sends SIGKILL, or presses Ctrl-C."""

AGAIN = "start the same command again and it goes on where it was"


class Commands(TyperGroup):
    """Commands whose EOFError is an error like any other: click takes each for the end of the user's typing."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was typed."""
        try:
            return super().invoke(ctx)
        except EOFError as error:
            raise EndOfFile from error


class Terminated(KeyboardInterrupt):
    """What SIGTERM raises.

    Were it KeyboardInterrupt itself, and passed through code made at run time, as that of dataclasses is, Python
    would end by SIGINT, whatever the exit code.
    """


class EndOfFile(Exception):
    """Carries an EOFError of ours, its cause, past click."""


app = typer.Typer(
    name="crossdistill",
    cls=Commands,
    help="Cross-modal knowledge distillation: will it help, do it, did it help.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for everything the run makes; runs go on in theirs.")]
Safe = Annotated[
    bool,
    typer.Option("--safe", help="Import nothing that the file names: the library's own methods and networks alone."),
]
Jobs = Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="Processes; one a core if not said.")]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1, max=1024, help="Of each process; one if not said, on a CPU. The last bits of numbers depend on it."
    ),
]


def main() -> NoReturn:
    """Run the command line.

    The exit code is 0, 2 for an error of the user's, 3 where a rerun gives other numbers, 130 after Ctrl-C, 143 after
    SIGTERM, 129 where the terminal was closed, 1 for a bug of ours.
    """
    stopped, since = 130, -math.inf

    def terminate(number: int, frame: object) -> None:
        nonlocal stopped, since
        if time.monotonic() - since < GRACE:  # who ends a session sends SIGTERM and SIGHUP, and the first one saves
            return
        stopped, since = (128 + number if stopped == 130 else stopped), time.monotonic()
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # else nohup, which goes on
        signal.signal(signal.SIGHUP, terminate)
    _prepare_streams()
    try:
        with _quiet():
            code = app(standalone_mode=False)
        if code == 130:  # typer's own answer to Ctrl-C
            _complain(f"stopped; {AGAIN}")
            _leave(stopped)
        _leave(code if isinstance(code, int) else 0)
    except (Interrupted, KeyboardInterrupt, typer.Abort) as error:
        _complain(f"{str(error).partition(';')[0] or 'stopped'}; {AGAIN}")
        _leave(stopped)
    except CrossDistillError as error:
        if os.environ.get(TRACEBACK):
            traceback.print_exception(error)
        _complain(str(error))
        _leave(2)
    except typer.Exit as stop:
        _leave(stop.exit_code)
    except BrokenPipeError:
        _silence(sys.stdout)  # whoever read our output has left
        _leave(0)
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # rich's answer to that
            _silence(sys.stdout)
            _leave(0)
        raise
    except OSError as error:
        _complain(of_the_disk(error))
        _leave(2)
    except EndOfFile as error:
        _other(error.__cause__ or error)
    except Exception as error:
        _other(error)


class _StandardError(io.TextIOWrapper):
    """Standard error that a run outlives: where nobody reads it any more, or its disk is full, words go nowhere."""

    def write(self, text: str, /) -> int:
        """Write what can be written."""
        try:
            return super().write(text)
        except BlockingIOError:  # full for the moment
            return len(text)
        except OSError:
            _silence(self)
            return len(text)

    def flush(self) -> None:
        """Bring what is written to where it goes, if anywhere."""
        try:
            super().flush()
        except BlockingIOError:
            pass
        except OSError:
            _silence(self)


def _prepare_streams() -> None:
    """Let a run go on whatever becomes of its output: a stream that is closed, or has no letters for a word."""
    while (free := os.open(os.devnull, os.O_RDWR)) <= 2:  # else the next file opened would get what is printed
        os.set_inheritable(free, True)
    os.close(free)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 - until the end
    if sys.stderr is sys.__stderr__ and isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr = _StandardError(
            cast(BinaryIO, sys.stderr.buffer), encoding=sys.stderr.encoding, line_buffering=True
        )
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a word that a terminal has no letters for is no reason to fail
            with contextlib.suppress(OSError):
                stream.reconfigure(errors="backslashreplace")


def _silence(stream: TextIO) -> None:
    """Let all that a stream still holds, and will get, go nowhere."""
    with contextlib.suppress(OSError, ValueError):  # it may be none of the system's
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Silence the warnings of libraries, in the processes that we start too; who asks Python for them gets them."""
    if os.environ.get(TRACEBACK) or sys.warnoptions:
        yield
        return
    with warnings.catch_warnings(action="ignore"):
        os.environ["PYTHONWARNINGS"] = "ignore"
        try:
            yield
        finally:
            del os.environ["PYTHONWARNINGS"]


def of_the_disk(error: OSError, out: Path | None = None) -> str:
    """Say what the system refused, on which file; below `out`, that it is the folder of --out.

    Args:
        error: What was raised.
        out: The folder that a run writes into.
    """
    what = error.strerror or str(error) or type(error).__name__
    name = "" if error.filename is None else os.fsdecode(error.filename)
    if error.errno in FULL:
        if out is None and not name:
            return f"the output cannot be written: {what}; {AGAIN}"
        where = f"'{out}'" if out is not None else f"'{Path(name).parent}'"
        return f"cannot write into {where}: {what}; free some space and start again: finished stages are kept"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"{what}: allow more (ulimit -n 4096) or give fewer --jobs, and {AGAIN}"
    if not _here():
        return "the current folder was removed; go to another one (cd), or give full paths from there"
    if out is not None and name and Path(name).absolute().is_relative_to(out.absolute()):
        if error.errno == errno.ENOENT:
            return f"a file in the --out folder '{out}' was removed or moved while it was in use: {name}; {AGAIN}"
        return f"cannot write into the --out folder '{out}': {what}: {name}; choose another with --out"
    return f"{what}: {name}" if name else what


def _here() -> bool:
    """Whether the current folder is there."""
    try:
        Path.cwd()
    except OSError:
        return False
    return True


def _other(error: BaseException) -> NoReturn:
    """Print a usage error in click's way; anything else is a bug of ours, and says how to report it."""
    if isinstance(error, MemoryError) or any(words in str(error) for words in MEMORY):
        _complain(
            f"not enough memory: {told(error)}; give smaller data, networks or batch_size, or fewer --jobs, and {AGAIN}"
        )
        _leave(2)
    show = getattr(error, "format_message", None)
    if callable(show):
        _complain(f"{show()} (try: crossdistill --help)")
        _leave(2)
    if os.environ.get(TRACEBACK):
        raise error
    _complain(f"internal error, please report it: {told(error)}; {TRACEBACK}=1 shows where")
    _leave(1)


def _complain(message: str) -> None:
    with contextlib.suppress(OSError):  # `_leave` tells of it
        sys.stdout.flush()
    sys.stderr.write(f"error: {printable(message)}\n")


def _leave(code: int) -> NoReturn:
    try:
        sys.stdout.flush()
    except OSError as error:
        _silence(sys.stdout)
        if code == 0 and not isinstance(error, BrokenPipeError):
            _complain(f"the output cannot be written: {error.strerror}")
            code = 2
    sys.exit(code)


@contextlib.contextmanager
def _importing(safe: bool) -> Generator[None]:
    """Let a user's "module:name" be a file of the current folder too, that folder and no other; or, safe, nothing."""
    from crossdistill.registry import library_alone

    here = str(Path.cwd()) if _here() else ""
    if here and here not in sys.path and not sys.flags.safe_path and not safe:
        sys.path.append(here)  # last: a file here must not stand in for a library
    with library_alone(safe):
        yield


def _refuse_several(command: str) -> None:
    """Refuse the processes of torchrun: each would do all the work of a command that does not share it."""
    if (count := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise ConfigError(
            f"{count} processes were started together (WORLD_SIZE), and {command} is done by one; start one"
        )


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"crossdistill {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Cross-modal knowledge distillation: will it help, do it, did it help."""
    del version


@app.command()
def demo(out: Out = Path("runs/demo"), jobs: Jobs = None) -> None:
    """Teach a student on real data that come with the package, and prove whether it helped; in two to three minutes."""
    from crossdistill.experiments.files import shipped

    _run(shipped("demo"), [], out, jobs)


@app.command()
def run(
    file: Annotated[Path, typer.Argument(help="Experiment file; `crossdistill init` writes one.")],
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes, e.g. stages.student.epochs=10.")
    ] = None,
    out: Out = Path("runs/latest"),
    jobs: Jobs = None,
    threads: Threads = None,
    dry: Annotated[bool, typer.Option("--dry-run", help="Check everything and show the plan; train nothing.")] = False,
    safe: Safe = False,
) -> None:
    """Run an experiment: teacher, student, everything it is compared with, and the page that proves it.

    Several devices train it together by `torchrun --nproc_per_node N -m crossdistill run FILE`; batch_size is of all.

    Networks and losses of your own, "module:name" in the file, are imported from the current folder too.
    """
    with _importing(safe):
        if dry:
            _show_plan(file, changes or [], out)
        else:
            _run(file, changes or [], out, jobs, threads)


@app.command()
def bench(
    suite: Annotated[Path | None, typer.Argument(help="Suite file; without one, give --data.")] = None,
    out: Out = Path("runs/bench"),
    data: Annotated[str, typer.Option(help="Instead of a file: your pairs, or a named set; the standard suite.")] = "",
    source: Annotated[str, typer.Option(help="The rich modality of --data.")] = "",
    target: Annotated[str, typer.Option(help="The poor modality of --data.")] = "",
    methods: Annotated[str, typer.Option(help="Rows for --data, as a,b,c; all that apply if not said.")] = "",
    track: Annotated[str, typer.Option(help="For --data: label-free, or labelled.")] = "label-free",
    seeds: Annotated[int | None, typer.Option(min=1, help="How many; more of them later add their own runs.")] = None,
    pairing: Annotated[str, typer.Option(help="For --data: class, if you matched the pairs by label.")] = "",
    kind: Annotated[
        list[str] | None, typer.Option(metavar="NAME=KIND", help="For --data: what an array holds, as depth=image.")
    ] = None,
    tune: Annotated[int, typer.Option(min=0, help="For --data: trials of each row, for the tuned table.")] = 0,
    jobs: Jobs = None,
    threads: Threads = None,
    on: Annotated[str, typer.Option(help="ray: share the runs among a Ray cluster's machines.")] = "",
    dry: Annotated[bool, typer.Option("--dry-run", help="Show the plan with time and disk; train nothing.")] = False,
    safe: Safe = False,
) -> None:
    """Compare methods under one protocol, over experiments and seeds, with the statistics: an honest league table.

    Killed or stopped it goes on where it was, and a run that fails is recorded with its reason.
    """
    _refuse_several("bench")
    from crossdistill.cli.bench import run_bench, suite_of

    document = suite_of(suite, data, source, target, methods, track, pairing, seeds, tune, kind or ())
    with _importing(safe):
        run_bench(document, out, jobs=jobs, threads=threads, on=on, seeds=seeds, dry=dry)


@app.command()
def diagnose(
    experiment: Annotated[Path | None, typer.Argument(help="Experiment file; without one, give arrays.")] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(help="NPY of a teacher's embedding of the source, [NAME=]FILE; repeat to rank several."),
    ] = None,
    target: Annotated[Path | None, typer.Option(help="NPY of the target's features; row i is the partner.")] = None,
    labels: Annotated[Path | None, typer.Option(help="NPY of labels, one a row; -1 where unknown.")] = None,
    groups: Annotated[Path | None, typer.Option(help="NPY of what must not be split: a person, a scene.")] = None,
    splits: Annotated[Path | None, typer.Option(help="NPY of the part of each row, to look for leaks.")] = None,
    out: Out = Path("runs/diagnosis"),
    training: Annotated[
        bool, typer.Option("--training/--no-training", help="Train a target-only reference for seconds: a fairer gain.")
    ] = True,
    pilot: Annotated[bool, typer.Option("--pilot", help="Let a small student, trained for seconds, forecast.")] = False,
    level: Annotated[float, typer.Option(help="Confidence of the forecast's interval: 0.8 or 0.9.")] = 0.9,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of everything random.")] = 0,
    safe: Safe = False,
) -> None:
    """Say before any training whether distillation will help, by how much, how sure that is, and by which teacher."""
    _refuse_several("diagnose")
    from crossdistill.cli.diagnose import question_of, run_diagnose

    if pilot and not training:
        raise ConfigError("--pilot trains a small student; leave out --no-training")
    with _importing(safe):
        question = question_of(experiment, source or [], target, labels, groups, splits, out)
    run_diagnose(question, out, training=training, pilot=pilot, level=level, seed=seed)


@app.command()
def rerun(
    folder: Annotated[Path, typer.Argument(help="Folder of a finished run, or of a suite.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where to; FOLDER-again if not said.")] = None,
    jobs: Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="Processes; as many as then.")] = None,
    safe: Safe = False,
) -> None:
    """Repeat a run from what its folder keeps, and compare every number to the bit; the exit code is 3 if one differs.

    On the machine of the first run they are equal; elsewhere it says what differs in the environment.
    """
    from crossdistill.cli.bench import run_bench
    from crossdistill.cli.rerun import again
    from crossdistill.experiments.yaml_lines import read_document

    def suite(file: Path, out: Path, jobs: int | None, threads: int | None) -> None:
        run_bench(read_document(file), out, jobs=jobs, threads=threads, on="", seeds=None, dry=False)

    def experiment(file: Path, out: Path, jobs: int | None, threads: int | None) -> None:
        _run(file, [], out, jobs, threads)

    with _importing(safe):
        same = again(folder, out, jobs, experiment, suite)
    if not same:
        raise typer.Exit(3)


@app.command()
def init(
    file: Annotated[Path, typer.Argument(help="Where to write it.")] = Path("experiment.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Write a commented experiment file that runs as it is."""
    from crossdistill.experiments.files import shipped
    from crossdistill.files import write_text

    if file.exists() and not force:
        raise ConfigError(f"'{file}' is there already; choose another name, or --force writes over it")
    write_text(file, shipped("template").read_text(encoding="utf-8"))
    typer.echo(f"wrote {file}; now: crossdistill run {file} --out runs/mine")


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a finished run, or of a suite.")],
    chart: Annotated[Path | None, typer.Option("--chart", help="Also write the bar chart alone, as SVG.")] = None,
) -> None:
    """Write the page of a finished run anew, or that of a suite, finished or not, with its statistics and pictures."""
    from crossdistill.files import write_text
    from crossdistill.report import is_bench, league_chart_svg, write_league, write_report

    if not (folder / "results.json").is_file():
        raise ConfigError(f"'{folder}' has no results.json: give the --out folder of a finished run")
    if chart is not None and chart.suffix.lower() != ".svg":  # a slip of the hand must not replace what a run made
        raise ConfigError(f"--chart '{chart}' is written as SVG; give a name that ends in .svg")
    if is_bench(folder):
        if chart is not None:
            raise ConfigError(
                f"'{folder}' is a suite's: its pictures are in '{folder / 'pictures'}'; leave out --chart"
            )
        typer.echo(f"wrote {write_league(folder)}")
        return
    typer.echo(f"wrote {write_report(folder)}")
    if chart is not None:
        write_text(chart, league_chart_svg(folder))
        typer.echo(f"wrote {chart}")


@app.command()
def predict(
    student: Annotated[Path, typer.Argument(help="DIR/student of a run.")],
    files: Annotated[list[str], typer.Argument(help="Files of the student's modality.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines with every class's probability.")] = False,
    safe: Annotated[bool, typer.Option("--safe", help="Import nothing that the folder names.")] = False,
) -> None:
    """Use a student on new files; each bad one gets a line on standard error, and the exit code is 2.

    An encoder of your own is imported from the current folder too.
    """
    import json
    from dataclasses import asdict

    from crossdistill.experiments import load_student

    bad = False
    with _importing(safe):
        loaded = load_student(student)
    for found in loaded.predict_each(files):
        if isinstance(found, CrossDistillError):
            _complain(str(found))
            bad = True
            continue
        words = (_cell(found.file), _cell(found.label), f"{found.probability:.3f}")
        typer.echo(json.dumps(asdict(found)) if as_json else "\t".join(words))
    if bad:
        raise typer.Exit(2)


def _cell(name: object) -> str:
    """Write a name as one cell of a line; `--json` gives it as it is."""
    return printable(str(name)).replace("\n", "\\n").replace("\t", "\\t")


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="One of them, or your own as module:Class.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything on all of them as JSON.")] = False,
) -> None:
    """List methods and objectives with their papers and what they need, or all parameters of one."""
    from crossdistill.cli.methods import described, shown

    with _importing(safe=False):
        typer.echo(described(name) if as_json else shown(name))


@app.command("list")
def list_known(
    what: Annotated[str, typer.Argument(help="objectives, methods, networks, transforms or data.")] = "objectives",
) -> None:
    """List what an experiment file may name, with one line on each."""
    from crossdistill.cli.listing import listing

    typer.echo(listing(what))


def _run(file: Path, changes: list[str], out: Path, jobs: int | None, threads: int | None = None) -> None:
    from crossdistill.cli.progress import Progress, show_results

    with Progress() as progress:
        from crossdistill.experiments import read_experiment, run_experiment
        from crossdistill.report import write_report

        experiment = read_experiment(file, changes)
        try:
            results: dict[str, Any] = run_experiment(
                experiment,
                out,
                jobs=jobs,
                threads=threads,
                listen=progress.listen,
                command=shlex.join(["crossdistill", *sys.argv[1:]]),
            )
            if not results:  # one of several processes, and not the first
                return
            page = write_report(out)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise CrossDistillError(of_the_disk(error, out)) from error
    show_results(results, page)


def _show_plan(file: Path, changes: list[str], out: Path) -> None:
    from crossdistill.cli.progress import odd
    from crossdistill.experiments import Bench, plan, read_experiment

    bench = Bench(read_experiment(file, changes), out)
    tasks = plan(bench)
    typer.echo(f"{bench.data.name}: {bench.experiment.data.source} -> {bench.experiment.data.target}")
    for line in odd(bench.data.warnings):
        typer.echo(line)
    for task in tasks.tasks:
        steps = tasks.steps[task]
        typer.echo(f"  seed {task.seed}  {task.arm.name:<24} {steps:>7} steps  {task.arm.title}")
    typer.echo(f"{len(tasks.tasks)} tasks, {tasks.total_steps} optimiser steps; nothing was trained")
