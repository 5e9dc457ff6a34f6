"""Ensembles of unimodal teachers, one small network with a head for each modality and one for all: MIND.

Source: Guerra-Manzanares and Shamout 2025, "MIND: Modality-Informed Knowledge Distillation Framework for Multimodal
Clinical Prediction Tasks". Only its abstract was available to us. From there are the ensembles of unimodal teachers of
several sizes and the multi-head student; losses, weights, temperature, fusion operator and how an ensemble is averaged
are ours, with defaults measured on a small synthetic problem.

Shapes: b rows, c classes (or labels), d features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossdistill.errors import ConfigError, NetworkError
from crossdistill.methods._clock import Clock, check_choice
from crossdistill.methods._rows import Task, enough, label_hits, label_loss, present_rows, take, within
from crossdistill.methods.base import Batch, Losses, Method, StageData, freeze
from crossdistill.methods.multihead import FusionOutput, MultiHeadFusion, Predicting, TeacherEnsemble
from crossdistill.networks.base import Network, Outputs, Widens, redrawn
from crossdistill.objectives._logits import check_logits
from crossdistill.objectives.base import full_precision
from crossdistill.objectives.cmcd import check_tau
from crossdistill.objectives.msd import divergence
from crossdistill.registry import Facts

# Losses between logits (b, c); the teacher's are detached -----------------------------------------------------------


def kl(student: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
    """Mean over rows of KL(softmax(t / T) || softmax(s / T)) T^2, for classes that exclude each other."""
    return divergence(student, teacher, tau=temperature).mean()


def bce(student: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
    """Mean over rows and labels of BCE(sigmoid(s / T), sigmoid(t / T)) T^2 less its minimum, so that it is 0 at s = t.

    A multilabel teacher's classes do not exclude each other: a softmax over them would be wrong.
    """
    return divergence(student, teacher, tau=temperature, multilabel=True).mean() / student.shape[1]


@full_precision
def mse(student: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
    """Mean squared difference of logits; over-confident teachers dominate it. The temperature is not used."""
    check_logits(student, teacher, name="mse")
    return F.mse_loss(student, teacher.detach())


Divergence = Literal["auto", "kl", "bce", "mse"]
DIVERGENCES: Mapping[str, Callable[[Tensor, Tensor, float], Tensor]] = {"kl": kl, "bce": bce, "mse": mse}


# The method ---------------------------------------------------------------------------------------------------------


class MIND(Method):
    """Distil an ensemble of unimodal teachers a modality into a multimodal student with a head for each and for all.

        w_F l(s_F, y) + sum_m w_m l(s_m, y) + sum_m a_m D(s_m, t_m) + a_F D(s_F, sum_m t_m)

    s are the student's logits, t an ensemble's; each mean is over the rows that have what it is about, and rows that
    lack a modality give the others' terms alone. A teacher supervises the student's encoder of its own modality, which
    a dominant modality therefore cannot starve; raise a weak modality's weights to strengthen it.

    Teachers that saw more than the student (unpaired samples of one modality) are where the gain comes from: give
    them as `teachers`, and keep test samples out of what they saw. Without any, the method trains twins of each encoder
    on labels for the first `alone_share` of the steps, freezes them, and trains the student after that: on the
    student's own samples this gains little, and wider twins gain no more. A multi-head student without teachers
    (`teacher_weight: 0`) is the row to compare with, for its heads help by themselves, and a single-head one
    (`unimodal_weight: 0` too).

    Args:
        encoders: Modality to the student's encoder with an attribute `dim`.
        classes: Number of classes, or of labels.
        teachers: Modality to networks that give logits, trained already; they are frozen. From Python alone.
        widths: How many times as wide as the student's encoder each teacher is, where `teachers` are not given. Three
            of its own width, ours; the abstract says "of varying sizes", as [2, 4, 8] are. Twice the width costs about
            four times the computation, and only encoders of ours can be made wider.
        alone_share: Share of the steps that train them, above 0 and below 1; 0.5, ours.
        reduce: How an ensemble is averaged, see `TeacherEnsemble`; "logits", ours.
        fused_weight: w_F; 1, ours.
        unimodal_weight: w_m, one number or one a modality; 1, ours.
        teacher_weight: a_m, one number or one a modality; 1, ours.
        fused_teacher_weight: a_F; 0, ours. Its teacher is the sum of the ensembles' logits.
        temperature: T of kl and bce; 2, ours.
        divergence: D: "kl" (classes), "bce" (labels), "mse"; "auto" is the one that fits the task.
        task: "multiclass", labels (b,) of one class a row, or "multilabel", labels (b, c) of 0, 1 and -1 for unknown
            (c = 1: binary, (b,) will do).
        fusion_hidden: Width of a hidden layer in the head for all; 0 makes it linear.

    Raises:
        ConfigError: If a parameter is out of range, or modalities have no teacher.
        NetworkError: If an encoder does not say its width, or cannot be made wider.
    """

    facts: ClassVar[Facts] = Facts(
        name="mind",
        title="ensembles of unimodal teachers into one multi-head fusion student",
        paper="Guerra-Manzanares and Shamout 2025 (MIND); our reconstruction from the abstract",
        needs=frozenset({"labels", "pairs"}),
    )

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        *,
        classes: int,
        teachers: Mapping[str, Sequence[nn.Module]] | None = None,
        widths: tuple[int, ...] = (1, 1, 1),
        alone_share: float = 0.5,
        reduce: Literal["logits", "probs"] = "logits",
        fused_weight: float = 1.0,
        unimodal_weight: float | dict[str, float] = 1.0,
        teacher_weight: float | dict[str, float] = 1.0,
        fused_teacher_weight: float = 0.0,
        temperature: float = 2.0,
        divergence: Divergence = "auto",
        task: Task = "multiclass",
        fusion_hidden: int = 0,
    ) -> None:
        super().__init__()
        check_tau(temperature=temperature)
        _check(classes=classes, widths=widths, alone_share=alone_share, task=task, divergence=divergence)
        names = tuple(encoders)
        self.unimodal_weights = _per_modality("unimodal_weight", unimodal_weight, names)
        self.teacher_weights = _per_modality("teacher_weight", teacher_weight, names)
        weights = {"fused_weight": fused_weight, "fused_teacher_weight": fused_teacher_weight}
        self.fused_weight, self.fused_teacher_weight = (_per_modality(k, w, [""])[""] for k, w in weights.items())
        if not any(
            (fused_weight, fused_teacher_weight, *self.unimodal_weights.values(), *self.teacher_weights.values())
        ):
            raise ConfigError("mind has nothing to learn from: set a weight above 0")
        self.task: Task = task
        self.temperature, self.classes = temperature, classes
        kind = ("kl" if task == "multiclass" else "bce") if divergence == "auto" else divergence
        self.divergence = DIVERGENCES[kind]
        self.network = MultiHeadFusion(encoders, classes, hidden=fusion_hidden)
        taught = [m for m in names if self.teacher_weights[m] or self.fused_teacher_weight]
        self.given = teachers is not None
        if teachers is None:
            teachers = {m: [_member(encoders[m], classes, width) for width in widths] for m in taught}
        if lacking := [m for m in taught if not teachers.get(m)]:
            raise ConfigError(f"{', '.join(lacking)} has no teacher; give some, or set teacher_weight to 0 there")
        ensembles = {m: TeacherEnsemble(teachers[m], reduce=reduce, task=task) for m in taught}
        self.ensembles = nn.ModuleDict(ensembles)
        if self.given:
            freeze(self.ensembles)
        self.alone_share = alone_share if taught and not self.given else 0.0
        self.clock = Clock()

    def inputs(self) -> Mapping[str, int]:
        """One view of each modality."""
        return dict.fromkeys(self.network.encoders, 1)

    def teachers(self) -> Mapping[str, nn.Module]:
        """The ensembles by modality, if they were given; those trained here belong to what is saved."""
        return dict(self.ensembles.items()) if self.given else {}

    def student(self, modality: str) -> nn.Module:
        """Give a modality's encoder, which works without the others."""
        if modality not in self.network.encoders:
            known = ", ".join(self.network.encoders)
            raise NetworkError(f"this method trains encoders of {known}, none of '{modality}'")
        return self.network.encoders[modality]

    def as_teacher(self, modality: str) -> nn.Module:
        """Give a modality's encoder with its own head, whose logits may teach."""
        return Network(self.student(modality), head=self.network.heads[modality])

    def as_fused_teacher(self) -> nn.Module:
        """Give the student as one of all modalities; which head answers depends on what a row has."""
        return Predicting(self.network, self.classes)

    def sizes(self) -> dict[str, int]:
        """Count parameters: of the "student", and of the ensemble of each modality that is taught."""
        parts = {"student": self.network, **dict(self.ensembles.items())}
        return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}

    # The two halves, where the teachers are trained here -------------------------------------------------------------

    @property
    def alone(self) -> bool:
        """Whether the ensembles still learn."""
        return not self.clock.passed(self.alone_share)

    def before_stage(self, data: StageData) -> None:
        """Take in how long the stage is."""
        self.clock.begin(data)

    def train(self, mode: bool = True) -> Method:
        """Set training mode for all but ensembles that are frozen."""
        super().train(mode)
        if not self.alone:
            self.ensembles.eval()
        return self

    def after_step(self) -> None:
        """Count the steps; freeze the ensembles when the first half is over."""
        self.clock.tick()
        if not self.alone:
            self.ensembles.eval()

    # Losses ----------------------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch) -> Losses:
        """The student's weighted terms; the ensembles' own, "modality/members", while they learn."""
        if self.alone:
            return Losses(self._members(batch))
        out: FusionOutput = self.network(batch)
        label, terms = self._label(batch), dict[str, Tensor]()
        taught = {m: self._teacher(batch, m, out.rows[m]) for m in out.unimodal if m in self.ensembles}
        for m, logits in out.unimodal.items():
            if w := self.unimodal_weights[m]:
                terms[f"{m}/label"] = w * label_loss(logits, take(label, out.rows[m]), self.task)
            if a := self.teacher_weights[m]:
                terms[f"{m}/teacher"] = a * self.divergence(logits, taught[m], self.temperature)
        if out.fused is not None and self.fused_weight:
            terms["fused/label"] = self.fused_weight * label_loss(out.fused, take(label, out.full), self.task)
        if out.fused is not None and self.fused_teacher_weight:
            each = [take(t, within(out.full, out.rows[m])) for m, t in taught.items()]
            loss = self.divergence(out.fused, torch.stack(each).sum(dim=0), self.temperature)
            terms["fused/teacher"] = self.fused_teacher_weight * loss
        return Losses(terms)

    def held_out_step(self, batch: Batch) -> Mapping[str, Tensor]:
        """Loss and accuracy on labels of every head; "loss" is the sum of the former, the same in both halves."""
        out: FusionOutput = self.network(batch)
        heads = {m: (z, out.rows[m]) for m, z in out.unimodal.items()}
        if out.fused is not None:
            heads["fused"] = out.fused, out.full
        label = self._label(batch)
        known = {name: take(label, rows) for name, (_, rows) in heads.items()}
        losses = {f"{name}/label": label_loss(z, known[name], self.task) for name, (z, _) in heads.items()}
        hits = {f"{name}/accuracy": label_hits(z, known[name], self.task) for name, (z, _) in heads.items()}
        return {**losses, **hits, "loss": torch.stack(list(losses.values())).sum()} if heads else {}

    def _label(self, batch: Batch) -> Tensor:
        """Give the labels, (b,) or (b, c); -1 where none is known."""
        if "label" in batch:
            return batch["label"]
        x: Tensor = batch[next(m for m in self.network.encoders if m in batch)]
        shape = (len(x),) if self.task == "multiclass" else (len(x), self.classes)
        return torch.full(shape, -1, device=x.device)

    def _members(self, batch: Batch) -> dict[str, Tensor]:
        """Give the loss of all members of an ensemble, by modality; they share nothing but the batch."""
        terms: dict[str, Tensor] = {}
        for m, ensemble in self.ensembles.items():
            mask = present_rows(batch, m)
            if enough(mask, ensemble):
                label = take(self._label(batch), mask)
                each = cast("TeacherEnsemble", ensemble).each(take(batch[m], mask))
                terms[f"{m}/members"] = torch.stack([label_loss(z, label, self.task) for z in each]).sum()
        return terms

    def _teacher(self, batch: Batch, modality: str, rows: Tensor | None) -> Tensor:
        """Give an ensemble's logits for some rows, stored or live."""
        stored: Mapping[str, Outputs] = batch.get("stored", {})
        if modality in stored:
            return take(stored[modality].read("logits"), rows)
        with torch.no_grad():
            given: Outputs = self.ensembles[modality](take(batch[modality], rows))
        return given.read("logits")


def _member(encoder: nn.Module, classes: int, width: int) -> nn.Module:
    """Make a teacher that is so many times as wide as an encoder."""
    if width > 1 and not isinstance(encoder, Widens):
        raise NetworkError(
            f"mind: {type(encoder).__name__} cannot be made {width} times as wide, as it is none of our encoders: give "
            "`teachers` in Python, or set widths to ones"
        )
    twin = encoder.widened(width) if isinstance(encoder, Widens) and width > 1 else redrawn(encoder)
    return Network(twin, head=nn.Linear(Network(twin).dim, classes))


def _per_modality(name: str, value: float | dict[str, float], modalities: Sequence[str]) -> dict[str, float]:
    """Spread a weight over modalities.

    Raises:
        ConfigError: If one is missing, too many or out of range.
    """
    found = (
        {m: float(w) for m, w in value.items()} if isinstance(value, dict) else dict.fromkeys(modalities, float(value))
    )
    if set(found) != set(modalities) or not all(math.isfinite(w) and w >= 0 for w in found.values()):
        each = f", or one for each of {', '.join(modalities)}" if all(modalities) else ""
        raise ConfigError(f"{name} must be a number of at least 0{each}; received {value}")
    return found


def _check(*, classes: int, widths: Sequence[int], alone_share: float, task: Any, divergence: Any) -> None:
    """Refuse parameters that are out of range.

    Raises:
        ConfigError: With what was received.
    """
    check_choice("task", task, Task)
    check_choice("divergence", divergence, Divergence)
    few = classes < (2 if task == "multiclass" else 1)
    if few or not widths or min(widths) < 1 or not 0 < alone_share < 1:
        raise ConfigError(
            "mind needs classes >= 2 (labels >= 1), widths >= 1, at least one, and alone_share above 0 and below 1; "
            f"received {classes}, {list(widths)}, {alone_share}"
        )
    if task == "multilabel" and divergence == "kl":
        raise ConfigError("divergence kl is over classes that exclude each other; take bce or mse for multilabel")
