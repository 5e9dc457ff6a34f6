"""VID, variational information distillation: the teacher's features are likely under a Gaussian that the student gives.

Source: the formula that RepDistiller released for Ahn et al. 2019; the paper itself was not read for this. There the
regressor is of 1x1 convolutions on feature maps; on pooled features these are linear layers, with biases.
"""

from __future__ import annotations

import itertools
import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossdistill.errors import ConfigError, ObjectiveError
from crossdistill.objectives._pieces import finite, placed
from crossdistill.objectives.base import Context, Objective, check_pair, full_precision
from crossdistill.registry import Facts


@full_precision
def gaussian_information(mean: Tensor, teacher: Tensor, variance: Tensor) -> Tensor:
    """Give 1/2 mean[ (t - mean)^2 / v + log v ], a negative log likelihood up to a constant; it may be negative.

    Args:
        mean: (b, d) predictions.
        teacher: (b, d); it is detached.
        variance: (d,), above 0, one for each of the teacher's channels.

    Raises:
        ObjectiveError: If the tensors do not fit.
    """
    check_pair(mean, teacher, name="vid", equal_widths=True)
    return ((teacher.detach() - mean).square() / variance + variance.log()).mean() / 2


class VariationalInformation(Objective):
    """VID: 1/2 mean[ (t - reg(s))^2 / v + log v ], v = softplus(raw) + eps, one variance for each of t's channels.

    The regressor and the variances learn with the student, and are dropped afterwards. Channels that the student
    cannot foretell get a large variance and cost it little.

    Args:
        hidden: Width within the regressor; None takes the teacher's, a choice of ours.
        layers: Linear layers of the regressor, with ReLU between; 3, as we read "three layers" in our source. 1 is
            linear.
        variance: Where all variances start, above eps; released 5.
        eps: What variances stay above, at least 0; released 1e-5.

    Raises:
        ConfigError: If a parameter is out of range.
    """

    facts: ClassVar[Facts] = Facts(
        name="vid",
        title="the teacher's features are likely under a Gaussian that the student gives",
        paper="Ahn et al. 2019 (VID), as RepDistiller released it; linear layers for convolutions ours",
        needs=frozenset({"pairs"}),
    )

    def __init__(self, hidden: int | None = None, *, layers: int = 3, variance: float = 5.0, eps: float = 1e-5) -> None:
        super().__init__()
        if layers < 1 or (hidden is not None and hidden < 1):
            raise ConfigError(f"layers and hidden must be at least 1; received {layers} and {hidden}")
        if not (math.isfinite(eps) and eps >= 0):
            raise ConfigError(f"eps must be finite and at least 0; received {eps}")
        if not (math.isfinite(variance) and variance > eps):
            raise ConfigError(f"variance must be finite and above eps; received {variance}")
        self.hidden, self.depth, self.variance, self.eps = hidden, layers, variance, eps
        self.regressor: nn.Sequential | None = None
        self.raw: nn.Parameter | None = None
        self._widths = (0, 0)

    def prepare(self, student: Tensor, teacher: Tensor, *, pairs: int) -> None:
        """Make the regressor and the variances; those that are there for these widths are kept."""
        d_s, d_t = student.shape[1], teacher.shape[1]
        if self._widths == (d_s, d_t):
            return
        widths = [d_s, *[self.hidden or d_t] * (self.depth - 1), d_t]
        made: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            made += [nn.Linear(before, after), nn.ReLU()]
        self.regressor = placed(nn.Sequential(*made[:-1]), student)
        above = self.variance - self.eps  # softplus(raw) = above
        start = above + math.log(-math.expm1(-above))
        dtype = torch.float64 if teacher.dtype == torch.float64 else torch.float32
        self.raw = nn.Parameter(torch.full((d_t,), start, device=teacher.device, dtype=dtype))
        self._widths = (d_s, d_t)

    def parts(self, student: Tensor, teacher: Tensor, context: Context) -> dict[str, Tensor]:
        """Give {"vid": the negative log likelihood}; (b, d_s) and (b, d_t).

        Raises:
            ObjectiveError: If it was not prepared, or finite features make the loss overflow.
        """
        check_pair(student, teacher, name="vid", equal_widths=False)
        if self.regressor is None or self.raw is None:
            raise ObjectiveError("vid: its regressor is not made yet; call prepare(student, teacher, pairs=...) first")
        loss = gaussian_information(self.regressor(student), teacher, F.softplus(self.raw) + self.eps)
        return {"vid": finite(loss, "vid", [student], [teacher])}
