"""MSD: a smaller multimodal student that follows its teacher on all modalities together and on each of them alone.

Source: Jin et al. 2021, "Modality-specific Distillation" (v2: "MSD: Saliency-aware Knowledge Distillation for
Multimodal Understanding"), of which title, abstract and introduction were available to us: that there is one auxiliary
term a modality, and the words saliency, weighting and meta-learning, are the authors'. Every equation below, the form
of the five weightings included, is our reconstruction; the weight network follows Meta-Weight-Net (Shu et al. 2019).

Shapes: b rows, c classes, m modalities.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossdistill.errors import ConfigError, CrossDistillError, DataError, NetworkError
from crossdistill.methods._clock import Clock, check_choice, check_shares
from crossdistill.methods.base import Batch, Losses, Method, StageData, freeze
from crossdistill.networks.base import redrawn
from crossdistill.networks.late_fusion import Blank, LateFusion, logits_of
from crossdistill.networks.taps import evaluated
from crossdistill.objectives.base import no_autocast
from crossdistill.objectives.cmcd import check_tau
from crossdistill.objectives.msd import Parameters, WeightNetwork, divergence, meta_gradient, saliency, shared_out
from crossdistill.registry import Facts

Weighting = Literal["uniform", "population", "saliency", "teacher_loss", "learned"]
Auxiliary = Literal["teacher", "labels"]


class MSD(Method):
    """Distil a multimodal teacher into a multimodal student, joint and modality-specific predictions alike.

        L_i = (1 - a) CE(s(x_i), y_i) + a D(t(x_i), s(x_i)) + sum_m w_im D(t(x_i^m), s(x_i^m))
        D(z_t, z_s) = tau^2 KL(softmax(z_t / tau) || softmax(z_s / tau)),   x_i^m: modality m alone, the others blank

    It pays with few labels: in our experiment +4 to +6 points over plain distillation with 200, and -1 with 6000.
    Saliency weights were no better than uniform ones there. The network of "learned" weights shares the stage's
    optimiser and rate, and reads log(1 + loss). The stage's one schedule of the learning rate runs
    through both phases, and one batch may take two optimiser steps, so gradients cannot be accumulated over batches.

    Args:
        encoders: Modality to the student's encoder; all modalities are used.
        classes: Number of classes, >= 2.
        teacher: A trained network from a mapping (modality to tensor) to logits, for use in Python; it is frozen. None
            trains one first: twins of the encoders from a start of their own under a classifier of hidden layers.
        teacher_share: Share of the steps that train that teacher; 0.5.
        teacher_hidden: Widths of its classifier's hidden layers.
        modality_dropout: Probability that its training leaves a modality out; 0.2, without it the teacher's answers to
            blanked inputs are arbitrary.
        hidden: Widths of the student's classifier's hidden layers; none makes it linear.
        kd_weight: a, in [0, 1]; 0.7 (the paper's is not known).
        aux_weight: What the auxiliary weights of a row sum to; 1 (the paper's is not known). 0 is plain distillation.
        tau: Temperature; 2 (the paper's is not known).
        weighting: "uniform"; "population", in proportion to the mean saliency over the data; "saliency", to a row's
            own; "teacher_loss", softmax over modalities of minus the teacher's cross-entropy on each alone; "learned",
            by a network that lowers the cross-entropy of rows set aside.
        auxiliary: What the auxiliary terms follow: the "teacher", or the true "labels", the control that tells MSD from
            augmentation by blanking.
        decay: Whether the auxiliary weight goes to 0 linearly over the student's steps: with many labels it costs.
        blank: What stands for a missing modality's features in the networks made here: "zero" or a learnt "token".
        meta_share: Share of the rows that "learned" sets aside, at least one, at most 512; 0.1.
        meta_rate: Learning rate of its virtual step; 0.1.

    Raises:
        ConfigError: If a parameter is out of range.
    """

    facts: ClassVar[Facts] = Facts(
        name="msd",
        title="a smaller multimodal student follows the teacher on all modalities and on each alone",
        paper="Jin et al. 2021 (MSD); our reconstruction",
        needs=frozenset({"labels", "pairs"}),
    )

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        *,
        classes: int,
        teacher: nn.Module | None = None,
        teacher_share: float = 0.5,
        teacher_hidden: tuple[int, ...] = (256,),
        modality_dropout: float = 0.2,
        hidden: tuple[int, ...] = (),
        kd_weight: float = 0.7,
        aux_weight: float = 1.0,
        tau: float = 2.0,
        weighting: Weighting = "uniform",
        auxiliary: Auxiliary = "teacher",
        decay: bool = False,
        blank: Blank = "zero",
        meta_share: float = 0.1,
        meta_rate: float = 0.1,
    ) -> None:
        super().__init__()
        _check(classes, kd_weight, aux_weight, modality_dropout, meta_share, meta_rate)
        check_choice("weighting", weighting, Weighting)
        check_choice("auxiliary", auxiliary, Auxiliary)
        check_tau(tau=tau)
        check_shares("msd", teacher_share=teacher_share)
        self.names, self.given = tuple(encoders), teacher is not None
        self.fused = LateFusion(encoders, classes, hidden=hidden, blank=blank)
        twins = {} if teacher is not None else {name: redrawn(encoder) for name, encoder in encoders.items()}
        self.teacher = freeze(teacher) if teacher is not None else LateFusion(
            twins, classes, hidden=teacher_hidden, blank=blank
        )  # fmt: skip
        self.teacher_share = 0.0 if self.given else teacher_share
        self.modality_dropout, self.kd_weight, self.aux_weight, self.tau = modality_dropout, kd_weight, aux_weight, tau
        self.weighting, self.auxiliary, self.decay = weighting, auxiliary, decay
        self.meta_share, self.meta_rate = meta_share, meta_rate
        self.weigher = WeightNetwork(len(self.names), total=aux_weight) if weighting == "learned" else None
        self.clock = Clock()
        self.population: Tensor | None
        self.register_buffer("population", None)
        self._data: StageData | None = None
        self._aside: Tensor | None = None
        self._meta: dict[str, Any] = {}

    def inputs(self) -> Mapping[str, int]:
        """One view of each modality."""
        return dict.fromkeys(self.names, 1)

    def teachers(self) -> Mapping[str, nn.Module]:
        """Give the teacher, if it was given."""
        return {"fused": self.teacher} if self.given else {}

    def student(self, modality: str) -> nn.Module:
        """Give the branch of a modality; `fused` is the whole student, from a mapping to `Outputs`."""
        if modality not in self.names:
            raise NetworkError(f"msd trains a student of {', '.join(self.names)}, none of '{modality}'")
        return self.fused.encoders[modality]

    def train(self, mode: bool = True) -> MSD:
        """Set training mode; a teacher that has been trained stays in eval mode."""
        super().train(mode)
        if self.clock.passed(self.teacher_share):
            self.teacher.eval()
        return self

    def before_stage(self, data: StageData) -> None:
        """Remember how long the stage is, and set rows aside where weights are learnt.

        Raises:
            NetworkError: If the teacher that was given cannot read a mapping from modality to tensor.
            DataError: If rows are to be set aside and have no positions.
        """
        self.clock.begin(data)
        self.population = None  # of other data, in a second stage
        self._data = data
        first = next(iter(data.batches()))
        if self.given:
            self._try_teacher(first)
        if self.weighting == "learned" and "index" not in first:
            raise DataError("msd: learned weights set rows aside by their positions: give batches an `index`")
        if self.weighting == "learned":
            self._set_aside(data)

    def after_stage(self, data: StageData) -> None:
        """Let go of the data."""
        self._data, self._aside, self._meta = None, None, {}

    # The steps -------------------------------------------------------------------------------------------------------

    def training_steps(self, batch: Batch) -> Iterator[Losses]:
        """Train the teacher first; then the student, after a step of the weight network where there is one."""
        if not self.clock.passed(self.teacher_share):
            yield Losses(self._teacher_terms(batch))
        else:
            self.teacher.eval()
            if self.weighting == "population" and self.population is None:
                self.population = self._mean_saliency()
            if self.weigher is not None and self.training and len(batch["label"]) > 0:
                yield self._meta_step(batch)
            yield self._student_losses(batch)
        if self.training:
            self.clock.tick()

    def held_out_step(self, batch: Batch) -> Mapping[str, Tensor]:
        """Cross-entropy ("loss") and accuracy of the student, and of the teacher's prediction."""
        inputs, present, label = self._read(batch)
        scores: dict[str, Tensor] = {}
        for name, network in (("", self.fused), ("teacher_", self.teacher)):
            (logits,) = logits_of(network, inputs, [self.names], present)
            scores[f"{name}loss"] = _mean(_cross_entropy(logits, label), label >= 0)
            scores[f"{name}accuracy"] = _mean((logits.argmax(dim=1) == label).float(), label >= 0)
        return scores

    def _teacher_terms(self, batch: Batch) -> dict[str, Tensor]:
        inputs, present, label = self._read(batch)
        here = self._here(batch)
        if self.training:
            kept = here & (torch.rand(here.shape, device=here.device) >= self.modality_dropout)
            here = torch.where(kept.any(dim=1, keepdim=True), kept, here)
        present = dict(zip(self.names, here.T, strict=True))
        (logits,) = logits_of(self.teacher, inputs, [self.names], present)
        return {"teacher": _mean(_cross_entropy(logits, label), label >= 0)} if bool((label >= 0).any()) else {}

    def _student_losses(self, batch: Batch) -> Losses:
        inputs, present, label = self._read(batch)
        learns, here = ~self._is_aside(batch), self._here(batch)
        scale = self.aux_weight * (1 - self.clock.progress(self.teacher_share) if self.decay else 1.0)
        keeps: list[Collection[str]] = [self.names, *((name,) for name in self.names if scale)]
        with torch.no_grad():
            theirs = self._teacher_says(inputs, present, bool(scale))
        ours = logits_of(self.fused, inputs, keeps, present)
        known = learns & (label >= 0)
        terms: dict[str, Tensor] = {}
        if self.kd_weight < 1 and bool(known.any()):
            terms["ce"] = (1 - self.kd_weight) * _mean(_cross_entropy(ours[0], label), known)
        if self.kd_weight:
            terms["kd"] = self.kd_weight * _mean(divergence(ours[0], theirs["all"], tau=self.tau), learns)
        if not scale:
            return Losses(terms)
        aux = self._auxiliary(ours[1:], theirs, label)
        w = (scale / self.aux_weight) * self._weights(theirs, label, here, aux).detach()
        for k, name in enumerate(self.names):
            terms[f"msd/{name}"] = _mean(w[:, k] * aux[:, k], learns)
        return Losses(terms, {f"weight/{name}": w[:, k].mean() for k, name in enumerate(self.names)})

    def _teacher_says(
        self, inputs: Mapping[str, Tensor], present: Mapping[str, Tensor] | None, views: bool
    ) -> dict[str, Tensor]:
        """Give the teacher's logits for "all", each modality alone and, as "-name", without each."""
        keeps: dict[str, tuple[str, ...]] = {"all": self.names}
        if views:
            keeps |= {name: (name,) for name in self.names}
        if views and self.weighting in ("saliency", "population"):
            keeps |= {f"-{name}": tuple(n for n in self.names if n != name) for name in self.names}
        return dict(zip(keeps, logits_of(self.teacher, inputs, list(keeps.values()), present), strict=True))

    def _auxiliary(self, ours: Sequence[Tensor], theirs: Mapping[str, Tensor], label: Tensor) -> Tensor:
        """Give the auxiliary terms (b, m)."""
        if self.auxiliary == "labels":
            known = (label >= 0).to(ours[0].dtype)
            return torch.stack([known * _cross_entropy(one, label) for one in ours], dim=1)
        return torch.stack(
            [divergence(one, theirs[n], tau=self.tau) for n, one in zip(self.names, ours, strict=True)], dim=1
        )

    def _weights(self, theirs: Mapping[str, Tensor], label: Tensor, here: Tensor, aux: Tensor) -> Tensor:
        """Give the weights (b, m), which sum to `aux_weight` in each row but for the learned ones."""
        if self.weigher is not None:
            return torch.where(here, self.weigher(aux.detach()), 0.0)
        scores = torch.ones_like(aux)
        if self.weighting == "population" and self.population is not None:
            scores = self.population.to(aux.dtype).expand_as(aux)
        elif self.weighting == "saliency":
            scores = saliency(theirs["all"], [theirs[f"-{name}"] for name in self.names])
        elif self.weighting == "teacher_loss":
            losses = torch.stack([_cross_entropy(theirs[name], label) for name in self.names], dim=1)
            scores = (-losses).masked_fill(~here, -math.inf)
            scores = torch.where((label >= 0)[:, None] & here, scores.softmax(dim=1), 1.0)
        return shared_out(scores, here, total=self.aux_weight)

    @torch.no_grad()
    def _mean_saliency(self) -> Tensor:
        """Give the teacher's mean saliency of each modality over the training rows, (m,)."""
        if self._data is None:
            raise ConfigError("msd: population weights need a stage: train with crossdistill.training.fit")
        total, rows = torch.zeros(len(self.names)), 0
        for batch in self._data.batches():
            inputs, present, label = self._read(batch)
            theirs = self._teacher_says(inputs, present, True)
            found = saliency(theirs["all"], [theirs[f"-{name}"] for name in self.names])
            total, rows = total.to(found) + found.sum(dim=0), rows + len(label)
        return total / rows

    # Learned weights -------------------------------------------------------------------------------------------------

    def _set_aside(self, data: StageData) -> None:
        """Choose the meta rows: a random choice that torch's seeded generator makes, the same in a resumed stage."""
        count = min(512, max(1, round(self.meta_share * len(data))))
        aside = torch.zeros(len(data), dtype=torch.bool)
        aside[torch.randperm(len(data))[:count]] = True
        self._aside, self._meta = aside, {}
        held: dict[str, list[Tensor]] = {}
        for batch in data.batches():
            chosen = self._is_aside(batch)
            for name in (*self.names, "label"):
                held.setdefault(name, []).append(batch[name][chosen])
            held.setdefault("present", []).append(self._here(batch)[chosen])
        self._meta = {name: torch.cat(parts) for name, parts in held.items()}

    def _is_aside(self, batch: Batch) -> Tensor:
        """Say which rows of a batch are set aside, (b,) bool."""
        none = torch.zeros(len(batch["label"]), dtype=torch.bool, device=batch["label"].device)
        if self._aside is None or "index" not in batch:
            return none
        index: Tensor | Mapping[str, Tensor] = batch["index"]
        index = index if isinstance(index, Tensor) else index[self.names[-1]]
        return self._aside.to(index.device)[index]

    def _meta_step(self, batch: Batch) -> Losses:
        """Give the step of the weight network: its gradient is the closed form's, its value 0.

        The student is in eval mode within: no dropout's noise, and batch norms stay as they are.
        """
        inputs, present, label = self._read(batch)
        if not self._meta:
            raise ConfigError("msd: learned weights need a stage: train with crossdistill.training.fit")
        assert self.weigher is not None
        learns, here = ~self._is_aside(batch), self._here(batch)
        count = len(self._meta["label"])
        rows = torch.randint(count, (min(len(label), count),), device=self._meta["label"].device)
        meta = {name: value[rows].to(label.device) for name, value in self._meta.items()}
        seen = {name: meta[name] for name in self.names}
        there = dict(zip(self.names, meta["present"].T, strict=True))
        keeps: list[Collection[str]] = [self.names, *((name,) for name in self.names)]
        views, a = _Views(self.fused, keeps), self.kd_weight
        call = cast("Callable[..., list[Tensor]]", torch.func.functional_call)

        def terms(parameters: Parameters) -> tuple[Tensor, Tensor]:
            ours = call(views, parameters, (inputs, present))
            ce = torch.where(label >= 0, _cross_entropy(ours[0], label), 0.0)
            fixed = (1 - a) * ce + a * divergence(ours[0], theirs["all"], tau=self.tau)
            return fixed * learns, self._auxiliary(ours[1:], theirs, label) * learns[:, None]

        def meta_loss(parameters: Parameters) -> Tensor:
            logits = call(views, parameters, (seen, there))[0]
            return _mean(_cross_entropy(logits, meta["label"]), meta["label"] >= 0)

        parameters = {name: p.detach() for name, p in views.named_parameters() if p.requires_grad}
        with evaluated(self.fused), no_autocast(label):
            with torch.no_grad():
                theirs = self._teacher_says(inputs, present, True)
                aux = terms(parameters)[1]
            weights = torch.where(here, self.weigher(aux), 0.0)
            gradient = meta_gradient(terms, meta_loss, parameters, weights, rate=self.meta_rate)
        return Losses({"meta": ((weights - weights.detach()) * gradient.detach()).sum()})

    def _try_teacher(self, batch: Batch) -> None:
        inputs, present, _ = self._read(batch)
        try:
            with torch.no_grad():
                logits_of(self.teacher, inputs, [self.names], present)
        except CrossDistillError:
            raise
        except Exception as error:  # whatever a network does with what it cannot read
            raise NetworkError(
                "msd: the teacher must give logits for a mapping from modality to tensor, as only a network given in "
                f"Python does; leave it out to train one here ({type(error).__name__}: {error})"
            ) from error

    # What a batch holds ----------------------------------------------------------------------------------------------

    def _read(self, batch: Batch) -> tuple[dict[str, Tensor], Mapping[str, Tensor] | None, Tensor]:
        """Give inputs, presence and labels, -1 where a row's is not known."""
        inputs: dict[str, Tensor] = {name: batch[name] for name in self.names if name in batch}
        label: Tensor | None = batch.get("label")
        some = next(iter(inputs.values()))
        label = torch.full((len(some),), -1, device=some.device) if label is None else label
        return inputs, batch.get("present"), label

    def _here(self, batch: Batch) -> Tensor:
        """Say which modalities a row has, (b, m) bool."""
        _, present, label = self._read(batch)
        every, none = torch.ones_like(label, dtype=torch.bool), torch.zeros_like(label, dtype=torch.bool)
        found = [(present or {}).get(name, every) if name in batch else none for name in self.names]
        return torch.stack(found, dim=1)


class _Views(nn.Module):
    """`logits_of` as a module, whose parameters torch.func can replace."""

    def __init__(self, network: LateFusion, keeps: Sequence[Collection[str]]) -> None:
        super().__init__()
        self.network, self.keeps = network, keeps

    def forward(self, inputs: Mapping[str, Tensor], present: Mapping[str, Tensor] | None) -> list[Tensor]:
        return logits_of(self.network, inputs, self.keeps, present)


def _cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy of each row, (b,); anything where the label is not known."""
    return F.cross_entropy(logits.float() if logits.itemsize < 4 else logits, label.clamp(min=0), reduction="none")


def _mean(values: Tensor, rows: Tensor) -> Tensor:
    """Mean over the rows that count, (b,) bool; 0, with a graph, if none does."""
    return torch.where(rows, values, 0.0).sum() / rows.sum().clamp(min=1)


def _check(classes: int, kd: float, aux: float, dropout: float, meta_share: float, meta_rate: float) -> None:
    fine = classes >= 2 and 0 <= kd <= 1 and 0 <= aux < math.inf
    if not fine or not 0 <= dropout < 1 or not 0 < meta_share < 1 or not 0 < meta_rate < math.inf:
        raise ConfigError(
            "msd needs classes >= 2, kd_weight in [0, 1], aux_weight >= 0, modality_dropout in [0, 1), meta_share in "
            f"(0, 1) and meta_rate > 0; received {classes}, {kd}, {aux}, {dropout}, {meta_share}, {meta_rate}"
        )
