"""Networks of several modalities: ensembles of teachers, and a student with a head for each modality and one for all.

Shapes: b rows, c classes (or labels), d features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossdistill.errors import ConfigError, DataError
from crossdistill.methods._rows import Task, both, enough, present_mask, present_rows, take, within
from crossdistill.methods.base import Batch
from crossdistill.networks.base import Network, Outputs, as_outputs, encoded, run


class TeacherEnsemble(nn.Module):
    """Several networks of one modality as one: the mean of their logits, or of their probabilities.

    Args:
        members: Networks that give logits: (b, c), or `Outputs` with logits.
        reduce: "logits", the normalised geometric mean of the members' distributions, or "probs", the (softer)
            arithmetic one, given as logits.
        task: Of what the probabilities are.

    Raises:
        ConfigError: If there is no member.
    """

    def __init__(
        self, members: Sequence[nn.Module], *, reduce: Literal["logits", "probs"] = "logits", task: Task = "multiclass"
    ) -> None:
        super().__init__()
        if not members or reduce not in ("logits", "probs"):
            raise ConfigError(f"an ensemble needs a member, and reduce logits or probs; received {reduce}")
        self.members, self.reduce, self.task = nn.ModuleList(members), reduce, task

    def each(self, x: Tensor) -> list[Tensor]:
        """Give every member's logits (b, c)."""
        found: list[Tensor] = []
        for member in self.members:
            given = run(member, x)
            found.append(given if isinstance(given, Tensor) else as_outputs(given).read("logits"))
        return found

    def forward(self, x: Tensor) -> Outputs:
        """Give the ensemble's logits (b, c), which stand for its features too."""
        z = torch.stack(self.each(x))
        if self.reduce == "logits":
            z = z.mean(dim=0)
        elif self.task == "multiclass":
            z = z.log_softmax(dim=2).logsumexp(dim=0) - math.log(len(z))
        else:
            z = F.logsigmoid(z).logsumexp(dim=0) - F.logsigmoid(-z).logsumexp(dim=0)
        return Outputs(z, logits=z)


class Predicting(nn.Module):
    """A network that predicts from whatever modalities rows have, as a teacher of all of them.

    Args:
        network: With `predict`, from a batch to logits (b, c); it is shared, not copied.
        classes: c.
    """

    takes_absence = True

    def __init__(self, network: nn.Module, classes: int) -> None:
        super().__init__()
        self.network, self.classes = network, classes

    def forward(self, inputs: Mapping[str, Tensor], present: Mapping[str, Tensor] | None = None) -> Outputs:
        """Give logits (b, c), which stand for features too; 0 in rows that have no modality.

        Args:
            inputs: Modality to (b, ...).
            present: Modality to (b,) bool; all rows of what is not named.
        """
        masks = {name: present_mask({**inputs, "present": present or {}}, name) for name in inputs}
        here = torch.stack(list(masks.values())).any(dim=0)
        some = next(iter(inputs.values()))
        logits = some.new_zeros(len(here), self.classes)
        if bool(here.any()):
            batch = {**{name: x[here] for name, x in inputs.items()}, "present": {n: m[here] for n, m in masks.items()}}
            given: Tensor = cast("Any", self.network).predict(batch)
            logits = given.new_zeros(len(here), self.classes).index_copy(0, here.nonzero()[:, 0], given)
        return Outputs(logits, logits=logits)


@dataclass(frozen=True)
class FusionOutput:
    """What a `MultiHeadFusion` gives for a batch.

    Attributes:
        rows: Modality to the rows that have it, bool (b,), None for all; modalities that no row has are missing.
        features: Modality to features (k, d) of those rows.
        unimodal: Modality to logits (k, c) of those rows.
        full: The rows that have all modalities, None for all.
        fused: Logits (k, c) of the rows that have all modalities; None where there are none.
    """

    rows: Mapping[str, Tensor | None]
    features: Mapping[str, Tensor]
    unimodal: Mapping[str, Tensor]
    full: Tensor | None
    fused: Tensor | None


class MultiHeadFusion(nn.Module):
    """An encoder and a linear head a modality, and a head on all features side by side.

    A row that lacks a modality is predicted from those it has, without imputing: absent inputs are not even encoded.

    Args:
        encoders: Modality to encoder with an attribute `dim`.
        outputs: c.
        hidden: Width of a hidden layer in the head for all; 0 makes it linear.

    Raises:
        ConfigError: If that width is below 0.
        NetworkError: If an encoder does not say its width.
    """

    def __init__(self, encoders: Mapping[str, nn.Module], outputs: int, *, hidden: int = 0) -> None:
        super().__init__()
        if hidden < 0:
            raise ConfigError(f"fusion_hidden must be a width, or 0 for a linear head; received {hidden}")
        widths = {modality: Network(encoder).dim for modality, encoder in encoders.items()}
        self.encoders = nn.ModuleDict(encoders)
        self.heads = nn.ModuleDict({modality: nn.Linear(width, outputs) for modality, width in widths.items()})
        self.dim = sum(widths.values())
        last = nn.Linear(hidden or self.dim, outputs)
        self.fusion = nn.Sequential(nn.Linear(self.dim, hidden), nn.ReLU(), last) if hidden else last

    def forward(self, batch: Batch) -> FusionOutput:
        """Run whatever is present; `batch` as in training, modalities and rows of them may be missing."""
        rows: dict[str, Tensor | None] = {}
        features: dict[str, Tensor] = {}
        full: Tensor | None = None
        for modality, encoder in self.encoders.items():
            mask = present_rows(batch, modality)
            if not enough(mask, encoder):
                continue
            features[modality] = encoded(encoder, take(batch[modality], mask)).features
            rows[modality], full = mask, both(full, mask)
        unimodal = {modality: self.heads[modality](z) for modality, z in features.items()}
        fused = None
        if len(rows) == len(self.encoders) and (full is None or bool(full.any())):
            fused = self.fusion(torch.cat([take(z, within(full, rows[m])) for m, z in features.items()], dim=1))
        return FusionOutput(rows, features, unimodal, full, fused)

    def predict(self, batch: Batch) -> Tensor:
        """Give logits (b, c): of the head for all where a row has all modalities, else the mean of the heads it has.

        Raises:
            DataError: If a row has no modality.
        """
        out = self(batch)
        if out.fused is not None and out.full is None:
            return out.fused
        if not out.unimodal:
            raise DataError(f"the batch has no modality of {', '.join(self.encoders)}")
        n = len(batch[next(iter(out.unimodal))])
        some = next(iter(out.unimodal.values()))
        total, count = some.new_zeros(n, some.shape[1]), some.new_zeros(n, 1)
        for modality, logits in out.unimodal.items():
            mask = out.rows[modality]
            rows = torch.arange(n, device=some.device) if mask is None else mask.nonzero().squeeze(1)
            total = total.index_add(0, rows, logits)
            count = count.index_add(0, rows, torch.ones_like(logits[:, :1]))
        if not bool(count.all()):
            raise DataError(f"row {int((count == 0).nonzero()[0, 0])} of the batch has no modality at all")
        mean = total / count
        if out.fused is None:
            return mean
        assert out.full is not None
        return mean.masked_scatter(out.full.unsqueeze(1), out.fused)
