"""Distilling with modules and a DataLoader of one's own: one call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crossdistill.data import PairedDataset
from crossdistill.errors import ConfigError, DataError, NetworkError
from crossdistill.files import digest
from crossdistill.methods import Distillation
from crossdistill.networks import Tapped
from crossdistill.objectives import Objective
from crossdistill.registry import lookup
from crossdistill.training import Listener, Settings, TeacherStore, UserData, code_of, fit, weights_digest


def distill(
    teacher: nn.Module,
    student: nn.Module,
    pairs: Iterable[Any] | PairedDataset,
    *,
    source: str = "source",
    target: str = "target",
    objectives: str | Mapping[str, float | Objective] = "similarity",
    tap: str | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
    listener: Listener | None = None,
    **settings: Any,
) -> nn.Module:
    """Distil a teacher of one modality into a student of another, from unlabelled pairs.

    Args:
        teacher: Any module from the source's batch to features (b, d_t) or maps (b, d_t, h, w); it is frozen, in place.
        student: Any module from the target's batch to features (b, d_s) or maps; it is trained, in place.
        pairs: A DataLoader of dicts {source: tensor, target: tensor} or of tuples (source, target), row i of both being
            one pair; or a `PairedDataset`, whose pairs that lack one of the two are left out. Give it full batches
            (drop_last=True): contrast needs them.
        source: Name of the teacher's modality in a batch.
        target: Name of the student's.
        objectives: Name of an objective, or name to weight, or name to an `Objective` of your own making.
        tap: Dotted path of the teacher's submodule that gives the features; None takes its output.
        seed: Of order and initialisation.
        folder: Where to keep checkpoint, log and product; a run stopped there goes on there; one of another teacher,
            other objectives, settings or data is refused.
        listener: Told of the progress.
        settings: Fields of `Settings`: epochs, lr, optimizer, batch_size (for a `PairedDataset`), ...

    Returns:
        The student, trained, in eval mode.

    Raises:
        CrossDistillError: If something does not fit: what was wrong, and what to do.
    """
    if source == target:
        raise ConfigError(f"source and target are both '{source}'; distillation goes from one modality to another")
    chosen = Settings.of(**settings)
    data = pairs.having(source, target) if isinstance(pairs, PairedDataset) else UserData(pairs, (source, target))
    first = {name: next(data.samples(name), None) for name in (source, target)}
    for name, batch in first.items():
        if batch is None or not len(batch):
            raise DataError(f"there is no sample of '{name}' to begin with")
    made, weights = _objectives(objectives)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # of a projector, where one is needed
        method = Distillation(
            _encoder(student, first[target], None),
            teacher=_encoder(teacher, first[source], tap),
            objectives=made,
            weights=weights,
            source=source,
            target=target,
        )
    fit(
        method,
        data,
        chosen,
        seed=seed,
        folder=None if folder is None else Path(folder),
        key=_key(method, made, weights, tap),
        listener=listener,
        store=TeacherStore(None) if isinstance(data, PairedDataset) else None,
    )
    return student.eval()


def _encoder(module: nn.Module, example: Tensor | None, tap: str | None) -> nn.Module:
    """Learn a module's width by running it on two samples, unless it states `dim`."""
    if tap is None and isinstance(getattr(module, "dim", None), int):
        return module
    assert example is not None
    try:
        return Tapped(module, example[:2], tap=tap)
    except (RuntimeError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise NetworkError(
            f"{type(module).__name__} cannot read a batch of shape {tuple(example.shape)}: {reason}"
        ) from error


def _objectives(given: str | Mapping[str, float | Objective]) -> tuple[dict[str, Objective], dict[str, float]]:
    named = {given: 1.0} if isinstance(given, str) else dict(given)
    made: dict[str, Objective] = {}
    weights: dict[str, float] = {}
    for name, value in named.items():
        made[name] = value if isinstance(value, Objective) else lookup("crossdistill.objectives", name)()
        try:
            weights[name] = 1.0 if isinstance(value, Objective) else float(value)
        except (TypeError, ValueError):
            raise ConfigError(f"objective '{name}': give a weight or an Objective; received {value!r}") from None
    return made, weights


def _key(method: Distillation, made: Mapping[str, Objective], weights: Mapping[str, float], tap: str | None) -> str:
    """Hash what is distilled how, beside data, settings and seed; the student's start is the caller's to seed."""
    described: dict[str, Any] = {
        name: [{k: v for k, v in vars(o).items() if isinstance(v, int | float | str | tuple)}, weights_digest(o)]
        for name, o in made.items()
    }
    teacher = weights_digest(method.teacher)
    return digest(code_of(method), teacher, described, dict(weights), method.source, method.target, tap)
