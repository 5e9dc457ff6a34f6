"""CMCD's two losses: similarity distillation (its CMD) and cross-modal contrast (its CMC).

Source: Lin et al. 2024, "A Generalization Theory of Cross-Modality Distillation with Contrastive Learning". Its full
text was not available to us; the two losses are read from public reviews of it (equations 2 and 3), and temperatures,
candidate sets and normalisation are reconstructions of ours with measured defaults, not the paper's.

Shapes: b pairs, widths d_s (student) and d_t (teacher), c candidates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossdistill.errors import ConfigError, ObjectiveError
from crossdistill.objectives._pieces import positions
from crossdistill.objectives.base import Context, Objective, check_pair, full_precision, mask_logits, unit
from crossdistill.objectives.gather import gather_rows
from crossdistill.objectives.tiled import Kernel, contrast, find, follow, in_tiles
from crossdistill.registry import Facts, Need

MIN_TAU = 1e-4
"""SEED's released temperature of the teacher, the smallest in use; far below it logits overflow."""
Candidates = Literal["batch", "all"]
MAX_INVERSE_TAU = 100.0
"""A learned temperature stays above 1/100, as in CLIP."""


def check_tau(**taus: float) -> None:
    """Refuse temperatures that are not finite, or below `MIN_TAU`.

    Raises:
        ConfigError: With the parameter's name and what was received.
    """
    for name, tau in taus.items():
        if not (math.isfinite(tau) and tau >= MIN_TAU):
            raise ConfigError(
                f"{name} must be a temperature such as 0.1, finite and at least {MIN_TAU} (SEED's); received {tau}"
            )


@full_precision
def similarities(features: Tensor, *, tau: float, exclude_self: bool = True) -> Tensor:
    """Compare each row with the others: logits (b, b) of the kernel P(j|i) = softmax_j(cos(i, j) / tau).

    Args:
        features: (b, d), any scale.
        tau: Temperature.
        exclude_self: Leave i out of its own candidates. With it inside both kernels collapse onto the diagonal at small
            tau, and the gradient dies.

    Returns:
        Logits (b, b), float32 or float64.

    Raises:
        ConfigError: If tau is refused by `check_tau`.
    """
    check_tau(tau=tau)
    z = unit(features)
    logits = z @ z.T / tau
    if exclude_self:
        logits = mask_logits(logits, torch.eye(len(z), dtype=torch.bool, device=z.device))
    return logits


@full_precision
def soft_cross_entropy(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Mean over rows of -sum_j P_t(j) log P_s(j), both (b, c) logits; the gradient flows through the student alone."""
    weights = teacher_logits.detach().softmax(dim=1)
    return -(weights * student_logits.log_softmax(dim=1)).sum(dim=1).mean()


@full_precision
def similarity_distillation(
    student: Tensor, teacher: Tensor, *, tau_student: float = 0.1, tau_teacher: float = 0.1, exclude_self: bool = True
) -> Tensor:
    """Make the student's similarities within a batch those of the teacher: CMCD's CMD, `target="within"`.

    Args:
        student: (b, d_s) features, any scale, b >= 2.
        teacher: (b, d_t) features of the partners; d_t may differ from d_s.
        tau_student: Temperature of the student's kernel; 0.1, accuracy is flat from 0.05 to 0.5.
        tau_teacher: Temperature of the teacher's kernel.
        exclude_self: See `similarities`.

    Returns:
        Scalar cross-entropy H(P_teacher) + KL(P_teacher || P_student), nats.

    Raises:
        ConfigError: If a temperature is refused by `check_tau`.
        ObjectiveError: If the tensors do not fit.
    """
    check_tau(tau_student=tau_student, tau_teacher=tau_teacher)
    check_pair(student, teacher, name="similarity", equal_widths=False, least=2 if exclude_self else 1)
    student, teacher = gather_rows(student), gather_rows(teacher.detach())
    if in_tiles(len(student), len(student), student.device):
        u, w = unit(student), unit(teacher)
        dtype = torch.promote_types(u.dtype, w.dtype)
        kernels = Kernel(u.to(dtype), None, 1 / tau_student), Kernel(w.to(dtype), None, 1 / tau_teacher)
        return follow(*kernels, exclude_self=exclude_self)
    return soft_cross_entropy(
        similarities(student, tau=tau_student, exclude_self=exclude_self),
        similarities(teacher, tau=tau_teacher, exclude_self=exclude_self),
    )


@full_precision
def anchored_distillation(
    student: Tensor,
    teacher: Tensor,
    *,
    tau_student: float = 0.1,
    tau_teacher: float = 0.1,
    bank: Tensor | None = None,
    skip: Tensor | None = None,
) -> Tensor:
    """Compare the student with the *teacher's* embeddings, as SEED does (Fang et al. 2021); CMCD's ancestor.

    Args:
        student: (b, d).
        teacher: (b, d), the partners; same width.
        tau_student: Temperature of the student's distribution (SEED's released default is 0.2).
        tau_teacher: Temperature of the teacher's distribution (SEED's released default is 1e-4).
        bank: (k, d) earlier teacher embeddings, of any floating dtype and on any device: a store of all, say. With a
            bank the candidates of row i are its own partner and the bank (SEED); without, the teacher rows of the
            batch, the partner included: here it is informative.
        skip: (b,) int64 row of the bank that is not counted for a sample, its own partner's; -1 for none.

    Returns:
        Scalar cross-entropy, nats.

    Raises:
        ConfigError: If a temperature is refused by `check_tau`.
        ObjectiveError: If the tensors do not fit.
    """
    check_tau(tau_student=tau_student, tau_teacher=tau_teacher)
    check_pair(student, teacher, name="similarity (anchor)", equal_widths=True)
    z_s, z_t = unit(gather_rows(student)), unit(gather_rows(teacher.detach())).to(student.dtype)
    _check_bank(bank, skip, teacher, "similarity (anchor)")
    if bank is None:
        if in_tiles(len(z_s), len(z_t), z_s.device):
            return follow(Kernel(z_s, z_t, 1 / tau_student), Kernel(z_t, z_t, 1 / tau_teacher))
        return soft_cross_entropy(z_s @ z_t.T / tau_student, z_t @ z_t.T / tau_teacher)
    if skip is not None or in_tiles(len(z_s), len(bank), z_s.device):
        skip = None if skip is None else gather_rows(skip)
        kernels = [Kernel(z, bank, 1 / tau, own=z_t, bank=True) for z, tau in ((z_s, tau_student), (z_t, tau_teacher))]
        return follow(*kernels, skip=skip)
    bank = unit(bank.to(z_t))
    own_s, own_t = (z_s * z_t).sum(dim=1, keepdim=True), (z_t * z_t).sum(dim=1, keepdim=True)
    return soft_cross_entropy(
        torch.cat([own_s, z_s @ bank.T], dim=1) / tau_student, torch.cat([own_t, z_t @ bank.T], dim=1) / tau_teacher
    )


def _check_bank(bank: Tensor | None, skip: Tensor | None, teacher: Tensor, name: str) -> None:
    if skip is not None and (bank is None or skip.shape != teacher.shape[:1] or skip.dtype != torch.int64):
        raise ObjectiveError(
            f"{name}: skip must be ({len(teacher)},) int64, rows of a bank; received {tuple(skip.shape)} {skip.dtype}, "
            f"and {'no' if bank is None else 'a'} bank"
        )
    if bank is None:
        return
    if bank.ndim != 2 or bank.shape[1] != teacher.shape[1] or not bank.is_floating_point():
        raise ObjectiveError(
            f"{name}: the bank must be (k, {teacher.shape[1]}), as wide as the teacher, floating point; "
            f"received {tuple(bank.shape)} {bank.dtype}"
        )


@full_precision
def cross_modal_contrastive(
    student: Tensor,
    teacher: Tensor,
    *,
    tau: float | Tensor = 0.2,
    symmetric: bool = True,
    group: Tensor | None = None,
    bank: Tensor | None = None,
    skip: Tensor | None = None,
) -> Tensor:
    """Find each row's partner among all: CMCD's CMC, which two reviewers identify with CLIP's loss.

    Args:
        student: (b, d) features, any scale.
        teacher: (b, d) features of the partners.
        tau: Temperature, a number or a scalar tensor (then it gets a gradient).
        symmetric: Mean of both directions (the factor 1/2 is open_clip's convention); else student to teacher alone.
        group: (b,) int64; other rows of one's own group are no negatives.
        bank: (k, d) teacher embeddings, of any floating dtype and on any device: a store of all, say. A student's
            candidates are then its partner and the bank, whatever their groups; a teacher's are the batch's students.
        skip: (b,) int64 row of the bank that is not counted for a sample, its own partner's; -1 for none.

    Returns:
        Scalar, nats; ln b for constant features, 0 for b = 1.

    Raises:
        ConfigError: If a temperature is refused by `check_tau`.
        ObjectiveError: If the tensors do not fit.
    """
    if not isinstance(tau, Tensor):
        check_tau(tau=tau)
    check_pair(student, teacher, name="contrastive", equal_widths=True)
    z_s, z_t = unit(gather_rows(student)), unit(gather_rows(teacher.detach().to(student.dtype)))
    group = None if group is None else gather_rows(group)
    _check_bank(bank, skip, teacher, "contrastive")
    if bank is not None:
        forth = find(z_s, z_t, bank, scale=1 / tau, skip=None if skip is None else gather_rows(skip))
        return (forth + contrast(z_t, z_s, scale=1 / tau, both=False, group=group)) / 2 if symmetric else forth
    if in_tiles(len(z_s), len(z_t), z_s.device):
        return contrast(z_s, z_t, scale=1 / tau, both=symmetric, group=group)
    logits = z_s @ z_t.T / tau
    if group is not None:
        same = group[:, None] == group[None, :]
        logits = mask_logits(logits, same & ~torch.eye(len(same), dtype=torch.bool, device=same.device))
    partner = torch.arange(len(logits), device=logits.device)
    loss = F.cross_entropy(logits, partner)
    return (loss + F.cross_entropy(logits.T, partner)) / 2 if symmetric else loss


@full_precision
def kernel_distances(student: Tensor, teacher: Tensor, *, tau: float = 0.1) -> dict[str, Tensor]:
    """Measure how far the student's kernel is from the teacher's on one group of held-out pairs.

    Both depend on b and tau, which are part of their definition: compare them for equal b and tau alone.

    Args:
        student: (b, d_s), b >= 2.
        teacher: (b, d_t).
        tau: Temperature of both kernels.

    Returns:
        "kl": mean over rows of KL(P_t || P_s), nats, the part of the raw loss that a student can change; "tv": mean
        total variation in [0, 1].

    Raises:
        ConfigError: If a temperature is refused by `check_tau`.
        ObjectiveError: If the tensors do not fit.
    """
    check_pair(student, teacher, name="kernel_distances", equal_widths=False, least=2)
    log_s = similarities(student, tau=tau).log_softmax(dim=1)
    log_t = similarities(teacher, tau=tau).log_softmax(dim=1)
    p_t = log_t.exp()
    kl = (p_t * (log_t - log_s)).sum(dim=1).mean()
    return {"kl": kl, "tv": (p_t - log_s.exp()).abs().sum(dim=1).mean() / 2}


class Everyone(nn.Module):
    """A frozen teacher's embeddings of all training pairs, as candidates; made anew in a resumed stage, never saved.

    Pairs that lack a modality have none: `place` says which row is whose, by position in the data, -1 where there is
    none.
    """

    bank: Tensor
    place: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bank", torch.zeros(0, 0), persistent=False)
        self.register_buffer("place", torch.zeros(0, dtype=torch.int64), persistent=False)

    def study(self, teacher: Iterable[tuple[Tensor, Context]]) -> None:
        """Keep (pairs, d)."""
        bank: list[Tensor] = []
        index: list[Tensor] = []
        seen = 0
        for features, context in teacher:
            bank.append(features.detach())
            rows = torch.arange(seen, seen + len(features), device=features.device)
            index.append(rows if context.index is None else context.index)
            seen += len(features)
        self.bank, where = torch.cat(bank), torch.cat(index)
        rows = torch.arange(seen, device=where.device)
        self.place = rows.new_full((int(where.max()) + 1,), -1).index_copy(0, where, rows)

    def of(self, context: Context, rows: int, *, training: bool, name: str) -> dict[str, Tensor | None]:
        """Give bank and what to skip of it: a sample's own row, which held-out samples do not have.

        Raises:
            ObjectiveError: If nothing was studied, or positions are needed and missing or wrong.
        """
        if not len(self.bank):
            raise ObjectiveError(f"{name}: candidates='all' knows of none yet; call study with the teacher's features")
        own = self.place[positions(context.index, rows, len(self.place), name=name)] if training else None
        return {"bank": self.bank, "skip": own}


def _check_candidates(candidates: str) -> None:
    if candidates not in get_args(Candidates):
        raise ConfigError(f"candidates must be 'batch' or 'all'; received '{candidates}'")


def _needs_of(everyone: Everyone | None) -> set[Need]:
    return set() if everyone is None else {"index"}


class SimilarityDistillation(Objective):
    """CMCD's CMD: the student's similarities between samples follow the teacher's.

    Args:
        tau_teacher: Temperature of the teacher's kernel; 0.1 (the paper's: not found; flat from 0.05 to 0.5 when
            measured). 1e-4, SEED's, is the least.
        tau_student: Temperature of the student's kernel.
        target: "within" compares similarities inside each modality, so the widths may differ; "anchor" compares the
            student with the teacher's own embeddings, as SEED does, and needs equal widths.
        exclude_self: Leave a sample out of its own candidates; on, because the loss dies otherwise. False is for
            "within" alone: with "anchor" a sample's own candidate is its partner, which belongs there.
        queue_size: For "anchor": number of earlier teacher embeddings to compare with, first in first out; 0 uses the
            batch.
        candidates: For "anchor": "batch", or "all", the teacher's embeddings of all training pairs, which are kept in
            memory; the teacher's inputs should then not be augmented.

    Raises:
        ConfigError: If a parameter is out of range.
    """

    facts: ClassVar[Facts] = Facts(
        name="similarity",
        title="similarities within the student's modality follow the teacher's (CMCD's CMD)",
        paper="Lin et al. 2024 (CMCD), equation 2; our reconstruction",
        needs=frozenset({"pairs"}),
    )
    queue: Tensor
    filled: Tensor

    def __init__(
        self,
        tau_teacher: float = 0.1,
        *,
        tau_student: float = 0.1,
        target: Literal["within", "anchor"] = "within",
        exclude_self: bool = True,
        queue_size: int = 0,
        candidates: Candidates = "batch",
    ) -> None:
        super().__init__()
        check_tau(tau_teacher=tau_teacher, tau_student=tau_student)
        _check_candidates(candidates)
        if target not in ("within", "anchor"):
            raise ConfigError(f"target must be 'within' or 'anchor'; received '{target}'")
        if queue_size < 0 or (queue_size and target == "within"):
            raise ConfigError(
                f"queue_size must be 0 with target 'within' and >= 0 with 'anchor'; received {queue_size}"
            )
        if target == "anchor" and not exclude_self:
            raise ConfigError(
                "exclude_self=False belongs to target 'within'; with 'anchor' the sample itself is never a candidate "
                "and its partner always is: leave exclude_self out"
            )
        if candidates == "all" and (target == "within" or queue_size):
            raise ConfigError("candidates='all' is for target 'anchor' without a queue, which would hold them twice")
        self.tau_teacher, self.tau_student = tau_teacher, tau_student
        self.target, self.exclude_self, self.queue_size = target, exclude_self, queue_size
        self.everyone = Everyone() if candidates == "all" else None
        self.register_buffer("queue", torch.zeros(0, 0))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    @property
    def needs(self) -> frozenset[Need]:
        """Pairs, and with "anchor" equal widths."""
        more: set[Need] = {"equal_widths"} if self.target == "anchor" else set()
        return self.facts.needs | more | _needs_of(self.everyone)

    def study(self, teacher: Iterable[tuple[Tensor, Context]]) -> None:
        """Keep the teacher's embeddings of all pairs, where they are the candidates."""
        if self.everyone is not None:
            self.everyone.study(teacher)

    def prepare(self, student: Tensor, teacher: Tensor, *, pairs: int) -> None:
        """Make the queue, (queue_size, d_t), empty; one that is there with this shape is kept with what it holds."""
        if self.queue_size and self.queue.shape != (self.queue_size, teacher.shape[1]):
            self.queue = unit(teacher[:1]).new_zeros(self.queue_size, teacher.shape[1])
            self.filled = torch.zeros_like(self.filled, device=teacher.device)

    def parts(self, student: Tensor, teacher: Tensor, context: Context) -> dict[str, Tensor]:
        """Give {"similarity": cross-entropy of the kernels}; (b, d_s) and (b, d_t)."""
        if self.target == "within":
            taus = {"tau_student": self.tau_student, "tau_teacher": self.tau_teacher}
            return {"similarity": similarity_distillation(student, teacher, exclude_self=self.exclude_self, **taus)}
        check_pair(student, teacher, name="similarity (anchor)", equal_widths=True)
        self.prepare(student, teacher, pairs=0)
        held = min(int(self.filled), self.queue_size)
        how: dict[str, Any] = {"bank": self.queue[:held].clone() if held else None}
        if self.everyone is not None:
            how = self.everyone.of(context, len(student), training=self.training, name="similarity (anchor)")
        loss = anchored_distillation(
            student, teacher, tau_student=self.tau_student, tau_teacher=self.tau_teacher, **how
        )
        if self.queue_size and self.training:
            self._enqueue(unit(gather_rows(teacher.detach())))
        return {"similarity": loss}

    @torch.no_grad()
    def _enqueue(self, rows: Tensor) -> None:
        rows = rows[-self.queue_size :].to(self.queue)
        slots = (self.filled + torch.arange(len(rows), device=rows.device)) % self.queue_size
        self.queue[slots] = rows
        self.filled += len(rows)


class CrossModalContrastive(Objective):
    """CMCD's CMC: each student sample finds its own partner among the teacher's, and the other way round.

    Args:
        tau: Temperature, or where a learned one starts. Small data overfit at 0.1 and below: use 0.5 below about
            100,000 pairs.
        symmetric: Mean of both directions; else student to teacher alone.
        learnable_tau: Learn the temperature, kept at 1/100 or above.
        mask_groups: Do not count rows of one group as negatives of each other, where the data have groups.
        candidates: Where a student looks for its partner: "batch", or "all", the teacher's embeddings of all training
            pairs, which are kept in memory; the teacher's inputs should then not be augmented.

    Raises:
        ConfigError: If tau is out of range.
    """

    facts: ClassVar[Facts] = Facts(
        name="contrastive",
        title="each student sample finds its partner among the teacher's (CMCD's CMC, CLIP's loss)",
        paper="Lin et al. 2024 (CMCD), equation 3; our reconstruction",
        needs=frozenset({"pairs", "equal_widths"}),
    )

    def __init__(
        self,
        tau: float = 0.2,
        *,
        symmetric: bool = True,
        learnable_tau: bool = False,
        mask_groups: bool = False,
        candidates: Candidates = "batch",
    ) -> None:
        super().__init__()
        check_tau(tau=tau)
        _check_candidates(candidates)
        if candidates == "all" and mask_groups:
            raise ConfigError("candidates='all' does not know the groups of all pairs; leave mask_groups out")
        self.symmetric, self.mask_groups, self.learnable_tau = symmetric, mask_groups, learnable_tau
        if learnable_tau and tau < 1 / MAX_INVERSE_TAU:
            raise ConfigError(
                f"learnable_tau keeps tau at {1 / MAX_INVERSE_TAU} or above, so tau must start there; received {tau}"
            )
        self.tau = tau
        self.everyone = Everyone() if candidates == "all" else None
        self.log_scale = nn.Parameter(torch.tensor(-math.log(tau))) if learnable_tau else None

    @property
    def needs(self) -> frozenset[Need]:
        """Pairs of equal widths, and to mask groups a group for each."""
        more: set[Need] = {"group"} if self.mask_groups else set()
        return self.facts.needs | more | _needs_of(self.everyone)

    def study(self, teacher: Iterable[tuple[Tensor, Context]]) -> None:
        """Keep the teacher's embeddings of all pairs, where they are the candidates."""
        if self.everyone is not None:
            self.everyone.study(teacher)

    def parts(self, student: Tensor, teacher: Tensor, context: Context) -> dict[str, Tensor]:
        """Give {"contrastive": the InfoNCE}; student and teacher (b, d).

        Raises:
            ObjectiveError: If groups are to be masked and none are given.
        """
        if self.mask_groups and context.group is None:
            raise ObjectiveError("contrastive: mask_groups needs a group for each sample, and the data have none")
        groups = context.group if self.mask_groups else None
        how: dict[str, Any] = {"group": groups}
        if self.everyone is not None:
            how = self.everyone.of(context, len(student), training=self.training, name="contrastive")
        loss = cross_modal_contrastive(student, teacher, tau=self._tau(), symmetric=self.symmetric, **how)
        return {"contrastive": loss}

    def _tau(self) -> float | Tensor:
        if self.log_scale is None:
            return self.tau
        bounded = cast("Callable[[Tensor, float], Tensor]", _AtMost.apply)  # torch does not type it
        return (-bounded(self.log_scale, math.log(MAX_INVERSE_TAU))).exp()


class _AtMost(torch.autograd.Function):
    """A clamp whose gradient is stopped outward alone: torch's own is 0 both ways, and what is past it stays there."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, largest: float) -> Tensor:
        ctx.save_for_backward(value > largest)
        return value.clamp(max=largest)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,), (past,) = gradients, ctx.saved_tensors
        return torch.where(past & (gradient < 0), torch.zeros_like(gradient), gradient), None
