"""The arrays of a run that are looked at rather than counted: features for the maps, samples found by retrieval."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossdistill.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Modality:
    """How samples of one modality are drawn.

    Attributes:
        name: The word for it.
        kind: "image", "sequence", "audio" or "vector".
        channels: Names of a sequence's channels, or nothing.
    """

    name: str
    kind: str
    channels: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Maps:
    """Features of the same n test samples in several spaces.

    Attributes:
        labels: Classes (n,).
        spaces: Title to features (n, d); the widths d may differ.
    """

    labels: NDArray[np.int64]
    spaces: dict[str, NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """q queries in the target modality and, for each, its k nearest training items in the student's space.

    Attributes:
        queries: Raw samples (q, ...) of the target modality.
        query_labels: Classes (q,).
        found_source: The items' source modality (q, k, ...), or None.
        found_target: The items' target modality (q, k, ...), or None.
        found_labels: Classes (q, k); -1 where an item has no label.
        source: How to draw the source modality.
        target: How to draw the target modality.
    """

    queries: NDArray[Any]
    query_labels: NDArray[np.int64]
    found_source: NDArray[Any] | None
    found_target: NDArray[Any] | None
    found_labels: NDArray[np.int64]
    source: Modality
    target: Modality


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What evidence.npz gave; a part that is None has its reason in `absent` ("maps", "retrieval")."""

    class_names: tuple[str, ...]
    maps: Maps | None
    retrieval: Retrieval | None
    absent: dict[str, str]

    def class_name(self, label: int) -> str:
        """Name a class; -1 is "no label", and a label without a name is shown as its number."""
        if label == -1:
            return "no label"
        return self.class_names[label] if 0 <= label < len(self.class_names) else f"class {label}"


def read_evidence(path: Path) -> Evidence:
    """Read evidence.npz without unpickling anything; whatever is missing or inconsistent becomes a reason.

    Args:
        path: The file; it may be missing.

    Returns:
        The parts that can be drawn, and why the others cannot.
    """
    absent: dict[str, str] = {}
    arrays: dict[str, NDArray[Any]] = {}
    reason = f"the run folder holds no {path.name}"
    if path.is_file():
        reason = ""
        try:
            # opened here, since np.load leaves a broken archive open
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                arrays = {key: file[key] for key in file.files}
        except Exception as error:  # numpy, zipfile and zlib raise a dozen kinds for broken archives
            reason = f"{path.name} cannot be read: {error}"
    maps = retrieval = None
    names: tuple[str, ...] = ()
    if "class_names" in arrays:
        names = tuple(str(name) for name in arrays["class_names"].ravel().tolist())
    if reason:
        absent = {"maps": reason, "retrieval": reason}
    else:
        try:
            maps = _maps(arrays, path.name)
        except DataError as error:
            absent["maps"] = str(error)
        try:
            retrieval = _retrieval(arrays, path.name)
        except DataError as error:
            absent["retrieval"] = str(error)
    return Evidence(class_names=names, maps=maps, retrieval=retrieval, absent=absent)


def _need(arrays: Mapping[str, NDArray[Any]], file: str, *keys: str) -> None:
    missing = [key for key in keys if key not in arrays]
    if missing:
        raise DataError(f"{file} holds no {', '.join(missing)}")


def _maps(arrays: Mapping[str, NDArray[Any]], file: str) -> Maps:
    _need(arrays, file, "map_label")
    labels = arrays["map_label"]
    control = str(arrays["map_control_name"]) if "map_control_name" in arrays else "control"
    titles = {"map_teacher": "Teacher", "map_student": "Student", "map_control": f"Control: {control}"}
    spaces: dict[str, NDArray[np.float64]] = {}
    for key, title in titles.items():
        if key not in arrays:
            continue
        features = arrays[key]
        if features.ndim != 2 or len(features) != len(labels):
            raise DataError(f"{file}: {key} is {features.shape} and map_label is {labels.shape}; rows must match")
        if not np.isfinite(features).all():
            raise DataError(f"{file}: {key} holds values that are not finite")
        spaces[title] = features.astype(np.float64)
    if not spaces:
        raise DataError(f"{file} holds none of {', '.join(titles)}")
    if labels.ndim != 1 or len(labels) < 4:
        raise DataError(f"{file}: a map needs at least 4 samples and has {labels.size}")
    return Maps(labels=labels.astype(np.int64), spaces=spaces)


def _retrieval(arrays: Mapping[str, NDArray[Any]], file: str) -> Retrieval:
    _need(arrays, file, "query_target", "query_label", "retrieved_label", "modalities")
    source, target = arrays.get("retrieved_source"), arrays.get("retrieved_target")
    if source is None and target is None:
        raise DataError(f"{file} holds neither retrieved_source nor retrieved_target")
    queries, labels, found = arrays["query_target"], arrays["query_label"], arrays["retrieved_label"]
    if found.ndim != 2 or found.size == 0:
        raise DataError(
            f"{file}: retrieved_label is {found.shape}; it must be (queries, neighbours), neither of them 0"
        )
    shapes = {"query_target": (queries, 1), "query_label": (labels, 1)}
    shapes |= {k: (v, 2) for k, v in (("retrieved_source", source), ("retrieved_target", target)) if v is not None}
    for key, (array, leading) in shapes.items():
        if array.shape[:leading] != found.shape[:leading]:
            raise DataError(f"{file}: {key} is {array.shape} and retrieved_label is {found.shape}; they must match")
    try:
        described = json.loads(str(arrays["modalities"]))
        how = {role: _modality(described[role], role) for role in ("source", "target")}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: modalities is not the JSON it should be ({type(error).__name__}: {error})") from None
    return Retrieval(
        queries=queries,
        query_labels=labels.astype(np.int64),
        found_source=source,
        found_target=target,
        found_labels=found.astype(np.int64),
        source=how["source"],
        target=how["target"],
    )


def _modality(described: Mapping[str, Any], role: str) -> Modality:
    channels = described.get("channels") or ()
    return Modality(
        name=str(described.get("name", role)),
        kind=str(described.get("kind", "vector")),
        channels=tuple(str(channel) for channel in channels),
    )
