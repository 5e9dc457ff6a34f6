"""Smoothed neighbourhoods of one modality, without labels, pairs or teacher: what `focused` keeps of the target alone.

The control that every comparison carries: where it does as well as the method, the teacher is not what helps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from crossdistill.errors import NetworkError
from crossdistill.methods._rows import complete, present_rows, take
from crossdistill.methods.base import Batch, Losses, Separable, StageData, index_of
from crossdistill.nearest import Search
from crossdistill.networks.base import Network, Outputs
from crossdistill.objectives.base import Context
from crossdistill.objectives.focused import Focused
from crossdistill.registry import Facts


class NeighbourGraph(Separable):
    """Learn an encoder whose similarities follow a walk on the neighbourhoods of the modality's own plain inputs.

    It is the loss `focused` with target_share 1, in which no teacher and no partner is left.

    Args:
        encoder: Encoder of the modality with an attribute `dim`.
        modality: Its name in a batch.
        k: Neighbours, at most a quarter of the samples; 10.
        walk: Length of the walk; "auto", the default, keeps about 10 coordinates, and is 8 at most.
        n_classes_hint: Number of classes that the walk should not merge; none.
        n_coords: Coordinates kept, at most; 128.
        tau: Temperature of both kernels; 0.2.
        search: "exact", "approximate" (faiss, an extra), or "auto": exact up to 50,000 samples and on an accelerator.

    Raises:
        ConfigError: If a parameter is out of range.
    """

    facts: ClassVar[Facts] = Facts(
        name="neighbour_graph",
        title="similarities follow a walk on the neighbourhoods of one modality's own inputs",
        paper="ours",
        needs=frozenset({"index"}),
    )

    def __init__(
        self,
        encoder: nn.Module,
        *,
        modality: str,
        k: int = 10,
        walk: float | Literal["auto"] = "auto",
        n_classes_hint: int | None = None,
        n_coords: int = 128,
        tau: float = 0.2,
        search: Search = "auto",
    ) -> None:
        super().__init__()
        self.network = Network(encoder)
        self.modality = modality
        self.objective = Focused(
            k, target_share=1.0, walk=walk, n_classes_hint=n_classes_hint, n_coords=n_coords, tau=tau, search=search
        )

    def inputs(self) -> Mapping[str, int]:
        """One view."""
        return {self.modality: 1}

    def student(self, modality: str) -> nn.Module:
        """Give the encoder."""
        if modality != self.modality:
            raise NetworkError(f"this method trains an encoder of '{self.modality}', none of '{modality}'")
        return self.network.encoder

    def before_stage(self, data: StageData) -> None:
        """Compute the coordinates of all samples.

        Raises:
            ObjectiveError: If there are fewer than 4, or their inputs are not finite or all the same.
        """
        with torch.no_grad():
            self.objective.study(_Own(self, data))
        self.to(self.objective.coordinates.device)

    def learnable(self, batch: Batch) -> Batch | None:
        """Give the rows that have the modality; one sample has no similarities."""
        return complete(batch, self.modality, least=2) if self.modality in batch else None

    def encode(self, rows: Batch) -> Mapping[str, Outputs]:
        """Run the encoder."""
        return {self.modality: self.network(rows[self.modality])}

    def compare(self, encoded: Mapping[str, Outputs], rows: Batch) -> Losses:
        """CMD between the student's features and the samples' coordinates; what is held out is placed among them."""
        features = encoded[self.modality].features
        return Losses(self.objective.terms(features, *self.own(rows)) if len(features) > 1 else {})

    def own(self, batch: Batch) -> tuple[Tensor, Context]:
        """Give what stands for a teacher, the inputs themselves, of the rows that have them, and what else is known."""
        here = present_rows(batch, self.modality)
        x = take(batch[self.modality], here)
        return x.flatten(1), Context(index=take(index_of(batch, self.modality), here), inputs=x)


class _Own:
    """The inputs of all training samples."""

    def __init__(self, method: NeighbourGraph, data: StageData) -> None:
        self.method, self.data = method, data

    def __iter__(self) -> Iterator[tuple[Tensor, Context]]:
        found = (self.method.own(batch) for batch in self.data.batches() if self.method.modality in batch)
        return (rows for rows in found if len(rows[0]))
