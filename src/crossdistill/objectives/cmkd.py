"""Hard labels from a teacher of another modality: its first choice, or the cluster that its features fall into.

Source: Thoker & Gall 2019, whose abstract alone was available: cross-entropy instead of a divergence, and a small
ensemble of students that teach each other. That the label is the teacher's argmax is from memory, unverified. The
mutual part needs several students at once, which no objective has: it belongs to the methods.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossdistill.errors import ConfigError, ObjectiveError
from crossdistill.objectives._logits import check_logits, finite
from crossdistill.objectives.base import Context, Objective, check_pair, full_precision, unit
from crossdistill.registry import Facts, Need

ROWS_AT_ONCE = 8192
"""Rows whose distances to all centres are held at a time."""


@full_precision
def hard_label_cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over rows of -log softmax(student)_y with y the teacher's largest logit, (b, c) each.

    Raises:
        ObjectiveError: If shapes do not fit.
    """
    check_logits(student, teacher, name="cmkd")
    return finite(F.cross_entropy(student, teacher.argmax(dim=1)), student, teacher, name="cmkd")


@torch.no_grad()
def nearest_centre(points: Tensor, centres: Tensor) -> Tensor:
    """Find each point's nearest centre, (b,) int64; of equally near ones the first.

    Args:
        points: (b, d).
        centres: (k, d).
    """
    size = centres.square().sum(dim=1)
    pieces = range(0, len(points), ROWS_AT_ONCE)
    return torch.cat([(size - 2 * points[i : i + ROWS_AT_ONCE] @ centres.T).argmin(dim=1) for i in pieces])


@torch.no_grad()
def k_means(points: Tensor, clusters: int, *, steps: int = 100) -> Tensor:
    """Cluster points: k-means++ for the start, then Lloyd's steps until no point changes sides.

    It draws from torch's global generator of the CPU, whatever the device, and is a function of it and the points. A
    centre that loses all its points stays where it is; with fewer distinct points than centres some have none.

    Args:
        points: (n, d), n at least 1, finite.
        clusters: Number of centres k, at least 1.
        steps: Largest number of Lloyd's steps.

    Returns:
        Centres (k, d).
    """
    nearest = torch.full((len(points),), torch.inf, dtype=points.dtype, device=points.device)
    chosen: list[Tensor] = []
    for _ in range(clusters):
        chosen.append(points[_draw(nearest)])
        nearest = torch.minimum(nearest, (points - chosen[-1]).square().sum(dim=1))
    centres, side = torch.stack(chosen), None
    for _ in range(steps):
        now = nearest_centre(points, centres)
        if side is not None and torch.equal(now, side):
            break
        side = now
        sums, count = torch.zeros_like(centres), torch.zeros_like(centres[:, :1])
        for i in range(0, len(points), ROWS_AT_ONCE):
            belongs = F.one_hot(side[i : i + ROWS_AT_ONCE], clusters).to(points).T
            sums, count = sums + belongs @ points[i : i + ROWS_AT_ONCE], count + belongs.sum(dim=1, keepdim=True)
        centres = torch.where(count > 0, sums / count.clamp(min=1), centres)
    return centres


def _draw(weights: Tensor) -> int:
    """Draw a position with probability proportional to finite weights (n,); evenly if there are none yet, or all 0."""
    total = weights.cpu().double().cumsum(dim=0)
    where = torch.rand((), dtype=torch.float64)
    if not 0 < float(total[-1]) < float("inf"):
        return int(where * len(weights))
    return min(int(torch.searchsorted(total, where * total[-1], right=True)), len(weights) - 1)


class HardLabels(Objective):
    """Train the student on the class that the teacher of the other modality would say, as if it were the label.

        (1/b) sum_i -log softmax(s_i)_yhat,   yhat = argmax t_i

    With `clusters` the teacher needs no logits: before the student learns, its unit features are clustered (k-means on
    all training pairs, held in memory), and a linear head of this objective's own, dropped after the stage, learns to
    say from the student's features which cluster the partner fell into. That is our adaptation, not the paper's.

    The paper's mutual learning of several students is not here; see the methods that train several.

    Args:
        clusters: 0 takes the teacher's logits; else the number of clusters of its features, about 10 a class.

    Raises:
        ConfigError: If clusters is 1 or negative.
    """

    facts: ClassVar[Facts] = Facts(
        name="cmkd",
        title="the teacher's first choice is the label, or its features' cluster",
        paper="Thoker & Gall 2019; our reconstruction",
        needs=frozenset({"pairs", "teacher_logits"}),
    )
    reads = "logits"
    centres: Tensor

    def __init__(self, clusters: int = 0) -> None:
        super().__init__()
        if clusters < 0 or clusters == 1:
            raise ConfigError(f"clusters must be 0, for the teacher's logits, or at least 2; received {clusters}")
        self.clusters = clusters
        self.head: nn.Linear | None = None
        self.register_buffer("centres", torch.zeros(0, 0))
        if clusters:
            self.reads = "features"

    @property
    def needs(self) -> frozenset[Need]:
        """Pairs, and without clusters the teacher's logits."""
        less: set[Need] = {"teacher_logits"} if self.clusters else set()
        return self.facts.needs - less

    def prepare(self, student: Tensor, teacher: Tensor, *, pairs: int) -> None:
        """Make the head, from the student's features to the clusters, once."""
        if self.clusters and (self.head is None or self.head.in_features != student.shape[1]):
            check_pair(student, teacher, name="cmkd", equal_widths=False)
            self.head = nn.Linear(student.shape[1], self.clusters, device=student.device)

    def study(self, teacher: Iterable[tuple[Tensor, Context]]) -> None:
        """Cluster the teacher's features.

        Raises:
            ObjectiveError: If they are not finite.
        """
        if not self.clusters:
            return
        points = torch.cat([unit(features.detach()) for features, _ in teacher])
        if not bool(points.isfinite().all()):
            raise ObjectiveError("cmkd: the teacher's features are not all finite numbers, and cannot be clustered")
        self.centres = k_means(points, self.clusters)

    def parts(self, student: Tensor, teacher: Tensor, context: Context) -> dict[str, Tensor]:
        """Give {"cmkd": cross-entropy with the teacher's choice}, or {"clusters": with the cluster}.

        Raises:
            ObjectiveError: If there are clusters to learn, and neither `prepare` nor `study` was called.
        """
        if not self.clusters:
            return {"cmkd": hard_label_cross_entropy(student, teacher)}
        check_pair(student, teacher, name="cmkd", equal_widths=False, least=1)
        if self.head is None or self.centres.shape != (self.clusters, teacher.shape[1]):
            raise ObjectiveError("cmkd: call prepare, and study with the teacher's features, before the loss")
        points = unit(teacher.detach())
        side = nearest_centre(points, self.centres.to(points))
        logits = F.linear(student, self.head.weight.to(student), self.head.bias.to(student))
        return {"clusters": finite(F.cross_entropy(logits, side), student, name="cmkd")}
