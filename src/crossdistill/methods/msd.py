"""MSD: a smaller multimodal student that follows its teacher on all modalities together and on each of them alone.

Source: Jin et al. 2021, "Modality-specific Distillation" (v2: "MSD: Saliency-aware Knowledge Distillation for
Multimodal Understanding"), of which title, abstract and introduction were available to us: that there is one auxiliary
term a modality, and the words saliency, weighting and meta-learning, are the authors'. Every equation below, the form
of the five weightings included, is our reconstruction; the weight network follows Meta-Weight-Net (Shu et al. 2019).

Shapes: b rows, c classes (or labels), m modalities.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from crossdistill.errors import ConfigError, CrossDistillError, NetworkError
from crossdistill.methods._clock import Clock, check_choice, check_shares
from crossdistill.methods._rows import Task, known_rows, label_hits, label_rows, mean_over, present_mask
from crossdistill.methods._set_aside import SetAside
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

    Of many labels CE and D are sums of the binary ones. A network made here blanks a modality by giving its encoder the
    mean of the standardised data, 0, in eval mode, so that no blank is in a batch norm's statistics.

    It pays with few labels: in our experiment +4 to +6 points over plain distillation with 200, and -1 with 6000.
    Saliency weights were no better than uniform ones there. The network of "learned" weights shares the stage's
    optimiser and rate, and reads log(1 + loss). The stage's one schedule of the learning rate runs
    through both phases, and one batch may take two optimiser steps, so gradients cannot be accumulated over batches.

    Args:
        encoders: Modality to the student's encoder; all modalities are used.
        classes: Number of classes, >= 2, or of labels, >= 1.
        teacher: A trained network from a mapping (modality to tensor) to logits; it is frozen, and reads 0 in place of
            what is blank if it does not know better. An experiment file names the stage that makes it (of mla, mind,
            mke, mst_distill, msd, or a module of one's own), which learns from all labels. None trains one first, on
            the student's own rows: twins of the encoders from a start of their own under a classifier of hidden layers.
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
        population: Modality to its share, in place of the mean saliency, where the weighting is "population"; to be
            tuned on held-out rows.
        task: "multiclass", labels (b,) of one class a row, or "multilabel", labels (b, c) of 0, 1 and -1 for unknown,
            from Python.
        blank: What a missing modality is in the networks made here: the "mean" sample, "zero" features, or a learnt
            "token" for the features. The paper's choice was not found.
        meta_share: Share of the labelled rows that "learned" sets aside, at least one, at most 512; 0.1.
        meta_rate: Learning rate of its virtual step; 0.1.

    Raises:
        ConfigError: If a parameter is out of range.
    """

    facts: ClassVar[Facts] = Facts(
        name="msd",
        title="a smaller multimodal student follows the teacher on all modalities and on each alone",
        paper="Jin et al. 2021 (MSD); our reconstruction",
        needs=frozenset({"labels", "pairs", "teacher_logits", "fused_teacher"}),
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
        population: dict[str, float] | None = None,
        task: Task = "multiclass",
        blank: Blank = "mean",
        meta_share: float = 0.1,
        meta_rate: float = 0.1,
    ) -> None:
        super().__init__()
        check_choice("task", task, Task)
        _check(classes, task, kd_weight, aux_weight, modality_dropout, meta_share, meta_rate)
        check_choice("weighting", weighting, Weighting)
        check_choice("auxiliary", auxiliary, Auxiliary)
        _check_shares_of(population, weighting, encoders)
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
        self.task: Task = task
        self.shares = None if population is None else torch.tensor([population[name] for name in self.names])
        self.meta_share, self.meta_rate = meta_share, meta_rate
        self.weigher = WeightNetwork(len(self.names), total=aux_weight) if weighting == "learned" else None
        self.clock = Clock()
        self.population: Tensor | None
        self.register_buffer("population", None)
        self._data: StageData | None = None
        self._aside: SetAside | None = None

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

    def as_fused_teacher(self) -> nn.Module:
        """Give the whole student."""
        return self.fused

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
            DataError: If rows are to be set aside, and have no positions or hardly a label.
        """
        self.clock.begin(data)
        self.population = None  # of other data, in a second stage
        self._data = data
        if self.given:
            self._try_teacher(next(iter(data.batches())))
        if self.weighting == "learned":
            self._aside = SetAside(data, self.names, share=self.meta_share, method="msd")

    def after_stage(self, data: StageData) -> None:
        """Let go of the data."""
        self._data, self._aside = None, None

    # The steps -------------------------------------------------------------------------------------------------------

    def training_steps(self, batch: Batch) -> Iterator[Losses]:
        """Train the teacher first; then the student, after a step of the weight network where there is one."""
        if not self.clock.passed(self.teacher_share):
            yield Losses(self._teacher_terms(batch))
        else:
            self.teacher.eval()
            if self.weighting == "population" and self.population is None:
                self.population = self._mean_saliency() if self.shares is None else self.shares
            if self.weigher is not None and self.training:
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
            scores[f"{name}loss"] = mean_over(label_rows(logits, label, self.task), known_rows(label))
            scores[f"{name}accuracy"] = label_hits(logits, label, self.task)
        return scores

    def _teacher_terms(self, batch: Batch) -> dict[str, Tensor]:
        inputs, present, label = self._read(batch)
        here = self._here(batch)
        if self.training:
            kept = here & (torch.rand(here.shape, device=here.device) >= self.modality_dropout)
            here = torch.where(kept.any(dim=1, keepdim=True), kept, here)
        present = dict(zip(self.names, here.T, strict=True))
        (logits,) = logits_of(self.teacher, inputs, [self.names], present)
        known = known_rows(label)
        return {"teacher": mean_over(label_rows(logits, label, self.task), known)} if bool(known.any()) else {}

    def _student_losses(self, batch: Batch) -> Losses:
        inputs, present, label = self._read(batch)
        here = self._here(batch)
        learns = self._learns(batch, here)
        scale = self.aux_weight * (1 - self.clock.progress(self.teacher_share) if self.decay else 1.0)
        keeps: list[Collection[str]] = [self.names, *((name,) for name in self.names if scale)]
        with torch.no_grad():
            theirs = self._teacher_says(inputs, present, bool(scale))
        ours = logits_of(self.fused, inputs, keeps, present)
        known = learns & known_rows(label)
        terms: dict[str, Tensor] = {}
        if self.kd_weight < 1 and bool(known.any()):
            terms["ce"] = (1 - self.kd_weight) * mean_over(label_rows(ours[0], label, self.task), known)
        if self.kd_weight:
            terms["kd"] = self.kd_weight * mean_over(self._apart(ours[0], theirs["all"]), learns)
        if not scale:
            return Losses(terms)
        aux = self._auxiliary(ours[1:], theirs, label)
        w = (scale / self.aux_weight) * self._weights(theirs, label, here, aux).detach()
        for k, name in enumerate(self.names):
            terms[f"msd/{name}"] = mean_over(w[:, k] * aux[:, k], learns)
        return Losses(terms, {f"weight/{name}": w[:, k].mean() for k, name in enumerate(self.names)})

    def _apart(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """Give D of each row, (b,)."""
        return divergence(ours, theirs, tau=self.tau, multilabel=self.task == "multilabel")

    def _saliency(self, theirs: Mapping[str, Tensor]) -> Tensor:
        without = [theirs[f"-{name}"] for name in self.names]
        return saliency(theirs["all"], without, multilabel=self.task == "multilabel")

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
            return torch.stack([label_rows(one, label, self.task) for one in ours], dim=1)
        return torch.stack([self._apart(one, theirs[n]) for n, one in zip(self.names, ours, strict=True)], dim=1)

    def _weights(self, theirs: Mapping[str, Tensor], label: Tensor, here: Tensor, aux: Tensor) -> Tensor:
        """Give the weights (b, m), which sum to `aux_weight` in each row but for the learned ones."""
        if self.weigher is not None:
            return torch.where(here, self.weigher(aux.detach()), 0.0)
        scores = torch.ones_like(aux)
        if self.weighting == "population" and self.population is not None:
            scores = self.population.to(aux).expand_as(aux)
        elif self.weighting == "saliency":
            scores = self._saliency(theirs)
        elif self.weighting == "teacher_loss":
            losses = torch.stack([label_rows(theirs[name], label, self.task) for name in self.names], dim=1)
            scores = (-losses).masked_fill(~here, -math.inf)
            scores = torch.where(known_rows(label)[:, None] & here, scores.softmax(dim=1), 1.0)
        return shared_out(scores, here, total=self.aux_weight)

    @torch.no_grad()
    def _mean_saliency(self) -> Tensor:
        """Give the teacher's mean saliency of each modality over the training rows, (m,)."""
        if self._data is None:
            raise ConfigError("msd: population weights need a stage: train with crossdistill.training.fit")
        total, rows = torch.zeros(len(self.names)), 0
        for batch in self._data.batches():
            inputs, present, label = self._read(batch)
            found = self._saliency(self._teacher_says(inputs, present, True))
            total, rows = total.to(found) + found.sum(dim=0), rows + len(label)
        return total / rows

    # Learned weights -------------------------------------------------------------------------------------------------

    def _meta_step(self, batch: Batch) -> Losses:
        """Give the step of the weight network: its gradient is the closed form's, its value 0.

        The student is in eval mode within: no dropout's noise, and batch norms stay as they are.
        """
        inputs, present, label = self._read(batch)
        if self._aside is None:
            raise ConfigError("msd: learned weights need a stage: train with crossdistill.training.fit")
        assert self.weigher is not None
        here = self._here(batch)
        learns = self._learns(batch, here)
        seen, there, known = self._read(self._aside.draw(len(label)))
        keeps: list[Collection[str]] = [self.names, *((name,) for name in self.names)]
        views, a = _Views(self.fused, keeps), self.kd_weight
        call = cast("Callable[..., list[Tensor]]", torch.func.functional_call)

        def terms(parameters: Parameters) -> tuple[Tensor, Tensor]:
            ours = call(views, parameters, (inputs, present))
            fixed = (1 - a) * label_rows(ours[0], label, self.task) + a * self._apart(ours[0], theirs["all"])
            return fixed * learns, self._auxiliary(ours[1:], theirs, label) * learns[:, None]

        def meta_loss(parameters: Parameters) -> Tensor:
            logits = call(views, parameters, (seen, there))[0]
            return mean_over(label_rows(logits, known, self.task), known_rows(known))

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
        if label is None:
            many = () if self.task == "multiclass" else (self.fused.classes,)
            label = torch.full((len(some), *many), -1, device=some.device)
        return inputs, batch.get("present"), label

    def _here(self, batch: Batch) -> Tensor:
        """Say which modalities a row has, (b, m) bool."""
        return torch.stack([present_mask(batch, name) for name in self.names], dim=1)

    def _learns(self, batch: Batch, here: Tensor) -> Tensor:
        """Say which rows have a modality and are not set aside, (b,) bool."""
        some = here.any(dim=1)
        return some if self._aside is None or "index" not in batch else some & ~self._aside.holds(batch)


class _Views(nn.Module):
    """`logits_of` as a module, whose parameters torch.func can replace."""

    def __init__(self, network: LateFusion, keeps: Sequence[Collection[str]]) -> None:
        super().__init__()
        self.network, self.keeps = network, keeps

    def forward(self, inputs: Mapping[str, Tensor], present: Mapping[str, Tensor] | None) -> list[Tensor]:
        return logits_of(self.network, inputs, self.keeps, present)


def _check_shares_of(population: Mapping[str, float] | None, weighting: str, encoders: Mapping[str, Any]) -> None:
    if population is None:
        return
    fine = set(population) == set(encoders) and all(0 <= share < math.inf for share in population.values())
    if weighting != "population" or not fine or not sum(population.values()):
        raise ConfigError(
            "msd: population gives a share >= 0 for each of "
            f"{', '.join(encoders)}, not all 0, where weighting is population; received {dict(population)}, {weighting}"
        )


def _check(
    classes: int, task: Task, kd: float, aux: float, dropout: float, meta_share: float, meta_rate: float
) -> None:
    fine = classes >= (2 if task == "multiclass" else 1) and 0 <= kd <= 1 and 0 <= aux < math.inf
    if not fine or not 0 <= dropout < 1 or not 0 < meta_share < 1 or not 0 < meta_rate < math.inf:
        raise ConfigError(
            "msd needs classes >= 2 (labels >= 1), kd_weight in [0, 1], aux_weight >= 0, modality_dropout in [0, 1), "
            "meta_share in (0, 1) and meta_rate > 0; received "
            f"{classes}, {kd}, {aux}, {dropout}, {meta_share}, {meta_rate}"
        )
