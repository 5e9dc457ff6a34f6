"""What can go wrong in training, looked for before it: methods are built, objectives run once, batches are filled."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import sys
import traceback
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from crossdistill.errors import (
    ConfigError,
    CrossDistillError,
    DataError,
    NetworkError,
    ObjectiveError,
    TrainingError,
)
from crossdistill.experiments.arms import Arm
from crossdistill.experiments.blame import definition_of, spot_of, told
from crossdistill.experiments.specs import Experiment, StageSpec
from crossdistill.experiments.yaml_lines import Place
from crossdistill.files import digest
from crossdistill.methods import Distillation, Method, Separable
from crossdistill.networks.base import Outputs, as_outputs
from crossdistill.objectives import Context
from crossdistill.registry import lookup

if TYPE_CHECKING:
    from crossdistill.experiments.bench import Bench
    from crossdistill.training.settings import Settings

FEW = 8
"""Samples that the networks are run on; more would only take time."""

STEP = 32
"""Samples that a step is rehearsed on, at most."""


def rehearse(bench: Bench, arms: Sequence[Arm]) -> None:
    """Build the method of every arm once, the teacher untrained, and run its objectives forward and backward.

    No random number that is drawn here is missing afterwards.

    Raises:
        CrossDistillError: Naming file and stage, and the objective if it is one that fails.
    """
    seed = bench.experiment.seeds[0]
    seen: list[object] = []
    teachers: dict[tuple[str, bool], nn.Module] = {}
    device, teaching = _device(), bench.teaching()
    with undrawn(device), named(bench, None):
        for arm in (*arms, *([] if teaching is None else [teaching])):
            if arm.stage is None or arm.stage.module is not None or arm.stage in seen:
                continue
            seen.append(arm.stage)
            key = (arm.stage.teacher, arm.stage.fused)
            if arm.stage.teacher and key not in teachers:
                teachers[key] = untrained(bench, arm.stage)
            with named(bench, arm):
                method = bench.method(arm, seed, teacher=teachers.get(key))
                if isinstance(method, Distillation):
                    _rehearse_objectives(bench, arm, method, device)
                else:
                    _rehearse_step(bench, arm, method)


def untrained(bench: Bench, stage: StageSpec) -> nn.Module:
    """Build the teacher of a stage, untrained if it is one of ours."""
    made_by = bench.experiment.stages[stage.teacher]
    if made_by.module is not None:
        return bench.module(made_by.module, made_by.name)
    return bench.as_teacher(stage, bench.method(bench.teacher_arm(made_by), bench.experiment.seeds[0]))


def _device() -> torch.device:
    """Give the device that the stages will train on: an objective may leave its own tensors behind on another."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return found if found is not None and found.type in ("cuda", "mps") else torch.device("cpu")


def _rehearse_objectives(bench: Bench, arm: Arm, method: Distillation, device: torch.device) -> None:
    """Run an arm's objectives on a batch of the stage's size, with the rows' own labels and groups.

    The networks are run on a few real samples alone; mixtures of what they give for these make the batch full, and are
    in the range of real features whatever that is.
    """
    assert arm.stage is not None
    seed, experiment = bench.experiment.seeds[0], bench.experiment
    rows, settings = bench.stage_data(arm, seed), bench.settings(arm, seed)
    with_labels = bench.reads_labels(arm.stage)
    loader = rows.loader(
        method.inputs(),
        batch_size=settings.batch_size,
        seed=seed,
        labels=with_labels,
        distinct_groups=settings.distinct_groups,
    )
    positions = loader.plan(0)[0]
    few = loader.batch(0, positions[:FEW])
    label, group = rows.label if with_labels else None, rows.group

    def at(values: np.ndarray | None) -> Tensor | None:
        return None if values is None else torch.from_numpy(values[positions]).to(device)

    document = experiment.document
    of_teacher = document.where(("stages", arm.stage.teacher))
    of_student = document.where(("networks", method.target))
    teacher = outputs_of(method.teacher, few[method.source], of_teacher)
    method.network.eval()
    student = outputs_of(method.read_student, few[method.target], of_student)
    torch.manual_seed(seed)
    inputs = _mixed(Outputs(few[method.target]), len(positions)).to(device).features
    context = Context(
        label=at(label), index=torch.from_numpy(positions.copy()).to(device), group=at(group), inputs=inputs
    )
    method.rehearse(
        _mixed(student, len(positions)).to(device), _mixed(teacher, len(positions)).to(device), context, pairs=len(rows)
    )


def _rehearse_step(bench: Bench, arm: Arm, method: Method) -> None:
    """Run one step of a method, forward and backward, on a few rows of a batch; not if hooks see the data first.

    Raises:
        TrainingError: If the method raises what is no error of ours; with its place in the user's code.
    """
    assert arm.stage is not None
    hooks = ((type(method).before_stage, Method.before_stage), (type(method).before_epoch, Method.before_epoch))
    if any(own is not none for own, none in hooks):
        return
    seed = bench.experiment.seeds[0]
    rows, settings = bench.stage_data(arm, seed), bench.settings(arm, seed)
    loader = rows.loader(
        method.inputs(),
        batch_size=settings.batch_size,
        seed=seed,
        labels=bench.reads_labels(arm.stage),
        distinct_groups=settings.distinct_groups,
    )
    torch.manual_seed(seed)
    try:
        losses = next(method.train().training_steps(loader.batch(0, loader.plan(0)[0][:STEP])), None)
        if losses is not None and losses.terms:
            losses.total.backward()  # pyright: ignore[reportUnknownMemberType]
    except CrossDistillError:
        raise
    except Exception as error:
        raise TrainingError(f"one step of {arm.stage.method} fails: {told(error)}") from error


def outputs_of(network: Callable[[Any], Any], x: Any, where: str) -> Outputs:
    """Run a network on a few samples, a tensor (b, ...) or a mapping of them.

    Raises:
        NetworkError: If it cannot read them, or gives what is not finite.
    """
    try:
        if isinstance(network, nn.Module):
            network.eval()
        with torch.no_grad():
            found = as_outputs(network(x))
    except CrossDistillError as error:
        raise type(error)(f"{where}: {error}") from None
    except Exception as error:
        raise NetworkError(f"{where}: cannot read a batch of shape {_shape(x)}: {told(error)}") from error
    if not torch.isfinite(found.features).all():
        raise NetworkError(f"{where}: the features of a batch of shape {_shape(x)} are not finite")
    return found


def _shape(x: Any) -> Any:
    return tuple(x.shape) if isinstance(x, Tensor) else {name: tuple(samples.shape) for name, samples in x.items()}


def _mixed(outputs: Outputs, rows: int) -> Outputs:
    """Make as many rows as a batch has: random averages of those that are there."""
    weights = (2 * torch.randn(rows, len(outputs.features))).softmax(dim=1)

    return outputs.each(lambda value: (weights.to(value.dtype) @ value.flatten(1)).view(rows, *value.shape[1:]))


@contextlib.contextmanager
def undrawn(device: torch.device | None = None) -> Generator[None]:
    """Leave every generator that a user's objective may draw from as it was: torch's, numpy's and Python's."""
    from crossdistill.training.checkpoint import kept_random

    device = device or torch.device("cpu")
    state, numbers = random.getstate(), np.random.get_state()  # noqa: NPY002 - the user's, not ours
    try:
        with kept_random(device):
            yield
    finally:
        random.setstate(state)
        np.random.set_state(numbers)  # noqa: NPY002


@contextlib.contextmanager
def seeded(seed: int, purpose: str) -> Generator[None]:
    """Fix torch's random state by (seed, purpose) inside, and give the caller's back after."""
    state = torch.get_rng_state()
    torch.manual_seed(int(digest(seed, purpose), 16) % 2**63)
    try:
        yield
    finally:
        torch.set_rng_state(state)


# Errors with their place ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def named(bench: Bench, arm: Arm | None, *, training: bool = False) -> Generator[None]:
    """Give errors their place in the experiment file, and make errors of ours of what a user's objective raises.

    Args:
        bench: Whose experiment runs.
        arm: What is built or trained; None for the teacher.
        training: Whether errors that are none of an objective are left as they are.

    Raises:
        ObjectiveError: "file, line, stages.student.objectives.NAME: type: message (file:line of the user's code)".
    """
    document = bench.experiment.document
    try:
        yield
    except ObjectiveError as error:
        if arm is not None and (name := _real_name(arm, error.objective)):
            raise _placed(bench.experiment, arm, name, error.__cause__ or error, str(error)) from error
        if training or str(error).startswith(document.name):
            raise
        raise ObjectiveError(f"{document.where(_place(bench.experiment, arm))}: {error}") from None
    except CrossDistillError as error:
        if training or str(error).startswith(document.name):
            raise
        raise type(error)(f"{document.where(_place(bench.experiment, arm))}: {error}") from None
    except Exception as error:
        if arm is None or not (name := _culprit(arm, error)):
            raise
        raise _placed(bench.experiment, arm, name, error, "") from error


def _placed(experiment: Experiment, arm: Arm, name: str, error: BaseException, message: str) -> ObjectiveError:
    if not isinstance(error, CrossDistillError):
        message = told(error)
    elif spot := spot_of(error) or definition_of(name):
        message = f"{message} ({spot})"
    return ObjectiveError(f"{experiment.document.where(_place(experiment, arm, name))}: {message}")


def _real_name(arm: Arm, name: str) -> str:
    """Give the file's word for what the method calls an objective; empty if it is none."""
    assert arm.stage is not None
    return next((o.name for o in arm.stage.objectives if o.module_name == name), "")


def _culprit(arm: Arm, error: BaseException) -> str:
    """Name the user's objective in whose file an exception was raised, as in a backward of its own; empty if none."""
    assert arm.stage is not None
    files = {frame.filename for frame in traceback.extract_tb(error.__traceback__)}
    for objective in arm.stage.objectives:
        module = sys.modules.get(objective.name.partition(":")[0]) if ":" in objective.name else None
        if getattr(module, "__file__", None) in files:
            return objective.name
    return ""


def _place(experiment: Experiment, arm: Arm | None, objective: str = "") -> Place:
    """Give the path of an arm's stage in the file, or of one of its objectives: a row to compare with has its own."""
    if arm is None or arm.stage is None:
        return ("stages",)
    if arm.role == "control" and arm.stage.name not in experiment.stages:
        return ("controls", arm.stage.name)
    if not objective and arm.stage.name in experiment.stages:
        return ("stages", arm.stage.name)
    if not objective:
        rows = [[item] if isinstance(item, str) else list(item) for item in experiment.document.values["compare"]]
        return ("compare", next(n for n, names in enumerate(rows) if arm.name in names), arm.name)
    if arm.role != "baseline":
        return ("stages", arm.stage.name, "objectives", objective)
    listed: list[Any] = experiment.document.values.get("compare") or []
    for number, item in enumerate(listed):
        if item == arm.name:
            return ("compare", number)
        if isinstance(item, dict) and arm.name in item:
            inner = ("objectives",) if "method" in item[arm.name] else ()
            return ("compare", number, arm.name, *inner, objective)
    return ("compare", objective)


# Batches and weights -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Unfilled:
    where: str
    batch: int
    rows: int


def check_loops(bench: Bench, arms: Sequence[Arm]) -> None:
    """Refuse what a stage's loop cannot do, before anything is trained.

    That is batches that the data do not fill (all stages at once), "best" weights that nothing held out decides,
    micro-batches of a step that cannot be cut, and stages that the processes of torchrun cannot share.

    Raises:
        DataError: Naming every stage whose batch is too large.
        ConfigError: Of the others.
    """
    seed, document = bench.experiment.seeds[0], bench.experiment.document
    unfilled: dict[str, _Unfilled] = {}
    for arm in arms:
        if arm.stage is None or arm.stage.module is not None:
            continue
        place = _place(bench.experiment, arm)
        settings, rows = bench.settings(arm, seed), len(bench.stage_data(arm, seed))
        inherited = place[0] == "controls" and (*place, "batch_size") not in document.lines
        if rows < settings.batch_size and not (inherited and unfilled):
            where = document.where((*place, "batch_size"))
            unfilled.setdefault(where, _Unfilled(where, settings.batch_size, rows))
        if settings.keep == "best" and bench.held_out_data(arm, seed) is None:
            where = document.where((*place, "keep"))
            raise ConfigError(f"{where}: there are no held-out pairs that say which weights are best; keep last")
        _check_shares(bench, arm, settings, place)
        if settings.micro_batch is not None and not issubclass(
            lookup("crossdistill.methods", arm.stage.method), Separable
        ):
            where = document.where((*place, "micro_batch"))
            raise ConfigError(f"{where}: the step of {arm.stage.method} cannot be cut into micro-batches; leave it out")
    if unfilled:
        each = [
            f"{u.where}: a batch of {u.batch} does not fit into {u.rows} training samples" for u in unfilled.values()
        ]
        raise DataError(f"{'; '.join(each)}; lower {'it' if len(each) == 1 else 'each'}")


def _check_shares(bench: Bench, arm: Arm, settings: Settings, place: Place) -> None:
    from crossdistill.training.processes import rank_and_count

    count, document = rank_and_count()[1], bench.experiment.document
    if count == 1 or not bench.shared(arm):
        return
    assert arm.stage is not None
    if settings.batch_size % count:
        raise ConfigError(
            f"{document.where((*place, 'batch_size'))}: a batch of {settings.batch_size}, that of {count} processes "
            "together, has no equal share for each"
        )
    if not issubclass(lookup("crossdistill.methods", arm.stage.method), Separable):
        raise ConfigError(
            f"{document.where((*place, 'method'))}: {count} processes cannot share the step of {arm.stage.method}; "
            "start one, and use --jobs for several seeds and rows"
        )
