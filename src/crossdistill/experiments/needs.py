"""What methods and objectives need that data and teacher do not give: the reasons for skipped rows, before training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from crossdistill.errors import DataError, NetworkError, ObjectiveError
from crossdistill.experiments.arms import Arm
from crossdistill.experiments.bench import Bench
from crossdistill.experiments.rehearsal import FEW, named, outputs_of, undrawn, untrained
from crossdistill.experiments.specs import StageSpec
from crossdistill.networks.base import Outputs
from crossdistill.networks.taps import Maps, deepest_maps
from crossdistill.registry import Need, lookup


def find_unmet(bench: Bench, arms: Sequence[Arm]) -> dict[str, str]:
    """Say of each arm which need of it cannot be served; empty where there is none.

    What a teacher gives is seen by running it, untrained, on a few samples.

    Args:
        bench: The experiment's data and networks.
        arms: All arms, the method first.
    """
    given: dict[tuple[str, bool], Outputs] = {}
    found: dict[str, str] = {}
    for arm in arms:
        if arm.stage is None:
            alone = arm.role == "ceiling" and bench.experiment.teacher is None
            found[arm.name] = _no_ceiling(bench, arms[0]) if alone else ""
            if arm.role == "ceiling":
                found[arm.name] = found[arm.name] or _unjudged(bench, arm.modality)
            continue
        name, teacher = arm.stage.teacher, None
        if name:
            where = bench.experiment.document.where(("stages", name))
            with undrawn(), named(bench, None):
                x = next(bench.teacher_reads(arm.stage, bench.train, FEW))
                key = (name, arm.stage.fused)
                teacher = given[key] = given.get(key) or outputs_of(untrained(bench, arm.stage), x, where)
        reason = _lacking(bench, arm.stage, teacher) or _unserved(bench, arm.stage)
        found[arm.name] = reason or _no_maps(bench, arm, arm.stage)
    return found


def _lacking(bench: Bench, stage: StageSpec, teacher: Outputs | None) -> str:
    """Say what data and teacher lack for a stage's method and objectives."""
    lacking: dict[Need, str] = {}
    if not bench.train.labelled.any():
        lacking["labels"] = "labels, and the data have none"
        if not stage.teacher:
            lacking["labels_or_teacher"] = "labels or a teacher, and there is neither"
    if bench.train.group is None:
        lacking["group"] = "groups, and the data have none"
    if teacher is not None and teacher.logits is None:
        lacking["teacher_logits"] = "a teacher with logits, and this one gives none"
    method = lookup("crossdistill.methods", stage.method).facts
    needs: list[tuple[str, frozenset[Need]]] = [(method.name, method.needs)]
    for o in stage.objectives:
        needs.append((o.name, lookup("crossdistill.objectives", o.name)(**o.parameters).needs))
    return next((f"{name} needs {lacking[need]}" for name, needed in needs for need in lacking if need in needed), "")


def _unserved(bench: Bench, stage: StageSpec) -> str:
    """Say which modality a stage's method does not serve."""
    facts = lookup("crossdistill.methods", stage.method).facts
    for modality in (stage.modality,) if stage.modality else bench.experiment.data.modalities:
        kind = bench.data.modality(modality).kind
        if not {"any", kind} & set(facts.modalities):
            return f"{facts.name} serves {', '.join(facts.modalities)}, and '{modality}' is {kind}"
    return ""


def _no_maps(bench: Bench, arm: Arm, stage: StageSpec) -> str:
    """Say why the deepest feature maps do not serve an arm's objectives that name no layers; empty if they do."""
    spec = bench.experiment.data
    for o in stage.objectives:
        objective = lookup("crossdistill.objectives", o.name)(**o.parameters)
        if objective.reads != "maps" or objective.layers:
            continue
        with undrawn(), named(bench, arm):
            networks = {spec.source: untrained(bench, stage), spec.target: bench.encoder(spec.target, 0)}
        for modality, network in networks.items():
            try:
                deepest_maps(network, next(bench.train.samples(modality, FEW)))
            except NetworkError as error:
                return f"{o.name} needs feature maps: {error}"
        alone = [torch.zeros(FEW, 1, 2, 2)]
        try:
            with undrawn():
                objective.prepare(alone, alone, pairs=FEW)
        except ObjectiveError as error:  # one layer is too few for it
            return str(error)
    return ""


@dataclass(frozen=True)
class Unfit:
    """Why layers do not serve, and whether others might: `misnamed`, unless a network has no feature maps at all."""

    reason: str
    misnamed: bool = True


def find_unfit_layers(bench: Bench, arm: Arm) -> Unfit | None:
    """Say why layers that an arm's objectives name do not serve it; None if they do, or none are named.

    `run` refuses such layers. A suite names them once, for the networks of many experiments, and leaves the row out
    where they do not fit.
    """
    stage, spec = arm.stage, bench.experiment.data
    for o in () if stage is None else stage.objectives:
        objective = lookup("crossdistill.objectives", o.name)(**o.parameters)
        if objective.reads != "maps" or not objective.layers:
            continue
        assert stage is not None
        with undrawn(), named(bench, arm):
            networks = bench.encoder(spec.target, 0), untrained(bench, stage)
            samples = next(bench.train.samples(spec.target, FEW)), next(bench.teacher_reads(stage, bench.train, FEW))
        sides = zip(("student's", "teacher's"), networks, samples, zip(*objective.layers, strict=True), strict=True)
        for side, network, x, words in sides:
            try:
                with undrawn(), torch.no_grad():
                    Maps(network, words)(x)
            except NetworkError as error:
                try:
                    deepest_maps(network, x)
                except NetworkError as none:
                    return Unfit(f"{o.name} needs feature maps: {none}", misnamed=False)
                return Unfit(f"{o.name}.layers, the {side}: {error}")
    return None


def _unjudged(bench: Bench, modality: str) -> str:
    """Say why the rows that have a modality are too few to judge a network of it; empty if they are not."""
    if not len(bench.test.having(modality)):
        return f"no test row that has '{bench.experiment.data.target}' has '{modality}'"
    try:
        bench.label_rows(bench.experiment.seeds[0], modality)
    except DataError as error:
        return str(error)
    return ""


def _no_ceiling(bench: Bench, main: Arm) -> str:
    """Say why a method without a teacher has no network of the source; empty if it has one."""
    with undrawn(), named(bench, main):
        method = bench.method(main, bench.experiment.seeds[0])
    try:
        method.student(bench.experiment.data.source)
    except NetworkError as error:
        return str(error)
    return ""
