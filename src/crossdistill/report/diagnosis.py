"""A diagnosis' page: will distillation help, how sure is that, which teacher, and what speaks for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from crossdistill.files import write_text
from crossdistill.report.diagnosis_figures import (
    COLOURS,
    SOURCE,
    TARGET,
    calibration_chart,
    forecast_chart,
    ranking_chart,
    venn_chart,
)
from crossdistill.report.diagnosis_inputs import DiagnosisFile, Finding, Number, Teacher, read_diagnosis
from crossdistill.report.diagnosis_words import (
    NUMBERS,
    PLACES,
    REFERENCES,
    VENN,
    VERDICTS,
    bounds,
    number,
    title_of,
    unit_of,
)
from crossdistill.report.figures import NARROW, ROLE_COLOURS, WIDE, two_widths
from crossdistill.report.page import duration, fill

SHOWN = 3
"""Candidates whose forecast and Venn diagram stand open; those of the others unfold."""

PROXIES: Mapping[str, str] = {
    "pilot": "a pilot student, trained for a few seconds",
    "ridge": "a closed-form student; nothing was trained",
    "episodes": "a closed-form student, in episodes of labels that were spread to similar pairs",
    "source": "the teacher's accuracy on labelled source samples",
}


def write_diagnosis(folder: Path) -> Path:
    """Write folder/diagnosis.html, one page that opens offline and shows what is known before a student is trained.

    Only folder/diagnosis.json is read. The same file gives the same page, byte for byte, on the same machine.

    Args:
        folder: Where `crossdistill diagnose` left diagnosis.json.

    Returns:
        The path of the page, written whole or not at all.

    Raises:
        DataError: If diagnosis.json is missing or not what it should be.
    """
    folder = Path(folder)
    page = render(read_diagnosis(folder / "diagnosis.json"))
    path = folder / "diagnosis.html"
    write_text(path, page)
    return path


def render(found: DiagnosisFile) -> str:
    """Fill the template.

    Args:
        found: The checked file.

    Returns:
        The page as text.
    """
    best = found.teachers[0]
    stops = [f for f in (*best.findings, *found.findings) if f.severity == "stop"]
    word, sign, words = VERDICTS[found.verdict]
    venns = _venns(found)
    return fill(
        "diagnosis.html.j2",
        found=found,
        best=best,
        verdict={"word": word, "sign": sign, "words": words, "sentence": _sentence(found.sentence, stops)},
        stops=stops,
        others_stopped=[t.name for t in found.teachers[1:] if any(f.severity == "stop" for f in t.findings)],
        verdicts=VERDICTS,
        places=PLACES,
        forecasts=_forecasts(found),
        ranking=_ranking(found),
        equals=[d.second for d in found.differences if d.first == best.name and d.says == "cannot tell"],
        beaten=[d.second for d in found.differences if d.first == best.name and d.says == "better"],
        venns=venns,
        venn_notes=list(dict.fromkeys(part for item in venns for note in item["notes"] for part in note.split("; "))),
        lines=_lines(found),
        numbers=_numbers(found),
        everything=_everything(found),
        theories=[(teacher.name, teacher.theory) for teacher in found.teachers if teacher.theory.terms],
        settings=_settings(found),
        calibration=_calibration(best),
        why=_why(found),
        labelled=found.settings.labelled,  # without labels nobody asked what they would tell
        withheld=_withheld(found),
        shown=SHOWN,
        colours={"source": SOURCE, "target": TARGET, "measured": ROLE_COLOURS["ceiling"], **COLOURS},
        references=REFERENCES,
        number=number,
        bounds=bounds,
        title_of=title_of,
        duration=duration,
    )


def _sentence(sentence: str, stops: Sequence[Finding]) -> str:
    """Leave out of the sentence what stands below it as the first finding."""
    return sentence.removesuffix(f" But first: {stops[0].what}; {stops[0].do}.") if stops else sentence


def _both(draw: Callable[[int, str], str], name: str) -> Markup:
    return two_widths(draw(WIDE, f"{name}-wide"), draw(NARROW, f"{name}-narrow"))


def _why(found: DiagnosisFile) -> dict[str, str]:
    """Give by name why something is withheld; the first reason where there are several."""
    return {left.what: left.reason for left in reversed(found.withheld)}


def _forecasts(found: DiagnosisFile) -> list[dict[str, Any]]:
    """Draw the forecast of each candidate that has one and whose reference was measured."""
    classes = found.settings.classes
    chance = 1 / classes if classes > 1 else None
    drawn: list[dict[str, Any]] = []
    for index, teacher in enumerate(found.teachers):
        numbers = found.of(teacher.name)
        if teacher.gain is None or f"acc_{teacher.reference}" not in numbers:
            continue
        rival = numbers.get("acc_ssl" if teacher.reference == "raw" else "acc_raw")
        drawn.append(
            {
                "teacher": teacher,
                "chart": _both(_of_forecast(teacher, numbers, chance), f"forecast{index}"),
                "reference": REFERENCES[teacher.reference or "raw"],
                "overtaken": rival is not None and rival.value > numbers[f"acc_{teacher.reference}"].value,
                "levels": sorted(
                    {100 * n.level for name, n in numbers.items() if name.startswith("acc_") and n.bounded}
                ),
                "episodes": "e" in numbers or "a_source" in numbers,
            }
        )
    return drawn


def _of_forecast(teacher: Teacher, numbers: Mapping[str, Number], chance: float | None) -> Callable[[int, str], str]:
    return lambda width, name: forecast_chart(teacher, numbers, chance, name, width=width)


def _ranking(found: DiagnosisFile) -> Markup | None:
    ranked = [teacher for teacher in found.teachers if teacher.gain is not None]
    if not ranked:
        return None
    return _both(lambda width, name: ranking_chart(ranked, name, width=width), "ranking")


def _venns(found: DiagnosisFile) -> list[dict[str, Any]]:
    """Draw what is known of the label by whom, of each candidate of which it was estimated."""
    drawn: list[dict[str, Any]] = []
    for index, teacher in enumerate(found.teachers):
        numbers = found.of(teacher.name)
        if not {"shared", "only_source", "only_target"} <= set(numbers):
            continue
        parts = {what: numbers[what] for what in VENN if what in numbers}
        drawn.append(
            {
                "teacher": teacher.name,
                "chart": _both(_of_venn(teacher.name, parts), f"venn{index}"),
                "notes": [part.note for part in parts.values() if part.note],
                "levels": sorted({100 * part.level for part in parts.values() if part.bounded}),
                "below": any(parts[what].value < 0 for what in ("shared", "only_source", "only_target")),
            }
        )
    return drawn


def _of_venn(teacher: str, parts: Mapping[str, Number]) -> Callable[[int, str], str]:
    return lambda width, name: venn_chart(teacher, parts, name, width=width)


def _lines(found: DiagnosisFile) -> list[list[dict[str, Any]]]:
    """Draw the calibration lines: those of the best candidate and of all, then those of the others."""
    parts: list[list[dict[str, Any]]] = [[], []]
    for index, line in enumerate(found.calibration_lines):
        chart = Markup(calibration_chart(line, f"calibration{index}"))
        mine = line.teacher in ("", found.teachers[0].name)
        parts[0 if mine else 1].append({"line": line, "title": title_of(line.what), "chart": chart})
    return [part for part in parts if part]


def _withheld(found: DiagnosisFile) -> dict[tuple[str, str], list[str]]:
    """Give by number and reason the candidates of which it is withheld; none where it is of all."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for left in found.withheld:
        grouped.setdefault((left.what, left.reason), []).extend([left.teacher] if left.teacher else [])
    return grouped


def _numbers(found: DiagnosisFile) -> list[dict[str, Any]]:
    """Give each number that has a meaning, in their order, with its value for each candidate that has it."""
    of = {teacher.name: found.of(teacher.name) for teacher in found.teachers}
    rows: list[dict[str, Any]] = []
    for what, meaning in NUMBERS.items():
        if what == "retrieval_chance":  # stands beside what it is the chance of
            continue
        values = [
            {
                "teacher": name,
                "value": number(numbers[what].value, meaning.unit, bare=meaning.unit != "share"),
                "bounds": bounds(numbers[what].low, numbers[what].high, meaning.unit) if numbers[what].bounded else "",
                "chance": number(numbers["retrieval_chance"].value, "share")
                if what == "retrieval" and "retrieval_chance" in numbers
                else "",
                "note": numbers[what].note,
            }
            for name, numbers in of.items()
            if what in numbers
        ]
        if values:
            unit = meaning.unit if meaning.unit in ("points", "nats") else ""
            rows.append({"title": meaning.title, "unit": unit, "about": meaning.about, "values": values})
    return rows


def _everything(found: DiagnosisFile) -> list[tuple[str, list[dict[str, Any]]]]:
    """Give every estimate of the file by candidate, in its order."""
    tables = [
        (teacher.name, [_written(*item) for item in found.of(teacher.name).items()]) for teacher in found.teachers
    ]
    return [(name, rows) for name, rows in tables if rows]


def _written(what: str, estimate: Number) -> dict[str, Any]:
    unit = unit_of(what)
    return {
        "what": what,
        "title": title_of(what),
        "value": number(estimate.value, unit),
        "bounds": bounds(estimate.low, estimate.high, unit) if estimate.bounded else "",
        "level": f"{100 * estimate.level:g} %",
        "n": estimate.n,
        "how": "; ".join(part for part in (estimate.kind, _flat(estimate.settings), estimate.note) if part),
    }


def _flat(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_plain(value)}" for name, value in settings.items())


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return " ".join(_plain(part) for part in value)  # pyright: ignore[reportUnknownVariableType] # JSON
    return str(value)


def _settings(found: DiagnosisFile) -> list[tuple[str, str]]:
    """Say what was diagnosed."""
    given = found.settings
    rows = [
        ("pairs", f"{given.pairs:,}"),
        ("labelled rows", f"{given.labelled:,}" + (f" of {given.classes} classes" if given.classes else "")),
    ]
    if given.labels_used != given.labelled:
        rows.append(("labelled rows that the forecast looked at", f"{given.labels_used:,}"))
    rows += [
        ("groups", "none given: every pair counts as independent" if given.groups is None else f"{given.groups:,}"),
        ("training", "a pilot and a self-supervised reference, where the labels allow" if given.training else "none"),
        ("level of the forecast's interval", f"{100 * given.level:g} %"),
        ("seed", str(given.seed)),
    ]
    rows += list(found.about.items())
    if found.seconds is not None:
        rows.append(("time", duration(found.seconds)))
    return rows


def _calibration(best: Teacher) -> list[tuple[str, str]]:
    """Say where the forecast's coefficients and interval come from."""
    if best.gain is None:
        return []
    known = best.gain.settings
    words = {
        "proxy": "what stands for the student",
        "loss": "loss of the students it was learned from",
        "data_sets": "data sets it was learned from",
        "coefficients": "coefficients",
        "quantile": "width of the interval, in errors",
        "floor": "model error, in shares",
    }
    rows: list[tuple[str, str]] = []
    for key, word in words.items():
        if key in known:
            value = PROXIES.get(str(known[key]), _plain(known[key])) if key == "proxy" else _plain(known[key])
            rows.append((word, ", ".join(map(str, known[key])) if key in ("data_sets", "coefficients") else value))
    return rows
