"""SEED: the student's similarities to a queue of the teacher's embeddings follow the teacher's own; CMD's ancestor.

Source: Fang et al. 2021; temperatures and the queue's length are those of the released code.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from crossdistill.objectives.base import Context, Objective
from crossdistill.objectives.cmcd import SimilarityDistillation
from crossdistill.registry import Facts


class Seed(Objective):
    """SEED: cross-entropy of softmax(s.c / tau_student) under softmax(t.c / tau_teacher) over candidates c.

    Candidates are the sample's own partner and the queue; while the queue is empty, and without one, the batch. This is
    `similarity` with target "anchor" and SEED's released settings, by its name. Three things differ from SEED:
    the teacher sees another modality of the sample, the queue's length need be no multiple of the batch, and it starts
    empty instead of filled with random rows.

    SEED's student has an MLP head, the stage's `projector: mlp`. A queue longer than the data holds copies of them.

    Args:
        tau_teacher: Temperature of the teacher, at least 1e-4; released 1e-4, which is nearly one-hot.
        tau_student: Temperature of the student; released 0.2.
        queue_size: Earlier teacher embeddings to compare with, first in first out; released 65,536. 0 uses the batch.

    Raises:
        ConfigError: If a parameter is out of range.
    """

    facts: ClassVar[Facts] = Facts(
        name="seed",
        title="the student's similarities to a queue of the teacher's embeddings follow the teacher's",
        paper="Fang et al. 2021 (SEED); between modalities ours",
        needs=frozenset({"pairs", "equal_widths"}),
    )

    def __init__(self, tau_teacher: float = 1e-4, *, tau_student: float = 0.2, queue_size: int = 65_536) -> None:
        super().__init__()
        self.anchored = SimilarityDistillation(
            tau_teacher, tau_student=tau_student, target="anchor", queue_size=queue_size
        )

    def prepare(self, student: Tensor, teacher: Tensor, *, pairs: int) -> None:
        """Make the queue, empty; one that is there with this shape is kept with what it holds."""
        self.anchored.prepare(student, teacher, pairs=pairs)

    def parts(self, student: Tensor, teacher: Tensor, context: Context) -> dict[str, Tensor]:
        """Give {"seed": cross-entropy}; (b, d) each."""
        (loss,) = self.anchored.parts(student, teacher, context).values()
        return {"seed": loss}
