"""The page itself: everything a run folder holds, in the order in which a person asks for it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from crossdistill.errors import DataError
from crossdistill.files import write_text
from crossdistill.report import figures
from crossdistill.report.embedding import Atlas, draw_maps
from crossdistill.report.evidence import Evidence, Retrieval, read_evidence
from crossdistill.report.inputs import LossLine, Results, read_history, read_results
from crossdistill.report.samples import SIDE, draw_sample
from crossdistill.report.summary import League, against_baselines, league, learning_curves, strictest, stronger_controls
from crossdistill.report.words import controls, pairing_words

QUERIES, NEIGHBOURS = 8, 6  # even 56 pictures of noise and their insets stay below 2 MB
PANELS = 24  # more learning curves than anybody looks at
INPUTS = ("results.json", "metrics.jsonl", "experiment.yaml", "evidence.npz")


def write_report(folder: Path) -> Path:
    """Write folder/report.html, one page that opens offline and shows whether distillation helped.

    Only files of the run folder are read, and any of them may be missing: its section then says so. The same folder
    gives the same page, byte for byte, on the same machine.

    Args:
        folder: A run folder with results.json, metrics.jsonl, experiment.yaml and evidence.npz.

    Returns:
        The path of the page, written whole or not at all.

    Raises:
        DataError: If the folder holds none of these files, or results.json is not what it should be.
    """
    folder = Path(folder)
    if not any((folder / name).is_file() for name in INPUTS):
        raise DataError(f"{folder} holds none of {', '.join(INPUTS)}; give the folder that 'crossdistill run' wrote")
    history, broken = read_history(folder / "metrics.jsonl")
    experiment = folder / "experiment.yaml"
    page = render(
        read_results(folder / "results.json"),
        history,
        broken,
        experiment.read_text(encoding="utf-8", errors="replace") if experiment.is_file() else "",
        read_evidence(folder / "evidence.npz"),
    )
    path = folder / "report.html"
    write_text(path, page)
    return path


def render(results: Results | None, history: list[LossLine], broken: int, experiment: str, evidence: Evidence) -> str:
    """Fill the template.

    Args:
        results: The checked results, or None.
        history: Lines of the loss history, perhaps none.
        broken: How many lines could not be read.
        experiment: The experiment file's text, perhaps empty.
        evidence: Arrays to look at, with reasons for what is absent.

    Returns:
        The page as text.
    """
    known = results or Results()
    table = league(known)
    learned = learning_curves(history)
    ran, missing = controls((entry.name, entry.title, entry.role) for entry in table.entries)
    return fill(
        "template.html.j2",
        title=_title(known, table, evidence),
        results=known,
        has_results=results is not None,
        table=table,
        verdict=_verdict(known),
        stronger=stronger_controls(table, known.headline),
        other_losses=against_baselines(known),
        league_chart=_both(
            lambda width, name: figures.bars(table, name, width=width, classes=known.data.classes), "league"
        )
        if table.columns
        else None,
        forest=_forest(known, table),
        single_seed=bool(table.entries) and all(c.low is None for e in table.entries for c in e.cells.values()),
        roles={role: figures.ROLE_COLOURS[role] for role in figures.ROLE_COLOURS},
        difference_words=figures.difference_words,
        learned=[(item, Markup(figures.curves(item, f"curve{index}"))) for index, item in enumerate(learned[:PANELS])],
        curves_left_out=max(0, len(learned) - PANELS),
        broken=broken,
        atlas=_atlas(evidence),
        retrieval=_retrieval(evidence),
        absent=evidence.absent,
        experiment=experiment,
        pairing=pairing_words(known.data.pairing),
        counts=list(_flat(known.data.counts)),
        facts=circumstances(known.environment),
        seeds=sorted({row.seed for row in known.rows}),
        controls_ran=ran,
        controls_missing=missing,
    )


def fill(template: str, **values: Any) -> str:
    """Fill one of the report's templates; whatever is not said to be markup is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = Markup((Path(__file__).parent / "script.js").read_text(encoding="utf-8"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()  # no other script may run
    return environment.get_template(template).render(script=script, script_hash=digest, **values)


def _title(results: Results, table: League, evidence: Evidence) -> dict[str, str]:
    shown = evidence.retrieval
    source = table.source or (shown.source.name if shown else "")
    target = table.target or (shown.target.name if shown else "")
    data = results.data.name or next((row.data for row in results.rows), "")
    return {"data": data, "source": source, "target": target}


def _verdict(results: Results) -> dict[str, Any] | None:
    if results.verdict is None and not results.sentence:
        return None
    headline = results.headline
    comparison = strictest(results.comparisons, headline.method, headline) if headline else None
    return {
        "word": results.verdict or "undecided",
        "sign": {"helped": "▲", "hurt": "▼"}.get(results.verdict or "", "●"),
        "sentence": results.sentence,
        "comparison": comparison,
        "words": figures.difference_words(comparison) if comparison else None,
    }


def _both(draw: Callable[[int, str], str], name: str) -> Markup:
    """Draw a chart for a desk and for a phone."""
    return figures.two_widths(draw(figures.WIDE, f"{name}-wide"), draw(figures.NARROW, f"{name}-narrow"))


def _forest(results: Results, table: League) -> Markup | None:
    rows = [entry.comparison for entry in table.entries if entry.comparison]
    if results.headline is None and rows:  # without a headline, rows in one chart must still share one scale
        rows = [c for c in rows if (c.evaluation, c.metric) == (rows[0].evaluation, rows[0].metric)]
    rows.sort(key=lambda comparison: -comparison.difference)
    return _both(lambda width, name: figures.forest(rows, name, width=width), "forest") if rows else None


def _atlas(evidence: Evidence) -> Atlas | None:
    return draw_maps(evidence.maps, evidence) if evidence.maps else None


def _retrieval(evidence: Evidence) -> dict[str, Any] | None:
    found = evidence.retrieval
    if found is None:
        return None
    count, depth = min(len(found.queries), QUERIES), min(found.found_labels.shape[1], NEIGHBOURS)
    known = (found.found_labels != -1) & (found.query_labels[:, None] != -1)  # nothing can be said of the others
    right = known & (found.found_labels == found.query_labels[:, None])
    return {
        "source": found.source.name,
        "target": found.target.name,
        "rows": [_query(evidence, found, row, depth) for row in range(count)],
        "right": int(right.sum()),
        "labelled": int(known.sum()),
        "unlabelled": int((~known).sum()),
        "queries": len(found.queries),
        "shown": count,
        "depth": depth,
    }


def _query(evidence: Evidence, found: Retrieval, row: int, depth: int) -> dict[str, Any]:
    items: list[dict[str, Any]] = []
    for column in range(depth):
        label, asked = int(found.found_labels[row, column]), int(found.query_labels[row])
        source, target = found.found_source, found.found_target
        inset = SIDE // 2 if source is not None else SIDE
        items.append(
            {
                "name": evidence.class_name(label),
                "state": "unlabelled" if -1 in (label, asked) else "right" if label == asked else "wrong",
                "source": draw_sample(source[row, column], found.source) if source is not None else "",
                "target": draw_sample(target[row, column], found.target, inset) if target is not None else "",
            }
        )
    name = evidence.class_name(int(found.query_labels[row]))
    return {"name": name, "picture": draw_sample(found.queries[row], found.target), "items": items}


def _flat(counts: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Flatten nested counts to ("train pairs", "3,388") rows."""
    rows: list[tuple[str, str]] = []
    for key, value in counts.items():
        name = f"{before} {key}".strip()
        if isinstance(value, Mapping):
            rows += _flat(value, name)  # pyright: ignore[reportUnknownArgumentType] # JSON
        else:
            rows.append((name.replace("_", " "), f"{value:,}" if isinstance(value, int | float) else str(value)))
    return rows


def circumstances(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Order what is known of a run's circumstances: what a reader needs to repeat it first."""
    order = ["command", "started", "seconds", "crossdistill", "code", "python", "torch", "platform", "cpu"]
    words = {"crossdistill": "crossdistill version", "code": "code version", "seconds": "wall time", "cpu": "processor"}
    keys = [key for key in order if key in environment] + [key for key in environment if key not in order]
    rows: list[tuple[str, str]] = []
    for key in keys:
        value = environment[key]
        if value is None or value == "":
            continue
        if key == "seconds" and isinstance(value, int | float):
            value = duration(float(value))
        elif isinstance(value, list | tuple):
            value = " ".join(str(part) for part in value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType] # JSON
        rows.append((words.get(key, key.replace("_", " ")), str(value)))  # pyright: ignore[reportUnknownArgumentType] # JSON
    return rows


def duration(seconds: float) -> str:
    """Write seconds for a reader: "42.0 s", "12 min 5 s", "3 h 7 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
