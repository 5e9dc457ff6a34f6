"""Bring the kept results into docs/benchmarks/cmcd.md: run it with `python -m benchmarks.cmcd.page`.

Each table stands between `<!-- table: e1 -->` and `<!-- end -->`; all else on the page is written by hand.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from benchmarks.record import checked, results_of, table

from crossdistill.files import write_text

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks" / "cmcd.md"


def section(name: str) -> str:
    """Give the table, the checks and the circumstances of one kept result."""
    kept = json.loads((results_of("cmcd") / f"{name}.json").read_text(encoding="utf-8"))
    machine = kept["machine"]
    where = (
        f"`{kept['command']}`: {kept['cpu_seconds']} CPU seconds, {kept['date']}, commit {kept['commit']}; "
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} thread, torch {machine['torch']}."
    )
    return "\n\n".join([where, table(kept["rows"]), checked(kept["checks"])])


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    pattern = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
    write_text(PAGE, pattern.sub(lambda m: f"{m[1]}\n{section(m[2])}\n\n{m[3]}", text))


if __name__ == "__main__":
    main()
