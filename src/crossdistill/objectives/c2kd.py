"""The pieces of C2KD that are functions of two rows of logits: non-target divergence and the ranks' agreement.

Source: Huo et al. 2024 (Customised Crossmodal Knowledge Distillation). The paper was not available to us; the formulas
are those of two public re-implementations that agree with each other. The method itself, with its proxies, needs
several networks; here is what is useful alone.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from crossdistill.errors import ConfigError
from crossdistill.objectives._logits import check_logits, finite, kl_rows, known_rows, non_target
from crossdistill.objectives.base import full_precision

Form = Literal["published", "removed"]

PAIRS_AT_ONCE = 2**24
"""Pairs of classes compared in one go by `kendall_tau`, some 16 MB a table; more rows are done in chunks."""


@full_precision
def nontarget_kl(student: Tensor, teacher: Tensor, label: Tensor, *, form: Form = "published") -> Tensor:
    """Compare two rows of logits on the classes other than the row's own.

        published:  KL( softmax(t o (1 - e_y)) || softmax(s o (1 - e_y)) )      the own class's logit is set to 0
        removed:    KL( softmax(t without y) || softmax(s without y) )          the own class is no class any more

    "published" is what the re-implementations that were read do: the own class stays in both softmaxes, with weight
    exp(0), so that adding a constant to all logits changes the value. "removed" is free of that, and 0 for two
    classes.

    Args:
        student: (b, c) logits.
        teacher: (b, c) logits of the partners; detached.
        label: (b,) int64; rows of unknown class (-1) give 0.
        form: See above.

    Returns:
        (b,) nats, one for each row, so that a gate such as `kendall_tau` can be put on them.

    Raises:
        ConfigError: If form is neither.
        ObjectiveError: If shapes do not fit, or a label is out of range.
    """
    if form not in get_args(Form):
        raise ConfigError(f"form must be 'published' or 'removed'; received '{form}'")
    check_logits(student, teacher, name="nontarget_kl")
    known, y = known_rows(label, student, name="nontarget_kl")
    if form == "removed":
        rows = kl_rows(non_target(student, y), non_target(teacher, y))
    else:
        own = torch.zeros_like(student, dtype=torch.bool).scatter(1, y[:, None], True)
        rows = kl_rows(student.masked_fill(own, 0.0), teacher.masked_fill(own, 0.0))
    return finite(torch.where(known, rows, 0.0), student, teacher, name="nontarget_kl")


@full_precision
@torch.no_grad()
def kendall_tau(student: Tensor, teacher: Tensor) -> Tensor:
    """Rank correlation (Kendall's tau-b) of two rows of logits, for every row: how alike classes are ordered.

        tau_b = (concordant - discordant) / sqrt( pairs not tied in s * pairs not tied in t )

    It equals scipy.stats.kendalltau, except that a constant row, where that is nan, gives 0: no agreement, and a gate
    tau > 0 stays shut. All pairs of classes are compared, O(b c^2) work; memory is bounded by doing rows in chunks.

    Args:
        student: (b, c) values, any finite.
        teacher: (b, c).

    Returns:
        (b,) in [-1, 1], without gradient.

    Raises:
        ObjectiveError: If shapes do not fit.
    """
    check_logits(student, teacher, name="kendall_tau")
    rows = max(1, PAIRS_AT_ONCE // student.shape[1] ** 2)
    starts = range(0, len(student), rows)
    return torch.cat([_tau_b(student[i : i + rows], teacher[i : i + rows]) for i in starts])


def _tau_b(s: Tensor, t: Tensor) -> Tensor:
    """Compute tau-b of a few rows; every pair is counted twice, above and below the line, which cancels."""

    def order(x: Tensor) -> Tensor:
        a, b = x[:, :, None], x[:, None, :]
        return (a > b).to(torch.int8) - (a < b).to(torch.int8)

    of_s, of_t = order(s), order(t)
    agree = (of_s * of_t).sum(dim=(1, 2))
    untied = of_s.abs().sum(dim=(1, 2)) * of_t.abs().sum(dim=(1, 2))
    tau = agree.to(s.dtype) / untied.clamp(min=1).to(s.dtype).sqrt()  # 0 / 1 where all classes of a row tie
    return tau.clamp(-1, 1)
