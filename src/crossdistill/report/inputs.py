"""What a run folder holds, read and checked before anything is drawn: results, loss history, experiment file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, ValidationError

from crossdistill.experiments.arms import Role
from crossdistill.experiments.bench_file import checked, read_object

AGAIN = "write the file again with 'crossdistill run'"


def _count(seeds: Any) -> Any:
    return len(seeds) if isinstance(seeds, list | tuple) else seeds  # pyright: ignore[reportUnknownArgumentType] # JSON


def _empty(value: Any) -> Any:
    return "" if value is None else value


Text = Annotated[str, BeforeValidator(_empty)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", coerce_numbers_to_str=True)


class Score(_Record):
    """One number of one method and seed; `value` is a fraction in [0, 1] for accuracies and their like."""

    data: Text = ""
    source: Text = ""
    target: Text = ""
    method: str
    seed: int
    evaluation: str
    metric: str
    value: FiniteFloat


class Comparison(_Record):
    """`method` minus `against`, paired over seeds and test items; `low` and `high` bound 95 % or are null."""

    method: str
    against: str
    evaluation: str
    metric: str
    difference: FiniteFloat
    low: FiniteFloat | None = None
    high: FiniteFloat | None = None
    seeds: Annotated[int, BeforeValidator(_count)] = 1


class Headline(_Record):
    """The one comparison the verdict is about."""

    method: str
    against: Text = ""
    evaluation: str
    metric: str


class Method(_Record):
    """What a row of the league is: a method, what it must beat, a control, or the ceiling."""

    role: Role = "method"
    title: Text = ""


class Skipped(_Record):
    """A method that was asked for and not run."""

    method: str
    reason: Text = ""


class DataFacts(_Record):
    """What the data set says of itself."""

    name: Text = ""
    about: Text = ""
    pairing: Text = ""
    licence: Text = ""
    attribution: Text = ""
    counts: dict[str, Any] = {}
    classes: int | None = None
    warnings: list[str] = []


class Results(_Record):
    """The whole of results.json."""

    rows: list[Score] = []
    comparisons: list[Comparison] = []
    verdict: Literal["helped", "hurt", "undecided"] | None = None
    sentence: Text = ""
    headline: Headline | None = None
    methods: dict[str, Method] = {}
    skipped: list[Skipped] = []
    data: DataFacts = Field(default_factory=DataFacts)
    environment: dict[str, Any] = {}

    def role(self, method: str) -> Role:
        """Give a method's role; a row that results.json does not describe counts as a method."""
        return self.methods[method].role if method in self.methods else "method"

    def title(self, method: str) -> str:
        """Give a method's one-line title, or nothing."""
        return self.methods[method].title if method in self.methods else ""


class LossLine(_Record):
    """One line of metrics.jsonl: losses (any scale) after `epoch`, of one method, stage and seed."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True, coerce_numbers_to_str=True)
    method: str
    stage: Text = ""
    seed: int = 0
    epoch: float | None = None
    loss: float | None = None
    held_out: float | None = Field(default=None, alias="held_out/loss")


def parse_results(value: Mapping[str, Any], name: str = "results.json") -> Results:
    """Check the content of results.json.

    Args:
        value: The decoded file.
        name: What to call it in an error.

    Returns:
        The checked results.

    Raises:
        DataError: If a field is missing or of the wrong type; the message names the first one.
    """
    return checked(Results, value, name, AGAIN)


def read_results(path: Path) -> Results | None:
    """Read results.json, or give None where it does not exist.

    Raises:
        DataError: If it is not JSON or does not hold what it should.
    """
    return parse_results(read_object(path, AGAIN), str(path)) if path.is_file() else None


def read_history(path: Path) -> tuple[list[LossLine], int]:
    """Read metrics.jsonl line by line; a run killed while it wrote leaves a broken last line, which must not matter.

    Args:
        path: The file; it may be missing.

    Returns:
        The lines that tell of an epoch, and how many lines could not be read.
    """
    if not path.is_file():
        return [], 0
    lines: list[LossLine] = []
    broken = 0
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if not text.strip():
            continue
        try:
            line = LossLine.model_validate_json(text)
        except ValidationError:
            broken += 1
            continue
        if line.epoch is not None:
            lines.append(line)
    return lines, broken
