"""All that a run needs to go on as if it had never stopped: the state of everything that has one, and the position."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossdistill.errors import TrainingError
from crossdistill.files import whole_file
from crossdistill.training.identity import differences


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
    """Write a checkpoint, whole or not at all."""
    written = io.BytesIO()  # torch's own writer does not say that the disk is full, ours does
    torch.save({"identity": dict(identity), **content}, written)
    with whole_file(path) as temporary:
        temporary.write_bytes(written.getbuffer())


def read_checkpoint(path: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """Read the checkpoint of this very run; None if there is none.

    Raises:
        TrainingError: If it is of another run (naming what differs), or unreadable.
    """
    if not path.is_file():
        return None
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        theirs = content["identity"]
    except Exception as error:  # torch raises a dozen kinds, by the place where the file is broken
        raise TrainingError(
            f"{path} is not a checkpoint of ours ({type(error).__name__}); delete it to start anew"
        ) from None
    refuse_other(theirs, identity, where=str(path))
    return content


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
