"""One line per epoch, as JSON lines and as CSV, that neither loses nor repeats a line when a run is resumed."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from crossdistill.files import write_text


class MetricsLog:
    """The records of a stage, in memory and, with a folder, in metrics.jsonl and metrics.csv.

    Args:
        folder: Where to write; None writes nothing.
        records: What a checkpoint held; the files are put back to it, so that epochs which are run again after a crash
            are not there twice.
    """

    def __init__(self, folder: Path | None, records: list[dict[str, Any]]) -> None:
        self.folder, self.records = folder, records
        self._columns: list[str] = []
        if folder is not None:
            write_text(folder / "metrics.jsonl", "".join(map(_line, records)))
            self._rewrite(folder)

    def add(self, record: dict[str, Any]) -> None:
        """Append one epoch's record of JSON values."""
        self.records.append(record)
        if self.folder is None:
            return
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(_line(record))
        if set(record) <= set(self._columns):
            with (self.folder / "metrics.csv").open("a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, self._columns, lineterminator="\n").writerow(record)
        else:
            self._rewrite(self.folder)

    def _rewrite(self, folder: Path) -> None:
        """Write the whole table: a term that appears late is a new column."""
        self._columns = list(dict.fromkeys(name for record in self.records for name in record))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.records)
        write_text(folder / "metrics.csv", text.getvalue() if self._columns else "")


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, allow_nan=False, ensure_ascii=False) + "\n"
