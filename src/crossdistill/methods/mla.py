"""Modalities in turn through one shared head, and fusion by certainty: MLA.

Source: Zhang et al. 2024, "Multimodal Representation Learning by Alternating Unimodal Adaptation". The body of the
paper was not available to us: the equations are from memory, agree with its figure and with public reviews, and were
checked against the released code, whose newest version does not modify the head's gradient at all. What is written here
follows the equations, not that code; each departure is named where it is.

Shapes: b rows, c classes, d features, m modalities.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossdistill.errors import ConfigError, NetworkError, ObjectiveError
from crossdistill.methods._clock import check_choice
from crossdistill.methods._rows import Task, enough, label_hits, label_loss, present_mask, present_rows, take
from crossdistill.methods.base import Batch, Losses, Method, StageData, label_of
from crossdistill.methods.multihead import Predicting
from crossdistill.networks.base import Network, encoded
from crossdistill.objectives.base import full_precision
from crossdistill.objectives.cmcd import check_tau
from crossdistill.registry import Facts

Protect = Literal["previous", "current", "dataset_mean", "none"]
Projects = Literal["gradient", "change"]

# Fusion -------------------------------------------------------------------------------------------------------------


@full_precision
def entropy(logits: Tensor, *, multilabel: bool = False) -> Tensor:
    """Entropy of each row's prediction (b,), nats, of logits (b, c); with `multilabel` the sum of c binary ones."""
    if multilabel:
        return -(logits.sigmoid() * F.logsigmoid(logits) + (-logits).sigmoid() * F.logsigmoid(-logits)).sum(dim=1)
    log_p = logits.log_softmax(dim=1)
    return -(log_p.exp() * log_p).sum(dim=1)


def entropy_weights(
    logits: Sequence[Tensor],
    present: Tensor | None = None,
    *,
    temperature: float = 1.0,
    multilabel: bool = False,
) -> Tensor:
    """Weigh each row's modalities by certainty, (b, m): softmax over modalities of minus the entropy.

    Per row and over classes, as the paper's text is understood. The released code takes one weight for a whole batch
    from probabilities normalised over the *rows*; it depends on who shares the batch, and is left out.

    Logits must be on a comparable scale, as a shared head makes them: calibrate others first.

    Args:
        logits: Of each modality (b, c).
        present: Which rows have which modality, bool (b, m); absent ones get 0 and the rest sum to 1. None is all.
        temperature: What entropies are divided by; 1. Above it weights become more equal.
        multilabel: Whether classes do not exclude each other.

    Raises:
        ObjectiveError: If logits do not fit each other or the mask, or a row has no modality.
    """
    check_tau(temperature=temperature)
    _check_logits(logits)
    certainty = -torch.stack([entropy(z, multilabel=multilabel) for z in logits], dim=1) / temperature
    if present is None:
        return certainty.softmax(dim=1)
    if present.shape != certainty.shape or not bool(present.any(dim=1).all()):
        raise ObjectiveError(
            f"present must be bool {tuple(certainty.shape)}, with a modality in every row; received "
            f"{tuple(present.shape)}"
        )
    return certainty.masked_fill(~present, -math.inf).softmax(dim=1)


def fuse(logits: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Add up logits (b, c) of each modality with weights (b, m); what weighs 0 may hold anything, NaN included."""
    _check_logits(logits)
    stacked = torch.stack(list(logits), dim=1)
    return (torch.where(weights.unsqueeze(2) > 0, stacked, 0.0) * weights.unsqueeze(2)).sum(dim=1)


def _check_logits(logits: Sequence[Tensor]) -> None:
    shapes = [tuple(z.shape) for z in logits]
    if not shapes or len(set(shapes)) > 1 or len(shapes[0]) != 2:
        raise ObjectiveError(f"fusion needs logits (b, c) of every modality, of one shape; received {shapes}")


# The head's gradient ------------------------------------------------------------------------------------------------


class HeadProjector(nn.Module):
    """Keep a linear head's updates off the mean features that were observed, by recursive least squares.

    With k = P h / (alpha + h' P h), P <- P - k h' P, from P = I; a gradient G (c, d) becomes G P. For constant alpha
    P = (I + sum h h' / alpha)^-1: symmetric, eigenvalues in (0, 1]. The update is computed in Joseph's form, which
    keeps it so in single precision for ever. One observed *mean* is protected, not a modality's whole feature space.

    The released code (its first version) divided by a d x d matrix instead of the scalar and normalised P by its norm
    after each update, which mostly shrank the head's learning rate; `normalise` gives the latter for comparison.

    Args:
        dim: d.
        alpha: How much of an observed direction is left: alpha / (alpha + h' P h); 0.1, the released schedule's start.
        normalise: Divide P by its Frobenius norm after each update; False.
        dtype: Of P; float64 is possible where the device has it.

    Raises:
        ConfigError: If a parameter is out of range.
    """

    matrix: Tensor

    def __init__(
        self, dim: int, *, alpha: float = 0.1, normalise: bool = False, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        if dim < 1 or not (math.isfinite(alpha) and alpha > 0):
            raise ConfigError(f"a projector needs dim >= 1 and alpha above 0; received {dim}, {alpha}")
        self.alpha, self.normalise = alpha, normalise
        self.register_buffer("matrix", torch.eye(dim, dtype=dtype))

    @torch.no_grad()
    def observe(self, mean: Tensor, alpha: float | None = None) -> None:
        """Protect a mean feature (d,) from now on; `alpha` replaces the projector's own for this one."""
        alpha, p = self.alpha if alpha is None else alpha, self.matrix
        h = mean.detach().to(p.dtype)
        towards = p @ h
        gain = towards / (alpha + (h @ towards).clamp(min=0))
        p = p - torch.outer(gain, towards)
        p = p - torch.outer(p @ h, gain) + alpha * torch.outer(gain, gain)
        p = (p + p.T) / 2
        self.matrix.copy_(p / p.square().sum().sqrt() if self.normalise else p)

    @torch.no_grad()
    def project_(self, gradient: Tensor) -> Tensor:
        """Replace a gradient or a change of the weights (c, d) by its product with P, in place."""
        return gradient.copy_((gradient.to(self.matrix.dtype) @ self.matrix).to(gradient.dtype))

    @torch.no_grad()
    def reset(self) -> None:
        """Forget all that was observed."""
        self.matrix.copy_(torch.eye(len(self.matrix), dtype=self.matrix.dtype))


# The method ---------------------------------------------------------------------------------------------------------


class AlternatingUnimodal(Method):
    """Train each modality's encoder alone, in turn on every batch, through one head that all share.

        for modality m in order:   CE(W f_m(x_m) + b, y);   dW <- dW P;   step of f_m, W, b

    No loss joins modalities, so none is neglected; the head's step for one modality is kept off the mean feature of the
    one before. Afterwards `predict` fuses whatever modalities a sample has by certainty. Any modality's gradients are
    None in another's step, so optimisers leave its encoder alone, momentum and weight decay included.

    The head has one optimiser state: its momentum mixes modalities, and acts after the projection, as does weight
    decay. Under Adam the step is no multiple of the gradient, and projecting the gradient does not protect what it is
    to protect; `projects: change` projects what the optimiser did instead (ours).

    In our experiment alternation is what helps; projection changes accuracy by less than a point, and separate heads do
    as well as a shared one.

    Args:
        encoders: Modality to encoder, all of one width `dim`.
        classes: Number of classes, >= 2, or of labels, >= 1.
        protect: Whose mean features the head's steps keep off: "previous", of the modality that stepped before (the
            purpose; default); "current", of the one that steps (what the released code passes); "dataset_mean", as
            previous, with means over the whole training set taken before each epoch (a reviewer's reading); or "none".
        projects: The "gradient" (as published) or the "change" that the optimiser made.
        alpha: Of the projector at an epoch's first batch; 0.1, as released.
        alpha_end: What it falls to, geometrically, by the epoch's end; 0.01, as released.
        normalise: See `HeadProjector`; False.
        order: Of the modalities in a batch: "given" (as the encoders come; the released code has audio, video, text),
            "random" for each batch, or names.
        temperature: Of the fusion; 1.
        task: "multiclass", or "multilabel": binary cross-entropies, and fusion by sums of binary entropies (ours).

    Raises:
        ConfigError: If a parameter is out of range.
        NetworkError: If the encoders' widths differ, or one does not say its own.
    """

    facts: ClassVar[Facts] = Facts(
        name="mla",
        title="modalities in turn through a shared head, fused by certainty",
        paper="Zhang et al. 2024 (MLA); our reconstruction",
        needs=frozenset({"labels"}),
    )

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        *,
        classes: int,
        protect: Protect = "previous",
        projects: Projects = "gradient",
        alpha: float = 0.1,
        alpha_end: float = 0.01,
        normalise: bool = False,
        order: Literal["given", "random"] | tuple[str, ...] = "given",
        temperature: float = 1.0,
        task: Task = "multiclass",
    ) -> None:
        super().__init__()
        for name, word, known in (
            ("protect", protect, Protect),
            ("projects", projects, Projects),
            ("task", task, Task),
        ):
            check_choice(name, word, known)
        widths = {modality: Network(encoder).dim for modality, encoder in encoders.items()}
        if len(set(widths.values())) != 1:
            raise NetworkError(
                f"mla shares one head, so encoders must have one width; received {widths}. Set their dim"
            )
        if classes < (2 if task == "multiclass" else 1) or not 0 < alpha_end <= alpha < math.inf:
            raise ConfigError(
                "mla needs classes >= 2 (labels >= 1) and 0 < alpha_end <= alpha; received "
                f"{classes}, {alpha_end}, {alpha}"
            )
        self.order = order if isinstance(order, str) else tuple(order)
        if self.order not in ("given", "random") and sorted(self.order) != sorted(encoders):
            raise ConfigError(f"order must be given, random, or name each of {', '.join(encoders)}; received {order}")
        check_tau(temperature=temperature)
        self.task: Task = task
        self.protect, self.projects, self.alphas, self.temperature = protect, projects, (alpha, alpha_end), temperature
        self.encoders, width = nn.ModuleDict(encoders), next(iter(widths.values()))
        self.head = nn.Linear(width, classes)
        self.projector = HeadProjector(width, alpha=alpha, normalise=normalise)
        self.register_buffer("means", torch.zeros(len(encoders), width))
        self._steps, self._batches, self._per_epoch, self._last = 0, 0, 1, -1
        self._now, self._mean, self._before = 0, torch.zeros(0), torch.zeros(0)

    means: Tensor

    def inputs(self) -> Mapping[str, int]:
        """One view of each modality."""
        return dict.fromkeys(self.encoders, 1)

    def student(self, modality: str) -> nn.Module:
        """Give a modality's encoder."""
        if modality not in self.encoders:
            raise NetworkError(f"this method trains encoders of {', '.join(self.encoders)}, none of '{modality}'")
        return self.encoders[modality]

    def as_teacher(self, modality: str) -> nn.Module:
        """Give a modality's encoder with the shared head, whose logits may teach."""
        return Network(self.student(modality), head=self.head)

    def as_fused_teacher(self) -> nn.Module:
        """Give `predict` as a network of all modalities."""
        return Predicting(self, self.head.out_features)

    def predict(self, batch: Batch) -> Tensor:
        """Give logits (b, c), fused by certainty over the modalities that each row has, in whatever mode it is.

        Raises:
            ObjectiveError: If a row has none.
        """
        given: list[Tensor] = []
        masks: list[Tensor] = []
        for modality, encoder in self.encoders.items():
            if modality not in batch:
                continue
            mask = present_rows(batch, modality)
            z: Tensor = self.head(encoded(encoder, take(batch[modality], mask)).features)
            masks.append(present_mask(batch, modality))
            given.append(z if mask is None else z.new_zeros(len(mask), z.shape[1]).masked_scatter(mask[:, None], z))
        present = torch.stack(masks, dim=1) if masks else None
        many = self.task == "multilabel"
        return fuse(given, entropy_weights(given, present, temperature=self.temperature, multilabel=many))

    # Training --------------------------------------------------------------------------------------------------------

    def before_stage(self, data: StageData) -> None:
        """Take in how long an epoch is, for alpha."""
        self._per_epoch = data.steps_per_epoch

    def before_epoch(self, data: StageData, epoch: int) -> None:
        """Take the mean features of the whole training set, where those are protected."""
        if self.protect != "dataset_mean":
            return
        sums, counts = torch.zeros_like(self.means), [0] * len(self.encoders)
        with torch.no_grad():
            for batch in data.batches():
                for k, (modality, encoder) in enumerate(self.encoders.items()):
                    mask = present_rows(batch, modality)
                    if mask is None or bool(mask.any()):
                        features = encoded(encoder, take(batch[modality], mask)).features
                        sums[k] += features.float().sum(dim=0)
                        counts[k] += len(features)
        self.means.copy_(sums / torch.tensor(counts, device=sums.device).clamp(min=1).unsqueeze(1))

    def training_steps(self, batch: Batch) -> Iterator[Losses]:
        """One step for each modality that any row has."""
        for modality in self._in_order():
            mask = present_rows(batch, modality)
            if not enough(mask, self.encoders[modality]):
                continue
            features = encoded(self.encoders[modality], take(batch[modality], mask)).features
            label = take(label_of(batch, modality), mask)
            logits = self.head(features)
            if self.training:
                self._now, self._mean = list(self.encoders).index(modality), features.detach().float().mean(dim=0)
            logged = {f"{modality}/accuracy": label_hits(logits.detach(), label, self.task)}
            yield Losses({f"{modality}/ce": label_loss(logits, label, self.task)}, logged)
        if self.training:
            self._batches += 1

    def after_backward(self) -> None:
        """Observe, and project the head's gradient; the very first step of a run is left alone, as is the bias."""
        if self.protect != "none" and self._steps:
            share = (self._batches % self._per_epoch) / self._per_epoch
            first, last = self.alphas
            observed = self._mean if self.protect == "current" else self.means[self._last]
            self.projector.observe(observed, alpha=first * (last / first) ** share)
            gradient = self.head.weight.grad
            if self.projects == "gradient" and gradient is not None:
                self.projector.project_(gradient)
        if self.projects == "change":
            self._before = self.head.weight.detach().clone()

    def after_step(self) -> None:
        """Project the head's change, if that is what is projected, and remember who stepped."""
        if self.projects == "change" and self.protect != "none" and self._steps:
            with torch.no_grad():
                change = self.projector.project_(self.head.weight - self._before)
                self.head.weight.copy_(self._before + change)
        if self.protect in ("previous", "current"):
            self.means[self._now] = self._mean
        self._last, self._steps = self._now, self._steps + 1

    def held_out_step(self, batch: Batch) -> Mapping[str, Tensor]:
        """Cross-entropy and accuracy of every modality and of the fusion; "loss" is the mean over modalities.

        Where a row has no modality at all, and of unpaired streams, nothing is said of the fusion.
        """
        scores: dict[str, Tensor] = {}
        for losses in self.training_steps(batch):
            scores |= {**losses.terms, **(losses.logged or {})}
        if not scores:
            return {}
        found = [value for name, value in scores.items() if name.endswith("/ce")]
        masks = [present_rows(batch, modality) for modality in self.encoders]
        partial = [mask for mask in masks if mask is not None]
        some = torch.stack(partial).any(dim=0) if len(partial) == len(masks) else None  # else one has every row
        if isinstance(batch["label"], Tensor) and (some is None or bool(some.all())):
            fused = self.predict(batch)
            scores["fused/ce"] = label_loss(fused, batch["label"], self.task)
            scores["fused/accuracy"] = label_hits(fused, batch["label"], self.task)
        return {**scores, "loss": torch.stack(found).mean()}

    def get_extra_state(self) -> dict[str, int]:
        """Give how far it has come; torch keeps it with the weights."""
        return {"steps": self._steps, "batches": self._batches, "last": self._last}

    def set_extra_state(self, state: Mapping[str, int]) -> None:
        """Take up how far it had come."""
        self._steps, self._batches, self._last = state["steps"], state["batches"], state["last"]

    def _in_order(self) -> list[str]:
        """Give the modalities in the order of this batch; held-out batches draw nothing."""
        names = list(self.encoders)
        if self.order == "random" and self.training:
            return [names[int(k)] for k in torch.randperm(len(names))]
        return names if self.order in ("given", "random") else list(cast("Any", self.order))
