"""Cross-entropy with known labels: the supervised part that papers add to a distillation loss."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from crossdistill.errors import ConfigError
from crossdistill.objectives._logits import check_logits, finite, known_rows, mean_where
from crossdistill.objectives.base import Context, Objective, full_precision
from crossdistill.registry import Facts


@full_precision
def labelled_cross_entropy(student: Tensor, label: Tensor | None, *, smoothing: float = 0.0) -> Tensor:
    """Mean over rows of known class of -log softmax(student)_y; rows labelled -1 are left out.

    Args:
        student: (b, c) logits.
        label: (b,) int64.
        smoothing: Share of each target that is spread over all classes, in [0, 1).

    Returns:
        Scalar, nats; 0, with the graph kept, where no class is known.

    Raises:
        ObjectiveError: If shapes do not fit, or there are no labels.
    """
    check_logits(student, None, name="cross_entropy")
    known, y = known_rows(label, student, name="cross_entropy")
    rows = F.cross_entropy(student, y, reduction="none", label_smoothing=smoothing)
    return finite(mean_where(rows, known), student, name="cross_entropy")


class CrossEntropy(Objective):
    """Cross-entropy of the student's logits with the labels that are known; the teacher is not looked at.

        (1/n) sum over the n labelled rows of -log softmax(s)_y

    The labelled part of every sum such as `kd` + `cross_entropy`. The mean is over the labelled rows of a batch, so its
    weight beside a label-free part does not depend on how many rows are labelled; a batch without any gives 0.

    Args:
        smoothing: Share of each target that is spread over all classes, in [0, 1); 0, no smoothing.

    Raises:
        ConfigError: If smoothing is out of range.
    """

    facts: ClassVar[Facts] = Facts(
        name="cross_entropy",
        title="cross-entropy with the labels that are known",
        paper="standard",
        needs=frozenset({"labels"}),
    )
    reads = "logits"

    def __init__(self, smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= smoothing < 1:
            raise ConfigError(f"smoothing must be in [0, 1); received {smoothing}")
        self.smoothing = smoothing

    def parts(self, student: Tensor, teacher: Tensor | None, context: Context) -> dict[str, Tensor]:
        """Give {"cross_entropy": the mean}; student (b, c), teacher anything."""
        return {"cross_entropy": labelled_cross_entropy(student, context.label, smoothing=self.smoothing)}
