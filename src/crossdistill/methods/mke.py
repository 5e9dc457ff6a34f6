"""MKE: a teacher of one modality labels pairs, and a multimodal student under noise learns from that, and better.

Source: Xue et al. 2021, "Multimodal Knowledge Expansion": Algorithm 1 as the authors' project page shows it (equations
1 to 5), and what the released two-moon notebook does. The body of the paper was not available to us. That perturbation
and consistency collapse to one term, the perturbed student on the teacher's labels, is second-hand, and what the
notebook runs; the consistency term of equation 5 is an option.

Shapes: b rows, n pairs of the stage, c classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossdistill.errors import ConfigError, DataError, NetworkError
from crossdistill.methods._clock import Clock, check_choice, check_shares
from crossdistill.methods.base import Batch, Losses, Method, StageData, freeze, index_of
from crossdistill.networks.base import Network, Outputs, as_outputs, least_rows, redrawn
from crossdistill.networks.late_fusion import Alone, LateFusion
from crossdistill.networks.taps import evaluated
from crossdistill.objectives.base import full_precision
from crossdistill.registry import Facts

PseudoLabels = Literal["hard", "soft"]


@full_precision
def pseudo_label_loss(student: Tensor, probabilities: Tensor, *, soft: bool = False) -> Tensor:
    """Compare logits (b, c) with a teacher's probabilities (b, c), row by row, (b,) nats.

    Hard: cross-entropy with the teacher's most probable class. Soft: KL(teacher || student).
    """
    probabilities = probabilities.detach()
    if not soft:
        return F.cross_entropy(student, probabilities.argmax(dim=1), reduction="none")
    return torch.xlogy(probabilities, probabilities).sum(dim=1) - (probabilities * student.log_softmax(dim=1)).sum(
        dim=1
    )


def corrections(teacher: Tensor, student: Tensor, label: Tensor) -> dict[str, int]:
    """Count how a student differs from the teacher that labelled its data: whether it rectifies, which is the claim.

    Args:
        teacher: Its predicted classes (n,).
        student: The student's (n,).
        label: The true ones (n,); rows with -1 do not count.

    Returns:
        "both_right", "both_wrong", "rectified" (teacher wrong, student right) and "spoilt" (the other way round).
    """
    known = label >= 0
    was, now = (teacher == label)[known], (student == label)[known]
    counts = {"both_right": was & now, "both_wrong": ~was & ~now, "rectified": ~was & now, "spoilt": was & ~now}
    return {name: int(which.sum()) for name, which in counts.items()}


class MKE(Method):
    """Expand a teacher of one modality into a student of all of them, without further labels.

        1. teacher   f_t = argmin CE(y, f_t(x_source))                          on the rows whose label is known
        2. labels    p_i = softmax f_t(x_source,i)                              once, on unperturbed samples
        3. student   argmin mean_i l(p_i, T f_s(x_i)) + gamma mean_i |softmax f_s(x_i) - softmax T f_s(x_i)|^2

    T perturbs: the stage's augmentation, noise on every input, and dropout. Without it a student merely copies the
    teacher. No true label is read in steps 2 and 3. Every pair is learnt from, labelled ones too, by what the teacher
    says of them. A student of a further modality alone may do as well: compare with it, the source is a shortcut to the
    teacher's errors.

    The teacher is given (an experiment file names its stage), or trained here on the known labels of the stage's rows,
    -1 in the others: `fit(..., labels=True)`. The stage's one schedule of the learning rate runs through both phases.
    Which epoch is best cannot be told by agreement with the teacher, which rewards copying: keep the last.

    Args:
        encoders: Modality to the student's encoder; all modalities are used.
        source: The modality that the teacher reads.
        classes: Number of classes, >= 2.
        teacher: A network of the source that gives logits; it is frozen. None trains one: a twin of the source's
            encoder from a start of its own, under a classifier like the student's.
        teacher_share: Share of the steps that train that teacher; 0.3.
        labels: "hard", the teacher's most probable class (what the notebook does), or "soft", its probabilities.
        threshold: Least probability of the teacher's class for a row to count; 0 takes all, as the notebook does.
        input_noise: Standard deviation of the Gaussian noise on every input, in units of the standardised input (the
            notebook's 1 is relative to the mean absolute value), or one for each modality; 0.5.
        dropout: Share of units silenced in the student's classifier; 0.2.
        hidden: Widths of the classifiers' hidden layers; none makes them linear.
        consistency: gamma; 0, as perturbed labels alone are said to be the same thing.
        start_from_teacher: Whether the student's source branch starts with the weights of the teacher's encoder.

    Raises:
        ConfigError: If a parameter is out of range.
        NetworkError: If the branch is to start from a teacher whose encoder is another one.
    """

    facts: ClassVar[Facts] = Facts(
        name="mke",
        title="a teacher of one modality labels the pairs, a multimodal student under noise learns from that",
        paper="Xue et al. 2021 (MKE), Algorithm 1",
        needs=frozenset({"pairs", "index", "teacher_logits", "labels_or_teacher"}),
    )

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        *,
        source: str,
        classes: int,
        teacher: nn.Module | None = None,
        teacher_share: float = 0.3,
        labels: PseudoLabels = "hard",
        threshold: float = 0.0,
        input_noise: float | dict[str, float] = 0.5,
        dropout: float = 0.2,
        hidden: tuple[int, ...] = (),
        consistency: float = 0.0,
        start_from_teacher: bool = False,
    ) -> None:
        super().__init__()
        noise = input_noise if isinstance(input_noise, dict) else dict.fromkeys(encoders, input_noise)
        _check(encoders, source, classes, threshold, consistency, noise)
        check_choice("labels", labels, PseudoLabels)
        check_shares("mke", teacher_share=teacher_share)
        self.names, self.source, self.given = tuple(encoders), source, teacher is not None
        self.fused = LateFusion(encoders, classes, hidden=hidden, dropout=dropout)
        self.teacher = freeze(teacher) if teacher is not None else _teacher(encoders[source], classes, hidden, dropout)
        self.teacher_share = 0.0 if self.given else teacher_share
        self.soft, self.threshold, self.consistency = labels == "soft", threshold, consistency
        self.noise, self.start_from_teacher = {name: noise.get(name, 0.0) for name in encoders}, start_from_teacher
        self.clock = Clock()
        self.pseudo: Tensor | None
        self.register_buffer("pseudo", None)
        self._data: StageData | None = None
        if start_from_teacher and self.given:
            self._start_branch()

    def inputs(self) -> Mapping[str, int]:
        """One view of each modality."""
        return dict.fromkeys(self.names, 1)

    def teachers(self) -> Mapping[str, nn.Module]:
        """Give the teacher, if it was given."""
        return {self.source: self.teacher} if self.given else {}

    def student(self, modality: str) -> nn.Module:
        """Give the branch of a modality; `fused` is the whole student, `alone` the whole with the others blank."""
        if modality not in self.names:
            raise NetworkError(f"mke trains a student of {', '.join(self.names)}, none of '{modality}'")
        return self.fused.encoders[modality]

    def alone(self, modality: str) -> nn.Module:
        """Give the student with all other modalities blank, from (b, ...) to features and logits."""
        self.student(modality)
        return Alone(self.fused, modality)

    def train(self, mode: bool = True) -> MKE:
        """Set training mode; a teacher that has been trained stays in eval mode."""
        super().train(mode)
        if self.clock.passed(self.teacher_share):
            self.teacher.eval()
        return self

    def before_stage(self, data: StageData) -> None:
        """Remember the data; a teacher that has none to learn from is refused.

        Raises:
            DataError: If no teacher is given and no label is known, or rows have no positions.
        """
        self.clock.begin(data)
        self.pseudo = None  # of other data, in a second stage
        self._data = data
        first = next(iter(data.batches()))
        if "index" not in first:
            raise DataError("mke labels pairs once, and needs their positions: give batches an `index`")
        if not self.given and ("label" not in first or not any(bool((b["label"] >= 0).any()) for b in data.batches())):
            raise DataError(
                "mke has no teacher, and no label is known to train one: name a teacher of the source, or train with "
                "fit(..., labels=True) on rows of which some have a label"
            )

    def after_stage(self, data: StageData) -> None:
        """Let go of the data."""
        self._data = None

    # The steps -------------------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch) -> Losses:
        """Train the teacher on known labels first; then the student on what the teacher says of the pairs."""
        if self.training and not self.clock.passed(self.teacher_share):
            return self._teacher_losses(batch)
        if self.training:
            self.teacher.eval()
            if self.pseudo is None:
                self._begin_student()
        return self._student_losses(batch)

    def after_step(self) -> None:
        """Count the steps."""
        self.clock.tick()

    def held_out_step(self, batch: Batch) -> Mapping[str, Tensor]:
        """Loss against the teacher's labels, how often the two agree, and where labels are known both accuracies."""
        probabilities, counts = self._label(batch)
        logits = self._student(batch, perturbed=False)
        losses = pseudo_label_loss(logits, probabilities, soft=self.soft)
        said, own, label = probabilities.argmax(dim=1), logits.argmax(dim=1), batch.get("label")
        scores = {"loss": _mean(losses, counts), "agreement": _mean((said == own).float(), counts)}
        if label is not None:
            scores["accuracy"] = _mean((own == label).float(), label >= 0)
            scores["teacher_accuracy"] = _mean((said == label).float(), label >= 0)
        return scores

    def _teacher_losses(self, batch: Batch) -> Losses:
        label: Tensor = batch["label"]
        there = self._has_source(batch)
        known = label[there] >= 0
        if not bool(known.any()) or len(known) < least_rows(self.teacher):
            return Losses({})
        # all rows pass through it: few have a label, and a batch norm needs more
        logits = as_outputs(self.teacher(batch[self.source][there])).read("logits")
        return Losses({"teacher": F.cross_entropy(_full(logits[known]), label[there][known])})

    def _student_losses(self, batch: Batch) -> Losses:
        probabilities, counts = self._label(batch) if self.pseudo is None else self._stored(batch)
        counts = counts & (probabilities.amax(dim=1) >= self.threshold)
        perturbed = self._student(batch, perturbed=True)
        losses = pseudo_label_loss(perturbed, probabilities, soft=self.soft)
        terms = {"pseudo": _mean(losses, counts)}
        with evaluated(self.fused), torch.set_grad_enabled(self.consistency > 0 and torch.is_grad_enabled()):
            clean = self._student(batch, perturbed=False)
        if self.consistency:
            change = (clean.softmax(dim=1) - perturbed.softmax(dim=1)).square().sum(dim=1)
            terms["consistency"] = self.consistency * change.mean()
        flips = (clean.argmax(dim=1) != perturbed.argmax(dim=1)).float().mean()
        return Losses(terms, {"flips": flips, "labelled": counts.float().mean()})

    def _student(self, batch: Batch, *, perturbed: bool) -> Tensor:
        """Give the student's logits (b, c), on noisy inputs where they are to be perturbed."""
        inputs = {name: batch[name] for name in self.names if name in batch}
        if perturbed:
            noisy = {name: x + self.noise[name] * torch.randn_like(x) for name, x in inputs.items() if self.noise[name]}
            inputs = {**inputs, **noisy}
        return _full(self.fused(inputs, batch.get("present")).read("logits"))

    # The teacher's labels --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _begin_student(self) -> None:
        """Label every pair once, on samples as they are, and start the source's branch if that is wanted."""
        if self._data is None:
            raise ConfigError("mke labels pairs when its stage begins: train with crossdistill.training.fit")
        if self.start_from_teacher and not self.given:
            self._start_branch()
        pseudo: Tensor | None = None
        for batch in self._data.batches():
            probabilities, counts = self._label(batch)
            if pseudo is None:
                pseudo = probabilities.new_zeros(len(self._data), probabilities.shape[1])
            pseudo[index_of(batch, self.source)] = torch.where(counts[:, None], probabilities, 0.0)
        self.pseudo = pseudo

    @torch.no_grad()
    def _label(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Give the teacher's probabilities (b, c) now, and which rows it can say something of."""
        if self.given:
            outputs = self.teacher_outputs(batch, self.source)
        else:
            outputs: Outputs = as_outputs(self.teacher(batch[self.source]))  # in eval mode by now
        return _full(outputs.read("logits")).softmax(dim=1), self._has_source(batch)

    def _stored(self, batch: Batch) -> tuple[Tensor, Tensor]:
        assert self.pseudo is not None
        probabilities = self.pseudo[index_of(batch, self.source)]
        return probabilities, probabilities.sum(dim=1) > 0

    def _has_source(self, batch: Batch) -> Tensor:
        here: Tensor | None = batch.get("present", {}).get(self.source)
        some = batch[next(name for name in self.names if name in batch)]
        return torch.ones(len(some), dtype=torch.bool, device=some.device) if here is None else here

    def _start_branch(self) -> None:
        """Copy the teacher's encoder into the student's branch of the source."""
        inner: Any = getattr(self.teacher, "encoder", self.teacher)
        try:
            self.fused.encoders[self.source].load_state_dict(cast("nn.Module", inner).state_dict())
        except RuntimeError:
            raise NetworkError(
                f"mke: start_from_teacher needs a teacher with the encoder of '{self.source}', and it has another"
            ) from None


def _teacher(encoder: nn.Module, classes: int, hidden: tuple[int, ...], dropout: float) -> Network:
    """Make a network of one modality with a classifier like the student's."""
    twin = redrawn(encoder)
    alone = LateFusion({"one": twin}, classes, hidden=hidden, dropout=dropout)
    return Network(twin, head=alone.classifier)


def _full(logits: Tensor) -> Tensor:
    return logits.float() if logits.itemsize < 4 else logits


def _mean(values: Tensor, rows: Tensor) -> Tensor:
    """Mean over the rows that count, (b,) bool; 0, with a graph, if none does."""
    return torch.where(rows, values, 0.0).sum() / rows.sum().clamp(min=1)


def _check(
    encoders: Mapping[str, nn.Module],
    source: str,
    classes: int,
    threshold: float,
    consistency: float,
    noise: Mapping[str, float],
) -> None:
    if source not in encoders or set(noise) - set(encoders):
        raise ConfigError(
            f"mke: source and input_noise name modalities among {', '.join(encoders)}; received '{source}', {noise}"
        )
    fine = classes >= 2 and 0 <= threshold <= 1 and 0 <= consistency < math.inf
    if not fine or not all(0 <= level < math.inf for level in noise.values()):
        raise ConfigError(
            "mke needs classes >= 2, threshold in [0, 1], consistency >= 0 and input_noise >= 0; received "
            f"{classes}, {threshold}, {consistency}, {dict(noise)}"
        )
