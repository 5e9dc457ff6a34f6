"""Write docs/methods/ from the classes: facts, docstrings, signatures, and what was measured. `make docs` runs it.

A page a loss or method, and an index. Nothing on them is written by hand, so that they say what the code does.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

from benchmarks.record import BINDING, MARGIN, checked, table, verdict

from crossdistill.cli.methods import described
from crossdistill.experiments.signatures import parameters_of
from crossdistill.files import write_text
from crossdistill.registry import Facts, discover

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "methods"
MEASURED = ROOT / "benchmarks" / "fidelity" / "results"
KINDS = {"objectives": "loss", "methods": "method"}
NEEDS = {
    "labels": "labels",
    "labels_or_teacher": "labels or a teacher",
    "pairs": "pairs",
    "views": "two augmented views",
    "teacher_logits": "a teacher with logits",
    "fused_teacher": "of a teacher that it reads all modalities",
    "feature_maps": "feature maps of both networks",
    "equal_widths": "equal widths (a projector is put in where they differ)",
    "index": "the samples' positions",
    "group": "groups",
}


def text_of(cls: type[Any]) -> str:
    """Give a class's docstring without its sections."""
    return re.split(r"\n(?:Args|Attributes|Raises|Returns):\n", inspect.getdoc(cls) or "")[0].strip()


def parameters(facts: dict[str, Any]) -> list[str]:
    """Lay out what an experiment file may say of a class, as rows of a table."""
    rows: list[str] = []
    for p in facts["parameters"]:
        shown = "required" if p["required"] else f"`{json.dumps(p['default'])}`"
        kind, about = (p[key].replace("|", "&#124;") for key in ("type", "about"))
        rows.append(f"| `{p['name']}` | {kind} | {shown} | {about} |")
    return ["| parameter | type | default | |", "| --- " * 4 + "|", *rows] if rows else []


def use(package: str, cls: type[Any]) -> str:
    """Show the lines of an experiment file."""
    facts: Facts = cls.facts
    if package == "objectives":
        return f"stages:\n  student: {{method: distillation, teacher: teacher, objectives: {{{facts.name}: 1.0}}}}"
    wanted = parameters_of(cls)
    roles = {
        "modality": "modality: image",
        "teacher": "teacher: teacher",
        "objectives": "objectives: {similarity: 1.0}",
    }
    said = [text for role, text in roles.items() if wanted.get(role, (None, None))[1] is ...]
    stage = "teacher" if "modality" in wanted else "student"
    return f"stages:\n  {stage}: {{{', '.join([f'method: {facts.name}', *said])}}}"


def measured(name: str) -> list[str]:
    """Lay out every fidelity experiment that is kept under a name, or that says it is about it."""
    lines: list[str] = []
    for path in sorted(MEASURED.glob("*.json")):
        kept = json.loads(path.read_text(encoding="utf-8"))
        if name not in (path.stem, *kept.get("about", [])):
            continue
        machine = kept["machine"]
        lines += [f"**{kept['experiment']}.** `{kept['command']}`: {kept['cpu_seconds']} CPU seconds, {kept['date']}, "
                  f"{machine['cpu']}, torch {machine['torch']}.", ""]  # fmt: skip
        if "note" in kept:
            lines += [kept["note"], ""]
        lines += [table(kept["rows"])]
        if kept["checks"]:
            lines += ["", checked(kept["checks"])]
        lines.append("")
    return lines


def page(package: str, cls: type[Any], *, shared: bool = False) -> str:
    """Write the page of one loss or method, or its half of a page where a loss and a method share a name."""
    facts: Facts = cls.facts
    needs = ", ".join(NEEDS.get(need, need) for need in sorted(facts.needs)) or "nothing"
    module = sys.modules[cls.__module__]
    source = f"../../src/{cls.__module__.replace('.', '/')}.py"
    lines = [
        f"# {facts.name}, the {KINDS[package]}" if shared else f"# {facts.name}",
        "",
        f"{facts.title[:1].upper()}{facts.title[1:]}.",
        "",
        f"- Source: {facts.paper}",
        f"- Needs: {needs}",
        *([f"- Reads: {cls.reads}"] if package == "objectives" else []),
        f"- Class: `{cls.__module__}.{cls.__qualname__}` ([code]({source}))",
        "",
        "```yaml",
        use(package, cls),
        "```",
        "",
        text_of(cls),
        "",
        *parameters(json.loads(described(facts.name))[package][0]),
        "",
        "## The family",
        "",
        inspect.getdoc(module) or "",
        "",
    ]
    if tables := measured(facts.name):
        lines += [
            "## Measured",
            "",
            "Claimed: what a paper says, what released code gave when we ran it, or what an earlier prototype of ours "
            "gave; the table says whose a figure is. How rows are judged: [fidelity](../benchmarks/fidelity.md).",
            "",
            *tables,
        ]
    return "\n".join(lines).rstrip() + "\n"


def fidelity() -> str:
    """Sum up every kept fidelity experiment: whose claims, how its rows are judged, which bars were missed."""
    lines = [
        "# Fidelity: claimed and measured",
        "",
        "One line an experiment; whole tables stand on the pages of the [losses and methods](../methods/README.md).",
        "",
        "*Claims* are of a paper, of authors' released code that we ran, or of an earlier prototype of ours: other "
        "implementations, other random numbers. A paper's claim about its own data, which need a GPU or were not "
        "available, is not repeated here.",
        "",
        "*Rows* are judged by the 95 % interval of measured less claimed (Welch's t; where a claim's spread was not "
        f"kept, the measured one stands for both). It *differs* if zero lies outside, and *agrees* if zero lies inside "
        f"and the whole interval within {MARGIN:g} points (our choice: about the smallest effect that the bars ask "
        "for). Else it is *open*: too few seeds to say more. Where one side has less than "
        f"{BINDING} seeds nothing is judged. Of some hundred rows that are truly the same, five differ by chance.",
        "",
        "*Bars* are what an experiment was expected to show, mostly differences on the same seeds, which are far "
        "sharper than levels. A missed bar stays missed.",
        "",
        "A command gives the same numbers again on the same kind of processor. On another, rounding differs and "
        "training magnifies it: figures move within their intervals, and a bar that lies close may be crossed.",
        "",
        "| experiment | command | claims of | rows: agree, differ, open, not judged | bars held | bars missed |",
        "| --- " * 6 + "|",
    ]
    for path in sorted(MEASURED.glob("*.json")):
        kept = json.loads(path.read_text(encoding="utf-8"))
        claimed = [row for row in kept["rows"] if row["reference"] is not None]
        sources = "; ".join(dict.fromkeys(row["reference_source"] for row in claimed)) or "nobody"
        judged = [verdict(row) for row in claimed]
        counts = ", ".join(str(judged.count(word)) for word in ("agrees", "differs", "open", "-")) if judged else "-"
        held = [check["holds"] for check in kept["checks"]]
        missed = "; ".join(f"{c['says']}: {c['measured']}" for c in kept["checks"] if not c["holds"]) or "-"
        bars = f"{sum(held)} of {len(held)}" if held else "-"
        lines.append(f"| {kept['experiment']} | `{kept['command']}` | {sources} | {counts} | {bars} | {missed} |")
    return "\n".join(lines) + "\n"


def pages() -> dict[Path, str]:
    """Give all pages by path: one a loss and method, their index, and the summary of what was measured."""
    found: dict[Path, str] = {}
    index = [
        "# Losses and methods",
        "",
        "`crossdistill methods` lists them too; `crossdistill methods NAME` shows one.",
    ]
    classes = {package: discover(f"crossdistill.{package}") for package in KINDS}
    for package, word in KINDS.items():
        index += ["", f"## {word.capitalize()}es" if word == "loss" else f"## {word.capitalize()}s", ""]
        index += ["| name | what it is | needs | source |", "| --- " * 4 + "|"]
        for name, cls in classes[package].items():
            facts: Facts = cls.facts
            path, shared = PAGES / f"{name}.md", all(name in known for known in classes.values())
            found[path] = "\n".join([*([found[path]] if path in found else []), page(package, cls, shared=shared)])
            needs = ", ".join(sorted(facts.needs)).replace("_", " ")
            index.append(f"| [{name}]({name}.md) | {facts.title} | {needs} | {facts.paper} |")
    found[PAGES / "README.md"] = "\n".join(index) + "\n"
    return {**found, ROOT / "docs" / "benchmarks" / "fidelity.md": fidelity()}


def main() -> None:
    """Write what changed, and remove pages of what is gone."""
    written = pages()
    for old in PAGES.glob("*.md"):
        if old not in written:
            old.unlink()
    for path, text in written.items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)


if __name__ == "__main__":
    main()
