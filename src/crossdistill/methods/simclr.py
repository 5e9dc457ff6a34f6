"""SimCLR on one modality: the contrastive teacher on the source, and the target-only control (Chen et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import nn

from crossdistill.errors import ConfigError, NetworkError
from crossdistill.methods._rows import complete
from crossdistill.methods.base import Batch, Losses, Separable, view
from crossdistill.networks.base import Network, Outputs
from crossdistill.objectives.cmcd import check_tau
from crossdistill.objectives.ntxent import nt_xent
from crossdistill.registry import Facts


class SimCLR(Separable):
    """Learn an encoder without labels: two augmented views of a sample find each other (CMCD's first step).

    The projection head is drawn from torch's global generator: seed torch before building for a reproducible head;
    `fit`'s seed covers what follows.

    Args:
        encoder: Encoder of the modality with an attribute `dim`.
        modality: Its name in a batch; the data must augment it, two equal views teach nothing.
        tau: Temperature of NT-Xent; 0.2.
        embedding: Width of the projection head's output, dropped afterwards; 64.

    Raises:
        ConfigError: If a parameter is out of range.
    """

    facts: ClassVar[Facts] = Facts(
        name="simclr",
        title="contrastive self-supervision on one modality",
        paper="Chen et al. 2020 (SimCLR); Lin et al. 2024 (CMCD), step 1",
        needs=frozenset({"views"}),
    )

    def __init__(self, encoder: nn.Module, *, modality: str, tau: float = 0.2, embedding: int = 64) -> None:
        super().__init__()
        check_tau(tau=tau)
        if embedding < 1:
            raise ConfigError(f"simclr needs embedding >= 1; received {embedding}")
        network = Network(encoder)
        projector = nn.Sequential(
            nn.Linear(network.dim, network.dim), nn.ReLU(inplace=True), nn.Linear(network.dim, embedding)
        )
        self.network = Network(encoder, projector=projector)
        self.modality, self.tau = modality, tau

    def inputs(self) -> Mapping[str, int]:
        """Two independently augmented views."""
        return {self.modality: 2}

    def student(self, modality: str) -> nn.Module:
        """Give the encoder, without the projection head."""
        if modality != self.modality:
            raise NetworkError(f"this method trains an encoder of '{self.modality}', none of '{modality}'")
        return self.network.encoder

    def as_teacher(self, modality: str) -> nn.Module:
        """Give the encoder with its projection head, whose embedding may teach."""
        self.student(modality)
        return self.network

    def learnable(self, batch: Batch) -> Batch | None:
        """Give the rows that have the modality; one alone has none to be told from."""
        return complete(batch, self.modality, least=2)

    def encode(self, rows: Batch) -> Mapping[str, Outputs]:
        """Run encoder and projection head on each of the two views."""
        return {name: self.network(rows[name]) for name in (self.modality, view(self.modality, 1))}

    def compare(self, encoded: Mapping[str, Outputs], rows: Batch) -> Losses:
        """NT-Xent between the two views."""
        first, second = (encoded[view(self.modality, k)].read("embedding") for k in (0, 1))
        return Losses({"nt_xent": nt_xent(first, second, tau=self.tau)})
