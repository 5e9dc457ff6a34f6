"""The suite file of `crossdistill bench`: many experiments under one protocol, expanded into one experiment each.

title:             of the page
track:             label-free (no label before the evaluation) or labelled (methods may read the labels of pairs)
methods:           rows of every experiment: names of objectives or methods, {row: objectives}, {row: stage}; or all
budget:            optimiser steps of the students and of the teachers, and the batch
base:              what every experiment has in common: any part of an experiment file
experiments:       name to what it has of its own; `between` makes all ordered pairs of its modalities, `pairs` versions
                   with fewer pairs
labels_per_class:  the few labels, one evaluation each; null is all of them
tune:              trials of a tuned column beside the defaults, as many for every row, judged on validation; 0 is none
seeds:             how many, or which
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import yaml
from pydantic import Field

from crossdistill import data as datasets
from crossdistill.data import PairedDataset
from crossdistill.errors import ConfigError, CrossDistillError, DataError, suggest
from crossdistill.experiments.rows import check_data
from crossdistill.experiments.schema import Whole, check_experiment, read_seeds
from crossdistill.experiments.signatures import check, parameters_of
from crossdistill.experiments.specs import CONTROLS, DataSpec, Experiment
from crossdistill.experiments.yaml_lines import Document, Place
from crossdistill.registry import discover

Track = Literal["label-free", "labelled"]
Rows = dict[str, dict[str, Any]]
"""Name of a row to what its stage has of its own: objectives, or a method with its parameters."""

MAIN = "similarity"
"""The method whose random teacher and shuffled pairs are the controls, where the suite has it: CMCD's own loss."""

SCALED: Mapping[str, dict[str, Any]] = {
    "crd": {"count": 1024},
    "rkd": {"vertices": 32},
    "seed": {"queue_size": 1024},
}
"""What a bare name stands for where its defaults are made for other budgets: CRD's 16,384 negatives are a third of the
set that they are from, SEED's queue of 65,536 a twentieth, and all angles of a batch cost its cube. {row: {crd: {}}}
has the defaults."""

DEMANDING = frozenset({"labels", "teacher_logits", "feature_maps"})
"""Needs that not every teacher and track can serve."""

SELF_LABELLED = ("cross_entropy", "mfh")
"""Objectives with a cross-entropy of their own; the others get one beside them in the labelled track."""

Number = Annotated[int, Field(gt=0, strict=True)]
_SUITE: dict[str, tuple[Any, Any]] = {
    "title": (str, ""),
    "track": (Track, "label-free"),
    "methods": (Literal["all"] | list[str | dict[str, dict[str, Any]]], "all"),
    "budget": (dict[str, Any], {}),
    "base": (dict[str, Any], {}),
    "experiments": (dict[str, dict[str, Any]], ...),
    "labels_per_class": (list[Number | None], [1, 5, 20, None]),
    "tune": (int, Field(default=0, ge=0, strict=True)),
    "seeds": (Whole | list[Whole], 5),
}
_BUDGET: dict[str, tuple[Any, Any]] = {
    "steps": (Annotated[int, Field(gt=0)], 400),
    "teacher_steps": (Annotated[int, Field(gt=0)], 700),
    "batch_size": (Annotated[int, Field(gt=1)], 256),
}
_OWN: dict[str, tuple[Any, Any]] = {
    "track": (Track | None, None),
    "between": (list[str] | None, Field(default=None, min_length=2)),
    "pairs": (list[Number | None], [None]),
    "budget": (dict[str, Any], {}),
    "labels_per_class": (list[Number | None] | None, None),
}
_PARTS = ("data", "networks", "stages", "controls", "evaluate")


@dataclass(frozen=True)
class Entry:
    """One experiment of a suite.

    Attributes:
        name: Of the experiment.
        family: The name without the number of pairs: experiments of one family differ in that alone.
        track: What the methods may read.
        labels_per_class: One evaluation each; None is all labels.
        experiment: Checked; its `evaluate.labels_per_class` is the first of them.
    """

    name: str
    family: str
    track: Track
    labels_per_class: tuple[int | None, ...]
    experiment: Experiment

    def at(self, k: int | None) -> Experiment:
        """Give the experiment with so many labels a class."""
        return dataclasses.replace(
            self.experiment, evaluate=dataclasses.replace(self.experiment.evaluate, labels_per_class=k)
        )


@dataclass(frozen=True)
class Suite:
    """A checked suite file, expanded.

    Attributes:
        title: Of the page.
        entries: The experiments, in the file's order.
        seeds: Of every one of them.
        trials: Of the tuned column; 0 where there is none.
        values: The file's content, to be written beside the results.
    """

    title: str
    entries: tuple[Entry, ...]
    seeds: tuple[int, ...]
    trials: int
    values: Mapping[str, Any]


class Shelf:
    """Data sets that are at hand: one that many experiments read is loaded once."""

    def __init__(self) -> None:
        self.loaded: dict[str, PairedDataset] = {}

    def get(self, name: str, options: Mapping[str, Any]) -> PairedDataset:
        """Give a data set by its name and options."""
        key = yaml.safe_dump([name, dict(options)])
        if key not in self.loaded:
            self.loaded[key] = datasets.load(name, **options)
        return self.loaded[key]


def expand(document: Document, shelf: Shelf, *, seeds: int | Sequence[int] | None = None) -> Suite:
    """Check a suite file and make its experiments.

    Args:
        document: The parsed file.
        shelf: Where data sets are kept; the batch depends on their size.
        seeds: Instead of the file's.

    Returns:
        The suite; every experiment is checked like a file of its own.

    Raises:
        CrossDistillError: Naming file, line and key.
    """
    top = check(_SUITE, document.values, document, ())
    if not top["experiments"]:
        raise ConfigError(f"{document.where(('experiments',))}: give at least one experiment")
    entries: list[Entry] = []
    for name, raw in top["experiments"].items():
        own = check(_OWN, {k: v for k, v in raw.items() if k not in _PARTS}, document, ("experiments", name))
        for entry in _entries(name, raw, own, top, document, shelf):
            if any(entry.name == other.name for other in entries):
                raise ConfigError(
                    f"{document.where(('experiments', name))}: two experiments are called '{entry.name}'; rename one, "
                    "or name no modality and no number of pairs twice"
                )
            entries.append(entry)
    chosen = read_seeds(top["seeds"] if seeds is None else seeds, document)  # pyright: ignore[reportArgumentType]
    return Suite(top["title"], tuple(entries), chosen, top["tune"], {**document.values, "seeds": list(chosen)})


def standard(
    data: str,
    source: str,
    target: str,
    *,
    methods: Sequence[str] = (),
    track: Track = "label-free",
    seeds: int = 5,
    tune: int = 0,
    options: Mapping[str, Any] | None = None,
) -> Document:
    """Write the standard suite on one data set: every method that applies, or those named, under the default budget.

    Args:
        data: A file, folder or named set.
        source: The rich modality.
        target: The poor one.
        methods: Rows; none takes all.
        track: What the methods may read.
        seeds: How many.
        tune: Trials of each row, for the tuned table; 0 makes none.
        options: Of the data set; files of the user's own have equal samples on two sides of a split dropped.
    """
    given = dict(options or {})
    if Path(data).suffix.lower() in (".npz", ".csv", ".parquet") or Path(data).is_dir():
        given.setdefault("duplicates", "drop")
    values: dict[str, Any] = {
        "title": f"{Path(data).stem}, {source} to {target}",
        "track": track,
        "methods": list(methods) or "all",
        "experiments": {
            f"{source}-{target}": {"data": {"name": data, "source": source, "target": target, "options": given}}
        },
        "labels_per_class": [1, 5, 20, None] if track == "label-free" else [None],
        "seeds": seeds,
        "tune": tune,
    }
    return Document("bench", values, {})


# Experiments of one entry ------------------------------------------------------------------------------------------


def _entries(
    name: str, raw: Mapping[str, Any], own: Mapping[str, Any], top: Mapping[str, Any], document: Document, shelf: Shelf
) -> Iterator[Entry]:
    place = ("experiments", name)
    base = check({part: (dict[str, Any], {}) for part in _PARTS}, top["base"], document, ("base",))
    above = check(
        {part: (dict[str, Any], {}) for part in _PARTS}, {k: v for k, v in raw.items() if k in _PARTS}, document, place
    )
    parts: dict[str, Any] = {part: _merged(base[part], above[part]) for part in _PARTS}
    parts["evaluate"] = {"fewer": "take", **parts["evaluate"]}  # a rare class is no reason to leave k out
    budget = check(_BUDGET, top["budget"], document, ("budget",))
    budget |= {
        k: v for k, v in check(_BUDGET, own["budget"], document, (*place, "budget")).items() if k in own["budget"]
    }
    track: Track = own["track"] or top["track"]
    rows = _rows(top["methods"], track, document)
    between: list[str] | None = own["between"]
    directions = [(parts["data"].get("source"), parts["data"].get("target"))]
    if between:
        directions = list(itertools.permutations(between, 2))
    for source, target in directions:
        family = f"{name}-{source}-{target}" if between else name
        for limit in own["pairs"]:
            called = family if limit is None else f"{family}-{limit}"
            described = {**parts["data"], "source": source, "target": target}
            if limit is not None:
                described["pairs"] = limit
            written = {key: value for key, value in described.items() if value is not None}
            values = {**parts, "data": written}
            ks = tuple(own["labels_per_class"] or top["labels_per_class"])
            experiment = _experiment(values, rows, track, budget, place, document, shelf)
            yield Entry(called, family, track, ks, experiment)


def _experiment(
    values: dict[str, Any],
    rows: Rows,
    track: Track,
    budget: Mapping[str, Any],
    place: Place,
    document: Document,
    shelf: Shelf,
) -> Experiment:
    """Write one experiment as its own file would say it, with the lines of the suite file, and check it."""
    lines = {p[len(place) :]: line for p, line in document.lines.items() if p[: len(place)] == place and p != place}
    lines = {p[1:]: line for p, line in document.lines.items() if p[:1] == ("base",) and len(p) > 1} | lines
    main = _main(rows)
    others = [row for row in rows if row != main]
    for p, line in document.lines.items():
        if p[0] == "methods" and len(p) > 1 and (row := _row_of(document, p)) in others:
            lines["compare", others.index(row), *p[2:]] = line
        elif p[:1] == ("methods",) and len(p) > 2:  # the main row is the student's stage
            lines["stages", "student", *(() if "method" in rows[main] else ("objectives",)), *p[3:]] = line
    name = values["data"].get("name")
    known = Document(f"{document.name}, {'.'.join(map(str, place))}", values, lines)
    for key in ("name", "source", "target"):
        if not isinstance(values["data"].get(key), str):
            fields = [field.name for field in dataclasses.fields(DataSpec)]
            odd = "".join(f"; there is no key '{other}'" for other in values["data"] if other not in fields)
            raise ConfigError(f"{known.where(('data',))}: the key '{key}' is missing, or no word{odd}")
    try:
        data = shelf.get(name, values["data"].get("options") or {})
    except CrossDistillError as error:
        raise type(error)(f"{known.where(('data', 'name'))}: {error}") from None
    if "train" not in data.splits:
        raise DataError(f"{known.where(('data', 'name'))}: '{name}' has no train split")
    limit, pairs = values["data"].get("pairs"), len(data.split("train"))
    if isinstance(limit, int) and limit > pairs:
        raise ConfigError(f"{document.where((*place, 'pairs'))}: {limit} are more than all {pairs}; null takes all")
    spec = values["data"]
    sizes = (
        fitting_pairs(data, spec["source"], spec["source"]),
        fitting_pairs(data, spec["source"], spec["target"], spec.get("pairs")),
    )
    stages = _stages(values, rows, track, budget, sizes)
    compare = [{row: _row(rows[row], plain="objectives" in rows[main])} for row in others]
    experiment = check_experiment(
        Document(known.name, {**values, "stages": stages, "compare": compare, "seeds": [0]}, known.lines)
    )
    check_data(experiment, data)
    return experiment


def _row_of(document: Document, place: Place) -> str:
    """Name the row that a place below `methods` belongs to."""
    item = document.values["methods"][place[1]]
    if isinstance(item, str):
        return item
    return str(place[2]) if len(place) > 2 else str(next(iter(item)))


def fitting_pairs(data: PairedDataset, source: str, target: str, limit: int | None = None) -> int:
    """Count the training pairs that have both modalities; of a limited number drawn from all, those to be expected."""
    train = data.split("train")
    known = [name for name in (source, target) if name in train.modalities]  # an unknown one is refused elsewhere
    both = len(train.having(*known))
    return both if limit is None or limit >= len(train) else both * limit // len(train)


def _stages(
    values: Mapping[str, Any], rows: Rows, track: Track, budget: Mapping[str, Any], sizes: tuple[int, int]
) -> dict[str, Any]:
    """Give teacher and student their budgets; what the file says of a stage stands."""
    said: dict[str, Any] = dict(values["stages"])
    of_teacher, of_student = said.get("teacher", {}), said.get("student", {})
    learns = "simclr" if track == "label-free" else "supervised"
    teacher = {
        "method": learns,
        "modality": values["data"]["source"],
        **_loop(budget["teacher_steps"], budget, sizes[0]),
    }
    teacher = dict(of_teacher) if "module" in of_teacher else _said_over(teacher, of_teacher)
    main = rows[_main(rows)]
    student = _said_over(_loop(budget["steps"], budget, sizes[1]), {**_distils(main), **main})
    student = _said_over(student, of_student)
    others = {key: value for key, value in said.items() if key not in ("teacher", "student")}
    return {"teacher": teacher, **others, "student": student}


def _loop(steps: int, budget: Mapping[str, Any], pairs: int) -> dict[str, Any]:
    """Give a stage its optimiser steps in full batches, two an epoch at least; checkpoints stay rare in short ones."""
    batch = min(budget["batch_size"], max(2, pairs // 2))
    return {"steps": steps, "batch_size": batch, "lr": 2e-3, "checkpoint_every": max(200, steps // 4)}


def _said_over(budget: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """Lay what the file says of a stage over its budget; epochs of its own are said in place of steps."""
    return {key: value for key, value in budget.items() if key != "steps" or said.get("epochs") is None} | dict(said)


def _distils(row: Mapping[str, Any]) -> dict[str, Any]:
    return {} if "method" in row else {"method": "distillation", "teacher": "teacher"}


def _row(row: dict[str, Any], *, plain: bool) -> dict[str, Any]:
    """Give a row as `compare` has it: objectives alone where the main stage takes some, or a stage with its method."""
    if "method" in row:
        return row
    return row["objectives"] if plain else {**_distils(row), **row}


def _main(rows: Rows) -> str:
    """Choose the row whose random teacher and shuffled pairs are the controls: CMCD's, or one that a teacher can serve.

    Of the others the first is taken that distils and needs neither labels nor more than features.
    """
    if MAIN in rows:
        return MAIN
    known = discover("crossdistill.objectives")
    easy = [
        row
        for row, what in rows.items()
        if "objectives" in what
        and all(name in known and not known[name].facts.needs & DEMANDING for name in what["objectives"])
    ]
    return next(iter([*easy, *(row for row, what in rows.items() if "objectives" in what), *rows]))


def _merged(below: Any, above: Any) -> Any:
    """Lay one mapping over another, key by key."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    lower, upper = cast("dict[str, Any]", below), cast("dict[str, Any]", above)
    return {
        key: _merged(lower[key], upper[key]) if key in lower and key in upper else upper.get(key, lower.get(key))
        for key in {**lower, **upper}
    }


# Rows --------------------------------------------------------------------------------------------------------------


def _rows(methods: Any, track: Track, document: Document) -> Rows:
    """Make the rows of a suite from names and mappings."""
    items: list[Any] = list(_everything()) if methods == "all" else methods
    if not items:
        raise ConfigError(f"{document.where(('methods',))}: name at least one method, or write all")
    rows: Rows = {}
    for number, item in enumerate(items):
        place = ("methods", number)
        named = cast("dict[str, Any]", item) if isinstance(item, dict) else {str(item): None}
        if not named:
            raise ConfigError(f"{document.where(place)}: an empty row; write a name, or {{name: objectives}}")
        for name, value in named.items():
            if name in rows or name in CONTROLS:
                raise ConfigError(f"{document.where(place)}: '{name}' is the name of another row; choose another")
            if value is None:
                rows[name] = _named(name, track, document.where(place))
            elif "method" in value:
                rows[name] = value
            else:
                rows[name] = {"objectives": value}
    return rows


def _named(name: str, track: Track, where: str) -> dict[str, Any]:
    """Make the row of one objective or method from its name alone."""
    objectives, methods = discover("crossdistill.objectives"), discover("crossdistill.methods")
    if name in objectives or ":" in name:
        beside: dict[str, Any] = {}
        if track == "labelled" and name not in SELF_LABELLED:
            beside = {"cross_entropy": 1.0}
        return {"objectives": {**beside, name: dict(SCALED.get(name, {})) or 1.0}}
    if name not in methods:
        raise ConfigError(f"{where}: no objective or method is called '{name}'{suggest(name, [*objectives, *methods])}")
    wanted, facts = parameters_of(methods[name]), methods[name].facts
    needed = "labels_or_teacher" in facts.needs and track == "label-free"
    taught = "teacher" in wanted and (wanted["teacher"][1] is ... or needed)
    return {"method": name, **({"teacher": "teacher"} if taught else {})}


def _everything() -> Iterator[str | dict[str, Any]]:
    """Name every objective, and every method that is a system of its own: one-modality methods are the controls."""
    objectives = discover("crossdistill.objectives")
    yield from objectives
    for name, cls in discover("crossdistill.methods").items():
        wanted = parameters_of(cls)
        if "objectives" in wanted or "encoder" in wanted:
            continue
        yield {f"{name}_method": {"method": name, "teacher": "teacher"}} if name in objectives else name
