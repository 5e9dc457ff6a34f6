"""CMKD: hard labels from a teacher of another modality, and students that teach each other.

Source: Thoker & Gall 2019, whose abstract alone was available: cross-entropy instead of a divergence, and mutual
learning of a small ensemble of students. That the label is the teacher's argmax, and that the mutual part is that of
deep mutual learning, are from memory, unverified; labels from clusters are our adaptation for teachers without logits.
Objectives train one student by such labels; the methods of the same names (`methods/cmkd.py`) train several, which
teach each other.

Shapes: b pairs, c classes or clusters.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossdistill.errors import ConfigError, ObjectiveError
from crossdistill.objectives._logits import check_logits, finite, kl_rows
from crossdistill.objectives.base import Context, Objective, check_pair, full_precision, unit
from crossdistill.registry import Facts

ROWS_AT_ONCE = 8192
"""Rows whose distances to all centres are held at a time."""


@full_precision
def hard_label_cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over rows of -log softmax(student)_y with y the teacher's largest logit, (b, c) each.

    Raises:
        ObjectiveError: If shapes do not fit.
    """
    check_logits(student, teacher, name="cmkd")
    loss = label_cross_entropy(student, teacher.argmax(dim=1), teacher)
    return finite(loss, student, teacher, name="cmkd")


@full_precision
def label_cross_entropy(student: Tensor, label: Tensor, teacher: Tensor) -> Tensor:
    """Mean cross-entropy of logits (b, c) with labels (b,), nats; NaN if what they were made of, (b, ...), has a NaN.

    A label is a class whatever it was made of, and would hide that the teacher fails.
    """
    return F.cross_entropy(student, label).masked_fill(teacher.isnan().any(), torch.nan)


@full_precision
def mutual_divergence(logits: Sequence[Tensor]) -> Tensor:
    """Let K students learn from each other: for student k, (1/(K-1)) sum over j != k of KL( stop p_j || p_k ).

    Args:
        logits: K tensors (b, c), p_k their softmax; K at least 1.

    Returns:
        (K,) nats, means over rows, each with a gradient for its own student alone; 0 for a single one.

    Raises:
        ObjectiveError: If there is no student, shapes do not fit, or a divergence overflows.
    """
    if not logits:
        raise ObjectiveError("cmkd: mutual learning needs the logits of at least one student")
    for other in logits:
        check_logits(logits[0], other, name="cmkd")
    found: list[Tensor] = []
    for k, own in enumerate(logits):
        others = [kl_rows(own, other).mean() for j, other in enumerate(logits) if j != k]
        found.append(torch.stack(others).mean() if others else 0 * own.sum())
    return finite(torch.stack(found), *logits, name="cmkd")


def cluster_features(features: Iterable[Tensor], clusters: int) -> Tensor:
    """Cluster a teacher's features, brought to unit length: k-means on all of them, held in memory.

    Args:
        features: Batches (b, d).
        clusters: How many.

    Returns:
        Centres (clusters, d).

    Raises:
        ObjectiveError: If a feature is no finite number.
    """
    points = torch.cat([unit(batch.detach()) for batch in features])
    if not bool(points.isfinite().all()):
        raise ObjectiveError("cmkd: the teacher's features are not all finite numbers, and cannot be clustered")
    return k_means(points, clusters)


@full_precision
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


@full_precision
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

    This is the paper's loss for one student; the method `cmkd` has several, which learn from each other too.
    """

    facts: ClassVar[Facts] = Facts(
        name="cmkd",
        title="the teacher's first choice is the label",
        paper="Thoker & Gall 2019; our reconstruction",
        needs=frozenset({"pairs", "teacher_logits"}),
    )
    reads = "logits"

    def parts(self, student: Tensor, teacher: Tensor, context: Context) -> dict[str, Tensor]:
        """Give {"cmkd": cross-entropy with the teacher's choice}; (b, c) each."""
        return {"cmkd": hard_label_cross_entropy(student, teacher)}


class HardClusters(Objective):
    """Train the student on the cluster that the teacher's features fall into, for a teacher without logits.

    Before the student learns, the teacher's unit features are clustered (k-means on all training pairs, held in
    memory), and a linear head of this objective's own, dropped after the stage, learns to say from the student's
    features which cluster the partner fell into. That is our adaptation of `cmkd`, not the paper's.

    Args:
        clusters: Number of clusters, at least 2; about 10 a class, so 100 for ten classes.

    Raises:
        ConfigError: If there are fewer than 2 clusters.
    """

    facts: ClassVar[Facts] = Facts(
        name="cmkd_clusters",
        title="the cluster of the teacher's features is the label",
        paper="ours, after Thoker & Gall 2019",
        needs=frozenset({"pairs"}),
    )
    centres: Tensor

    def __init__(self, clusters: int = 100) -> None:
        super().__init__()
        check_clusters(clusters)
        self.clusters = clusters
        self.head: nn.Linear | None = None
        self.register_buffer("centres", torch.zeros(0, 0))

    def prepare(self, student: Tensor, teacher: Tensor, *, pairs: int) -> None:
        """Make the head, from the student's features to the clusters, once."""
        check_pair(student, teacher, name="cmkd_clusters", equal_widths=False)
        if self.head is None or self.head.in_features != student.shape[1]:
            self.head = nn.Linear(student.shape[1], self.clusters, device=student.device)

    def study(self, teacher: Iterable[tuple[Tensor, Context]]) -> None:
        """Cluster the teacher's features.

        Raises:
            ObjectiveError: If they are not finite.
        """
        self.centres = cluster_features((features for features, _ in teacher), self.clusters)

    def parts(self, student: Tensor, teacher: Tensor, context: Context) -> dict[str, Tensor]:
        """Give {"cmkd_clusters": cross-entropy with the cluster}; (b, d_s) and (b, d_t).

        Raises:
            ObjectiveError: If neither `prepare` nor `study` was called.
        """
        check_pair(student, teacher, name="cmkd_clusters", equal_widths=False, least=1)
        if self.head is None or self.centres.shape != (self.clusters, teacher.shape[1]):
            raise ObjectiveError("cmkd_clusters: call prepare, and study with the teacher's features, before the loss")
        logits = F.linear(student, self.head.weight.to(student), self.head.bias.to(student))
        points = unit(teacher.detach())
        loss = label_cross_entropy(logits, nearest_centre(points, self.centres.to(points)), points)
        return {"cmkd_clusters": finite(loss, student, points, name="cmkd_clusters")}


def check_clusters(clusters: int) -> None:
    """Refuse what is no number of clusters.

    Raises:
        ConfigError: With what was received.
    """
    if clusters < 2:
        raise ConfigError(f"clusters must be at least 2, about 10 a class; received {clusters}")
