"""MKE: a teacher of one modality labels pairs, and a multimodal student under noise learns from that, and better.

Source: Xue et al. 2021, "Multimodal Knowledge Expansion": Algorithm 1 as the authors' project page shows it (equations
1 to 5), and what the released two-moon notebook does. The body of the paper was not available to us. That perturbation
and consistency collapse to one term, the perturbed student on the teacher's labels, is second-hand, and what the
notebook runs; the consistency term of equation 5 is an option. Many labels and regression are ours; so is that dense
labels, which the paper has, are left out: labels here are of whole samples.

Shapes: b rows, n pairs of the stage, c classes (labels, or targets of a regression).
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
from crossdistill.methods._rows import enough, label_hits, label_loss, mean_over, present_mask, present_rows, take
from crossdistill.methods.base import Batch, Losses, Method, StageData, freeze, index_of
from crossdistill.networks.base import Network, encoded, redrawn
from crossdistill.networks.late_fusion import Alone, LateFusion
from crossdistill.networks.taps import evaluated
from crossdistill.objectives.base import full_precision
from crossdistill.registry import Facts

PseudoLabels = Literal["auto", "hard", "soft"]
Kind = Literal["multiclass", "multilabel", "regression"]


@full_precision
def prediction(outputs: Tensor, task: Kind) -> Tensor:
    """Give what outputs (b, c) say, (b, c): probabilities of classes or of labels, or the values themselves."""
    if task == "multiclass":
        return outputs.softmax(dim=1)
    return outputs.sigmoid() if task == "multilabel" else outputs


@full_precision
def pseudo_label_loss(student: Tensor, said: Tensor, *, soft: bool = False, task: Kind = "multiclass") -> Tensor:
    """Compare outputs (b, c) with what a teacher said, `prediction` (b, c), row by row, (b,).

    Hard: cross-entropy with the teacher's most probable class, nats. Soft: KL(teacher || student). Of many labels the
    mean of those binary losses, hard above a probability of 1/2. Of a regression the mean squared difference.
    """
    said = said.detach()
    if task == "regression":
        return (student - said).square().mean(dim=1)
    if task == "multilabel":
        target = said if soft else (said > 0.5).to(said.dtype)
        least = -torch.xlogy(target, target) - torch.xlogy(1 - target, 1 - target)  # the entropy of what was said
        return (F.binary_cross_entropy_with_logits(student, target, reduction="none") - least).mean(dim=1)
    if not soft:
        return F.cross_entropy(student, said.argmax(dim=1), reduction="none")
    return torch.xlogy(said, said).sum(dim=1) - (said * student.log_softmax(dim=1)).sum(dim=1)


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

    As printed the second sum has no 1 / n; both are means here. T perturbs: the stage's augmentation, noise on every
    input, and dropout. Without it a student merely copies the teacher; how strong it should be cannot be found without
    labels, and the defaults are guesses. No true label is read in steps 2 and 3. Every pair is learnt from, labelled
    ones too, by what the teacher says of them. A student of a further modality alone may do as well: compare with it,
    the source is a shortcut to the teacher's errors.

    The teacher is given (an experiment file names its stage), or trained here on the known labels of the stage's rows:
    `fit(..., labels=True)`. Unknown labels are -1, unknown targets of a regression NaN. The stage's one schedule of the
    learning rate runs through both phases. Which epoch is best cannot be told by agreement with the teacher, which
    rewards copying: keep the last.

    Args:
        encoders: Modality to the student's encoder; all modalities are used.
        source: The modality that the teacher reads.
        classes: Number of classes, >= 2, or of labels or of a regression's targets, >= 1.
        teacher: A network of the source that gives logits (of a regression the values); it is frozen. None trains one:
            a twin of the source's encoder from a start of its own, under a classifier like the student's.
        teacher_share: Share of the steps that train that teacher; 0.3.
        labels: "hard", the teacher's most probable class (what the notebook does), or "soft", its probabilities; "auto"
            is hard, but soft for many labels, where hard ones are cut at 1/2. A regression's are what they are.
        threshold: Least probability of the teacher's class for a row to count; 0 takes all, as the notebook does. For
            classes alone.
        input_noise: Standard deviation of the Gaussian noise on every input, in units of the standardised input (the
            notebook's 1 is relative to the mean absolute value), or one for each modality; 0.5.
        dropout: Share of units silenced in the student's classifier; 0.2.
        hidden: Widths of the classifiers' hidden layers; none makes them linear.
        consistency: gamma; 0, as perturbed labels alone are said to be the same thing.
        task: "multiclass", labels (b,) of one class a row; "multilabel", (b, c) of 0 and 1; or "regression", (b, c) of
            numbers, best standardised. The last two are ours, and from Python: an experiment's data have classes.
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
        labels: PseudoLabels = "auto",
        threshold: float = 0.0,
        input_noise: float | dict[str, float] = 0.5,
        dropout: float = 0.2,
        hidden: tuple[int, ...] = (),
        consistency: float = 0.0,
        task: Kind = "multiclass",
        start_from_teacher: bool = False,
    ) -> None:
        super().__init__()
        noise = input_noise if isinstance(input_noise, dict) else dict.fromkeys(encoders, input_noise)
        check_choice("task", task, Kind)
        _check(encoders, source, classes, threshold, consistency, noise, task)
        check_choice("labels", labels, PseudoLabels)
        check_shares("mke", teacher_share=teacher_share)
        self.names, self.source, self.given = tuple(encoders), source, teacher is not None
        self.fused = LateFusion(encoders, classes, hidden=hidden, dropout=dropout)
        self.teacher = freeze(teacher) if teacher is not None else _teacher(encoders[source], classes, hidden, dropout)
        self.teacher_share = 0.0 if self.given else teacher_share
        self.task: Kind = task
        self.soft = labels == "soft" or (labels == "auto" and task == "multilabel")
        self.threshold, self.consistency = threshold, consistency
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

    def as_fused_teacher(self) -> nn.Module:
        """Give the whole student."""
        return self.fused

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
        told = "label" in first and any(bool(self._known(batch["label"]).any()) for batch in data.batches())
        if not self.given and not told:
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
        """Loss against the teacher's labels, how often the two agree, and where labels are known both accuracies.

        Of a regression, mean squared errors take the place of accuracies.
        """
        said, counts = self._label(batch)
        outputs = self._student(batch, perturbed=False)
        scores = {"loss": mean_over(self._rows_loss(outputs, said), counts)}
        if self.task != "regression":
            agree = (self._decided(prediction(outputs, self.task)) == self._decided(said)).float()
            scores["agreement"] = mean_over(agree.reshape(len(agree), -1).mean(dim=1), counts)
        if "label" in batch:
            name = "error" if self.task == "regression" else "accuracy"
            theirs = said - 0.5 if self.task == "multilabel" else said  # positive where the label holds
            scores |= {name: self._against(outputs, batch), f"teacher_{name}": self._against(theirs, batch)}
        return scores

    def _teacher_losses(self, batch: Batch) -> Losses:
        here = present_rows(batch, self.source)
        label = take(batch["label"], here)
        if not bool(self._known(label).any()) or not enough(here, self.teacher):
            return Losses({})
        # all rows pass through it: few have a label, and a batch norm needs more
        outputs = encoded(self.teacher, take(batch[self.source], here)).read("logits")
        if self.task == "regression":
            return Losses({"teacher": self._squared_error(outputs, label)})
        return Losses({"teacher": label_loss(outputs, label, self.task)})

    def _student_losses(self, batch: Batch) -> Losses:
        said, counts = self._label(batch) if self.pseudo is None else self._stored(batch)
        if self.threshold:
            counts = counts & (said.amax(dim=1) >= self.threshold)
        perturbed = self._student(batch, perturbed=True)
        terms = {"pseudo": mean_over(self._rows_loss(perturbed, said), counts)}
        with evaluated(self.fused), torch.set_grad_enabled(self.consistency > 0 and torch.is_grad_enabled()):
            clean = self._student(batch, perturbed=False)
        now, then = (prediction(outputs, self.task) for outputs in (perturbed, clean))
        if self.consistency:
            terms["consistency"] = self.consistency * (then - now).square().sum(dim=1).mean()
        logged = {"labelled": counts.float().mean()}
        if self.task != "regression":
            logged["flips"] = (self._decided(now) != self._decided(then)).float().mean()
        return Losses(terms, logged)

    def _student(self, batch: Batch, *, perturbed: bool) -> Tensor:
        """Give the student's outputs (b, c), on noisy inputs where they are to be perturbed."""
        inputs = {name: batch[name] for name in self.names if name in batch}
        if perturbed:
            noisy = {name: x + self.noise[name] * torch.randn_like(x) for name, x in inputs.items() if self.noise[name]}
            inputs = {**inputs, **noisy}
        return self.fused(inputs, batch.get("present")).read("logits")

    # What labels are, by the task ------------------------------------------------------------------------------------

    def _known(self, label: Tensor) -> Tensor:
        return ~label.isnan() if self.task == "regression" else label >= 0

    def _decided(self, said: Tensor) -> Tensor:
        """Give the class (b,), or which labels hold (b, c), of what is said (b, c)."""
        return said.argmax(dim=1) if self.task == "multiclass" else said > 0.5

    def _rows_loss(self, outputs: Tensor, said: Tensor) -> Tensor:
        return pseudo_label_loss(outputs, said, soft=self.soft, task=self.task)

    def _squared_error(self, outputs: Tensor, label: Tensor) -> Tensor:
        """Mean squared difference (b, c) to the targets that are known."""
        target = label.reshape(len(label), -1)
        if target.shape != outputs.shape:
            raise DataError(
                f"mke: targets must be {tuple(outputs.shape)} as the outputs; received {tuple(label.shape)}"
            )
        known = self._known(target)
        return mean_over((outputs - target.where(known, 0.0)).square(), known)

    def _against(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Give accuracy, or error, of outputs (b, c) where labels are known."""
        if self.task == "regression":
            return self._squared_error(outputs, batch["label"])
        return label_hits(outputs, batch["label"], self.task)

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
            said, counts = self._label(batch)
            if not bool(said[counts].isfinite().all()):
                raise NetworkError(f"mke: the teacher of '{self.source}' says what is no finite number of some rows")
            if pseudo is None:
                pseudo = said.new_full((len(self._data), said.shape[1]), math.nan)
            pseudo[index_of(batch, self.source)] = torch.where(counts[:, None], said, math.nan)
        self.pseudo = pseudo

    @torch.no_grad()
    def _label(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Give what the teacher says now (b, c), and which rows it can say something of."""
        here = present_mask(batch, self.source)
        if not bool(here.any()):
            return torch.zeros(len(here), self.fused.classes, device=here.device), here
        # one that was trained here is in eval mode by now
        given = self.teacher_outputs(batch, self.source) if self.given else encoded(self.teacher, batch[self.source])
        logits = given.read("logits")
        if logits.shape[1] != self.fused.classes:
            raise NetworkError(
                f"mke: the teacher of '{self.source}' gives {logits.shape[1]} outputs, the student "
                f"{self.fused.classes}; give a teacher of the same classes"
            )
        return prediction(logits, self.task), here

    def _stored(self, batch: Batch) -> tuple[Tensor, Tensor]:
        assert self.pseudo is not None
        said = self.pseudo[index_of(batch, self.source)]
        return said.nan_to_num(), ~said.isnan().any(dim=1)

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


def _check(
    encoders: Mapping[str, nn.Module],
    source: str,
    classes: int,
    threshold: float,
    consistency: float,
    noise: Mapping[str, float],
    task: Kind,
) -> None:
    if source not in encoders or set(noise) - set(encoders):
        raise ConfigError(
            f"mke: source and input_noise name modalities among {', '.join(encoders)}; received '{source}', {noise}"
        )
    least, most = (2, 1) if task == "multiclass" else (1, 0)
    fine = classes >= least and 0 <= threshold <= most and 0 <= consistency < math.inf
    if not fine or not all(0 <= level < math.inf for level in noise.values()):
        raise ConfigError(
            f"mke needs classes >= {least}, threshold in [0, {most}] ({task}), consistency >= 0 and input_noise >= 0; "
            f"received {classes}, {threshold}, {consistency}, {dict(noise)}"
        )
