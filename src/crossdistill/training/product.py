"""What a finished stage leaves in its folder: the trained weights, and the record that it is finished."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save  # pyright: ignore[reportUnknownVariableType] - untyped
from torch import Tensor

from crossdistill._version import __version__
from crossdistill.errors import TrainingError
from crossdistill.files import read_json, whole_file, write_json
from crossdistill.methods.base import Method
from crossdistill.training.identity import differences
from crossdistill.training.state import load_state, state_of, teacher_digests

_LOG = logging.getLogger("crossdistill")
_PRODUCT, _RECORD = "product.safetensors", "stage.json"


def finished(folder: str | Path, key: str) -> bool:
    """Say whether `folder` holds a finished stage of that key, with the weights that were written."""
    record = read_record(Path(folder))
    return record.get("key") == key and _as_written(Path(folder), record)


def read_record(folder: Path) -> dict[str, Any]:
    """Give what stage.json says of a finished stage; empty where there is none."""
    if not (folder / _PRODUCT).is_file():
        return {}
    try:
        record: dict[str, Any] = read_json(folder / _RECORD)
        if not isinstance(record, dict):  # pyright: ignore[reportUnnecessaryIsInstance] - a file's
            raise ValueError
    except OSError:
        return {}
    except ValueError:
        _LOG.warning("%s is damaged, so the stage counts as unfinished, and is trained again", folder / _RECORD)
        return {}
    return record


def save_product(method: Method, folder: Path, record: Mapping[str, Any]) -> None:
    """Write the method's state without its frozen teachers, then the record that says the stage is finished.

    Args:
        method: The trained method.
        folder: Where to.
        record: JSON values, the hashes of the "teachers" among them; the versions of what computed them are added.

    Raises:
        TrainingError: If the method's extra state is neither tensors nor JSON values.
    """
    state = state_of(method, copy=True)
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    extra = {name: value for name, value in state.items() if name not in tensors}
    try:
        about = json.dumps({"extra": extra, "teachers": record["teachers"]})
    except TypeError as error:
        raise TrainingError(
            f"the extra state of {type(method).__name__} must be tensors or JSON values: {error}"
        ) from None
    written = save(tensors, {"about": about})  # one entry: safetensors puts several in another order each time
    with whole_file(folder / _PRODUCT) as temporary:
        temporary.write_bytes(written)  # an error of the disk stays an OSError
    versions = {
        "crossdistill": __version__,
        "torch": torch.__version__,
        "lightning_fabric": importlib.metadata.version("lightning-fabric"),
        "python": platform.python_version(),
    }
    write_json(folder / _RECORD, {**record, "versions": versions, "sha256": hashlib.sha256(written).hexdigest()})


def intact(folder: Path, *, put_aside: bool = True) -> bool:
    """Say whether the weights of a finished stage are those that were written; if not, put them aside and tell the log.

    Without its weights the stage is not finished, and training makes the same again.

    Args:
        folder: Of the stage.
        put_aside: False where another process does that, and may have done so.
    """
    if _as_written(folder, read_record(folder)):
        return True
    if not put_aside:
        return False
    path = folder / _PRODUCT
    aside = path.with_name(f"{path.stem}.damaged{path.suffix}")
    path.replace(aside)
    _LOG.warning("%s is damaged: its checksum is another; it is now %s, and the stage is trained again", path, aside)
    return False


def _as_written(folder: Path, record: Mapping[str, Any]) -> bool:
    with contextlib.suppress(FileNotFoundError), (folder / _PRODUCT).open("rb") as file:
        return record.get("sha256") == hashlib.file_digest(file, "sha256").hexdigest()
    return False


def load_product(method: Method, folder: str | Path) -> Method:
    """Put the weights of a finished stage into a method of the same construction, in place.

    Args:
        method: Built as the trained one was; its frozen teachers must be the same, as they are not in the file.
        folder: Of the stage.

    Returns:
        The same method.

    Raises:
        TrainingError: If there is no product, it does not fit, or was trained with another teacher.
    """
    path = Path(folder) / _PRODUCT
    try:
        state, about = _read(path)
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"there is no finished stage in {folder}: {error}. If it is damaged, delete it and start again"
        ) from None
    changed = differences({"teacher": about["teachers"]}, {"teacher": teacher_digests(method)})
    if changed:
        raise TrainingError(f"{path} was trained with another teacher: {'; '.join(changed)} (hash of the weights)")
    state |= about["extra"]
    load_state(method, state, extra=True, where=str(path))
    return method


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    opened: Any = safe_open  # untyped
    with opened(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        return tensors, json.loads(file.metadata()["about"])
