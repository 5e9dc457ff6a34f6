"""All that a run needs to go on as if it had never stopped: the state of everything that has one, and the position."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossdistill.errors import TrainingError
from crossdistill.files import whole_file
from crossdistill.training.identity import differences

_LOG = logging.getLogger("crossdistill")

_MARK = b"crossdistill checkpoint 1\n"
"""What a checkpoint begins with; the SHA-256 of the rest follows, then what `torch.save` wrote."""


@dataclass
class Progress:
    """Where a stage is.

    Attributes:
        epoch: Epochs done.
        batch: Batches done of the epoch that is running; 0 between epochs.
        step: Steps done.
        seconds: Time spent in the epochs that are done, over all resumptions.
        samples: Samples seen in the running epoch.
        running: Seconds spent in the running epoch.
        waited: Seconds of those spent waiting for data.
        records: The log, one record an epoch.
        best: The best weights so far with their "loss" and "epoch", where they are kept.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    seconds: float = 0.0
    samples: int = 0
    running: float = 0.0
    waited: float = 0.0
    records: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    best: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Give all fields; tensors are not copied."""
        return {name: getattr(self, name) for name in asdict(Progress())}


def save_checkpoint(path: Path, identity: Mapping[str, Any], content: Mapping[str, Any]) -> None:
    """Write a checkpoint with its checksum, whole or not at all; the one before it is kept beside it."""
    written = io.BytesIO()  # torch's own writer does not say that the disk is full, ours does
    torch.save({"identity": dict(identity), **content}, written)
    with whole_file(path) as temporary:
        with temporary.open("wb") as file:
            file.write(_MARK + hashlib.sha256(written.getbuffer()).digest())
            file.write(written.getbuffer())
        if path.is_file():  # for an instant only the one before is there, which will do
            path.replace(_before(path))


def read_checkpoint(path: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """Read the checkpoint of this very run; None if there is none.

    Where the last one is damaged the one before it is taken, and the damaged one is named in a warning of the log.

    Raises:
        TrainingError: If it is of another run (naming what differs), or damaged and there is no other.
    """
    damaged: list[str] = []
    for file in (path, _before(path)):
        if not file.is_file():
            continue
        try:
            content = _checked(file)
        except _Damaged as reason:
            damaged.append(f"{file} is {reason}")
            continue
        refuse_other(content["identity"], identity, where=str(file))
        if damaged:
            _LOG.warning("%s; going on from the checkpoint before it", damaged[0])
        return content
    if damaged:
        raise TrainingError(f"{' and '.join(damaged)}; delete {'it' if len(damaged) == 1 else 'them'} to start anew")
    return None


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint, and the one before it."""
    path.unlink(missing_ok=True)
    _before(path).unlink(missing_ok=True)


class _Damaged(Exception):
    """Says what is wrong with a file."""


def _checked(file: Path) -> dict[str, Any]:
    """Read a checkpoint that is what was written; nothing but tensors and plain values is unpickled.

    Raises:
        _Damaged: If it is not.
    """
    with file.open("rb") as stream:
        head, body = stream.read(len(_MARK) + 32), stream.read()
    if head[: len(_MARK)] != _MARK:
        raise _Damaged("not a checkpoint of ours")
    if head[len(_MARK) :] != hashlib.sha256(body).digest():
        raise _Damaged("damaged: its checksum is another")
    try:
        content: dict[str, Any] = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
        return {**content, "identity": dict(content["identity"])}
    except Exception as error:  # torch raises a dozen kinds, by what a stranger has put into it
        raise _Damaged(f"not a checkpoint of ours ({type(error).__name__})") from None


def _before(path: Path) -> Path:
    return path.with_name(f"{path.stem}.before{path.suffix}")


def refuse_other(then: Mapping[str, Any], now: Mapping[str, Any], *, where: str) -> None:
    """Refuse what another run left.

    Fingerprints of data, "data" and "held_out", are compared where both are known.

    Raises:
        TrainingError: Naming what differs.
    """
    known = {*then, *now} - {name for name in ("data", "held_out") if not (then.get(name) and now.get(name))}
    changed = differences({k: v for k, v in then.items() if k in known}, {k: v for k, v in now.items() if k in known})
    if changed:
        raise TrainingError(f"{where} is of another run: {'; '.join(changed)}. Choose another folder, or delete it")


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Give the state of torch's generators: the CPU's and, where it is another, the device's."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def restore_random(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Put torch's generators back to what `random_state` gave."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
    elif "mps" in state and device.type == "mps":
        torch.mps.set_rng_state(state["mps"])


@contextlib.contextmanager
def kept_random(device: torch.device) -> Generator[None]:
    """Leave torch's generators as they were, whatever is drawn within."""
    state = random_state(device)
    try:
        yield
    finally:
        restore_random(state, device)
