"""Feature regression: the student reproduces the teacher's features, squared distance or angle.

Source: Gupta et al. 2016 (cross modal distillation for supervision transfer) for L2 between layers of two modalities;
which layer and the adaptor are choices of ours (pooled output; a linear adaptor on the student where widths differ,
made by the method).
"""

from __future__ import annotations

import math
from typing import ClassVar

from torch import Tensor

from crossdistill.errors import ObjectiveError
from crossdistill.objectives.base import Context, Objective, check_pair, unit
from crossdistill.registry import Facts, Need

_NEEDS: frozenset[Need] = frozenset({"pairs", "equal_widths"})


class L2(Objective):
    """Mean squared distance, (1 / (b d)) sum ||s_i - t_i||^2.

    Args:
        normalise: Bring both sides to unit length first; then it equals 2/d times `Cosine`.
    """

    facts: ClassVar[Facts] = Facts(
        name="l2", title="squared distance to the teacher's features", paper="Gupta et al. 2016", needs=_NEEDS
    )

    def __init__(self, normalise: bool = False) -> None:
        super().__init__()
        self.normalise = normalise

    def parts(self, student: Tensor, teacher: Tensor, context: Context) -> dict[str, Tensor]:
        """Give {"l2": the mean}; student and teacher (b, d).

        Raises:
            ObjectiveError: If the mean of finite features is too large for their type.
        """
        check_pair(student, teacher, name="l2", equal_widths=True)
        teacher = teacher.detach()
        if self.normalise:
            student, teacher = unit(student), unit(teacher)
        loss = (student - teacher).square().mean()
        if loss.device.type == "cpu" and not loss.isfinite():  # elsewhere looking costs a wait; the loop looks anyway
            _explain(student.detach(), teacher)
        return {"l2": loss}


class Cosine(Objective):
    """Mean angle to the teacher, (1/b) sum (1 - cos(s_i, t_i)), in [0, 2]."""

    facts: ClassVar[Facts] = Facts(
        name="cosine", title="angle to the teacher's features", paper="standard feature regression", needs=_NEEDS
    )

    def parts(self, student: Tensor, teacher: Tensor, context: Context) -> dict[str, Tensor]:
        """Give {"cosine": the mean}; student and teacher (b, d)."""
        check_pair(student, teacher, name="cosine", equal_widths=True)
        return {"cosine": 1 - (unit(student) * unit(teacher.detach())).sum(dim=1).mean()}


def _explain(student: Tensor, teacher: Tensor) -> None:
    """Say why a distance is not finite, unless the features are not either: then the network is at fault, not the loss.

    Raises:
        ObjectiveError: If all features are finite.
    """
    largest_s, largest_t = float(student.abs().max()), float(teacher.abs().max())
    if math.isfinite(largest_s) and math.isfinite(largest_t):
        raise ObjectiveError(
            f"l2: squared distances overflow {student.dtype}; the largest entries are {largest_s:.3g} of the student "
            f"and {largest_t:.3g} of the teacher. Set normalise, or scale the features"
        )
