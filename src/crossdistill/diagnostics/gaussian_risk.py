"""When a teacher helps a linear student, in closed form: the Gaussian case of the complementarity hypothesis.

    y = w.x + e,   t = v.x + h,   (e, h) independent of x:  the student sees x, the teacher says t

The student is least squares on (1 - a) y + a t, which is what a quadratic distillation penalty of weight
lambda = a / (1 - a) comes to. Its excess risk over w is known exactly (our derivation), and so is what the criterion
leaves out: it is blind to the scale of the teacher, to its bias, and to how many labels there are.

Shapes: d columns, n labelled rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from crossdistill.errors import ConfigError


class BestWeight(NamedTuple):
    """The best share of the teacher, in [0, 1], and by how much it lowers the excess risk, >= 0."""

    share: float
    gain: float


@dataclass(frozen=True, kw_only=True)
class GaussianTeacher:
    """A teacher and a student of the linear Gaussian world.

    Attributes:
        n: Labelled rows, above d + 1.
        d: Columns that the student sees.
        label_noise: Var e, >= 0: what the student cannot know of the label.
        teacher_noise: Var h, >= 0: what it cannot know of the teacher.
        common_noise: Cov(e, h), at most sqrt(label_noise teacher_noise) in size.
        bias: (v - w)' Sigma (v - w), >= 0: how far what the student can know of the teacher is from that of the label.
    """

    n: int
    d: int
    label_noise: float
    teacher_noise: float
    common_noise: float
    bias: float

    def __post_init__(self) -> None:
        """Check.

        Raises:
            ConfigError: If a number is out of range.
        """
        noises = self.label_noise, self.teacher_noise, self.bias
        if not all(math.isfinite(value) and value >= 0 for value in noises):
            raise ConfigError(f"label_noise, teacher_noise and bias must be >= 0; received {noises}")
        if not abs(self.common_noise) <= math.sqrt(self.label_noise * self.teacher_noise) * (1 + 1e-12):
            raise ConfigError(f"common_noise must be at most sqrt(Var e Var h) in size; received {self.common_noise}")
        if self.d < 1 or self.n <= self.d + 1:
            raise ConfigError(f"need d >= 1 and n > d + 1; received d = {self.d} and n = {self.n}")

    @property
    def helps(self) -> bool:
        """Whether a small enough share of the teacher lowers the risk: exactly where common_noise < label_noise."""
        return self.common_noise < self.label_noise

    def risk(self, share: float) -> float:
        """Give the student's excess risk where the target is (1 - share) y + share t.

        Args:
            share: lambda / (1 + lambda) of a penalty of weight lambda; in [0, 1].

        Raises:
            ConfigError: If `share` is out of range.
        """
        if not 0 <= share <= 1:
            raise ConfigError(f"share, the teacher's part of the target, must be in [0, 1]; received {share}")
        own, both = (1 - share) ** 2 * self.label_noise, 2 * share * (1 - share) * self.common_noise
        return share**2 * self.bias + self._freedom * (own + both + share**2 * self.teacher_noise)

    def best(self) -> BestWeight:
        """Give the share of least risk."""
        reach = self.label_noise - self.common_noise
        bend = self.bias + self._freedom * (self.label_noise - 2 * self.common_noise + self.teacher_noise)
        if reach <= 0 or bend <= 0:
            return BestWeight(0.0, 0.0)
        share = min(1.0, self._freedom * reach / bend)
        return BestWeight(share, self.risk(0.0) - self.risk(share))

    @property
    def _freedom(self) -> float:
        return self.d / (self.n - self.d - 1)


def gaussian_gap(explained_teacher: float, teacher_noise: float, explained_label: float, label_noise: float) -> float:
    """Give I(teacher; student) - I(student; label) in nats, of the best student of each.

    Args:
        explained_teacher: Variance of v.x, >= 0.
        teacher_noise: Var h, above 0.
        explained_label: Variance of w.x, >= 0.
        label_noise: Var e, above 0.

    Raises:
        ConfigError: If a number is out of range.
    """
    if min(explained_teacher, explained_label) < 0 or min(teacher_noise, label_noise) <= 0:
        raise ConfigError(
            "variances that are explained must be >= 0 and those of noise above 0; received "
            f"{explained_teacher}, {teacher_noise}, {explained_label}, {label_noise}"
        )
    return 0.5 * (math.log1p(explained_teacher / teacher_noise) - math.log1p(explained_label / label_noise))
