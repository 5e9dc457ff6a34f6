"""Ranking-loss distillation: the student orders its top classes as the teacher does.

Source: Peng & Zhang 2024 (RLKD), paper and released code; "multi-modal" there means distributions of several peaks, and
the loss compares any two rows of logits over the same classes. What departs from the code: the union of top classes is
each row's own by default, rows without any order are left without gradient rather than the whole batch, logarithms are
taken in log space without the added 1e-10, and the sum has the paper's factor (the code's is half of it). Parameters
bring the code's numbers back.

Shapes: b rows, n values, c classes, k top classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from crossdistill.errors import ConfigError
from crossdistill.objectives._logits import check_logits, finite, js_rows
from crossdistill.objectives.base import Context, Objective, full_precision, unit
from crossdistill.objectives.cmcd import check_tau
from crossdistill.registry import Facts

Union = Literal["exact", "official"]
On = Literal["logits", "probs"]
Base = Literal["kl", "rkl", "js", "tvd", "none"]


@full_precision
def soft_ranks(values: Tensor, *, strength: float = 1.0, ignore: Tensor | None = None) -> Tensor:
    """Rank each row, differentiably: 1 for the smallest value, n for the largest (Blondel et al. 2020).

    It is the projection of values / strength onto the convex hull of all orders of (1, ..., n): exact ranks where
    sorted neighbours differ by at least the strength, and merely shifted values / strength where all are within n/2 of
    it. With s the values sorted downwards and w = (n, ..., 1), the projection's dual is solved by

        v_i = min over j <= i of max over l >= i of mean(s_j - w_j, ..., s_l - w_l),     ranks = s - v

    Gaps between neighbours are cut at n first, which changes neither ranks nor gradients (from n - 1 on both sides are
    ranked apart) and keeps single precision exact for values of any size. O(b n^2) work and memory.

    Args:
        values: (b, n), any finite.
        strength: How far values must be apart to count as fully ranked, in their own unit, above 0.
        ignore: (b, n) bool, entries that are not ranked and get 0; the others are ranked as if these were not there.

    Returns:
        (b, n); each row's ranks add up to m (m + 1) / 2 for its m ranked values.

    Raises:
        ConfigError: If the strength is out of range.
    """
    check_strength(strength)
    n, device = values.shape[1], values.device
    ignore = torch.zeros_like(values, dtype=torch.bool) if ignore is None else ignore
    order = values.detach().masked_fill(ignore, -torch.inf).argsort(dim=1, descending=True, stable=True)
    sorted_values, last = values.gather(1, order), ignore.gather(1, order)
    gaps = ((sorted_values[:, :-1] - sorted_values[:, 1:]) / strength).clamp(max=float(n))
    gaps = torch.where(last[:, 1:], float(n), gaps)
    s = torch.cat([gaps.new_zeros(len(gaps), 1), -gaps.cumsum(dim=1)], dim=1)
    w = torch.arange(n, 0, -1, device=device, dtype=s.dtype)
    ranks = s - _isotonic(s - w) - ignore.sum(dim=1, keepdim=True)
    return torch.zeros_like(s).scatter(1, order, ranks.masked_fill(last, 0.0))


def _isotonic(y: Tensor) -> Tensor:
    """Give the nearest rows that fall from left to right, (b, n): means of y over blocks, found by the min-max formula.

    The gradient is that of the means; neighbouring blocks that tie are one.
    """
    n = y.shape[1]
    with torch.no_grad():
        sums = torch.cat([y.new_zeros(len(y), 1), y.cumsum(dim=1)], dim=1)
        place = torch.arange(n, device=y.device)
        length = place[None, :] - place[:, None] + 1  # of the piece j..l
        before = length < 1
        means = (sums[:, None, 1:] - sums[:, :-1, None]) / length.clamp(min=1)
        means = torch.where(length == 1, y[:, :, None], means)  # not by way of sums, which round
        most = means.masked_fill(before, -torch.inf).flip(2).cummax(dim=2).values.flip(2)
        v = most.masked_fill(before, torch.inf).amin(dim=1)
        block = (v[:, :, None] == v[:, None, :]).to(y.dtype)
    return (block @ y[:, :, None])[:, :, 0] / block.sum(dim=2)


MIN_STRENGTH = 1e-9
"""Below this gradients, which are divided by it, leave float32."""


def check_strength(strength: float) -> None:
    """Refuse a strength that is not finite and above 0.

    Raises:
        ConfigError: With what was received.
    """
    if not (math.isfinite(strength) and strength >= MIN_STRENGTH):
        raise ConfigError(
            f"strength, a distance between values, must be finite and above 0, {MIN_STRENGTH} at least; "
            f"received {strength}"
        )


def _top(student: Tensor, teacher: Tensor, k: int, union: Union) -> tuple[Tensor, Tensor]:
    """Give the classes that are compared, (b, 2k), and which of them are repeats to be ignored, (b, 2k)."""
    k = min(k, student.shape[1])
    both = torch.cat([student.detach().topk(k, dim=1).indices, teacher.topk(k, dim=1).indices], dim=1)
    earlier = torch.ones(2 * k, 2 * k, dtype=torch.bool, device=both.device).triu(diagonal=1)  # [i, j]: i before j
    same = both[:, :, None] == both[:, None, :]
    if union == "official":  # a column goes where one before it is the same in every row of the batch
        same = same.all(dim=0, keepdim=True)
    return both, (same & earlier).any(dim=1).expand(len(both), -1)


@full_precision
def ranking_rows(
    student: Tensor, teacher: Tensor, *, k: int = 5, strength: float = 1.0, union: Union = "exact"
) -> Tensor:
    """Give 1 - Spearman's correlation of soft ranks, over the classes that either side has among its top k.

    Args:
        student: (b, c) logits.
        teacher: (b, c) logits; detached.
        k: Top classes of each side; all of them where there are fewer.
        strength: See `soft_ranks`.
        union: "exact" takes each class once. "official" is the released code's: a class on both sides' lists counts
            twice, unless it stands at the same two places for every row of the batch, which flatters the student and
            makes a row's value depend on the others.

    Returns:
        (b,) in [0, 2]. A side whose values are all equal, up to rounding of the ranks, has no order: the row gives 1
        and no gradient.

    Raises:
        ConfigError: If a parameter is out of range.
        ObjectiveError: If shapes do not fit.
    """
    check_logits(student, teacher, name="rlkd")
    if k < 1 or union not in get_args(Union):
        raise ConfigError(f"k must be at least 1 and union 'exact' or 'official'; received {k} and '{union}'")
    teacher = teacher.detach()
    chosen, repeats = _top(student, teacher, k, union)
    sides = [_centred_ranks(side.gather(1, chosen), repeats, strength) for side in (student, teacher)]
    return 1 - (sides[0] * sides[1]).sum(dim=1)


def _centred_ranks(values: Tensor, ignore: Tensor, strength: float) -> Tensor:
    """Give soft ranks (b, n) minus their mean, of unit length; 0 for ignored entries and for rows without order."""
    ranks = soft_ranks(values, strength=strength, ignore=ignore)
    mean = ranks.sum(dim=1, keepdim=True) / (~ignore).sum(dim=1, keepdim=True)
    centred = torch.where(ignore, 0.0, ranks - mean)
    rounding = torch.finfo(ranks.dtype).eps * ranks.shape[1] ** 2
    flat = centred.detach().abs().amax(dim=1, keepdim=True) <= rounding
    return unit(torch.where(flat, 0.0, centred))


@full_precision
@torch.no_grad()
def top_agreement(student: Tensor, teacher: Tensor, *, k: int) -> dict[str, Tensor]:
    """Measure how alike the first k classes of two networks are, for each row.

    Args:
        student: (b, c) logits or probabilities.
        teacher: (b, c).
        k: How many; all classes where there are fewer.

    Returns:
        "overlap": OR_k (b,), the share of the teacher's top k that the student has among its own, whose mean is MOR_k;
        "ordered": (b,), 1 where both lists are the same in order, else 0, whose mean is CR_k (CR_1: top-1 agreement).

    Raises:
        ConfigError: If k is below 1.
        ObjectiveError: If shapes do not fit.
    """
    check_logits(student, teacher, name="top_agreement")
    if k < 1:
        raise ConfigError(f"k must be at least 1; received {k}")
    k = min(k, student.shape[1])
    s, t = student.topk(k, dim=1).indices, teacher.topk(k, dim=1).indices
    overlap = (s[:, :, None] == t[:, None, :]).sum(dim=(1, 2)).to(student.dtype) / k
    return {"overlap": overlap, "ordered": (s == t).all(dim=1).to(student.dtype)}


def _kl(log_p: Tensor, log_q: Tensor, epsilon: float) -> Tensor:
    """Give KL(p || q) of rows of log-probabilities, with epsilon added within both logarithms if it is above 0."""
    p = log_p.exp()
    if epsilon:
        log_p, log_q = (p + epsilon).log(), (log_q.exp() + epsilon).log()
    return (p * (log_p - log_q)).sum(dim=1)


def _js(log_s: Tensor, log_t: Tensor, epsilon: float) -> Tensor:
    if not epsilon:
        return js_rows(log_s, log_t)
    log_m = torch.logaddexp(log_s, log_t) - math.log(2)
    return (_kl(log_s, log_m, epsilon) + _kl(log_t, log_m, epsilon)) / 2


BASES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "kl": lambda log_s, log_t, epsilon: _kl(log_t, log_s, epsilon),
    "rkl": _kl,
    "js": _js,
    "tvd": lambda log_s, log_t, epsilon: (log_s.exp() - log_t.exp()).abs().sum(dim=1) / 2,
}
"""Divergences of the student's and the teacher's log-probabilities, row by row: (b, c) twice and epsilon to (b,)."""


class RankingDistillation(Objective):
    """The order of the top classes follows the teacher's, beside a divergence of the distributions.

        L = rank_weight (1/b) sum_i [ 1 - rho(R(s_i), R(t_i)) ]
          + logits_weight (1/b) sum_i D( softmax(t_i/T), softmax(s_i/T) )

    R are soft ranks over the union of both sides' top k classes, rho their Pearson correlation. Where the sorted logits
    are all at least `strength` apart the ranks are exact and carry no gradient; where they span less than n/2 times it
    the first part is 1 - Pearson of the values themselves. So strength belongs to the logits' scale: for confident
    teachers of few classes take about the median gap between neighbours of the teacher's top logits.

    The released code's numbers are those of rank_weight 1, logits_weight 0.5, union "official" and epsilon 1e-10.

    Args:
        k: Top classes of each side; 5, the paper's beside another objective (10 to 15 alone, 15 in pre-training).
        strength: Distance between values that counts as fully ranked; 1, the released code's.
        union: "exact", or the released code's "official", see `ranking_rows`.
        on: What is ranked: "logits" as the released code, or "probs" as the paper's text (which at strength 1 is always
            1 - Pearson).
        base: Divergence beside it: kl (teacher's), rkl (reverse), js, tvd (total variation) or none.
        rank_weight: Weight of the ranking; 2, the paper's. Released 1.
        logits_weight: Weight of the divergence; 1, the paper's. Released 0.5.
        epsilon: Added to probabilities within the logarithms of kl, rkl and js, >= 0; released 1e-10. 0, which is ours,
            works in log space, where nothing is lost.
        dynamic: Multiply each row's divergence by the share of top classes that both sides have (the paper's, for kl
            and rkl).
        tau: Temperature T of the divergence (not of the ranks); 1.

    Raises:
        ConfigError: If a parameter is out of range.
    """

    facts: ClassVar[Facts] = Facts(
        name="rlkd",
        title="the top classes are in the teacher's order",
        paper="Peng & Zhang 2024 (RLKD)",
        needs=frozenset({"pairs", "teacher_logits"}),
    )
    reads = "logits"

    def __init__(
        self,
        k: int = 5,
        *,
        strength: float = 1.0,
        union: Union = "exact",
        on: On = "logits",
        base: Base = "kl",
        rank_weight: float = 2.0,
        logits_weight: float = 1.0,
        epsilon: float = 0.0,
        dynamic: bool = False,
        tau: float = 1.0,
    ) -> None:
        super().__init__()
        check_tau(tau=tau)
        check_strength(strength)
        if k < 1:
            raise ConfigError(f"k must be at least 1; received {k}")
        choices = (("union", union, get_args(Union)), ("on", on, get_args(On)), ("base", base, get_args(Base)))
        for name, value, known in choices:
            if value not in known:
                raise ConfigError(f"{name} must be one of {', '.join(known)}; received '{value}'")
        for name, value in (("rank_weight", rank_weight), ("logits_weight", logits_weight), ("epsilon", epsilon)):
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name} must be finite and at least 0; received {value}")
        self.logits_weight, self.epsilon = logits_weight, epsilon
        self.k, self.strength, self.rank_weight, self.dynamic, self.tau = k, strength, rank_weight, dynamic, tau
        self.union: Union = union
        self.on, self.base = on, base

    def parts(self, student: Tensor, teacher: Tensor, context: Context) -> dict[str, Tensor]:
        """Give {"rank": ...} and, unless there is no base, its divergence, both weighted; (b, c) each."""
        check_logits(student, teacher, name="rlkd")
        teacher = teacher.detach()
        s, t = (student.softmax(1), teacher.softmax(1)) if self.on == "probs" else (student, teacher)
        rank = ranking_rows(s, t, k=self.k, strength=self.strength, union=self.union).mean()
        parts = {"rank": finite(self.rank_weight * rank, student, teacher, name="rlkd")}
        if self.base != "none":
            log_s, log_t = ((side / self.tau).log_softmax(dim=1) for side in (student, teacher))
            rows = BASES[self.base](log_s, log_t, self.epsilon)
            if self.dynamic:
                rows = rows * top_agreement(student, teacher, k=self.k)["overlap"]
            parts[self.base] = finite(self.logits_weight * rows.mean(), student, teacher, name="rlkd")
        return parts
