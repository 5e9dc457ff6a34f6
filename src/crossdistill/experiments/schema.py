"""The experiment file: what it may say, checked before anything runs, with errors that name file, line and key.

data:      where the pairs come from, and which modality teaches which
networks:  an encoder for each modality (by shape where nothing is said)
stages:    a teacher, then the method that distils it; each a method with its own and the loop's parameters
compare:   objectives to run beside the method, under the same budget
controls:  changes to the controls, which always run
evaluate:  how many labels, and by what the frozen student is judged
seeds:     how many, or which
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field

from crossdistill.errors import ConfigError, CrossDistillError, shown, suggest
from crossdistill.experiments.blame import told
from crossdistill.experiments.signatures import at, check, loop_fields, parameters_of
from crossdistill.experiments.specs import (
    ALONE_BY,
    CONTROLS,
    ROLES,
    DataSpec,
    EvaluateSpec,
    Experiment,
    ModuleSpec,
    ObjectiveSpec,
    StageSpec,
    TransformSpec,
)
from crossdistill.experiments.yaml_lines import Document, Place, override, parse_document, read_document
from crossdistill.registry import lookup, refuse_foreign

MOST_SEEDS = 1000
Whole = Annotated[int, Field(strict=True)]
"""Neither true nor 3.0."""

_TOP: dict[str, tuple[Any, Any]] = {
    "data": (dict[str, Any], ...),
    "networks": (dict[str, dict[str, Any]], {}),
    "stages": (dict[str, dict[str, Any]], ...),
    "compare": (list[str | dict[str, dict[str, Any]]] | None, None),
    "controls": (dict[str, dict[str, Any]], {}),
    "evaluate": (dict[str, Any], {}),
    "seeds": (Whole | list[Whole], 3),
}
_DATA: dict[str, tuple[Any, Any]] = {
    "name": (str, ...),
    "source": (str, ...),
    "target": (str, ...),
    "further": (list[str], []),
    "pairs": (int | None, Field(default=None, gt=1, strict=True)),
    "options": (dict[str, Any], {}),
}
_positive = Field(gt=0)
_EVALUATE: dict[str, tuple[Any, Any]] = {
    "labels_per_class": (int | None, Field(default=5, gt=0)),
    "fewer": (Literal["refuse", "take"], "refuse"),
    "ways": (list[Literal["linear", "knn", "fine_tune"]], Field(default=["linear", "knn", "fine_tune"], min_length=1)),
    "c": (Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["cv"], 10.0),
    "neighbours": (int, Field(default=5, gt=0)),
    "fine_tune_steps": (int, Field(default=100, gt=0)),
}
_MODULE: dict[str, tuple[Any, Any]] = {
    "module": (str, ...),
    "weights": (str | None, None),
    "tap": (str | None, None),
    "pool": (Literal["auto", "space", "tokens", "time", "first"] | None, None),
    "logits": (bool, False),
    "parameters": (dict[str, Any], {}),
}


def read_experiment(path: str | Path, overrides: list[str] | None = None) -> Experiment:
    """Read and check an experiment file.

    Args:
        path: YAML file.
        overrides: Changes "key.path=value", the value in YAML.

    Returns:
        The experiment, all defaults filled in; data and networks are not touched yet.

    Raises:
        ConfigError: Naming file, line and key, what is allowed, and the nearest right one.
    """
    return check_experiment(override(read_document(Path(path)), overrides or []))


def parse_experiment(text: str, *, name: str = "experiment") -> Experiment:
    """Check an experiment that is at hand as YAML text."""
    return check_experiment(parse_document(text, name=name))


def check_experiment(document: Document) -> Experiment:
    """Check a parsed document; see `read_experiment`."""
    top = check(_TOP, document.values, document, ())
    described = check(_DATA, top["data"], document, ("data",))
    described["further"] = tuple(described["further"])
    data = DataSpec(**described)
    if data.source == data.target:
        raise ConfigError(f"{document.where(('data', 'target'))}: source and target are both '{data.target}'; name two")
    if len(set(data.modalities)) < len(data.modalities):
        raise ConfigError(
            f"{document.where(('data', 'further'))}: name no modality twice; received {shown(list(data.modalities))}"
        )
    stages = {name: _stage(name, raw, document) for name, raw in top["stages"].items()}
    _check_order(stages, data, document)
    for name in top["networks"]:
        if name not in data.modalities:
            known = suggest(name, data.modalities)
            raise ConfigError(f"{document.where(('networks', name))}: no such modality here{known}")
        if not isinstance(encoder := top["networks"][name].get("encoder", "auto"), str):
            place = document.where(("networks", name, "encoder"))
            raise ConfigError(f"{place}: write the name of a network, or auto; received {shown(encoder)}")
        _own_name(encoder, document, ("networks", name, "encoder"))
    compare = _comparisons(top["compare"], stages, data, document)
    for name in top["controls"]:
        if name not in ALONE_BY:
            known = suggest(name, ALONE_BY)
            raise ConfigError(f"{document.where(('controls', name))}: only these controls take changes{known}")
    evaluate = check(_EVALUATE, top["evaluate"], document, ("evaluate",))
    evaluate["ways"] = tuple(evaluate["ways"])
    return Experiment(
        data=data,
        stages=stages,
        networks=top["networks"],
        compare=compare,
        controls=top["controls"],
        evaluate=EvaluateSpec(**evaluate),
        seeds=read_seeds(top["seeds"], document),
        document=document,
    )


def _own_name(name: str, document: Document, place: Place) -> None:
    """Refuse a network that is not the library's own, where nothing else is wanted, before the data are read."""
    try:
        refuse_foreign(name)
    except ConfigError as error:
        raise ConfigError(f"{document.where(place)}: {error}") from None


def _stage(
    name: str,
    raw: dict[str, Any],
    document: Document,
    place: tuple[str | int, ...] = (),
    *,
    like: StageSpec | None = None,
) -> StageSpec:
    """Check one stage against the signatures of its method and of the loop's settings.

    Args:
        name: Of the stage.
        raw: What stands in the file.
        document: The file, for messages.
        place: Where in it; below `stages` if nothing is said.
        like: A stage whose settings and augmentation are the defaults: the budget of what it is compared with.
    """
    from crossdistill.training.settings import Settings

    place = place or ("stages", name)
    if "module" in raw:
        module = ModuleSpec(**check(_MODULE, raw, document, place))
        _own_name(module.module, document, (*place, "module"))
        return StageSpec(name, module=module)
    if not isinstance(raw.get("method"), str):
        raise ConfigError(f"{document.where(place)}: a stage needs a 'method' (or a 'module' of your own)")
    try:
        method = lookup("crossdistill.methods", raw["method"])
    except CrossDistillError as error:
        raise ConfigError(f"{document.where((*place, 'method'))}: {error}") from None
    everything = parameters_of(method)
    own = {key: value for key, value in everything.items() if key not in ROLES}
    loop = loop_fields(raw, {} if like is None else like.settings, document, place)
    fields: dict[str, tuple[Any, Any]] = {
        "method": (str, ...),
        "augment": (dict[str, TransformSpec], {} if like is None else dict(like.augment)),
        "stored_views": (int | None, like.stored_views if like is not None and raw.get("teacher") else None),
        **own,
        **loop,
    }
    for role, kind, empty in _SAID:
        if role in everything:
            fields[role] = (kind, ... if everything[role][1] is ... else empty)
    said = {key: value for key, value in raw.items() if key != "epochs" or value is not None}
    values = check(fields, said, document, place)
    settings = {key: values[key] for key in loop}
    try:
        Settings(**settings)
    except CrossDistillError as error:
        raise at(document, place, error, loop) from None
    objectives = _objectives(values["objectives"], document, (*place, "objectives")) if "objectives" in raw else ()
    if values["stored_views"] is not None and (values["stored_views"] < 1 or not values.get("teacher")):
        raise ConfigError(
            f"{document.where((*place, 'stored_views'))}: stored_views is a number of views, at least 1, of a stage "
            f"with a 'teacher'; received {values['stored_views']}"
        )
    return StageSpec(
        name,
        method=values["method"],
        modality=values.get("modality", ""),
        teacher=values.get("teacher", ""),
        objectives=objectives,
        parameters={key: values[key] for key in own},
        settings=settings,
        augment=values["augment"],
        stored_views=values["stored_views"],
    )


_SAID: tuple[tuple[str, Any, Any], ...] = (
    ("modality", str, ""),
    ("teacher", str, ""),
    ("objectives", dict[str, float | dict[str, Any]], {}),
)
"""Roles that the file names itself: their type, and what it is if a method can do without and nothing is said."""


def _objectives(
    raw: Mapping[str, float | dict[str, Any]], document: Document, place: tuple[str | int, ...]
) -> tuple[ObjectiveSpec, ...]:
    """Check objectives: name to weight, or name to parameters with a weight among them."""
    if not raw:
        raise ConfigError(f"{document.where(place)}: give at least one objective, for example 'similarity: 1.0'")
    found: list[ObjectiveSpec] = []
    for name, value in raw.items():
        here = (*place, name)
        try:
            cls = lookup("crossdistill.objectives", name)
        except CrossDistillError as error:
            raise ConfigError(f"{document.where(here)}: {error}") from None
        _check_objective(cls, document.where(here))
        given: dict[str, Any] = dict(value) if isinstance(value, dict) else {"weight": value}
        fields = {"weight": (float, 1.0), **parameters_of(cls)}
        values = check(fields, given, document, here)
        weight = values.pop("weight")
        if not 0 < weight < float("inf"):
            raise ConfigError(
                f"{document.where((*here, 'weight'))}: the weight must be positive; received {shown(weight)}"
            )
        try:
            cls(**values)
        except CrossDistillError as error:
            raise at(document, here, error, values) from None
        except Exception as error:
            raise ConfigError(f"{document.where(here)}: {told(error)}") from error
        found.append(ObjectiveSpec(name, weight, values))
    return tuple(found)


def _check_objective(cls: type[Any], where: str) -> None:
    """Refuse a class of the user's own that cannot be asked for a loss."""
    from crossdistill.objectives import Facts, Objective

    if not issubclass(cls, Objective):
        raise ConfigError(f"{where}: {cls.__name__} is no Objective; derive it from crossdistill.objectives.Objective")
    if not isinstance(getattr(cls, "facts", None), Facts):
        raise ConfigError(f"{where}: {cls.__name__} has no `facts`; give it crossdistill.objectives.Facts(...)")


def _comparisons(
    raw: list[str | dict[str, Any]] | None, stages: Mapping[str, StageSpec], data: DataSpec, document: Document
) -> dict[str, StageSpec]:
    """Read `compare`: names of objectives, {row: objectives}, or {row: a stage with a method of its own}.

    All of them have the main stage's settings and augmentation, unless a stage says otherwise. Where nothing is said, a
    method that takes objectives is compared with L2 and cosine.
    """
    main = list(stages.values())[-1]
    found: dict[str, StageSpec] = {}
    items: list[str | dict[str, Any]] = raw if raw is not None else (["l2", "cosine"] if main.objectives else [])
    for number, item in enumerate(items):
        place = ("compare", number)
        named: dict[str, Any] = {item: {item: 1.0}} if isinstance(item, str) else item
        for name, value in named.items():
            if name in found or name in CONTROLS:
                raise ConfigError(f"{document.where(place)}: '{name}' is the name of another row; choose another")
            here = place if isinstance(item, str) else (*place, name)
            if "method" in value:
                stage = _stage(name, value, document, here, like=main)
                _check_order({**stages, main.name: dataclasses.replace(stage, name=main.name)}, data, document, here)
            elif not main.objectives:
                raise ConfigError(
                    f"{document.where(here)}: objectives go with a method that takes them, and {main.method} does not; "
                    "write {row: {method: distillation, teacher: STAGE, objectives: {…}}}"
                )
            else:
                stage = dataclasses.replace(main, objectives=_objectives(value, document, here))
            found[name] = stage
    return found


def _check_order(stages: Mapping[str, StageSpec], data: DataSpec, document: Document, place: Place = ()) -> None:
    """Refuse stages that teach before they exist, and a last stage that does not distil.

    Args:
        stages: By name.
        data: Whose modalities they read.
        document: The file, for messages.
        place: Where the last of them stands, if that is not below `stages`.
    """
    places: dict[str, Place] = {name: ("stages", name) for name in stages}
    if place:
        places[list(stages)[-1]] = place
    if not stages:
        raise ConfigError(f"{document.where(('stages',))}: give a teacher stage and a student stage")
    seen: list[str] = []
    for name, stage in stages.items():
        if stage.teacher and stage.teacher not in seen:
            hint = suggest(stage.teacher, seen) or "; there is none before it"
            raise ConfigError(
                f"{document.where((*places[name], 'teacher'))}: no earlier stage is called '{stage.teacher}'{hint}"
            )
        if stage.modality and stage.modality not in data.modalities:
            hint = suggest(stage.modality, data.modalities)
            raise ConfigError(
                f"{document.where((*places[name], 'modality'))}: no modality '{stage.modality}' here{hint} "
                "(data.source, data.target and data.further)"
            )
        for modality in stage.augment:
            if modality not in data.modalities:
                hint = suggest(modality, data.modalities)
                raise ConfigError(
                    f"{document.where((*places[name], 'augment', modality))}: no modality '{modality}' here{hint}"
                )
        seen.append(name)
    last = list(stages.values())[-1]
    if last.module is not None or last.modality:
        raise ConfigError(f"{document.where(places[last.name])}: the last stage must distil: it needs a 'teacher'")
    for stage in stages.values():
        made_by = stages[stage.teacher] if stage.fused else None
        if made_by is not None and (made_by.modality or made_by.module is not None):
            raise ConfigError(
                f"{document.where((*places[stage.name], 'teacher'))}: {stage.method} is taught by a network of all "
                f"modalities, and '{made_by.name}' makes one of '{made_by.modality or data.source}' alone; name a "
                "stage of a method of several networks (mla, mind, …)"
            )
    teacher = stages.get(last.teacher)
    if teacher is not None and teacher.modality and teacher.modality != data.source:
        raise ConfigError(
            f"{document.where((*places[last.teacher], 'modality'))}: the teacher must read the source "
            f"'{data.source}'; it reads '{teacher.modality}'"
        )


def read_seeds(raw: int | list[int], document: Document) -> tuple[int, ...]:
    """Give the seeds that a number of them or a list names.

    Raises:
        ConfigError: If there are none or too many, or one is out of range or stands twice.
    """
    if isinstance(raw, int) and raw > MOST_SEEDS:
        raise ConfigError(f"{document.where(('seeds',))}: at most {MOST_SEEDS} seeds; received {shown(raw)}")
    seeds = tuple(range(raw)) if isinstance(raw, int) else tuple(raw)
    if not seeds or len(set(seeds)) < len(seeds) or not 0 <= min(seeds) <= max(seeds) < 2**32:
        raise ConfigError(
            f"{document.where(('seeds',))}: give a number above 0 or distinct seeds from 0 to 2**32 - 1; "
            f"received {shown(raw)}"
        )
    return seeds


class _Plain(yaml.SafeDumper):
    """YAML without anchors: a list that stands twice is written twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def to_yaml(experiment: Experiment) -> str:
    """Write an experiment as YAML with every default; it reads back to the same experiment."""

    def plain(value: Any) -> Any:
        if isinstance(value, tuple | list):
            return [plain(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType]
        return value

    def objectives(specs: tuple[ObjectiveSpec, ...]) -> dict[str, Any]:
        return {o.name: {"weight": o.weight, **o.parameters} for o in specs}

    def stage(spec: StageSpec) -> dict[str, Any]:
        if spec.module:
            return dataclasses.asdict(spec.module)
        roles = {"method": spec.method, "modality": spec.modality, "teacher": spec.teacher}
        written: dict[str, Any] = {key: value for key, value in roles.items() if value}
        if spec.objectives:
            written["objectives"] = objectives(spec.objectives)
        views = {} if spec.stored_views is None else {"stored_views": spec.stored_views}
        other = "steps" if spec.settings["steps"] is None else "epochs"
        settings = {key: value for key, value in spec.settings.items() if key != other}
        return {**written, **spec.parameters, **settings, "augment": spec.augment, **views}

    def row(spec: StageSpec) -> dict[str, Any]:
        same = dataclasses.replace(spec, objectives=experiment.student.objectives) == experiment.student
        return objectives(spec.objectives) if same else stage(spec)

    content = {
        "data": dataclasses.asdict(experiment.data),
        "networks": experiment.networks,
        "stages": {name: stage(spec) for name, spec in experiment.stages.items()},
        "compare": [{name: row(spec)} for name, spec in experiment.compare.items()],
        "controls": experiment.controls,
        "evaluate": dataclasses.asdict(experiment.evaluate),
        "seeds": experiment.seeds,
    }
    return yaml.dump(plain(content), Dumper=_Plain, sort_keys=False, width=120)
