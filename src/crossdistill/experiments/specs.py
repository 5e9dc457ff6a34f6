"""What an experiment is once its file is checked: plain records, and the words that files and rows are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from crossdistill.experiments.yaml_lines import Document
from crossdistill.registry import lookup

TransformSpec = list[str | dict[str, Any]]
ROLES = frozenset(
    {"encoder", "encoders", "student", "teacher", "objectives", "weights", "source", "target", "modality", "classes"}
)
"""Constructor parameters that the experiment fills in, wherever a method has one of these names: networks, and what
follows from the data. `encoder` and `student` are one network, `encoders` one of each modality by name."""

CONTROLS: Mapping[str, str] = {
    "raw_features": "no network: labels on the standardised inputs themselves",
    "scratch": "the same network, trained on the same labels alone",
    "target_ssl": "the same network, self-supervised on the target modality alone",
    "target_graph": "the same network, on the neighbourhoods of the target's own inputs: no teacher, no pairs",
    "random_teacher": "the same distillation from a teacher that has learnt nothing",
    "shuffled_pairs": "the same distillation with every pair broken",
    "teacher": "the teacher itself, on the source modality: the ceiling",
}
"""The rows that every comparison carries, and what each of them is."""
ALONE_BY: Mapping[str, str] = {"scratch": "supervised", "target_ssl": "simclr", "target_graph": "neighbour_graph"}
"""The controls that train on the target alone, by what method; a file may change its parameters and the loop's."""
ALONE = "the source's own network, trained together with the student: the ceiling"
"""What stands in the teacher's row where a method has no teacher."""


@dataclass(frozen=True)
class DataSpec:
    """Which data, and the direction of the distillation.

    Attributes:
        name: A named set, a world, a folder or a file.
        source: The rich modality.
        target: The poor one.
        further: Modalities beside them, for methods of more than two.
        pairs: How many training pairs the student's stage and its controls see at most, drawn anew for each seed; None
            for all. The teacher, and the labels of the evaluation, are not touched.
        options: Of the data set.
    """

    name: str
    source: str
    target: str
    further: tuple[str, ...] = ()
    pairs: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def modalities(self) -> tuple[str, ...]:
        """All modalities that networks are built for: source, target, and what methods of more than two read."""
        return (self.source, self.target, *self.further)


@dataclass(frozen=True)
class ObjectiveSpec:
    """An objective by name, with its weight and parameters."""

    name: str
    weight: float = 1.0
    parameters: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def module_name(self) -> str:
        """What a method calls it: a part of a torch module has no dot in its name."""
        return self.name.replace(":", "/").replace(".", "/")


@dataclass(frozen=True)
class ModuleSpec:
    """A teacher that the user has: any torch module by dotted path, with weights and a tap."""

    module: str
    weights: str | None = None
    tap: str | None = None
    pool: str | None = None
    logits: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class StageSpec:
    """A method with its parameters, or a module that needs no training.

    Attributes:
        name: Of the stage, in the file.
        method: Name or dotted path of the method; empty for a module.
        modality: What a one-modality method trains on; empty for distillation.
        teacher: Name of the stage whose product teaches; empty where there is none.
        objectives: What a distillation minimises.
        parameters: Of the method's constructor.
        settings: Of the loop, by field name.
        augment: Modality to transforms; a modality that is not named gets the default of its kind where it is learnt.
        stored_views: How many augmented views of each sample the teacher is shown and its outputs are stored of, which
            come again after as many epochs; None leaves a teacher live whose modality is augmented.
        module: A ready network instead of a method.
    """

    name: str
    method: str = ""
    modality: str = ""
    teacher: str = ""
    objectives: tuple[ObjectiveSpec, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict[str, Any])
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    augment: Mapping[str, TransformSpec] = field(default_factory=dict[str, TransformSpec])
    stored_views: int | None = None
    module: ModuleSpec | None = None

    @property
    def fused(self) -> bool:
        """Whether it has a teacher that reads all modalities, not the source alone."""
        return bool(self.teacher) and "fused_teacher" in lookup("crossdistill.methods", self.method).facts.needs


@dataclass(frozen=True)
class EvaluateSpec:
    """How few labels there are, and what judges the frozen encoders."""

    labels_per_class: int | None = 5
    fewer: Literal["refuse", "take"] = "refuse"
    ways: tuple[str, ...] = ("linear", "knn", "fine_tune")
    c: float | Literal["cv"] = 10.0
    neighbours: int = 5
    fine_tune_steps: int = 100


@dataclass(frozen=True)
class Experiment:
    """A checked experiment file."""

    data: DataSpec
    stages: Mapping[str, StageSpec]
    networks: Mapping[str, Mapping[str, Any]]
    compare: Mapping[str, StageSpec]
    controls: Mapping[str, Mapping[str, Any]]
    evaluate: EvaluateSpec
    seeds: tuple[int, ...]
    document: Document = field(compare=False, repr=False)

    @property
    def student(self) -> StageSpec:
        """The last stage: the method that the verdict is about."""
        return list(self.stages.values())[-1]

    @property
    def teacher(self) -> StageSpec | None:
        """The stage whose product teaches the last one; None for methods whose networks teach each other."""
        return self.stages[self.student.teacher] if self.student.teacher else None
