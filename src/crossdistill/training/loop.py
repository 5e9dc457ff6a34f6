"""The one loop: stages, epochs, steps, held-out losses, checkpoints, and coming back from all of them."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from crossdistill.errors import ConfigError, Interrupted, TrainingError
from crossdistill.methods.base import Method, Separable
from crossdistill.objectives.gather import alone as only_this
from crossdistill.training.checkpoint import kept_random, refuse_other, remove_checkpoint
from crossdistill.training.identity import check_frozen, tensors_of
from crossdistill.training.processes import Processes, rank_and_count, start_fabric
from crossdistill.training.product import intact, load_product, read_record
from crossdistill.training.protocols import Listener, TrainingData
from crossdistill.training.settings import Settings
from crossdistill.training.stage import Stage
from crossdistill.training.store import TeacherStore


def fit(
    method: Method,
    data: TrainingData,
    settings: Settings,
    *,
    seed: int,
    labels: bool = False,
    held_out: TrainingData | None = None,
    folder: Path | None = None,
    key: str = "",
    name: str = "",
    listener: Listener | None = None,
    stop: Callable[[], bool] | None = None,
    store: TeacherStore | None = None,
    accelerator: str = "auto",
    shared: bool = True,
) -> Method:
    """Train a method on a data set.

    The result is a function of (method as built, data, settings, seed). With a folder a run that was stopped or killed
    goes on where its last checkpoint is and ends with the same weights, bit for bit on the CPU; a finished one is
    loaded and returned at once, after a look at the fingerprint of the data.

    With `settings.shard` a copy of the method is trained, and the method gets what it has learnt at the end: where the
    run is stopped or fails before, it stays as it was.

    Hooks that get data run in eval mode, in full precision. The global state of torch's random numbers is afterwards
    what it was.

    Where torchrun started several processes, all of them call this with the same arguments and train together, each on
    its share of every batch: `batch_size` is that of all together, and the weights are those of one process, dropout
    aside, which each draws for itself. Process 0 writes into the folder, which all must see. One that fails leaves the
    others without an answer, and they fail too.

    Args:
        method: Trained in place; a stage that is resumed must be given the method as it was built the first time.
        data: What it learns from.
        settings: How.
        seed: Any integer, for order, augmentation and dropout.
        labels: Whether batches carry labels; in a stage without, they are not even read.
        held_out: Samples to describe each epoch by; they never influence the weights, except through keep="best".
        folder: Where checkpoint, logs and product go; None writes nothing.
        key: What must be equal for a folder's content to be of this run, beside settings, seed and data. Networks and
            objectives are not looked at: put them here (`weights_digest` and `code_of` help) where they may change.
        name: What messages call the stage; the folder's name if nothing is said.
        listener: Told of the progress.
        stop: Asked after every step; once true, the run is saved and `Interrupted` raised.
        store: Where frozen teachers' outputs are taken from; None runs the teachers on every batch.
        accelerator: "auto", "cpu", "cuda" or "mps": Fabric's words.
        shared: Whether all processes that torchrun started train together; False trains in this one alone.

    Returns:
        The same method, in eval mode, on the device it came on.

    Raises:
        ConfigError: If keep="best" has nothing held out to go by, or a batch has no equal share for each process.
        DataError: If a batch does not hold what the method needs.
        TrainingError: If a loss term is not finite, a teacher is not frozen, the folder is of another run, several
            processes cannot share the method's step, or another process is gone.
        Interrupted: If the user stopped it; all that is done so far is in the folder.
    """
    if settings.keep == "best" and held_out is None:
        raise ConfigError('keep is "best", but no held-out data say which weights are; give some, or keep "last"')
    identity = _identity(method, settings, seed=seed, labels=labels, key=key)
    folder = None if folder is None else Path(folder)
    if folder is not None:
        identity["data"] = data.fingerprint
        if held_out is not None and settings.keep == "best":  # else it has no influence
            identity["held_out"] = held_out.fingerprint
    together = shared and rank_and_count()[1] > 1
    if folder is not None and (record := read_record(folder)):
        then = {"data": record.get("data"), **record.get("identity", {})}
        refuse_other(then, identity, where=f"the finished stage in {folder}")
        first = not together or rank_and_count()[0] == 0
        if intact(folder, put_aside=first):
            load_product(method, folder)
            if first:
                remove_checkpoint(folder / "checkpoint.pt")  # left by a kill between the last two files
            return method.eval()
    if together:
        _check_shares(method, settings)
    home = next((tensor.device for _, tensor in tensors_of(method)), torch.device("cpu"))
    fabric = start_fabric(accelerator, settings.precision, shared=together)
    method.train()
    for modality, teacher in method.teachers().items():
        check_frozen(teacher, modality)
    try:
        with (
            kept_random(fabric.device),
            _interrupts() as pressed,
            contextlib.nullcontext() if together else only_this(),
            _named(together),
        ):
            processes = Processes(fabric.device, shared=together, seed=seed)
            stage = Stage(
                fabric,
                method.to(fabric.device),
                data,
                settings,
                seed=seed,
                labels=labels,
                folder=folder,
                identity=identity,
                name=name or (folder.name if folder else ""),
                processes=processes,
            )
            try:
                stage.prepare(store, held_out)
                stage.run(None if processes.rank else listener, lambda: pressed() or (stop is not None and stop()))
            except Exception as error:
                if not pressed() or isinstance(error, Interrupted):
                    raise
                raise KeyboardInterrupt from error  # who stops a whole group ends the readers of data too
            processes.close()
            if pressed() and not together:  # after the last step was asked; what is to be saved is saved
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped; what was saved before is in {folder}" if folder else "stopped; nothing is saved"
        ) from None
    finally:
        method.eval().to(home)
    return method


def _identity(method: Method, settings: Settings, *, seed: int, labels: bool, key: str) -> dict[str, Any]:
    """Give what a run is a function of, beside the data; the rest does not change its result."""
    irrelevant = {"workers", "checkpoint_every", "shard"}
    kept = {name: value for name, value in settings.to_json().items() if name not in irrelevant}
    return {"key": key, "method": type(method).__qualname__, "seed": seed, "labels": labels, "settings": kept}


def _check_shares(method: Method, settings: Settings) -> None:
    """Refuse a stage that several processes cannot share.

    Raises:
        TrainingError: If the method's step is not known to be the same when each process encodes a part of the rows.
        ConfigError: If a batch has no equal part for each.
    """
    count = rank_and_count()[1]
    if not isinstance(method, Separable):
        raise TrainingError(
            f"{count} processes were started for one run (WORLD_SIZE), and they cannot share the step of "
            f"{type(method).__name__}, which does not say what of it is encoding (methods.Separable); start one process"
        )
    if settings.batch_size % count:
        raise ConfigError(
            f"batch_size {settings.batch_size} is that of all {count} processes together, and must be a multiple of it"
        )


@contextlib.contextmanager
def _named(together: bool) -> Generator[None]:
    """Say in a line what a broken connection means, another process that has failed, or weights that are in parts."""
    try:
        yield
    except RuntimeError as error:
        if together and "DTensor" in str(error):
            raise TrainingError(
                "with shard, weights are whole only while the network that they belong to runs, and something else "
                f"reads them ({str(error).partition(':')[0]}); leave shard out"
            ) from error
        if not together or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise TrainingError("another process of this run is gone; what it says is the reason") from error


@contextlib.contextmanager
def _interrupts() -> Generator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a flag that is read between two steps, where everything fits; a second one raises.

    So are SIGTERM and SIGHUP where the program's handlers of them raise KeyboardInterrupt, as those of our commands do.
    A program with other handlers keeps them, and uses `stop`.
    """
    pressed = False

    def handle(number: int, frame: Any) -> None:
        nonlocal pressed
        try:
            before[number](number, frame)
        except KeyboardInterrupt:
            if pressed:
                raise
            pressed = True

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
        handlers = {number: signal.getsignal(number) for number in numbers}
        before |= {number: handler for number, handler in handlers.items() if callable(handler)}
    try:
        for number in before:
            signal.signal(number, handle)
        yield lambda: pressed
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
