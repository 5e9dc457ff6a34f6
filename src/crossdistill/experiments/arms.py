"""What a comparison consists of: the method, what it is compared with, and the controls that always run."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from crossdistill.data import PairedDataset, available_transforms, build_transforms
from crossdistill.errors import ConfigError, CrossDistillError
from crossdistill.experiments.signatures import at, check, loop_fields, parameters_of
from crossdistill.experiments.specs import ALONE, ALONE_BY, CONTROLS, Experiment, ObjectiveSpec, StageSpec
from crossdistill.experiments.yaml_lines import Document
from crossdistill.registry import lookup

Role = Literal["method", "baseline", "control", "ceiling"]

DEFAULT_AUGMENT: Mapping[str, list[str | dict[str, Any]]] = {
    "image": ["affine", {"noise": {"std": 0.1}}],
    "sequence": ["time_warp", {"noise": {"std": 0.1}}],
    "audio": ["time_shift", "spec_mask"],
    "vector": [{"noise": {"std": 0.5}}, {"dropout": {"share": 0.2}}],
}
"""What a learner's input goes through, by kind, where a stage does not say: two equal views teach nothing."""


@dataclass(frozen=True)
class Arm:
    """One row of the comparison: how its encoder comes to be, and on which modality it is evaluated.

    Attributes:
        name: Of the row.
        role: What it is for.
        title: One line that says what it is.
        modality: Of the encoder that is evaluated.
        stage: What is trained; None for raw features and for the teacher.
        random_teacher: Whether the stage's teacher has learnt nothing.
        shuffled: Whether every pair is broken.
        labels: Whether training reads the few labels.
    """

    name: str
    role: Role
    title: str
    modality: str
    stage: StageSpec | None = None
    random_teacher: bool = False
    shuffled: bool = False
    labels: bool = False


def row_name(objectives: tuple[ObjectiveSpec, ...]) -> str:
    """Name a row by its objectives: "similarity", "similarity+contrastive"."""
    return "+".join(objective.name.rpartition(":")[2] for objective in objectives)


def list_arms(experiment: Experiment) -> list[Arm]:
    """Give all rows: the method first, then what it is compared with, then the controls and the ceiling.

    Raises:
        ConfigError: If two rows would have one name.
    """
    main, target = experiment.student, experiment.data.target
    name = row_name(main.objectives) or main.method
    arms = [Arm(name, "method", _title(main), target, main)]
    for row, stage in experiment.compare.items():
        if row == name and stage == main:
            continue  # the method has that row already
        if row == name:
            raise ConfigError(
                f"{experiment.document.where(('compare',))}: '{row}' is the name of the method's row; choose another"
            )
        arms.append(Arm(row, "baseline", _title(stage), target, stage))
    taught = bool(main.teacher)
    paired = "pairs" in lookup("crossdistill.methods", main.method).facts.needs
    control: dict[str, Arm] = {
        "raw_features": Arm("raw_features", "control", CONTROLS["raw_features"], target),
        **{
            row: Arm(row, "control", CONTROLS[row], target, _alone(experiment, row, method), labels=row == "scratch")
            for row, method in ALONE_BY.items()
        },
        "random_teacher": Arm(
            "random_teacher", "control", CONTROLS["random_teacher"], target, main, random_teacher=True
        ),
        "shuffled_pairs": Arm("shuffled_pairs", "control", CONTROLS["shuffled_pairs"], target, main, shuffled=True),
        "teacher": Arm("teacher", "ceiling", CONTROLS["teacher"] if taught else ALONE, experiment.data.source),
    }
    if not taught:
        del control["random_teacher"]
    if not paired:
        del control["shuffled_pairs"]
    return [*arms, *control.values()]


def _title(stage: StageSpec) -> str:
    named = [("objectives", o.name) for o in stage.objectives] or [("methods", stage.method)]
    titles = [lookup(f"crossdistill.{package}", name).facts.title for package, name in named if ":" not in name]
    return "; ".join(titles) or stage.method


def _alone(experiment: Experiment, name: str, method: str) -> StageSpec:
    """Make a control of the target alone: the main stage's budget and augmentation, and the file's changes to it."""
    from crossdistill.experiments.specs import ROLES, TransformSpec
    from crossdistill.training.settings import Settings

    main, target, document = experiment.student, experiment.data.target, experiment.document
    own = {k: v for k, v in parameters_of(lookup("crossdistill.methods", method)).items() if k not in ROLES}
    place, said = ("controls", name), experiment.controls.get(name, {})
    held = {"keep": "last"}  # a control has no held-out loss that would be comparable
    loop = loop_fields(said, {**main.settings, **held}, document, place)
    fields = {**own, **loop, "augment": (dict[str, TransformSpec], dict(main.augment))}
    values = check(fields, said, document, place)
    settings = {key: values[key] for key in loop}
    try:
        Settings(**settings)
    except CrossDistillError as error:
        raise at(document, place, error, loop) from None
    return StageSpec(
        name,
        method=method,
        modality=target,
        parameters={key: values[key] for key in own},
        settings=settings,
        augment={key: spec for key, spec in values["augment"].items() if key == target},
    )


def with_augmentation(experiment: Experiment, data: PairedDataset) -> Experiment:
    """Fill in the default augmentation of what each stage learns, and check all of it against the modalities.

    Raises:
        ConfigError: Naming file, line and key, if a transform does not fit its modality.
    """
    document = experiment.document
    stages = dict(experiment.stages)
    for name, stage in stages.items():
        if stage.module is None:
            stages[name] = _augmented(stage, experiment, data, ("stages", name))
    numbers = {name: n for n, item in enumerate(document.values.get("compare") or []) for name in _names(item)}
    compare = {
        name: _augmented(stage, experiment, data, ("compare", numbers.get(name, 0), name))
        for name, stage in experiment.compare.items()
    }
    target, controls = experiment.data.target, dict(experiment.controls)
    plain = not list(stages.values())[-1].augment.get(target)
    for name in ALONE_BY:
        given: dict[str, Any] = dict(controls.get(name, {}))
        if name == "target_ssl" and plain:  # a student may do without; two equal views would teach the control nothing
            given["augment"] = {target: DEFAULT_AUGMENT[data.modality(target).kind], **given.get("augment", {})}
            controls[name] = given
        if isinstance(given.get("augment"), dict):
            contrasts = (target,) if name == "target_ssl" else ()
            _check_augment(given["augment"], data, document, ("controls", name), contrasts=contrasts)
    return dataclasses.replace(experiment, stages=stages, compare=compare, controls=controls)


def _names(item: Any) -> list[str]:
    return list(item) if isinstance(item, dict) else [str(item)]  # pyright: ignore[reportUnknownArgumentType]


def _augmented(
    stage: StageSpec, experiment: Experiment, data: PairedDataset, place: tuple[str | int, ...]
) -> StageSpec:
    """Fill in the default augmentation of what a stage learns: its modality, the student's, or all that have encoders.

    A teacher that distils sees plain inputs, unless the file says otherwise.
    """
    cls = lookup("crossdistill.methods", stage.method)
    learnt = (stage.modality or experiment.data.target,)
    if "encoders" in parameters_of(cls):
        learnt = experiment.data.modalities
    augment = {name: list(DEFAULT_AUGMENT[data.modality(name).kind]) for name in learnt} | dict(stage.augment)
    contrasts = learnt if "views" in cls.facts.needs else ()
    _check_augment(augment, data, experiment.document, place, contrasts=contrasts)
    if stage.stored_views is not None and not augment.get(experiment.data.source):
        raise ConfigError(
            f"{experiment.document.where((*place, 'stored_views'))}: the teacher's modality "
            f"'{experiment.data.source}' is not augmented, so its outputs are stored once; leave stored_views out "
            "(null in a row that is compared), or say how under augment"
        )
    return dataclasses.replace(stage, augment=augment)


def _check_augment(
    augment: Mapping[str, Any],
    data: PairedDataset,
    document: Document,
    place: tuple[str | int, ...],
    *,
    contrasts: Collection[str],
) -> None:
    """Build every transform once; `contrasts` are the modalities whose two views must differ."""
    for modality, spec in augment.items():
        try:
            build_transforms(spec, data.modality(modality))
        except CrossDistillError as error:
            raise ConfigError(f"{document.where((*place, 'augment', modality))}: {error}") from None
        if modality in contrasts and not spec:
            known = ", ".join(t.name for t in available_transforms() if data.modality(modality).kind in t.kinds)
            raise ConfigError(
                f"{document.where((*place, 'augment', modality))}: two augmented views are compared here; without a "
                f"transform they are equal. Known: {known}"
            )
