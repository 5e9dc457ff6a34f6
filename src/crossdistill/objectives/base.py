"""What every objective is: tensors of the student and the teacher in, a scalar and its named parts out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from crossdistill.errors import ObjectiveError
from crossdistill.registry import Facts

Reads = Literal["features", "embedding", "logits", "maps"]


@dataclass(frozen=True)
class Context:
    """What a batch says of its rows beside the networks' outputs; None where it does not.

    Attributes:
        label: Classes (b,) int64, for objectives that need labels.
        index: Positions of the samples in the data set (b,) int64, for objectives with a memory.
        group: Rows of one group (b,) int64 must not count as negatives of each other.
    """

    label: Tensor | None = None
    index: Tensor | None = None
    group: Tensor | None = None


class Objective(nn.Module, ABC):
    """A distillation loss; call it like a function, in any training loop.

    Subclasses are final: they state `facts`, what they read, and `parts`.

    Attributes:
        facts: Name, paper and needs, for machines.
        reads: Which output of both networks the objective is given.
    """

    facts: ClassVar[Facts]
    reads: ClassVar[Reads] = "features"

    @abstractmethod
    def parts(self, student: Tensor, teacher: Tensor, context: Context) -> dict[str, Tensor]:
        """Compute the named parts, whose sum is the loss.

        Args:
            student: What the student gave for a batch, (b, d_s); the gradient flows through it.
            teacher: What the teacher gave for the partners, (b, d_t); it is detached.
            context: What else is known of the rows.

        Returns:
            Name of the part to its scalar.

        Raises:
            ObjectiveError: If shapes do not fit or a need is missing.
        """

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        *,
        label: Tensor | None = None,
        index: Tensor | None = None,
        group: Tensor | None = None,
    ) -> Tensor:
        """Give the loss: the sum of `parts`, a scalar (float32, or float64 for float64 input)."""
        parts = self.parts(student, teacher, Context(label, index, group))
        return torch.stack(list(parts.values())).sum()

    def prepare(self, *, student_width: int, teacher_width: int, pairs: int) -> None:
        """Make what depends on widths or the number of pairs (queues, memories, projections), once, before training.

        Args:
            student_width: d_s of what the objective reads.
            teacher_width: d_t of the same.
            pairs: Number of pairs in the training split.
        """


def check_pair(student: Tensor, teacher: Tensor, *, name: str, equal_widths: bool, least: int = 1) -> None:
    """Refuse tensors that no relational or contrastive objective can use.

    Args:
        student: Should be (b, d_s), floating point.
        teacher: Should be (b, d_t), floating point.
        name: The objective's name, for the message.
        equal_widths: Whether d_s must be d_t.
        least: The smallest b.

    Raises:
        ObjectiveError: With the rule and what was received.
    """
    for side, tensor in (("student", student), ("teacher", teacher)):
        if tensor.ndim != 2 or not tensor.is_floating_point():
            raise ObjectiveError(
                f"{name}: the {side}'s features must be (b, d) floating point; "
                f"received {tuple(tensor.shape)} {tensor.dtype}. Pool feature maps to one vector a sample"
            )
    if len(student) != len(teacher):
        raise ObjectiveError(
            f"{name}: rows must be pairs; received {len(student)} student, {len(teacher)} teacher rows"
        )
    if len(student) < least:
        raise ObjectiveError(f"{name}: a batch needs at least {least} pairs; received {len(student)}")
    if equal_widths and student.shape[1] != teacher.shape[1]:
        raise ObjectiveError(
            f"{name}: student and teacher widths must be equal; received {student.shape[1]} and {teacher.shape[1]}. "
            "Add a projector to the student, or use an objective that compares similarities"
        )


def unit(features: Tensor) -> Tensor:
    """Scale rows to unit length, (b, d) to (b, d), with finite values and gradients for any finite input.

    Rows are divided by their largest entry first: squares then neither overflow nor vanish, and as the result does not
    depend on that divisor it carries no gradient. A zero row stays zero and gets no gradient. Half precision is
    computed, and
    returned, in float32.
    """
    x = features if features.dtype == torch.float64 else features.float()
    largest = x.detach().abs().amax(dim=1, keepdim=True)
    zero = largest < torch.finfo(x.dtype).tiny ** 0.5  # below this the true gradient would overflow
    x = torch.where(zero, 0.0, x / torch.where(zero, 1.0, largest))
    square = x.square().sum(dim=1, keepdim=True)
    return x * torch.where(zero, 1.0, square).rsqrt()


def mask_logits(logits: Tensor, mask: Tensor) -> Tensor:
    """Take entries out of a softmax: where `mask` is true the logit becomes the lowest finite number."""
    return logits.masked_fill(mask, torch.finfo(logits.dtype).min)
