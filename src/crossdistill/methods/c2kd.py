"""C2KD: teacher and student both learn, by way of proxies, from the samples on whose ranking of classes they agree.

Source: Huo et al. 2024, "C2KD: Bridging the Modality Gap for Cross-Modal Knowledge Distillation". The paper was not
available to us: the equations below are those of two public re-implementations of the training loop that agree with
each other.

Shapes: b rows, c classes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossdistill.errors import ConfigError, DataError, NetworkError
from crossdistill.methods._clock import Clock, check_choice, check_shares
from crossdistill.methods._rows import label_hits, label_loss, present_mask
from crossdistill.methods.base import Batch, Losses, Method, StageData
from crossdistill.networks.base import Network, encoded, least_rows
from crossdistill.objectives.base import full_precision
from crossdistill.objectives.c2kd import Form, kendall_tau, nontarget_kl
from crossdistill.registry import Facts

Average = Literal["all", "kept"]


class Proxy(nn.Module):
    """What stands between a network and its partner: linear, batch norm, leaky ReLU 0.1, linear to the classes.

    Args:
        dim: Width of the network's features; a 1x1 convolution after average pooling is this linear layer.
        classes: Width of the logits.
    """

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(dim, dim), nn.BatchNorm1d(dim), nn.LeakyReLU(0.1), nn.Linear(dim, classes)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Give logits (b, c) of features (b, dim)."""
        return self.layers(features)


@full_precision
def bidirectional(logits: Tensor, proxy: Tensor) -> Tensor:
    """Pull a network and its proxy together: KL(logits || sg proxy) + KL(proxy || sg logits) as nets learn, nats.

    Args:
        logits: (b, c) of the network.
        proxy: (b, c) of its proxy.

    Returns:
        Scalar: mean over rows of KL(sg p || p_proxy) + KL(sg p_proxy || p).
    """
    p, q = logits.log_softmax(dim=1), proxy.log_softmax(dim=1)
    towards = F.kl_div(q, p.detach(), reduction="batchmean", log_target=True)
    return towards + F.kl_div(p, q.detach(), reduction="batchmean", log_target=True)


def gated_mean(rows: Tensor, kept: Tensor, *, average: Average = "all") -> Tensor:
    """Average (b,) values over the rows that a gate keeps, (b,) bool.

    "all" divides by b, rejected rows too, as the re-implementations do: the fewer agree, the weaker the distillation.
    "kept" divides by the number that agree; none gives 0.
    """
    count = len(rows) if average == "all" else int(kept.sum())
    return torch.where(kept, rows, 0.0).sum() / max(1, count)


class C2KD(Method):
    """Let a teacher of the source and a student of the target teach each other.

        loss = CE(t, y) + CE(s, y) + P(t, t^) + P(s, s^) + mean_i m_i NT(s^ <- t^)_i + mean_i m_i NT(t^ <- s^)_i
        P(z, z^) = KL(sg z || z^) + KL(sg z^ || z)
        m_i = 1 where Kendall's tau-b of t^_i and s^_i is above kappa;  NT(u <- v): non-target KL(sg v || u)

    t^ and s^ are the logits of proxies on the features. All temperatures are 1. Both networks change, so the teacher's
    accuracy drifts. In our comparison on small digits, labels for every pair, C2KD was at or below no
    distillation; so it is in half of the columns of a published comparison.

    Args:
        encoders: Modality to encoder; those of source and target are used.
        source: Modality of the teacher.
        target: Modality of the student.
        classes: Number of classes, >= 2.
        teacher: A trained network of the source, with features and logits; a copy of it goes on learning. None starts
            from the source's encoder.
        warm: Share of the steps in which both learn from labels alone, so that the teacher knows something; 0. The
            published loop starts from a trained teacher.
        kappa: Least rank correlation, exclusive, in [-1, 1]; 0. 1 masks every row.
        removal: How the own class leaves a row of logits: "published" sets its logit to 0, and it stays in the softmax;
            "removed" takes it out (nothing is left to compare with two classes).
        average: Over "all" rows, as published, or over the "kept" ones.
        proxy_weight: Of the terms between networks and their proxies; 1.
        weight: Of the two gated terms; 1.

    Raises:
        ConfigError: If a parameter is out of range.
        NetworkError: If a teacher that is given does not say its width.
    """

    facts: ClassVar[Facts] = Facts(
        name="c2kd",
        title="teacher and student teach each other where they rank the classes alike",
        paper="Huo et al. 2024 (C2KD), by two public re-implementations",
        needs=frozenset({"labels", "pairs", "teacher_logits"}),
    )

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        *,
        source: str,
        target: str,
        classes: int,
        teacher: nn.Module | None = None,
        warm: float = 0.0,
        kappa: float = 0.0,
        removal: Form = "published",
        average: Average = "all",
        proxy_weight: float = 1.0,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        _check(encoders, source, target, classes, kappa, (proxy_weight, weight))
        check_shares("c2kd", warm=warm)
        check_choice("removal", removal, Form)
        check_choice("average", average, Average)
        self.source, self.target = source, target
        student = Network(encoders[target], head=nn.Linear(Network(encoders[target]).dim, classes))
        own = Network(encoders[source], head=nn.Linear(Network(encoders[source]).dim, classes))
        first = own if teacher is None else copy.deepcopy(teacher).requires_grad_(True)
        self.networks = nn.ModuleDict({source: first, target: student})
        width: Any = getattr(first, "dim", None)
        if not isinstance(width, int):
            raise NetworkError("c2kd: the teacher must say the width of its features as `dim`, and give logits too")
        self.proxies = nn.ModuleDict({source: Proxy(width, classes), target: Proxy(student.dim, classes)})
        self.warm, self.kappa = warm, kappa
        self.removal: Form = removal
        self.average: Average = average
        self.proxy_weight, self.weight = proxy_weight, weight
        self.clock = Clock()

    def inputs(self) -> Mapping[str, int]:
        """One view of source and target."""
        return {self.source: 1, self.target: 1}

    def student(self, modality: str) -> nn.Module:
        """Give the encoder of source or target, without head and proxy."""
        network = self.as_teacher(modality)
        inner: Any = getattr(network, "encoder", network)
        return cast("nn.Module", inner)

    def as_teacher(self, modality: str) -> nn.Module:
        """Give the network of source or target with its logits."""
        if modality not in self.networks:
            raise NetworkError(f"c2kd trains networks of {self.source} and {self.target}, none of '{modality}'")
        return self.networks[modality]

    def before_stage(self, data: StageData) -> None:
        """Learn how long the stage is."""
        self.clock.begin(data)

    def after_step(self) -> None:
        """Count the steps."""
        self.clock.tick()

    def training_step(self, batch: Batch) -> Losses:
        """Cross-entropies, and after the warm-up the terms between networks, proxies and partners."""
        label: Tensor = batch["label"]
        joint = self.clock.passed(self.warm) or not self.training
        terms: dict[str, Tensor] = {}
        proxies: dict[str, Tensor] = {}
        for name in (self.source, self.target):
            here = present_mask(batch, name)
            if self.training and joint and len(here) < 2:
                raise DataError(f"c2kd: a proxy's batch norm needs two rows of '{name}' in a batch; it has one")
            if int(here.sum()) < max(least_rows(self.networks[name]), 2 if self.training and joint else 1):
                continue
            whole = bool(here.all())
            x, y = (batch[name], label) if whole else (batch[name][here], label[here])
            given = encoded(self.networks[name], x)
            logits = given.read("logits")
            terms[f"ce/{name}"] = label_loss(logits, y)
            if not joint:
                continue
            proxy = self.proxies[name](given.features)
            if self.proxy_weight:
                terms[f"proxy/{name}"] = self.proxy_weight * bidirectional(logits, proxy)
            proxies[name] = proxy if whole else _scattered(proxy, here)
        logged: dict[str, Tensor] = {}
        if len(proxies) == 2 and self.weight:
            self._gated(batch, label, proxies, terms, logged)
        return Losses(terms, logged)

    def _gated(
        self,
        batch: Batch,
        label: Tensor,
        proxies: Mapping[str, Tensor],
        terms: dict[str, Tensor],
        logged: dict[str, Tensor],
    ) -> None:
        """Add what the two proxies learn from each other, on rows that have both modalities."""
        both = present_mask(batch, self.source) & present_mask(batch, self.target)
        if not bool(both.any()):
            return
        t, s, y = proxies[self.source][both], proxies[self.target][both], label[both]
        kept = kendall_tau(s, t) > self.kappa
        for name, u, v in ((self.target, s, t), (self.source, t, s)):
            rows = nontarget_kl(u, v.detach(), y, form=self.removal)
            terms[f"nontarget/{name}"] = self.weight * gated_mean(rows, kept, average=self.average)
        logged["kept"] = kept.float().mean()

    def held_out_step(self, batch: Batch) -> Mapping[str, Tensor]:
        """All terms, with the student's cross-entropy as "loss", and both accuracies."""
        losses = self.training_step(batch)
        scores = {**losses.terms, **(losses.logged or {})}
        for name in (n for n in (self.source, self.target) if n in batch):
            logits = encoded(self.networks[name], batch[name]).read("logits")
            known = batch["label"].where(present_mask(batch, name), -1)
            scores[f"accuracy/{name}"] = label_hits(logits, known)
        if f"ce/{self.target}" in scores:
            scores["loss"] = scores[f"ce/{self.target}"]
        return scores


def _scattered(rows: Tensor, here: Tensor) -> Tensor:
    """Put rows back to their places in the batch, zeros elsewhere."""
    return rows.new_zeros(len(here), rows.shape[1]).index_copy(0, here.nonzero().flatten(), rows)


def _check(
    encoders: Mapping[str, nn.Module],
    source: str,
    target: str,
    classes: int,
    kappa: float,
    weights: tuple[float, ...],
) -> None:
    if source not in encoders or target not in encoders or source == target:
        raise ConfigError(
            f"c2kd: source and target are two of {', '.join(encoders)}; received '{source}' and '{target}'"
        )
    if classes < 2 or not -1 <= kappa <= 1 or not all(0 <= weight < math.inf for weight in weights):
        raise ConfigError(
            "c2kd needs classes >= 2, kappa in [-1, 1] and weights >= 0; received "
            f"{classes}, {kappa}, {', '.join(map(str, weights))}"
        )
