"""What `crossdistill diagnose` leaves in diagnosis.json, checked before anything is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from crossdistill.errors import DataError
from crossdistill.experiments.bench_file import checked, read_object

AGAIN = "write the file again with 'crossdistill diagnose'"

Verdict = Literal["help", "no help", "undecided"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Number(_Record):
    """An estimate, as `crossdistill.diagnostics.Estimate` writes it."""

    value: FiniteFloat
    standard_error: FiniteFloat | None = None
    low: FiniteFloat | None = None
    high: FiniteFloat | None = None
    n: int = 0
    level: float = Field(0.95, gt=0, lt=1)
    kind: str = ""
    settings: dict[str, Any] = {}
    note: str = ""

    @property
    def bounded(self) -> bool:
        """Whether there is an interval."""
        return self.low is not None and self.high is not None


class Difference(Number):
    """Forecast of the first candidate less that of the second."""

    first: str
    second: str

    @property
    def says(self) -> Literal["better", "worse", "cannot tell"]:
        """What is known of the first."""
        if self.low is not None and self.low > 0:
            return "better"
        return "worse" if self.high is not None and self.high < 0 else "cannot tell"


class Finding(_Record):
    """What a border check found."""

    check: str
    severity: Literal["stop", "warn"]
    what: str
    do: str = ""
    array: str = ""
    rows: list[int] = []
    columns: list[int] = []


class Term(_Record):
    """A term of the reconstructed bound; None where it is unknown."""

    name: str
    value: FiniteFloat | None = None
    how: str = ""
    about: str = ""


class Theory(_Record):
    """The reconstructed bound; without terms where it was not laid out."""

    terms: list[Term] = []
    kappa: FiniteFloat | None = None
    total: FiniteFloat | None = None
    vacuous: bool = True
    loss_bound: FiniteFloat | None = None
    delta: FiniteFloat | None = None


class Teacher(_Record):
    """A candidate."""

    name: str
    gain: Number | None = None
    verdict: Verdict
    reference: Literal["raw", "ssl"] | None = None
    findings: list[Finding] = []
    theory: Theory = Field(default_factory=Theory)


class Left(_Record):
    """A number that is withheld; of all candidates where `teacher` is empty."""

    what: str
    teacher: str = ""
    reason: str = ""


class CalibrationLine(_Record):
    """What an estimator says of Gaussians whose truth is known, and what it says here.

    `points` are (truth, what it said, spread of that); `value`, `low` and `high` are of the data at hand.
    """

    teacher: str = ""
    what: str
    points: list[tuple[FiniteFloat, FiniteFloat, FiniteFloat]] = Field(min_length=1)
    value: FiniteFloat | None = None
    low: FiniteFloat | None = None
    high: FiniteFloat | None = None


class Settings(_Record):
    """What was diagnosed, and how."""

    pairs: int
    labelled: int = 0
    labels_used: int = 0
    classes: int = 0
    groups: int | None = None
    level: float = Field(0.9, gt=0, lt=1)
    training: bool = True
    seed: int = 0


class DiagnosisFile(_Record):
    """The whole of diagnosis.json; `teachers` are in order, the best first where there is a forecast."""

    verdict: Verdict
    sentence: str
    teachers: list[Teacher] = Field(min_length=1)
    differences: list[Difference] = []
    estimates: dict[str, Number] = {}
    findings: list[Finding] = []
    withheld: list[Left] = []
    warnings: list[str] = []
    settings: Settings
    calibration_lines: list[CalibrationLine] = []
    about: dict[str, str] = {}
    seconds: FiniteFloat | None = None

    def of(self, teacher: str) -> dict[str, Number]:
        """Give a candidate's estimates by their names."""
        split = ((key.rpartition("/"), number) for key, number in self.estimates.items())
        return {name: number for (whose, _, name), number in split if whose == teacher}


def read_diagnosis(path: Path) -> DiagnosisFile:
    """Read diagnosis.json.

    Raises:
        DataError: If it does not exist, is not JSON, a field is missing or wrong, or something is of an unknown
            candidate.
    """
    return parse_diagnosis(read_object(path, AGAIN), str(path))


def parse_diagnosis(value: Mapping[str, Any], name: str = "diagnosis.json") -> DiagnosisFile:
    """Check the content of diagnosis.json.

    Args:
        value: The decoded file.
        name: What to call it in an error.

    Raises:
        DataError: As `read_diagnosis` does.
    """
    found = checked(DiagnosisFile, value, name, AGAIN)
    known = [teacher.name for teacher in found.teachers]
    if len(set(known)) < len(known):
        raise DataError(f"{name}: two of 'teachers' have one name; {AGAIN}")
    named = [("an estimate", key.rpartition("/")[0]) for key in found.estimates]
    named += [("a difference", one) for d in found.differences for one in (d.first, d.second)]
    named += [("something withheld", w.teacher) for w in found.withheld if w.teacher]
    named += [("a calibration line", line.teacher) for line in found.calibration_lines if line.teacher]
    for what, teacher in named:
        if teacher not in known:
            raise DataError(f"{name}: {what} is of '{teacher}', which 'teachers' does not describe; {AGAIN}")
    return found
