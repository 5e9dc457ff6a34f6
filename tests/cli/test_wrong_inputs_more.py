"""More of what users get wrong: YAML that breaks parsers, disks that refuse, modules that fail."""

import errno
import os
import sys
import warnings

import pytest
from commands import call
from toy_experiment import EXPERIMENT

from crossdistill.errors import ConfigError, DataError, Interrupted
from crossdistill.experiments.yaml_lines import parse_document
from crossdistill.files import write_text
from crossdistill.registry import load_dotted


@pytest.fixture
def says(monkeypatch, capsys, tmp_path):
    """Run a command in an empty folder; gives its complaint, which is one line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def complain(*arguments, code=2):
        said = call(monkeypatch, capsys, *arguments)
        assert (said.code, said.out) == (code, ""), said
        assert said.err.startswith("error: ")
        assert len(said.err.splitlines()) == 1, said.err
        assert code != 2 or "internal error" not in said.err
        return said.err

    return complain


# YAML ----------------------------------------------------------------------------------------------------------------

TEXTS = {
    "a bell": ("seeds: 1\ndata: \x07", ["line 2: not valid YAML", "'\\x07' is not allowed"]),
    "a zero": ("a: \x00b", ["line 1: not valid YAML", "'\\x00' is not allowed"]),
    "no such day": ("a: 1\nseeds: 2024-13-45", ["line 2: '2024-13-45' is no timestamp", "quotes"]),
    "no int": ("seeds: !!int foo", ["line 1: 'foo' is no int"]),
    "an empty int": ("seeds: !!int ''", ["line 1: '' is no int"]),
    "no float": ("seeds: !!float foo", ["line 1: 'foo' is no float"]),
    "no bool": ("seeds: !!bool foo", ["line 1: 'foo' is no bool"]),
    "no time": ("seeds: !!timestamp foo", ["line 1: 'foo' is no timestamp"]),
    "endless digits": (f"seeds: {'9' * 5000}", ["line 1", "a word of 5000 letters"]),
    "a list as a key": ("? [a, b]\n: 1", ["line 1: a key must be a word"]),
    "a mapping as a key": ("? {a: b}\n: 1", ["line 1: a key must be a word"]),
    "a list in itself": ("a: &a [*a]", ["line 1: an anchor (&) holds its own alias"]),
    "a mapping in itself": ("a: &a {b: *a}", ["line 1: an anchor (&) holds its own alias"]),
    "two thousand lists": ("[" * 2000, ["more than 30 deep"]),
    "fifteen hundred mappings": ("{a: " * 1500, ["more than 30 deep"]),
    "two hundred lists": (f"a: {'[' * 200}{']' * 200}", ["line 1", "more than 30 deep"]),
    "an octal number": ("seeds: 010", ["line 1: '010' is another number in YAML 1.1"]),
    "a number of sixties": ("seeds: 1:30", ["line 1: '1:30' is another number in YAML 1.1"]),
    "half a character": ('a: "\\ud800"', ["line 1: '\\ud800' holds half a character"]),
    "a terminal's command": ('a: 1\n"\\e[31mb": 1', ["line 2: '\\x1b[31mb' holds control characters"]),
    "a billion laughs": (
        "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{y}: &{y} [{', '.join([f'*{x}'] * 10)}]\n" for x, y in zip("abcdefgh", "bcdefghi", strict=True)),
        ["more than 100,000 keys and values"],
    ),
    "a set": ("!!set {a}", ["a mapping of keys"]),
}


@pytest.mark.parametrize("case", TEXTS)
def test_yaml_that_breaks_a_parser(case, says, tmp_path):
    text, words = TEXTS[case]
    (tmp_path / "mine.yaml").write_text(text)
    err = says("run", "mine.yaml", "--dry-run")
    assert all(word in err for word in ["mine.yaml", *words]), err


CHANGES = {
    "no such day": ("seeds=2024-13-45", ["'2024-13-45' is no timestamp"]),
    "no int": ("seeds=!!int foo", ["'foo' is no int"]),
    "a power as a key": ("²=1", ["unknown key", "²"]),
    "a power as an inner key": ("data.²=1", ["unknown key", "²"]),
    "endless digits as a key": (f"{'9' * 5000}=1", ["unknown key"]),
    "in itself": ("seeds=&a [*a]", ["holds its own alias"]),
    "deep": (f"seeds={'[' * 2000}", ["more than 30 deep"]),
    "a key twice": ("data={name: a, name: b}", ["'name' stands twice"]),
    "a bell": ("seeds=\x07", ["'\\x07' is not valid YAML"]),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_change_that_breaks_a_parser(case, says, tmp_path):
    (tmp_path / "mine.yaml").write_text(EXPERIMENT)
    change, words = CHANGES[case]
    err = says("run", "mine.yaml", change, "--dry-run")
    assert all(word in err for word in words), err


def test_words_that_are_yaml_still_are():
    values = parse_document("a: &x [1, 2.5]\nb: *x\nc: {<<: {d: 2024-01-31}, e: null}", name="f").values
    assert values["a"] == values["b"] == [1, 2.5]
    assert set(values["c"]) == {"d", "e"}


# What the program says of the system ---------------------------------------------------------------------------------


def raising(monkeypatch, error):
    """Make `list` raise."""

    def listing(_):
        raise error

    monkeypatch.setattr("crossdistill.cli.listing.listing", listing)


def test_an_end_of_file_is_no_ctrl_c(says, monkeypatch):
    raising(monkeypatch, EOFError("Ran out of input"))
    assert "internal error, please report it: EOFError: Ran out of input" in says("list", code=1)


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(),
        Interrupted("stopped; everything finished is kept"),
        Interrupted("stopped at step 3 of 9; the same call goes on"),
    ],
)
def test_a_stop_always_says_how_to_go_on(error, says, monkeypatch):
    raising(monkeypatch, error)
    err = says("list", code=130)
    assert err.startswith("error: stopped")
    assert err.endswith("; start the same command again and it goes on where it was\n")


@pytest.mark.parametrize("ask", [False, True])
def test_a_traceback_of_the_users_own_error_where_it_is_asked_for(ask, monkeypatch, capsys):
    raising(monkeypatch, ConfigError("no such thing"))
    if ask:
        monkeypatch.setenv("CROSSDISTILL_TRACEBACK", "1")
    said = call(monkeypatch, capsys, "list")
    assert said.code == 2
    assert said.err.endswith("error: no such thing\n")
    assert ("Traceback" in said.err) is ask


def test_warnings_of_libraries_are_for_those_who_ask(monkeypatch, capsys):
    def listing(_):
        warnings.warn("noise", stacklevel=1)
        raise DataError("no such data")

    monkeypatch.setattr("crossdistill.cli.listing.listing", listing)
    said = call(monkeypatch, capsys, "list")  # tests make warnings errors: it would be an internal error
    assert (said.code, said.err) == (2, "error: no such data\n")
    assert "PYTHONWARNINGS" not in os.environ
    monkeypatch.setenv("CROSSDISTILL_TRACEBACK", "1")
    with pytest.raises(UserWarning, match="noise"):
        call(monkeypatch, capsys, "list")


def test_a_temporary_file_has_no_name_in_messages(tmp_path, monkeypatch):
    def refuse(dir, prefix, suffix):
        raise OSError(errno.EROFS, "Read-only file system", f"{dir}/{prefix}vz7ps8jw{suffix}")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    with pytest.raises(OSError, match="Read-only") as caught:
        write_text(tmp_path / "a.txt", "words")
    assert caught.value.filename == str(tmp_path / "a.txt")


@pytest.fixture
def refused(monkeypatch, tmp_path):
    """Let a run meet a disk that refuses; nothing else of it happens."""
    (tmp_path / "mine.yaml").write_text(EXPERIMENT)

    def refuse(error):
        def run(*_, **__):
            raise error

        monkeypatch.setattr("crossdistill.experiments.run_experiment", run)

    return refuse


def test_a_folder_that_is_there_and_takes_nothing(says, refused):
    refused(OSError(errno.EROFS, "Read-only file system", "ro/experiment.yaml"))
    err = says("run", "mine.yaml", "--out", "ro")
    assert "cannot write into the --out folder 'ro': Read-only file system: ro/experiment.yaml" in err
    refused(OSError(errno.EACCES, "Permission denied", "/elsewhere/data.npy"))
    assert says("run", "mine.yaml", "--out", "ro") == "error: Permission denied: /elsewhere/data.npy\n"


@pytest.mark.parametrize("name", [None, "full/stages/1/product.safetensors"])
def test_a_full_disk_names_the_folder(name, says, refused):
    refused(OSError(errno.ENOSPC, "No space left on device", *([name] if name else [])))
    err = says("run", "mine.yaml", "--out", "full")
    assert "cannot write into 'full': No space left on device; free some space" in err


# A user's own modules ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            "import no_such_package_here\n",
            ["No module named 'no_such_package_here', which", "own_module_", ".py:1 imports"],
        ),
        ("x = 1\n1 / 0\n", ["fails: ZeroDivisionError: division by zero", ".py:2)"]),
        ("import sys\nsys.exit(3)\n", ["fails: SystemExit: 3", ".py:2)"]),
    ],
)
def test_a_module_that_fails_is_told_of_with_its_place(content, words, tmp_path, monkeypatch):
    name = f"own_module_{len(content)}"
    (tmp_path / f"{name}.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load_dotted(f"{name}:f")
    assert all(word in str(caught.value) for word in words), caught.value
