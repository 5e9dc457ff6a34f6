"""The contract of a method: what the loop may ask of any system of the literature, and nothing more.

    batch ─► training_steps ─► Losses ─► backward ─► after_backward ─► optimiser ─► after_step
             (one or several)                        gradient surgery               momentum, queues, exchange

The loop knows no method by name and no method knows the loop.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, cast

import torch
from torch import Tensor, nn

from crossdistill.errors import DataError, NetworkError
from crossdistill.networks.base import Outputs, as_outputs
from crossdistill.registry import Facts, Pairing

Batch = Mapping[str, Any]
"""Modality names to tensors (b, ...), beside the reserved keys `label`, `group`, `index` (tensors (b,), or dicts of
them by modality where streams are unpaired), `present` (modality to bool (b,)) and `stored` (name of a frozen teacher
to its `Outputs`, put there by the loop). The k-th further augmented view of a modality is called `view(name, k)`."""

RESERVED = frozenset({"label", "group", "index", "present", "stored"})


def view(modality: str, k: int) -> str:
    """Name the k-th augmented view of a modality in a batch: "image" for k = 0, then "image#1", "image#2"."""
    return modality if k == 0 else f"{modality}#{k}"


def modality_of(name: str) -> str:
    """Give the modality of a view or a teacher: "image" for "image", "image#1" and "image#large"."""
    return name.partition("#")[0]


def index_of(batch: Batch, modality: str) -> Tensor:
    """Give the positions (b,) int64 of a modality's samples in the data, for paired and unpaired streams alike."""
    index: Tensor | Mapping[str, Tensor] = batch["index"]
    return index if isinstance(index, Tensor) else index[modality]


def label_of(batch: Batch, modality: str) -> Tensor:
    """Give the classes (b,) int64 of a modality's samples, for paired and unpaired streams; -1 where none is known."""
    label: Tensor | Mapping[str, Tensor] | None = batch.get("label")
    found = label if isinstance(label, Tensor) else (label or {}).get(modality)
    x: Tensor = batch[modality]
    return torch.full((len(x),), -1, device=x.device) if found is None else found


@dataclass(frozen=True)
class Losses:
    """Named scalar terms, already weighted; the loop adds, differentiates and logs them.

    Attributes:
        terms: Name to scalar tensor; none at all (every term masked: an absent modality) takes no step.
        logged: Further scalars to log that are not part of the loss.
    """

    terms: Mapping[str, Tensor]
    logged: Mapping[str, Tensor] | None = None

    @property
    def total(self) -> Tensor:
        """The scalar to differentiate."""
        values = list(self.terms.values())
        if not values:
            return torch.zeros(())
        return values[0] if len(values) == 1 else torch.stack(values).sum()


class StageData(Protocol):
    """What a method may ask of the data, and of how long it is trained on them, in its hooks.

    A schedule of the method's own (a warm-up, a weight that decays) knows its end by `epochs * steps_per_epoch`.
    """

    @property
    def pairing(self) -> Pairing:
        """Whether pairs are of one event, "natural", or were matched by label, "class"."""
        ...

    @property
    def epochs(self) -> int:
        """Epochs of the stage."""
        ...

    @property
    def steps_per_epoch(self) -> int:
        """Steps an epoch.

        A step is a batch, or as many batches as are accumulated. All optimiser steps that `training_steps` takes on one
        batch are within one, while `after_backward` and `after_step` are called once for each of them.
        """
        ...

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
        self.register_load_state_dict_pre_hook(_fit)

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

    def as_fused_teacher(self) -> nn.Module:
        """Give what a later stage of all modalities may be taught by: from a mapping of them to `Outputs` with logits.

        Raises:
            NetworkError: If the method trains no such network.
        """
        raise NetworkError(f"{self.facts.name} trains no network of several modalities")

    def training_step(self, batch: Batch) -> Losses:
        """Compute the weighted loss terms of one optimiser step; a method of several steps overrides the plural.

        What it remembers for `after_step` must be dropped in eval mode: `held_out_step` calls it too, by default.
        """
        raise NotImplementedError(f"{type(self).__name__} must define training_step or training_steps")

    def training_steps(self, batch: Batch) -> Iterator[Losses]:
        """Yield one `Losses` per optimiser step on this batch; when the generator goes on, it has stepped."""
        yield self.training_step(batch)

    def held_out_step(self, batch: Batch) -> Mapping[str, Tensor]:
        """Describe a batch of held-out samples by scalars, in eval mode and without gradient; the loop averages.

        It must not change the method: what was measured must not be learnt from. The loop refuses a method whose
        saved parameters or buffers are other ones after the held-out samples; what is kept as plain Python objects it
        cannot see.

        By default all of `training_steps` (or `training_step`) is run through without any optimiser step, and each term
        and their sum, "loss", are averaged over those of its `Losses` that have it. A method with this default
        must therefore enqueue, refresh and remember (what `after_step` will take up) only `if self.training`.

        Args:
            batch: As in training, of any size; a method that compares samples may be given a single one.

        Returns:
            Names to scalars; "loss" is what keep="best" goes by.
        """
        found: dict[str, list[Tensor]] = {}
        for losses in self.training_steps(batch):
            for name, value in {**losses.terms, **(losses.logged or {}), "loss": losses.total}.items():
                found.setdefault(name, []).append(value)
        return {name: values[0] if len(values) == 1 else torch.stack(values).mean() for name, values in found.items()}

    def teachers(self) -> Mapping[str, nn.Module]:
        """Give the frozen networks by name: the modality they read, with "#word" where several read the same.

        The loop keeps watch over them, leaves them out of checkpoints, and may take their outputs from the store; those
        of a network that reads something else (several modalities, say), under a name that is no modality's, it leaves
        live.
        """
        return {}

    def teacher_outputs(self, batch: Batch, name: str) -> Outputs:
        """Give a frozen teacher's outputs for a batch: the stored ones where the loop put them there, else live ones.

        Raises:
            DataError: If the batch holds neither.
        """
        stored: Mapping[str, Outputs] = batch.get("stored", {})
        if name in stored:
            return stored[name]
        modality = modality_of(name)
        if modality not in batch:
            raise DataError(f"the batch lacks the modality '{modality}'; it has: {', '.join(sorted(batch))}")
        with torch.no_grad():
            return as_outputs(self.teachers()[name](batch[modality]))

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

    def make_room(self, state: Mapping[str, Any], prefix: str = "") -> None:
        """Make the parts that a stored state has, and that `before_stage` would make, before it is loaded; no-op.

        Args:
            state: What is about to be loaded, by name.
            prefix: Of the method's names in it.
        """


class Separable(Method):
    """A method whose step has two halves: networks encode rows, then losses compare what they gave.

        batch ─► learnable ─► encode, rows by rows ─► compare, all rows at once ─► Losses

    Such a step need not hold the whole batch in the networks at once: the loop may encode it in micro-batches.

    What `encode` gives of a row must depend on that row alone; a batch norm is the exception, which then takes its
    statistics from the rows that it is given. It may use random numbers, but changes no state: it may be run twice.
    """

    @abstractmethod
    def learnable(self, batch: Batch) -> Batch | None:
        """Give the rows of a batch that the step learns from, in order; None where they are too few for any term."""

    @abstractmethod
    def encode(self, rows: Batch) -> Mapping[str, Outputs]:
        """Run what learns on rows (b, ...), b >= 1; frozen teachers are left to `compare`.

        Returns:
            Outputs (b, ...) by any names.
        """

    @abstractmethod
    def compare(self, encoded: Mapping[str, Outputs], rows: Batch) -> Losses:
        """Compute the weighted loss terms from what `encode` gave for all of `rows`.

        Frozen teachers are asked by `teacher_outputs`, whose answers the loop may have at hand.
        """

    def training_step(self, batch: Batch) -> Losses:
        """Encode, then compare."""
        rows = self.learnable(batch)
        return Losses({}) if rows is None else self.compare(self.encode(rows), rows)


def _fit(method: Method, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
    method.make_room(state, prefix)
    fit_buffers(method, state, prefix)


def fit_buffers(module: nn.Module, state: Mapping[str, Any], prefix: str = "", *_: Any, dtypes: bool = False) -> None:
    """Give buffers that depend on the data (queues, memories) the shape that a stored state has, before it is loaded.

    Args:
        module: Changed in place: a buffer of another shape, or None so far, is replaced by an empty one.
        state: What is about to be loaded, by name.
        prefix: Of the module's names in it.
        dtypes: Whether a buffer of another dtype is replaced too, instead of converting what is stored.
    """
    device = next((tensor.device for tensor in itertools.chain(module.parameters(), module.buffers())), None)
    named = cast("Iterator[tuple[str, nn.Module]]", module.named_modules())  # untyped in torch
    for path, owner in named:
        buffers = owner._buffers  # pyright: ignore[reportPrivateUsage] - the only way to a buffer that is None
        for leaf, now in buffers.items():
            stored = state.get(f"{prefix}{path}.{leaf}" if path else prefix + leaf)
            if not isinstance(stored, Tensor):
                continue
            if now is None or now.shape != stored.shape or (dtypes and now.dtype != stored.dtype):
                buffers[leaf] = torch.empty_like(stored, device=device if now is None else now.device)


def freeze(network: nn.Module) -> nn.Module:
    """Make a teacher of a network: eval mode and no parameter that asks for a gradient; returns the same module."""
    return network.eval().requires_grad_(False)
