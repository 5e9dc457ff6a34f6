"""The generic method: a frozen teacher, a student, and any objectives between their outputs on unlabelled pairs.

Every system of the literature that is only a new loss is this method with that loss.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator, Iterator, Mapping
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from crossdistill.errors import ConfigError, CrossDistillError, NetworkError, ObjectiveError
from crossdistill.methods.base import Batch, Losses, Method, StageData, freeze, index_of
from crossdistill.networks.base import Network, Outputs
from crossdistill.objectives.base import Context, Objective
from crossdistill.objectives.cmcd import kernel_distances
from crossdistill.registry import Facts


class Distillation(Method):
    """Distil a frozen teacher of the source modality into a student of the target modality (CMCD's second step).

    Args:
        student: Encoder of the target modality with an attribute `dim`; (b, ...) to (b, dim).
        teacher: Network of the source modality, giving features (b, d) or `Outputs`; it is frozen and stays in eval
            mode.
        objectives: Name to objective; what each reads of both networks is added up with its weight.
        source: Name of the teacher's modality in a batch.
        target: Name of the student's.
        weights: Name of the objective to its weight; 1 where nothing is said.
        projector: What stands between the student's features and the objectives, and is dropped afterwards: "auto" a
            linear layer where an
            objective needs equal widths and they differ, and nothing else; "linear" or "mlp" always; "none" never.
        teacher_reads: Which output of the teacher the objectives see, "features" or "embedding"; features, as
            downstream use does.

    Raises:
        ConfigError: If weights name no objective, or nothing is to be learnt.
        NetworkError: If the student does not say its width.
    """

    facts: ClassVar[Facts] = Facts(
        name="distillation",
        title="a frozen teacher, a student, objectives between them",
        paper="Lin et al. 2024 (CMCD), step 2; and every method that is a loss",
        needs=frozenset({"pairs"}),
    )

    def __init__(
        self,
        student: nn.Module,
        *,
        teacher: nn.Module,
        objectives: Mapping[str, Objective],
        source: str,
        target: str,
        weights: Mapping[str, float] | None = None,
        projector: Literal["auto", "none", "linear", "mlp"] = "auto",
        teacher_reads: Literal["features", "embedding"] = "features",
    ) -> None:
        super().__init__()
        weights = dict(weights or {})
        if unknown := set(weights) - set(objectives):
            raise ConfigError(f"weights name {', '.join(sorted(unknown))}, which is no objective of this method")
        self.weights = {name: float(weights.get(name, 1.0)) for name in objectives}
        if not all(map(math.isfinite, self.weights.values())):
            raise ConfigError(f"weights must be finite; received {self.weights}")
        if not any(self.weights.values()):
            raise ConfigError("there is nothing to learn: give at least one objective with a weight other than 0")
        if projector not in ("auto", "none", "linear", "mlp"):
            raise ConfigError(f"projector must be auto, none, linear or mlp; received '{projector}'")
        if source == target:
            raise ConfigError(f"source and target are both '{source}'; distillation goes from one modality to another")
        self.source, self.target, self.teacher_reads, self.projector_kind = source, target, teacher_reads, projector
        self.objectives = nn.ModuleDict(objectives)
        self.network = Network(student)
        self.teacher = freeze(teacher)
        self.projector: nn.Module | None = None
        self._needs_equal = any("equal_widths" in objective.facts.needs for objective in objectives.values())
        self._width: int | None = None
        if teacher_reads == "features" and isinstance(width := getattr(teacher, "dim", None), int):
            self._build(width)

    def inputs(self) -> Mapping[str, int]:
        """One view of the source for the teacher, one of the target for the student."""
        return {self.source: 1, self.target: 1}

    def teachers(self) -> Mapping[str, nn.Module]:
        """The frozen teacher of the source modality."""
        return {self.source: self.teacher}

    def student(self, modality: str) -> nn.Module:
        """Give the student's encoder, without the projector."""
        if modality != self.target:
            raise NetworkError(f"this method trains a student of '{self.target}', none of '{modality}'")
        return self.network.encoder

    def before_stage(self, data: StageData) -> None:
        """Make what objectives keep; a teacher that does not say its width is asked for a batch.

        Raises:
            NetworkError: If an objective needs equal widths, they differ, and no projector is allowed.
        """
        if self._width is None:
            teacher = self.teacher_outputs(next(iter(data.batches())), self.source).read(self.teacher_reads)
            self._build(teacher.shape[1])
            self.to(teacher.device)
        self._prepare(len(data))

    def rehearse(self, student: Outputs, teacher: Outputs, context: Context, *, pairs: int) -> None:
        """Run each objective once, forward and backward, so that one that fails does so before anything is trained.

        It makes what `before_stage` makes, and objectives may remember what they saw: throw the method away afterwards.

        Args:
            student: What the student's encoder gives for a batch, before the projector.
            teacher: What the teacher gives for the partners.
            context: What else is known of the rows.
            pairs: Number of pairs in the training split.

        Raises:
            NetworkError: If an objective needs equal widths, they differ, and no projector is allowed; or if the
                teacher does not give what is read.
            ObjectiveError: Saying which fails (`objective`), and how; its cause is what the objective raised.
        """
        width = teacher.read(self.teacher_reads).shape[1]
        if self._width is None:
            self._build(width)
        self._prepare(pairs)
        device = teacher.features.device
        for module in (self.objectives, *([] if self.projector is None else [self.projector])):
            module.train().to(device)
        learns = False
        for name, objective in self._objectives():
            start = student.features.detach().clone().requires_grad_()
            given = self._projected(Outputs(start, logits=student.logits, maps=student.maps))
            parts = self._parts(name, objective, given, teacher, context)
            with _named(name):
                for part, value in parts.items():
                    if not torch.isfinite(value):
                        raise ObjectiveError(f"its part '{part}' is {value.item()} on a batch of {len(start)} pairs")
                total = torch.stack([value.float() for value in parts.values()]).sum()
                if total.requires_grad:
                    learns = True
                    total.backward()  # pyright: ignore[reportUnknownMemberType]
                if start.grad is not None and not torch.isfinite(start.grad).all():
                    raise ObjectiveError(f"its gradient is not finite on a batch of {len(start)} pairs")
        if not learns:
            raise ObjectiveError(f"no gradient reaches the student from {', '.join(self.weights)}")

    def _prepare(self, pairs: int) -> None:
        assert self._width is not None
        student_width = self.network.dim if self.projector is None else self._width
        for name, objective in self._objectives():
            with _named(name):
                objective.prepare(student_width=student_width, teacher_width=self._width, pairs=pairs)

    def _build(self, teacher_width: int) -> None:
        self._width, width, kind = teacher_width, self.network.dim, self.projector_kind
        differs = self._needs_equal and width != teacher_width
        if kind == "none" and differs:
            needy = [name for name, o in self._objectives() if "equal_widths" in o.facts.needs]
            raise NetworkError(
                f"{', '.join(needy)} needs equal widths, but the student gives {width}, the teacher {teacher_width}; "
                "set projector to auto, or the student's dim to the teacher's"
            )
        if kind == "mlp":
            self.projector = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, teacher_width))
        elif kind == "linear" or (kind == "auto" and differs):
            self.projector = nn.Linear(width, teacher_width)

    def training_step(self, batch: Batch) -> Losses:
        """Weighted parts of all objectives on one batch of pairs."""
        student, teacher = self._outputs(batch)
        terms: dict[str, Tensor] = {}
        context = Context(
            label=batch.get("label"),
            index=index_of(batch, self.target) if "index" in batch else None,
            group=batch.get("group"),
        )
        for name, objective in self._objectives():
            for part, value in self._parts(name, objective, student, teacher, context).items():
                terms[part if part == name else f"{name}/{part}"] = self.weights[name] * value
        return Losses(terms)

    def held_out_step(self, batch: Batch) -> Mapping[str, Tensor]:
        """The loss on held-out pairs, the kernels' distances and, if widths agree, how often the partner is found."""
        losses = self.training_step(batch)
        student, teacher = self._outputs(batch)
        s, t = student.features, teacher.read(self.teacher_reads)
        scores: dict[str, Tensor] = {**losses.terms, "loss": losses.total}
        if len(s) > 1:
            scores.update(kernel_distances(s, t))
        if s.shape == t.shape:
            found = (nn.functional.normalize(s) @ nn.functional.normalize(t).T).argmax(dim=1)
            scores["partner_found"] = (found == torch.arange(len(s), device=s.device)).float().mean()
        return scores

    def _parts(
        self, name: str, objective: Objective, student: Outputs, teacher: Outputs, context: Context
    ) -> dict[str, Tensor]:
        """Give an objective's parts, and whatever goes wrong in it as an error with its name."""
        s = student.read("features" if objective.reads == "embedding" else objective.reads)
        t = teacher.read(self.teacher_reads if objective.reads == "features" else objective.reads)
        with _named(name):
            parts: object = objective.parts(s, t, context)
            return _checked(parts)

    def _objectives(self) -> Iterator[tuple[str, Objective]]:
        for name, objective in self.objectives.items():
            assert isinstance(objective, Objective)
            yield name, objective

    def _outputs(self, batch: Batch) -> tuple[Outputs, Outputs]:
        teacher = self.teacher_outputs(batch, self.source)
        return self._projected(self.network(batch[self.target])), teacher

    def _projected(self, student: Outputs) -> Outputs:
        if self.projector is None:
            return student
        return Outputs(self.projector(student.features), logits=student.logits, maps=student.maps)


@contextlib.contextmanager
def _named(name: str) -> Generator[None]:
    """Give whatever an objective raises its name; what is not an error of ours becomes the cause of one."""
    try:
        yield
    except ObjectiveError as error:
        error.objective = name
        raise
    except CrossDistillError:
        raise
    except Exception as error:
        failed = ObjectiveError(f"objective '{name}' fails: {type(error).__name__}: {error}")
        failed.objective = name
        raise failed from error


def _checked(parts: object) -> dict[str, Tensor]:
    """Refuse what is no dict of names to scalar tensors."""
    if not isinstance(parts, dict) or not parts:
        got = "an empty dict" if isinstance(parts, dict) else f"a {type(parts).__name__}"
        raise ObjectiveError(f"`parts` must give a dict of names to scalar tensors; it gave {got}")
    for part, value in cast("dict[object, object]", parts).items():
        if not isinstance(value, Tensor) or value.ndim:
            shape = tuple(value.shape) if isinstance(value, Tensor) else None
            got = f"a {type(value).__name__}" if shape is None else f"a tensor of shape {shape}"
            raise ObjectiveError(f"`parts` must give a dict of names to scalar tensors; '{part}' is {got}")
    return cast("dict[str, Tensor]", parts)
