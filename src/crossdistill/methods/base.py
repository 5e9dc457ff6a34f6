"""The contract of a method: what the loop may ask of any system of the literature, and nothing more.

    batch ─► training_steps ─► Losses ─► backward ─► after_backward ─► optimiser ─► after_step
             (one or several)                        gradient surgery               momentum, queues, exchange

The loop knows no method by name and no method knows the loop.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from crossdistill.errors import DataError
from crossdistill.networks.base import Outputs, as_outputs
from crossdistill.registry import Facts

Batch = Mapping[str, Any]
"""Modality names to tensors (b, ...), beside the reserved keys `label`, `group`, `index` (tensors (b,), or dicts of
them by modality where streams are unpaired), `present` (modality to bool (b,)) and `stored` (modality to the frozen
teacher's `Outputs`, put there by the loop). The k-th further augmented view of a modality is called `view(name, k)`."""

RESERVED = frozenset({"label", "group", "index", "present", "stored"})


def view(modality: str, k: int) -> str:
    """Name the k-th augmented view of a modality in a batch: "image" for k = 0, then "image#1", "image#2"."""
    return modality if k == 0 else f"{modality}#{k}"


def index_of(batch: Batch, modality: str) -> Tensor:
    """Give the positions (b,) int64 of a modality's samples in the data, for paired and unpaired streams alike."""
    index: Tensor | Mapping[str, Tensor] = batch["index"]
    return index if isinstance(index, Tensor) else index[modality]


@dataclass(frozen=True)
class Losses:
    """Named scalar terms, already weighted; the loop adds, differentiates and logs them.

    Attributes:
        terms: Name to scalar tensor.
        logged: Further scalars to log that are not part of the loss.
    """

    terms: Mapping[str, Tensor]
    logged: Mapping[str, Tensor] | None = None

    @property
    def total(self) -> Tensor:
        """The scalar to differentiate."""
        values = list(self.terms.values())
        return values[0] if len(values) == 1 else torch.stack(values).sum()


class StageData(Protocol):
    """What a method may ask of the data in its hooks."""

    def __len__(self) -> int:
        """Give the number of samples."""
        ...

    def batches(self) -> Iterator[Batch]:
        """Give every sample once, in order, without augmentation, on the method's device."""
        ...


class Method(nn.Module, ABC):
    """One system of the literature: every network it needs, and the training step that ties them.

    Everything that must survive a restart (queues, projection matrices, memories, generators) is in buffers or comes
    with `state_dict`. Subclasses are final and override hooks only where they do something.

    Attributes:
        facts: Name, paper and needs, for machines.
    """

    facts: ClassVar[Facts]

    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_pre_hook(_fit_buffers)

    @abstractmethod
    def inputs(self) -> Mapping[str, int]:
        """Say which modalities a batch must hold and how many independently augmented views of each, usually 1."""

    @abstractmethod
    def student(self, modality: str) -> nn.Module:
        """Give the encoder of a modality that is deployed and evaluated; it works without the rest.

        Raises:
            NetworkError: If the method trains no student of that modality.
        """

    def as_teacher(self, modality: str) -> nn.Module:
        """Give what a later stage may be taught by: the encoder, or a network with its embedding or logits too.

        Raises:
            NetworkError: If the method trains nothing of that modality.
        """
        return self.student(modality)

    def training_step(self, batch: Batch) -> Losses:
        """Compute the weighted loss terms of one optimiser step; a method of several steps overrides the plural."""
        raise NotImplementedError(f"{type(self).__name__} must define training_step or training_steps")

    def training_steps(self, batch: Batch) -> Iterator[Losses]:
        """Yield one `Losses` per optimiser step on this batch; when the generator goes on, it has stepped."""
        yield self.training_step(batch)

    def held_out_step(self, batch: Batch) -> Mapping[str, Tensor]:
        """Describe a batch of held-out samples by scalars, in eval mode and without gradient; the loop averages."""
        losses = self.training_step(batch)
        return {**losses.terms, **(losses.logged or {}), "loss": losses.total}

    def teachers(self) -> Mapping[str, nn.Module]:
        """Give the frozen networks by the modality they read; the loop may take their outputs from the store."""
        return {}

    def teacher_outputs(self, batch: Batch, modality: str) -> Outputs:
        """Give the frozen teacher's outputs for a batch: the stored ones where the loop put them there, else live ones.

        Raises:
            DataError: If the batch holds neither.
        """
        stored: Mapping[str, Outputs] = batch.get("stored", {})
        if modality in stored:
            return stored[modality]
        if modality not in batch:
            raise DataError(f"the batch lacks the modality '{modality}'; it has: {', '.join(sorted(batch))}")
        with torch.no_grad():
            return as_outputs(self.teachers()[modality](batch[modality]))

    def parameter_groups(self) -> Sequence[Mapping[str, Any]]:
        """Give the optimiser's parameter groups; a group's "lr_scale" multiplies the stage's learning rate."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def train(self, mode: bool = True) -> Method:
        """Set training mode for all but the teachers, which always stay in eval mode."""
        super().train(mode)
        for teacher in self.teachers().values():
            teacher.eval()
        return self

    def before_stage(self, data: StageData) -> None:
        """Compute once what the stage needs of the data: targets, subspaces, rankings. No-op by default."""

    def before_epoch(self, data: StageData, epoch: int) -> None:
        """Refresh what changes by the epoch: centroids, pseudo-labels. No-op by default."""

    def after_backward(self) -> None:
        """Change gradients before the optimiser sees them, or remember weights. No-op by default."""

    def after_step(self) -> None:
        """Follow the optimiser: momentum encoders, queues, exchange, projecting the change. No-op by default."""

    def after_stage(self, data: StageData) -> None:
        """Keep what later stages need: memories of class-incremental methods. No-op by default."""


def _fit_buffers(module: nn.Module, state: Mapping[str, Any], prefix: str, *rest: Any) -> None:
    """Give buffers whose shape depends on the data (queues, memories) the shape that the stored state has."""
    for name, buffer in list(module.named_buffers()):
        stored = state.get(prefix + name)
        if isinstance(stored, Tensor) and stored.shape != buffer.shape:
            owner, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(owner), leaf, torch.empty_like(stored, device=buffer.device))


def freeze(network: nn.Module) -> nn.Module:
    """Make a teacher of a network: eval mode and no parameter that asks for a gradient; returns the same module."""
    return network.eval().requires_grad_(False)
