"""The one loop: stages, epochs, steps, held-out losses, checkpoints, and coming back from all of them."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from crossdistill.errors import ConfigError, Interrupted, TrainingError
from crossdistill.methods.base import Method
from crossdistill.training.checkpoint import kept_random, refuse_other
from crossdistill.training.identity import check_frozen, tensors_of
from crossdistill.training.product import load_product, read_record
from crossdistill.training.protocols import Listener, TrainingData
from crossdistill.training.settings import Settings
from crossdistill.training.stage import Stage
from crossdistill.training.store import TeacherStore

if TYPE_CHECKING:
    from lightning_fabric import Fabric


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
) -> Method:
    """Train a method on a data set.

    The result is a function of (method as built, data, settings, seed). With a folder a run that was stopped or killed
    goes on where its last checkpoint is and ends with the same weights, bit for bit on the CPU; a finished one is
    loaded and returned at once, after a look at the fingerprint of the data.

    Hooks that get data run in eval mode, in full precision. The global state of torch's random numbers is afterwards
    what it was.

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

    Returns:
        The same method, in eval mode, on the device it came on.

    Raises:
        ConfigError: If keep="best" has nothing held out to go by.
        DataError: If a batch does not hold what the method needs.
        TrainingError: If a loss term is not finite, a teacher is not frozen, or the folder is of another run.
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
    if folder is not None and (record := read_record(folder)):
        then = {"data": record.get("data"), **record.get("identity", {})}
        refuse_other(then, identity, where=f"the finished stage in {folder}")
        load_product(method, folder)
        (folder / "checkpoint.pt").unlink(missing_ok=True)  # left by a kill between the last two files
        return method.eval()
    home = next((tensor.device for _, tensor in tensors_of(method)), torch.device("cpu"))
    fabric = _start(accelerator, settings.precision)
    method.train()
    for modality, teacher in method.teachers().items():
        check_frozen(teacher, modality)
    try:
        with kept_random(fabric.device), _interrupts() as pressed:
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
            )
            stage.prepare(store, held_out)
            stage.run(listener, lambda: pressed() or (stop is not None and stop()))
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped; what was saved before is in {folder}" if folder else "stopped; nothing is saved"
        ) from None
    finally:
        method.eval().to(home)
    return method


def _identity(method: Method, settings: Settings, *, seed: int, labels: bool, key: str) -> dict[str, Any]:
    """Give what a run is a function of, beside the data; workers and checkpoints do not change its result."""
    irrelevant = {"workers", "checkpoint_every"}
    kept = {name: value for name, value in settings.to_json().items() if name not in irrelevant}
    return {"key": key, "method": type(method).__qualname__, "seed": seed, "labels": labels, "settings": kept}


def _start(accelerator: str, precision: Any) -> Fabric:
    """Start Fabric, which takes seconds to import, on one device.

    Raises:
        TrainingError: If several processes were started for one run.
        ConfigError: If there is no such accelerator.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise TrainingError(
            "one run trains on one device, and WORLD_SIZE says that several processes were started; start one, and use "
            "the other devices for other seeds and methods"
        )
    from lightning_fabric import Fabric

    try:
        return Fabric(accelerator=accelerator, devices=1, precision=precision)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"cannot train on accelerator '{accelerator}': {error}") from None


@contextlib.contextmanager
def _interrupts() -> Generator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a flag that is read between two steps, where everything fits; the second one raises.

    A program with a handler of its own keeps it, and uses `stop`.
    """
    pressed = False

    def handle(number: int, frame: Any) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)
