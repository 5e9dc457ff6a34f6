"""PKT, probabilistic knowledge transfer: which samples are near to which, by a cosine shifted to [0, 1].

Source: Passalis & Tefas 2018 for the idea; the kernel, the constant 1e-7 and the mean over all b^2 entries are those of
the authors' released code, which RepDistiller and torchdistill repeat. CMCD's CMD is this with a softmax at a
temperature instead of the shifted cosine.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor

from crossdistill.errors import ConfigError
from crossdistill.objectives.base import Context, Objective, check_pair, full_precision, unit
from crossdistill.objectives.gather import gather_rows
from crossdistill.objectives.tiled import Plan, in_tiles, once, total_of
from crossdistill.registry import Facts

Average = Literal["rows", "entries"]


def _check(average: str, eps: float) -> None:
    if average not in ("rows", "entries"):
        raise ConfigError(f"average must be 'rows' or 'entries'; received '{average}'")
    if not (math.isfinite(eps) and eps > 0):
        raise ConfigError(f"eps must be finite and above 0, such as 1e-7; received {eps}")


@full_precision
def shifted_cosine_kernel(features: Tensor) -> Tensor:
    """Give p(j|i) = k(i, j) / sum_l k(i, l) with k = (cos + 1) / 2, the sample itself among its neighbours.

    Args:
        features: (b, d), any scale; a zero row is at right angles to all, itself included.

    Returns:
        (b, b), rows that sum to 1, float32 or float64.
    """
    z = unit(features)
    kernel = ((z @ z.T + 1) / 2).clamp(min=0)  # rounding may pass -1, where the cosine's gradient is 0 anyway
    return kernel / kernel.sum(dim=1, keepdim=True)


@full_precision
def probabilistic_transfer(student: Tensor, teacher: Tensor, *, average: Average = "rows", eps: float = 1e-7) -> Tensor:
    """Give the divergence KL(p_t || p_s) of the neighbourhoods, p_t log((p_t + eps) / (p_s + eps)).

    Args:
        student: (b, d_s) features, any scale.
        teacher: (b, d_t) features of the partners; d_t may differ from d_s.
        average: "rows" sums over neighbours and averages over samples; "entries" is the released mean over all b^2
            entries, 1/b of that, so that the loss weakens as the batch grows.
        eps: Keeps the logarithm finite where a kernel value is 0; released 1e-7.

    Returns:
        Scalar, nats; small by construction: kernel values lie in [0, 1], and no temperature sharpens them.

    Raises:
        ConfigError: If a parameter is out of range.
        ObjectiveError: If the tensors do not fit.
    """
    _check(average, eps)
    check_pair(student, teacher, name="pkt", equal_widths=False)
    student, teacher = gather_rows(student), gather_rows(teacher.detach())
    if in_tiles(len(student), len(student), student.device):
        apply = cast("Callable[..., Tensor]", _Divergence.apply)  # torch does not type it
        u, v = unit(student), unit(teacher)
        dtype = torch.promote_types(u.dtype, v.dtype)
        divergence = apply(u.to(dtype), v.to(dtype), eps, torch.is_grad_enabled() and u.requires_grad)
    else:
        p_s, p_t = shifted_cosine_kernel(student), shifted_cosine_kernel(teacher)
        divergence = (p_t * ((p_t + eps).log() - (p_s + eps).log())).sum(dim=1).mean()
    return divergence / len(student) if average == "entries" else divergence


class _Divergence(torch.autograd.Function):
    """The mean over rows of the divergence, in tiles; row sums of the kernel are known from the rows' sum alone.

    With p = k / r, dL/dk_ij = (G_ij - sum_l G_il p_il) / r_i, where G = dL/dp; the second term is of rank one.
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, v: Tensor, eps: float, needed: bool) -> Tensor:
        n, plan = len(u), Plan(len(u), len(u), True, u.device)
        whole = u.sum(dim=0)
        r_s, r_t = ((z @ total + n) / 2 for z, total in ((u, whole), (v, v.sum(dim=0))))
        loss, du, along = u.new_zeros(()), torch.zeros_like(u), u.new_zeros(n)
        for i, j in plan:
            k_s, k_t = ((z[i] @ z[j].T).add_(1).div_(2).clamp_(min=0) for z in (u, v))
            pull = torch.zeros_like(k_s)
            # a tile off the diagonal is its mirror image too, with the columns' sums
            for rows, dim in ((i, 1),) if i == j else ((i, 1), (j, 0)):
                p_s, p_t = (k / r[rows].unsqueeze(dim) for k, r in ((k_s, r_s), (k_t, r_t)))
                below = p_s + eps
                loss += (p_t + eps).div_(below).log_().mul_(p_t).sum()
                # G + 1: a constant in G changes nothing, as p sums to 1, and without it nothing cancels
                slope = (below - p_t).div_(below)
                along[rows] += p_s.mul_(slope).sum(dim=dim)
                pull += slope.div_(r_s[rows].unsqueeze(dim))
            if needed:
                du[i] += pull @ u[j]
                du[j] += pull.T @ u[i]
        share = along / r_s
        du -= share[:, None] * whole + share @ u
        ctx.save_for_backward(du.mul_(plan.world / (2 * n)))
        return total_of(loss) / n

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        once()
        (du,) = ctx.saved_tensors
        return du * gradients[0], None, None, None


class ProbabilisticTransfer(Objective):
    """PKT: the probability of each sample's neighbours under the student follows the teacher's.

    With k(a, b) = (cos(a, b) + 1) / 2 and p(j|i) = k(i, j) / sum_l k(i, l), self included,

        (1/b) sum_i sum_j p_t(j|i) log( (p_t(j|i) + eps) / (p_s(j|i) + eps) ).

    Released code averages over all b^2 entries; the mean over rows is the default here, because the strength then does
    not change with the batch size: RepDistiller's weight of 30000 at batches of 64 is one of 469 here. Turning or
    scaling either side changes nothing; shifting the student does.

    Args:
        average: "rows", or "entries" as released.
        eps: Keeps the logarithm finite, above 0; released 1e-7.

    Raises:
        ConfigError: If a parameter is out of range.
    """

    facts: ClassVar[Facts] = Facts(
        name="pkt",
        title="the probability of each sample's neighbours follows the teacher's",
        paper="Passalis & Tefas 2018 (PKT); mean over rows ours",
        needs=frozenset({"pairs"}),
    )

    def __init__(self, average: Average = "rows", *, eps: float = 1e-7) -> None:
        super().__init__()
        _check(average, eps)
        self.average: Average = average
        self.eps = eps

    def parts(self, student: Tensor, teacher: Tensor, context: Context) -> dict[str, Tensor]:
        """Give {"pkt": the divergence}; (b, d_s) and (b, d_t)."""
        return {"pkt": probabilistic_transfer(student, teacher, average=self.average, eps=self.eps)}
