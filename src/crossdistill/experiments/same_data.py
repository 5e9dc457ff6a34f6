"""DIR/data.json: what the data of a folder were at its last start, so that a file that has changed since is told of."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from crossdistill.data import PairedDataset
from crossdistill.experiments.specs import DataSpec
from crossdistill.files import read_json, unchecked, write_checked

_LOG = logging.getLogger("crossdistill")

REST = "labels, groups, splits or absences"
"""What is hashed beside the samples of each modality."""


def note_data(folder: Path, data: Iterable[tuple[DataSpec, PairedDataset]]) -> None:
    """Tell the log of data that are not what they were when this folder was worked in before, and note what they are.

    Nothing that was made of the old data is taken for the new: keys of stages and verdicts hold the same hashes. But a
    user who changed nothing must hear that a file has.

    Args:
        folder: DIR.
        data: What an experiment file says of its data, and the data.
    """
    path = folder / "data.json"
    try:
        read: dict[str, Any] = read_json(path)
        then = {name: dict(parts) for name, parts in unchecked(read).items()}
    except (OSError, ValueError, TypeError, AttributeError):  # the first start, or nothing is known of the one before
        then = {}
    now: dict[str, dict[str, str]] = {}
    for spec, found in data:
        name = (
            f"{spec.name} {json.dumps(dict(spec.options), sort_keys=True, default=str)}" if spec.options else spec.name
        )
        if name in now:
            continue
        columns = found.columns
        now[name] = {**{modality: columns.content(modality) for modality in columns.arrays}, REST: columns.facts}
        changed = [part for part, known in now[name].items() if then.get(name, {}).get(part, known) != known]
        if changed:
            _LOG.warning(
                "%s: %s changed since '%s' was worked in before, so what was made of it is made again; if you did not "
                "change it the file is damaged: stop, bring back a good copy, and start again",
                spec.name,
                " and ".join(f"'{part}'" if part != REST else part for part in changed),
                folder,
            )
    write_checked(path, {**then, **now})
