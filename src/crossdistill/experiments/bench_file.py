"""What `crossdistill bench` leaves in results.json, checked before anything is concluded from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from crossdistill.errors import DataError
from crossdistill.experiments.arms import Role
from crossdistill.files import read_json, unchecked

AGAIN = "write the file again with 'crossdistill bench'"

Model = TypeVar("Model", bound=BaseModel)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class BenchMethod(_Record):
    """A row of the league; `tuned` where its settings were searched for rather than left at their defaults."""

    role: Role
    title: str = ""
    tuned: bool = False


class BenchExperiment(_Record):
    """One data set and direction; `limit` is the number of training pairs left of the family's, None for all.

    `test` counts those of the `test_rows` that are judged: they have the target and a label.
    """

    track: str
    data: str
    source: str
    target: str
    pairing: str = ""
    pairs: int
    test: int
    test_rows: int | None = None
    classes: int
    class_names: list[str] = []
    family: str
    limit: int | None = None


class BenchRun(_Record):
    """One method on one experiment and seed."""

    experiment: str
    method: str
    seed: int
    status: Literal["done", "failed"]
    reason: str = ""
    seconds: FiniteFloat | None = None
    cpu_seconds: FiniteFloat | None = None
    steps: int | None = None


class BenchSkipped(_Record):
    """A method that an experiment cannot serve."""

    experiment: str
    method: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class BenchRow:
    """One number: a share in [0, 1]; `labels_per_class` is None where all labels were used."""

    experiment: str
    method: str
    seed: int
    labels_per_class: int | None
    evaluation: str
    metric: str
    value: FiniteFloat


class BenchResults(_Record):
    """The whole of results.json of a suite; the first evaluation and the first labels_per_class are the headline."""

    kind: Literal["bench"]
    title: str = ""
    tracks: list[str] = Field(min_length=1)
    methods: dict[str, BenchMethod]
    experiments: dict[str, BenchExperiment]
    labels_per_class: list[int | None] = Field(min_length=1)
    evaluations: list[str] = Field(min_length=1)
    runs: list[BenchRun] = []
    rows: list[BenchRow] = []
    skipped: list[BenchSkipped] = []
    complete: bool = True
    missing: int = 0
    environment: dict[str, Any] = {}

    @property
    def headline(self) -> str | None:
        """The method that the page follows: the first named of role "method", else the first distillation method."""
        plain = {name: method for name, method in self.methods.items() if not method.tuned}
        named = [*_of_role(plain, "method"), *_of_role(plain, "baseline"), *_of_role(self.methods, "method")]
        return named[0] if named else None


def _of_role(methods: Mapping[str, BenchMethod], role: Role) -> list[str]:
    return [name for name, method in methods.items() if method.role == role]


def parse_bench(value: Mapping[str, Any], name: str = "results.json") -> BenchResults:
    """Check the content of a suite's results.json.

    Args:
        value: The decoded file.
        name: What to call it in an error.

    Raises:
        DataError: If a field is missing or wrong, a row names an unknown method or experiment, or is there twice.
    """
    bench = checked(BenchResults, value, name, AGAIN)
    seen: set[tuple[Any, ...]] = set()
    for row in bench.rows:
        for what, word, known in (
            ("method", row.method, bench.methods),
            ("experiment", row.experiment, bench.experiments),
        ):
            if word not in known:
                raise DataError(f"{name}: a row is of {what} '{word}', which '{what}s' does not describe; {AGAIN}")
        key = (row.experiment, row.method, row.seed, row.labels_per_class, row.evaluation, row.metric)
        if key in seen:
            raise DataError(f"{name}: two rows of {', '.join(str(part) for part in key)}; {AGAIN}")
        seen.add(key)
    for experiment in bench.experiments.values():
        if experiment.track not in bench.tracks:
            raise DataError(
                f"{name}: an experiment is of track '{experiment.track}', which is none of 'tracks'; {AGAIN}"
            )
    return bench


def checked(model: type[Model], value: Mapping[str, Any], name: str, remedy: str) -> Model:
    """Fill a pydantic model from the content of a file.

    Raises:
        DataError: If it does not fit; the message names the file, the first wrong place and the remedy.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{name}, at '{where}': {first['msg']}; {remedy}") from None


def read_object(path: Path, remedy: str) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises:
        DataError: If it does not exist, is not JSON, holds something else, or is not what was written.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist; {remedy}")
    try:
        value = read_json(path)
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}); {remedy}") from None
    if not isinstance(value, dict):
        raise DataError(f"{path} must hold one JSON object, not a {type(value).__name__}; {remedy}")
    try:
        return unchecked(value)  # pyright: ignore[reportUnknownArgumentType] # JSON
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}; {remedy}") from None
