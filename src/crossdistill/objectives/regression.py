"""Feature regression: the student reproduces the teacher's features, squared distance or angle.

Source: Gupta et al. 2016 (cross modal distillation for supervision transfer) for L2 between layers of two modalities;
which layer
and the adaptor are choices of ours (pooled output; a linear adaptor on the student where widths differ, made by the
method).
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

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
        """Give {"l2": the mean}; student and teacher (b, d)."""
        check_pair(student, teacher, name="l2", equal_widths=True)
        student, teacher = student.float() if student.itemsize < 4 else student, teacher.detach()
        if self.normalise:
            student, teacher = unit(student), unit(teacher)
        return {"l2": (student - teacher).square().mean()}


class Cosine(Objective):
    """Mean angle to the teacher, (1/b) sum (1 - cos(s_i, t_i)), in [0, 2]."""

    facts: ClassVar[Facts] = Facts(
        name="cosine", title="angle to the teacher's features", paper="standard feature regression", needs=_NEEDS
    )

    def parts(self, student: Tensor, teacher: Tensor, context: Context) -> dict[str, Tensor]:
        """Give {"cosine": the mean}; student and teacher (b, d)."""
        check_pair(student, teacher, name="cosine", equal_widths=True)
        return {"cosine": 1 - (unit(student) * unit(teacher.detach())).sum(dim=1).mean()}
