"""NT-Xent, SimCLR's loss between two views of each sample (Chen et al. 2020): self-supervision, no teacher."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from crossdistill.objectives.base import check_pair, full_precision, mask_logits, unit
from crossdistill.objectives.cmcd import check_tau
from crossdistill.objectives.gather import gather_rows
from crossdistill.objectives.tiled import contrast_views, in_tiles


@full_precision
def nt_xent(first: Tensor, second: Tensor, *, tau: float = 0.2) -> Tensor:
    """Find the other view of each sample among all 2b - 1 other views.

    -(1/2b) sum_i log [ exp(u_i.u_p(i) / tau) / sum_{k != i} exp(u_i.u_k / tau) ] over the 2b unit vectors u.

    Args:
        first: (b, d) embeddings of one view, any scale.
        second: (b, d) of the other.
        tau: Temperature; 0.1 to 0.2 is usual, SimCLR's CIFAR setting is 0.5.

    Returns:
        Scalar, nats; ln(2b - 1) for constant embeddings.

    Raises:
        ConfigError: If tau is refused by `check_tau`.
        ObjectiveError: If the tensors do not fit.
    """
    check_tau(tau=tau)
    check_pair(first, second, name="nt_xent", equal_widths=True)
    first, second = gather_rows(first), gather_rows(second)
    u = unit(torch.cat([first, second]))
    b = len(first)
    if in_tiles(2 * b, 2 * b, u.device):
        return contrast_views(u, scale=1 / tau)
    logits = mask_logits(u @ u.T / tau, torch.eye(2 * b, dtype=torch.bool, device=u.device))
    other = torch.arange(2 * b, device=u.device).roll(b)
    return F.cross_entropy(logits, other)
