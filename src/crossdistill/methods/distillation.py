"""The generic method: a frozen teacher, a student, and any objectives between their outputs on unlabelled pairs.

Every system of the literature that is only a new loss is this method with that loss.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from crossdistill.errors import ConfigError, CrossDistillError, DataError, NetworkError, ObjectiveError
from crossdistill.methods._clock import Clock
from crossdistill.methods._rows import complete
from crossdistill.methods.base import Batch, Losses, Separable, StageData, freeze, index_of
from crossdistill.networks.base import Network, Outputs
from crossdistill.networks.taps import Mapped, Maps
from crossdistill.objectives.base import Context, Objective
from crossdistill.objectives.cmcd import kernel_distances
from crossdistill.registry import Facts


class Distillation(Separable):
    """Distil a frozen teacher of the source modality into a student of the target modality (CMCD's second step).

    Objectives see the rows of a batch that have both modalities; fewer than two of them, where some are left out, give
    no term.

    Args:
        student: Encoder of the target modality with an attribute `dim`; (b, ...) to (b, dim).
        teacher: Network of the source modality, giving features (b, d) or `Outputs`; it is frozen and stays in eval
            mode.
        objectives: Name to objective; what each reads of both networks is added up with its weight.
        source: Name of the teacher's modality in a batch.
        target: Name of the student's.
        weights: Name of the objective to its weight; 1 where nothing is said.
        projector: What stands between the student's features and the objectives, and is dropped afterwards: "auto" a
            linear layer before those objectives that need equal widths, where the widths differ; "linear" or "mlp"
            before all, always; "none" never.
        teacher_reads: Which output of the teacher stands for its features, "features" or "embedding"; features, as
            downstream use does.
        classes: Width of the linear head that is put on the student, and dropped afterwards, for objectives that read
            logits; None takes that of the teacher's logits.

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
        classes: int | None = None,
    ) -> None:
        super().__init__()
        weights = dict(weights or {})
        if unknown := set(weights) - set(objectives):
            raise ConfigError(f"weights name {', '.join(sorted(unknown))}, which is no objective of this method")
        self.weights = {name: float(weights.get(name, 1.0)) for name in objectives}
        if not all(map(math.isfinite, self.weights.values())):
            raise ConfigError(f"weights must be finite; received {self.weights}")
        if not any(self.weights.values()):
            raise ConfigError("nothing to learn: give at least one objective with a weight other than 0")
        if projector not in ("auto", "none", "linear", "mlp"):
            raise ConfigError(f"projector must be auto, none, linear or mlp; received '{projector}'")
        if source == target:
            raise ConfigError(f"source and target are both '{source}'; distillation goes from one modality to another")
        self.source, self.target, self.teacher_reads, self.projector_kind = source, target, teacher_reads, projector
        if odd := [name for name in objectives if not name or "." in name]:
            raise ConfigError(f"an objective's name must be a word without dots; received '{odd[0]}'")
        self.objectives = nn.ModuleDict(objectives)
        self.network = Network(student)
        layers = [pair for o in objectives.values() if o.reads == "maps" for pair in o.layers or [("", "")]]
        self._maps = Maps(self.network, (mine for mine, _ in layers)) if layers else None
        self.teacher = freeze(Mapped(teacher, (theirs for _, theirs in layers)) if layers else teacher)
        self.projector: nn.Module | None = None
        self.head: nn.Module | None = None
        self._classes, self._width = classes, 0
        self.clock = Clock()
        if teacher_reads == "features" and isinstance(width := getattr(teacher, "dim", None), int):
            self._make_projector(width)

    def inputs(self) -> Mapping[str, int]:
        """One view of the source for the teacher, one of the target for the student."""
        return {self.source: 1, self.target: 1}

    def teachers(self) -> Mapping[str, nn.Module]:
        """The frozen teacher of the source modality."""
        return {self.source: self.teacher}

    def student(self, modality: str) -> nn.Module:
        """Give the student's encoder, without projector and head."""
        if modality != self.target:
            raise NetworkError(f"this method trains a student of '{self.target}', none of '{modality}'")
        return self.network.encoder

    def parameter_groups(self) -> Sequence[Mapping[str, Any]]:
        """Give all that learns, the objectives' own parameters at the rate that each asks for."""
        own = {id(p): o.lr_scale for _, o in self._objectives() for p in o.parameters() if o.lr_scale != 1}
        groups: dict[float, list[nn.Parameter]] = {1.0: []}
        for parameter in self.parameters():
            if parameter.requires_grad:
                groups.setdefault(own.get(id(parameter), 1.0), []).append(parameter)
        return [{"params": found, "lr_scale": scale} for scale, found in groups.items()]

    # Before training -------------------------------------------------------------------------------------------------

    def before_stage(self, data: StageData) -> None:
        """Make what depends on widths, and what objectives keep or learn from the teacher alone.

        Raises:
            NetworkError: If an objective needs equal widths, they differ, and no projector is allowed; or if a network
                does not give what is read.
            DataError: If there are no pairs.
        """
        self.clock.begin(data)
        pairs = next(filter(None, map(self.learnable, data.batches())), None)
        if pairs is None:
            raise DataError(f"no batch holds two rows that have both '{self.source}' and '{self.target}'")
        with torch.no_grad():
            student, teacher = self._outputs(pairs)
        self._make(student, teacher, pairs=len(data))
        for name, objective in self._objectives():
            if type(objective).study is not Objective.study:
                with _named(name):
                    objective.study(_Teacher(self, objective, data))

    def rehearse(self, student: Outputs, teacher: Outputs, context: Context, *, pairs: int) -> None:
        """Run each objective once, forward and backward, so that one that fails does so before anything is trained.

        It makes what `before_stage` makes, and objectives may remember what they saw: throw the method away afterwards.

        Args:
            student: What `read_student` gives for a batch.
            teacher: What the teacher gives for the partners.
            context: What else is known of the rows.
            pairs: Number of pairs in the training split.

        Raises:
            NetworkError: If an objective needs equal widths, they differ, and no projector is allowed; or if a network
                does not give what is read.
            ObjectiveError: Saying which fails (`objective`), and how; its cause is what the objective raised.
        """
        self._make(student, teacher, pairs=pairs)
        device = teacher.features.device
        for module in (self.objectives, self.projector, self.head):
            if module is not None:
                module.train().to(device)
        learns = False
        for name, objective in self._objectives():
            with _named(name):
                objective.study([(self._of_teacher(objective, teacher), context)])
            start, leaves = _leaves(student)
            parts = self._parts(name, objective, start, teacher, context)
            rows = len(student.features)
            with _named(name):
                for part, value in parts.items():
                    if not torch.isfinite(value):
                        raise ObjectiveError(f"its part '{part}' is {value.item()} on a batch of {rows} pairs")
                total = torch.stack([value.float() for value in parts.values()]).sum()
                if total.requires_grad:
                    total.backward()  # pyright: ignore[reportUnknownMemberType]
                gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
                learns = learns or bool(gradients)
                if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
                    raise ObjectiveError(f"its gradient is not finite on a batch of {rows} pairs")
        if not learns:
            raise ObjectiveError(f"no gradient reaches the student from {', '.join(self.weights)}")

    def _make(self, student: Outputs, teacher: Outputs, *, pairs: int) -> None:
        self._make_projector(teacher.read(self.teacher_reads).shape[1])
        if student.logits is None and any(o.reads == "logits" for _, o in self._objectives()):
            self._make_head(teacher)
        self.to(teacher.features.device)
        with torch.no_grad():
            for name, objective in self._objectives():
                s, t = self._of_student(objective, student), self._of_teacher(objective, teacher)
                with _named(name):
                    objective.prepare(s, t, pairs=pairs)
                    objective.to(teacher.features.device)

    def _make_projector(self, teacher_width: int) -> None:
        """Make the projector to the teacher's width, once."""
        if self._width:
            return
        width, kind = self.network.dim, self.projector_kind
        needy = [name for name, o in self._objectives() if o.reads == "features" and "equal_widths" in o.needs]
        if kind == "none" and needy and width != teacher_width:
            raise NetworkError(
                f"{', '.join(needy)} needs equal widths, but the student gives {width}, the teacher {teacher_width}; "
                "set projector to auto, or the student's dim to the teacher's"
            )
        self._width = teacher_width
        if kind == "mlp":
            self.projector = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, teacher_width))
        elif kind == "linear" or (kind == "auto" and needy and width != teacher_width):
            self.projector = nn.Linear(width, teacher_width)

    def _make_head(self, teacher: Outputs) -> None:
        """Make the student's head for logits, once."""
        theirs = None if teacher.logits is None else teacher.logits.shape[1]
        labelled = any(o.reads == "logits" and "labels" in o.needs for _, o in self._objectives())
        if labelled and theirs is not None and self._classes is not None and theirs != self._classes:
            raise NetworkError(
                f"the teacher's logits are over {theirs} classes, the data have {self._classes}, and one head "
                "cannot be both"
            )
        classes = theirs or self._classes
        if classes is None:
            raise NetworkError("the teacher gives no logits, so the student's head needs `classes`")
        if self.head is None:
            self.head = nn.Linear(self.network.dim, classes)

    # Training --------------------------------------------------------------------------------------------------------

    def learnable(self, batch: Batch) -> Batch | None:
        """Give the rows that have both modalities; None where they are too few for a batch norm, or to be compared."""
        return complete(batch, self.source, self.target, least=2)

    def encode(self, rows: Batch) -> Mapping[str, Outputs]:
        """Run the student, without projector and head."""
        return {self.target: self.read_student(rows[self.target])}

    def compare(self, encoded: Mapping[str, Outputs], rows: Batch) -> Losses:
        """Weighted parts of all objectives on pairs.

        In a loop of one's own that has no stages, `rehearse` or `before_stage` comes first where a head, a projector
        or an objective's memory is to be made.
        """
        teacher = self.teacher_outputs(rows, self.source)
        return self._losses(encoded[self.target], teacher, self._context(rows))

    def after_step(self) -> None:
        """Count the steps, for objectives that change as training goes on."""
        self.clock.tick()

    def held_out_step(self, batch: Batch) -> Mapping[str, Tensor]:
        """The loss on held-out pairs, the kernels' distances and, if widths agree, how often the partner is found.

        Kernels are those of the student's own features, as they are used afterwards; partners are looked for after the
        projector, if there is one.
        """
        pairs = self.learnable(batch)
        if pairs is None:
            return {}
        student, teacher = self._outputs(pairs)
        losses = self._losses(student, teacher, self._context(pairs))
        s, t = student.features, teacher.read(self.teacher_reads)
        scores: dict[str, Tensor] = {**losses.terms, "loss": losses.total}
        if len(s) > 1:
            scores.update(kernel_distances(s, t))
        s = s if self.projector is None else self.projector(s)
        if s.shape == t.shape:
            found = (nn.functional.normalize(s) @ nn.functional.normalize(t).T).argmax(dim=1)
            scores["partner_found"] = (found == torch.arange(len(s), device=s.device)).float().mean()
        return scores

    def read_student(self, x: Tensor) -> Outputs:
        """Give what objectives may read of the student, before projector and head."""
        return self.network(x) if self._maps is None else self._maps(x)

    def _context(self, batch: Batch) -> Context:
        return Context(
            label=batch.get("label"),
            index=index_of(batch, self.target) if "index" in batch else None,
            group=batch.get("group"),
            inputs=batch[self.target],
            progress=self.clock.progress(),
        )

    def _outputs(self, batch: Batch) -> tuple[Outputs, Outputs]:
        teacher = self.teacher_outputs(batch, self.source)
        return self.read_student(batch[self.target]), teacher

    def _losses(self, student: Outputs, teacher: Outputs, context: Context) -> Losses:
        terms: dict[str, Tensor] = {}
        for name, objective in self._objectives():
            for part, value in self._parts(name, objective, student, teacher, context).items():
                terms[part if part == name else f"{name}/{part}"] = self.weights[name] * value
        return Losses(terms)

    def _parts(
        self, name: str, objective: Objective, student: Outputs, teacher: Outputs, context: Context
    ) -> dict[str, Tensor]:
        """Give an objective's parts, and whatever goes wrong in it as an error with its name."""
        s, t = self._of_student(objective, student), self._of_teacher(objective, teacher)
        with _named(name):
            parts: object = objective.terms(s, t, context)
            return _checked(parts)

    def _of_student(self, objective: Objective, student: Outputs) -> Any:
        """Give what an objective reads of the student."""
        if objective.reads == "maps":
            return [(student.maps or {})[mine] for mine, _ in objective.layers or [("", "")]]
        if objective.reads == "logits":
            return student.read("logits") if self.head is None else self.head(student.features)
        always = self.projector_kind != "auto"
        if self.projector_kind in ("linear", "mlp") and self.projector is None:
            raise NetworkError(
                "the projector is not made yet: the teacher does not say its `dim`; call before_stage first"
            )
        if self.projector is not None and (always or "equal_widths" in objective.needs):
            return self.projector(student.features)
        return student.features

    def _of_teacher(self, objective: Objective, teacher: Outputs) -> Any:
        """Give what an objective reads of the teacher."""
        if objective.reads == "maps":
            return [(teacher.maps or {})[theirs] for _, theirs in objective.layers or [("", "")]]
        if objective.reads == "logits":
            return teacher.read("logits") if "teacher_logits" in objective.needs else teacher.logits
        return teacher.read(self.teacher_reads)

    def _objectives(self) -> Iterator[tuple[str, Objective]]:
        for name, objective in self.objectives.items():
            assert isinstance(objective, Objective)
            yield name, objective


class _Teacher:
    """What an objective reads of the teacher, for all training pairs, as often as it is iterated over."""

    def __init__(self, method: Distillation, objective: Objective, data: StageData) -> None:
        self.method, self.objective, self.data = method, objective, data

    def __iter__(self) -> Iterator[tuple[Any, Context]]:
        method = self.method
        for batch in self.data.batches():
            pairs = complete(batch, method.source, method.target)  # a single one too: objectives know all pairs by it
            if pairs is None:
                continue
            outputs = method.teacher_outputs(pairs, method.source)
            context = dataclasses.replace(method._context(pairs), pairing=self.data.pairing)  # pyright: ignore[reportPrivateUsage]
            yield method._of_teacher(self.objective, outputs), context  # pyright: ignore[reportPrivateUsage]


def _leaves(outputs: Outputs) -> tuple[Outputs, list[Tensor]]:
    """Copy outputs so that each can be asked for its gradient."""
    leaves: list[Tensor] = []

    def leaf(value: Tensor) -> Tensor:
        leaves.append(value.detach().clone().requires_grad_())
        return leaves[-1]

    logits = None if outputs.logits is None else leaf(outputs.logits)
    maps = None if outputs.maps is None else {word: leaf(value) for word, value in outputs.maps.items()}
    return Outputs(leaf(outputs.features), logits=logits, maps=maps), leaves


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
