"""Gradient caching: a batch larger than memory, its networks run in micro-batches, its losses over all rows at once.

    encode 1, 2, 3, ... without graph ─► compare all ─► d loss / d encoded      held: what networks gave, nothing within
    encode 1 again ─► backward,  encode 2 again ─► backward,  ...               held: the graph of one micro-batch

Each micro-batch is encoded twice from the same random numbers, so that dropout falls on the same units: the gradient is
that of one graph over all micro-batches. The price is one more forward pass of what learns; teachers run once.

A batch norm takes its statistics from each micro-batch, as it would on a device of its own; those of the whole batch
would need a pass of their own for each such layer. Its running statistics move once.

Source: Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (GradCache).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage] - what all of them inherit from

from crossdistill.errors import DataError, TrainingError
from crossdistill.methods.base import Batch, Losses, Separable
from crossdistill.networks.base import Outputs
from crossdistill.training.checkpoint import random_state, restore_random
from crossdistill.training.cut import cut, size_of, spans

Encoded = Mapping[str, Outputs]


def cached_step(
    method: Separable,
    batch: Batch,
    *,
    micro_batch: int,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[None]],
    backward: Callable[[Losses], None],
) -> None:
    """Add the gradient of one batch to that of the method's parameters.

    Args:
        method: In training mode.
        batch: On the device.
        micro_batch: Rows that networks may hold at once; the batch is cut into the fewest parts, of nearly equal size.
        device: Whose random numbers networks draw.
        autocast: What every forward pass runs in.
        backward: Differentiates the sum of the terms, if there are any.

    Raises:
        DataError: If the batch's streams are of different lengths, or a part of one row is too few for a batch norm.
        TrainingError: If `encode` changes the method's state.
    """
    rows = method.learnable(batch)
    runs = [] if rows is None else spans(size_of(rows), micro_batch)
    if rows is None or len(runs) == 1:
        with autocast():
            losses = method.training_step(batch)
        backward(losses)
        return
    parts = [cut(rows, span) for span in runs]
    leaves, whole, states = _encode_all(method, rows, parts, device, autocast)
    with autocast():
        losses = method.compare(leaves, whole)
    backward(losses)
    del losses, whole  # and with them what the comparison kept
    after = random_state(device)
    with _statistics_kept(method):
        for part, span, state in zip(parts, runs, states, strict=True):
            restore_random(state, device)
            with autocast():
                encoded = method.encode(part)
            _push(encoded, leaves, span)
    restore_random(after, device)


def _encode_all(
    method: Separable,
    rows: Batch,
    parts: Sequence[Batch],
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[None]],
) -> tuple[Encoded, Batch, list[dict[str, Tensor]]]:
    """Run all networks without graph.

    Returns:
        What `encode` gives for all rows, ready to take gradients; the rows with their teachers' outputs; the state of
        the random numbers before each part.
    """
    states: list[dict[str, Tensor]] = []
    encoded: list[Encoded] = []
    taught: list[Encoded] = []
    live = [name for name in method.teachers() if name not in rows.get("stored", {})]
    before = _versions(method)
    for part in parts:
        with torch.no_grad(), autocast():
            taught.append({name: method.teacher_outputs(part, name) for name in live})
            states.append(random_state(device))
            try:
                encoded.append(method.encode(part))
            except DataError as error:
                if size_of(part) > 1:
                    raise
                raise DataError(
                    f"micro_batch leaves one row for a part, which is too few; raise it ({error})"
                ) from None
    now = _versions(method)
    if changed := [name for name in now if now[name] != before.get(name)]:
        raise TrainingError(
            f"encode of {type(method).__name__} changes '{changed[0]}' and cannot be run twice; leave micro_batch out"
        )
    leaves = {name: _joined(encoded, name).each(_leaf) for name in encoded[0]}
    stored = {**rows.get("stored", {}), **{name: _joined(taught, name) for name in live}}
    return leaves, {**rows, "stored": stored}, states


def _push(encoded: Encoded, leaves: Encoded, span: slice) -> None:
    """Send the gradients of some rows through what made them."""
    outputs: list[Tensor] = []
    gradients: list[Tensor] = []
    for name, found in encoded.items():
        for output, leaf in zip(_tensors(found), _tensors(leaves[name]), strict=True):
            if output.requires_grad and leaf.grad is not None:
                outputs.append(output)
                gradients.append(leaf.grad[span])
    if outputs:
        torch.autograd.backward(outputs, gradients)


# Rows ----------------------------------------------------------------------------------------------------------------


def _tensors(outputs: Outputs) -> list[Tensor]:
    found: list[Tensor] = []
    outputs.each(lambda value: found.append(value) or value)
    return found


def _joined(parts: Sequence[Encoded], name: str) -> Outputs:
    """Put the rows of all parts under each other."""
    columns = zip(*(_tensors(part[name]) for part in parts), strict=True)
    joined = iter([torch.cat(list(column)) for column in columns])
    return parts[0][name].each(lambda _: next(joined))


def _leaf(value: Tensor) -> Tensor:
    return value.requires_grad_() if value.is_floating_point() else value


# State ---------------------------------------------------------------------------------------------------------------


def _norms(method: nn.Module) -> list[_BatchNorm]:
    return [part for part in method.modules() if isinstance(part, _BatchNorm) and part.training]


def _versions(method: nn.Module) -> dict[str, tuple[int, int]]:
    """Give which tensor each buffer is, and torch's count of its changes; running statistics may move."""
    running = {id(buffer) for norm in _norms(method) for buffer in norm.buffers()}
    return {name: (id(b), b._version) for name, b in method.named_buffers() if id(b) not in running}


@contextlib.contextmanager
def _statistics_kept(method: nn.Module) -> Generator[None]:
    """Leave the running statistics of batch norms, which have moved in the first pass, alone in the second."""
    norms = [norm for norm in _norms(method) if norm.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
