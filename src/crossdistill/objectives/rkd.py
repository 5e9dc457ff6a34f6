"""RKD, relational knowledge distillation: distances between two samples and angles between three follow the teacher's.

Source: the formula and the weights 25 and 50 that RepDistiller released for Park et al. 2019; the paper itself was not
read for this. Released means are over all entries of the matrices, those of a sample with itself included, which are
0 on both sides: a factor (b - 1) / b for distances, (b - 1)(b - 2) / b^2 for angles. `over` says which.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from crossdistill.errors import ConfigError
from crossdistill.objectives._pieces import scaled
from crossdistill.objectives.base import Context, Objective, check_pair, full_precision, unit
from crossdistill.objectives.gather import gather_rows
from crossdistill.registry import Facts

Over = Literal["all", "different"]


@full_precision
def relational_distances(student: Tensor, teacher: Tensor, *, over: Over = "all") -> Tensor:
    """Give the mean of smoothL1(d_s / mean d_s, d_t / mean d_t) over ordered pairs of samples.

    Args:
        student: (b, d_s) features, any scale.
        teacher: (b, d_t) features of the partners; d_t may differ from d_s.
        over: "all" takes all b^2 pairs, as released; "different" the b (b - 1) of different samples.

    Returns:
        Scalar. Samples that coincide are at distance 0, which has no gradient; where all coincide all ratios count as
        0. For b = 1 there are no pairs, and the loss is 0.

    Raises:
        ObjectiveError: If the tensors do not fit.
    """
    check_pair(student, teacher, name="rkd", equal_widths=False)
    near_s, near_t = _relative(gather_rows(student)), _relative(gather_rows(teacher.detach()))
    b = len(near_s)
    count = b * b if over == "all" else max(1, b * (b - 1))
    return F.smooth_l1_loss(near_s, near_t, reduction="sum") / count  # the diagonal is 0 on both sides


def _relative(features: Tensor) -> Tensor:
    """Give distances divided by their mean, (b, b); without products of features, which cancel for near neighbours."""
    x = scaled(features)
    distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    mean = distance.sum() / max(1, len(x) * (len(x) - 1))
    none = mean.detach() == 0
    return torch.where(none, 0.0, distance / torch.where(none, 1.0, mean))


@full_precision
def relational_angles(student: Tensor, teacher: Tensor, *, vertices: int | None = None, over: Over = "all") -> Tensor:
    """Give the mean of smoothL1(cos_s(i, j, k), cos_t(i, j, k)) over ordered triples of samples.

    cos(i, j, k) is the cosine of the angle at j between the directions to i and to k.

    Args:
        student: (b, d_s) features, any scale.
        teacher: (b, d_t) features of the partners; d_t may differ from d_s.
        vertices: How many of the b samples, evenly spread over the batch, are corners j; None takes all. Memory and
            time are vertices * b * (b + d): all of a batch of 1024 need gigabytes, 32 of them a thirtieth.
        over: "all" takes all b^2 of each corner, as released; "different" the triples of different samples.

    Returns:
        Scalar. Where i or k coincides with j there is no direction and the cosine counts as 0, without a gradient. For
        b < 3 there are no triples, and the loss is 0.

    Raises:
        ConfigError: If `vertices` is below 1.
        ObjectiveError: If the tensors do not fit.
    """
    _check_vertices(vertices)
    check_pair(student, teacher, name="rkd", equal_widths=False)
    student, teacher = gather_rows(student), gather_rows(teacher.detach())
    b = len(student)
    corners = min(b, vertices or b)
    at = torch.linspace(0, b - 1, corners, device=student.device).round().long()
    apart = F.smooth_l1_loss(_cosines(student, at), _cosines(teacher, at), reduction="none")
    apart = apart.masked_fill(torch.eye(b, dtype=torch.bool, device=apart.device), 0.0)  # i = k: no triple
    return apart.sum() / (corners * b * b if over == "all" else max(1, corners * (b - 1) * (b - 2)))


def _cosines(features: Tensor, at: Tensor) -> Tensor:
    """Give the cosines at the samples `at` (m,) between the directions to any two, (m, b, b); 0 where i or k is j."""
    x = scaled(features)
    away = x[None, :, :] - x[at][:, None, :]  # (m, b, d)
    away = unit(away.flatten(0, 1)).view(away.shape)
    return away @ away.mT


def _check_vertices(vertices: int | None) -> None:
    if vertices is not None and vertices < 1:
        raise ConfigError(f"vertices must be at least 1, or left out for all of the batch; received {vertices}")


class RelationalDistillation(Objective):
    """RKD: 25 smoothL1(distances, the teacher's) + 50 smoothL1(cosines of angles, the teacher's).

    Distances are divided by their mean over the batch, so that turning, scaling and shifting either side changes
    nothing.

    Args:
        distance: Weight of the distances, >= 0; 25 as released by RepDistiller.
        angle: Weight of the angles, >= 0; 50 as released. With 0 they cost nothing.
        vertices: How many samples of the batch, evenly spread, are corners of angles; None takes all. All cost b^3 in
            time and memory: give 32 or so for batches above about 256.
        over: Means over "all" entries of the matrices, as released, or over pairs and triples of "different" samples,
            whose size does not depend on the batch's.

    Raises:
        ConfigError: If a parameter is out of range.
    """

    facts: ClassVar[Facts] = Facts(
        name="rkd",
        title="distances between two samples and angles between three follow the teacher's",
        paper="Park et al. 2019 (RKD), as RepDistiller released it",
        needs=frozenset({"pairs"}),
    )

    def __init__(
        self, distance: float = 25.0, *, angle: float = 50.0, vertices: int | None = None, over: Over = "all"
    ) -> None:
        super().__init__()
        for name, weight in (("distance", distance), ("angle", angle)):
            if not (math.isfinite(weight) and weight >= 0):
                raise ConfigError(f"{name} must be a weight, finite and at least 0; received {weight}")
        if distance == angle == 0:
            raise ConfigError("distance and angle are both 0: nothing is to be learnt")
        _check_vertices(vertices)
        if over not in get_args(Over):
            raise ConfigError(f"over must be 'all' or 'different'; received '{over}'")
        self.distance, self.angle, self.vertices = distance, angle, vertices
        self.over: Over = over

    def parts(self, student: Tensor, teacher: Tensor, context: Context) -> dict[str, Tensor]:
        """Give {"distance": ..., "angle": ...}, already weighted, without those of weight 0; (b, d_s) and (b, d_t)."""
        found: dict[str, Tensor] = {}
        if self.distance:
            found["distance"] = self.distance * relational_distances(student, teacher, over=self.over)
        if self.angle:
            angles = relational_angles(student, teacher, vertices=self.vertices, over=self.over)
            found["angle"] = self.angle * angles
        return found
