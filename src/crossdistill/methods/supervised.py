"""Supervised training of one modality: the control from scratch, and a labelled teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from crossdistill.errors import ConfigError, NetworkError
from crossdistill.methods._rows import complete
from crossdistill.methods.base import Batch, Losses, Separable, label_of
from crossdistill.networks.base import Network, Outputs, least_rows
from crossdistill.registry import Facts


class Supervised(Separable):
    """Cross-entropy on labels, from a random start.

    The classifier is drawn from torch's global generator: seed torch before building for a reproducible head; `fit`'s
    seed covers what follows.

    Args:
        encoder: Encoder of the modality with an attribute `dim`.
        modality: Its name in a batch.
        classes: Number of classes, >= 2.
        label_smoothing: Share of probability spread over all classes, in [0, 1); 0.

    Raises:
        ConfigError: If a parameter is out of range.
    """

    facts: ClassVar[Facts] = Facts(
        name="supervised", title="cross-entropy on labels", paper="standard", needs=frozenset({"labels"})
    )

    def __init__(self, encoder: nn.Module, *, modality: str, classes: int, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if classes < 2 or not 0 <= label_smoothing < 1:
            raise ConfigError(
                f"supervised needs classes >= 2 and label_smoothing in [0, 1); received {classes}, {label_smoothing}"
            )
        self.network = Network(encoder, head=nn.Linear(Network(encoder).dim, classes))
        self.modality, self.label_smoothing = modality, label_smoothing

    def inputs(self) -> Mapping[str, int]:
        """One view."""
        return {self.modality: 1}

    def student(self, modality: str) -> nn.Module:
        """Give the encoder, without the classifier."""
        if modality != self.modality:
            raise NetworkError(f"this method trains an encoder of '{self.modality}', none of '{modality}'")
        return self.network.encoder

    def as_teacher(self, modality: str) -> nn.Module:
        """Give the encoder with its classifier, whose logits may teach."""
        self.student(modality)
        return self.network

    def learnable(self, batch: Batch) -> Batch | None:
        """Give the rows that have the modality; None where they are too few for a batch norm."""
        return complete(batch, self.modality, least=least_rows(self.network))

    def encode(self, rows: Batch) -> Mapping[str, Outputs]:
        """Run encoder and classifier."""
        return {self.modality: self.network(rows[self.modality])}

    def compare(self, encoded: Mapping[str, Outputs], rows: Batch) -> Losses:
        """Cross-entropy and, logged, the accuracy."""
        logits, label = encoded[self.modality].read("logits"), label_of(rows, self.modality)
        loss = F.cross_entropy(logits, label, label_smoothing=self.label_smoothing)
        with torch.no_grad():
            accuracy = (logits.argmax(dim=1) == label).float().mean()
        return Losses({"cross_entropy": loss}, {"accuracy": accuracy})
