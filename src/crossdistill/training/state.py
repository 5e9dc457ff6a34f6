"""What of a method is saved: everything that can change, which frozen teachers cannot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from crossdistill.data.moving import fetched
from crossdistill.errors import TrainingError
from crossdistill.methods.base import Method, fit_buffers
from crossdistill.training.identity import tensors_of, weights_digest
from crossdistill.training.shards import is_part, whole


def teacher_digests(method: Method) -> dict[str, str]:
    """Hash the weights of every frozen teacher, by modality."""
    return {modality: weights_digest(teacher) for modality, teacher in sorted(method.teachers().items())}


def _frozen(method: Method) -> set[int]:
    return {id(tensor) for teacher in method.teachers().values() for _, tensor in tensors_of(teacher)}


def state_of(method: Method, *, copy: bool = False) -> dict[str, Any]:
    """Give the method's `state_dict` on the CPU, without the frozen teachers; all processes must ask if it is sharded.

    Args:
        method: Any method.
        copy: Whether the tensors are copies, each with memory of its own, rather than views of the living ones.
    """
    frozen = _frozen(method)
    held: dict[str, Any] = {}
    for name, value in method.state_dict(keep_vars=True).items():
        if id(value) in frozen:
            continue
        value = value.detach() if isinstance(value, Tensor) else value
        # parts one by one: a device need not have room for the whole of all
        held[name] = whole(value).cpu() if isinstance(value, Tensor) and is_part(value) else value
    state = fetched(held)
    if not copy:
        return state
    kept = torch.contiguous_format
    return {name: x.clone(memory_format=kept) if isinstance(x, Tensor) else x for name, x in state.items()}


def load_state(method: Method, state: Mapping[str, Any], *, extra: bool, where: str) -> None:
    """Put a saved state into a method of the same construction, in place.

    A buffer of another size or type (a memory that grew) is replaced.

    Args:
        method: Where to.
        state: What `state_of` gave.
        extra: Whether the state may hold what the method has no place for: parts that an objective made for itself when
            its stage began, and that no deployed student needs.
        where: The file, for the message.

    Raises:
        TrainingError: If the two do not fit.
    """
    method.make_room(state)
    fit_buffers(method, state, dtypes=True)
    frozen = _frozen(method)
    own = method.state_dict(keep_vars=True)
    known = {name for name, value in own.items() if id(value) not in frozen}
    try:
        method.load_state_dict({name: value for name, value in state.items() if name in own}, strict=False)
    except RuntimeError as error:
        first = str(error).splitlines()[1:2] or [str(error)]  # torch lists them all, one a line, below a title
        raise TrainingError(f"{where} does not fit {type(method).__name__}: {first[0].strip()}") from None
    missing, surplus = sorted(known - set(state)), sorted(set(state) - known)
    if missing or (surplus and not extra):
        lacks = f"it lacks {missing[0]} ({len(missing)} such)" if missing else f"it holds {surplus[0]} besides"
        raise TrainingError(f"{where} is not of this {type(method).__name__}: {lacks}; build the method as it was then")
