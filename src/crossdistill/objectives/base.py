"""What every objective is: outputs of the student and the teacher in, a scalar and its named parts out."""

from __future__ import annotations

import contextlib
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, ParamSpec, TypeVar, cast

import torch
from torch import Tensor, nn

from crossdistill.errors import ObjectiveError
from crossdistill.registry import Facts, Need, Pairing

Reads = Literal["features", "logits", "maps"]
_AS_THEY_ARE = {"bank"}
"""Keyword arguments that may be larger than memory; whoever reads them converts a part at a time."""
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Context:
    """What is known of a batch beside the networks' outputs; None where nothing is said.

    Attributes:
        label: Classes (b,) int64, for objectives that need labels; -1 where a row's class is not known: that may be
            all of a batch, and is all of held-out rows.
        index: Positions of the samples in the data set (b,) int64, for objectives with a memory.
        group: Rows of one group (b,) int64 must not count as negatives of each other.
        inputs: What the student read of the rows (b, ...), augmented in training, plain in `study` and in eval mode.
        progress: Share of the stage's steps that are done, in [0, 1], for weights that change as training goes on.
        pairing: "natural" for pairs of one event, "class" for pairs that were matched by label; said in `study` alone.
    """

    label: Tensor | None = None
    index: Tensor | None = None
    group: Tensor | None = None
    inputs: Tensor | None = None
    progress: float = 0.0
    pairing: Pairing = "natural"


class Objective(nn.Module, ABC):
    """A distillation loss; call it like a function, in any training loop.

    Subclasses are final: they state `facts`, what they read, and `parts`. Parameters of an objective's own (a
    regressor, a memory's projector) are made in `prepare`; they learn with the student and are dropped after the stage.

    Attributes:
        facts: Name, paper and needs, for machines.
        reads: Which output of both networks the objective is given. "features" (b, d); "logits" (b, c); "maps", a list
            of feature maps (b, channels, h, w), one for each of `layers`.
        layers: For maps: pairs of dotted paths, a submodule of the student and one of the teacher; empty takes the
            deepest maps of both.
        lr_scale: What the stage's learning rate is multiplied by for the objective's own parameters.
    """

    facts: ClassVar[Facts]
    reads: Reads = "features"
    layers: Sequence[tuple[str, str]] = ()
    lr_scale: float = 1.0

    @property
    def needs(self) -> frozenset[Need]:
        """What this very objective cannot do without: `facts.needs`, and more where a parameter asks for more."""
        return self.facts.needs

    @abstractmethod
    def parts(self, student: Any, teacher: Any, context: Context) -> dict[str, Tensor]:
        """Compute the named parts, whose sum is the loss; called by `terms`, with autocast off.

        Args:
            student: What `reads` says, of the student for a batch, float32 or float64; the gradient flows through it.
            teacher: The same of the teacher for the partners; it is detached. None for an objective that reads logits
                and does not need the teacher's, where the teacher gives none.
            context: What else is known of the rows.

        Returns:
            Name of the part to its scalar.

        Raises:
            ObjectiveError: If shapes do not fit or a need is missing.
        """

    def terms(self, student: Any, teacher: Any, context: Context) -> dict[str, Tensor]:
        """Give `parts` in full precision: half-precision input is converted, and autocast is off within.

        Raises:
            ObjectiveError: If the teacher gives nothing of what the objective cannot do without; and what `parts` does.
        """
        if teacher is None and (self.reads != "logits" or "teacher_logits" in self.needs):
            raise ObjectiveError(f"{self.facts.name} reads the teacher's {self.reads}, and it gives none")
        with no_autocast(student):
            return self.parts(_full(student), _full(teacher), context)

    def forward(
        self,
        student: Any,
        teacher: Any,
        *,
        label: Tensor | None = None,
        index: Tensor | None = None,
        group: Tensor | None = None,
        inputs: Tensor | None = None,
        progress: float = 0.0,
    ) -> Tensor:
        """Give the loss: the sum of `parts`, a scalar (float32, or float64 for float64 input)."""
        parts = self.terms(student, teacher, Context(label, index, group, inputs, progress))
        return torch.stack(list(parts.values())).sum()

    def prepare(self, student: Any, teacher: Any, *, pairs: int) -> None:
        """Make what depends on shapes or the number of pairs (queues, memories, projections), before training.

        It may be called again, with other rows of the same shapes, and must then keep what it made. As parts of an
        objective's own are made here, it comes before `load_state_dict` too: what is stored of them has no place else.

        Args:
            student: What `parts` will be given, for a few rows, without gradient; its shapes count, not its values.
            teacher: The same of the teacher.
            pairs: Number of pairs in the training split.
        """

    def study(self, teacher: Iterable[tuple[Any, Context]]) -> None:
        """Learn from the teacher's outputs alone before the student does: clusters, a paraphraser. No-op by default.

        Torch's global generator is seeded by the stage, and what is made here must be a function of it and the data.

        Args:
            teacher: The training pairs once, in order, in batches of (what `parts` is given, context); it may be
                iterated over again, and costs a pass of the teacher where its outputs are not stored.
        """


def _full(value: Any) -> Any:
    """Convert half precision to float32, and leave everything else alone."""
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() and value.itemsize < 4 else value
    if isinstance(value, (list, tuple)):
        return [_full(one) for one in cast("Sequence[Any]", value)]
    return value


def no_autocast(example: Any) -> contextlib.AbstractContextManager[Any]:
    """Switch autocast off where it is on, for the device of a tensor or of the first of several.

    Similarities divided by a small temperature, and differences of nearly equal numbers, do not survive half precision:
    the gradient of a contrastive loss at temperature 0.05 is off by 4 % in bfloat16.
    """
    while isinstance(example, (list, tuple)):
        sequence = cast("Sequence[Any]", example)
        example = sequence[0] if sequence else None
    kind = example.device.type if isinstance(example, Tensor) else "cpu"
    if not torch.is_autocast_enabled(kind):
        return contextlib.nullcontext()
    return torch.autocast(kind, enabled=False)


def full_precision(function: Callable[P, T]) -> Callable[P, T]:
    """Make a pure function of tensors compute as `Objective.terms` does: half precision converted, autocast off.

    A keyword argument `bank` is given as it is, as it may be a store larger than memory.
    """

    @functools.wraps(function)
    def computed(*args: P.args, **kwargs: P.kwargs) -> T:
        tensor = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        with no_autocast(tensor):
            call = cast("Callable[..., T]", function)
            return call(*map(_full, args), **{k: v if k in _AS_THEY_ARE else _full(v) for k, v in kwargs.items()})

    return computed


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
    computed, and returned, in float32.
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
