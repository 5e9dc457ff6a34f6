"""The full columns of a data set, shared by all of its views: arrays, labels, groups, split, and their hashes."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import get_args

import numpy as np

from crossdistill.data.modality import Modality
from crossdistill.errors import DataError, suggest
from crossdistill.files import digest
from crossdistill.registry import Pairing

SPLITS = ("train", "validation", "test")
"""Names of the parts of a data set; `split` columns hold their places 0, 1, 2 as uint8."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Columns:
    """What every view of a data set looks at; row i of every column is one pair.

    Attributes:
        arrays: Stored samples (n, *shape) by modality, in memory or memory-mapped.
        modalities: What they are.
        name: Of the data set.
        label: Classes (n,) int64, -1 where there is none (never in the test split), or None.
        class_names: Name of class c at place c.
        group: What must not be split (n,) int64, or None.
        split: 0 train, 1 validation, 2 test (n,) uint8, or None.
        present: Which rows have a modality (n,) bool, of those modalities that a row may lack.
        pairing: "natural" for pairs from one event, "class" for pairs that were matched by label.
        licence: Of the data.
        attribution: Whom to credit.
        about: Where it is from and what was done to it.
        warnings: What the checks found odd but not wrong.
    """

    arrays: Mapping[str, np.ndarray]
    modalities: Mapping[str, Modality]
    name: str
    label: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    group: np.ndarray | None = None
    split: np.ndarray | None = None
    present: Mapping[str, np.ndarray] = field(default_factory=dict[str, np.ndarray])
    pairing: Pairing = "natural"
    licence: str = ""
    attribution: str = ""
    about: str = ""
    warnings: tuple[str, ...] = ()
    known: dict[str, str] = field(default_factory=dict[str, str], repr=False)
    """Content hashes found so far, by modality: every array is read for its hash once, not once a view."""

    def __post_init__(self) -> None:
        if not self.arrays or set(self.arrays) != set(self.modalities):
            raise DataError(
                f"'{self.name}': every array needs its modality and the other way round; "
                f"arrays: {', '.join(self.arrays)}; modalities: {', '.join(self.modalities)}"
            )
        if self.pairing not in get_args(Pairing):
            raise DataError(f"'{self.name}': pairing is '{self.pairing}'{suggest(self.pairing, get_args(Pairing))}")
        for name, array in self.arrays.items():
            modality = self.modalities[name]
            if array.shape != (self.rows, *modality.shape) or array.dtype != modality.dtype:
                raise DataError(
                    f"'{self.name}': array '{name}' is {array.shape} {array.dtype}; its modality and the other arrays "
                    f"ask for {(self.rows, *modality.shape)} {modality.dtype}"
                )
        for word, column in (("label", self.label), ("group", self.group), ("split", self.split)):
            if column is not None and column.shape != (self.rows,):
                raise DataError(
                    f"'{self.name}': {word} has shape {column.shape}; {self.rows} pairs ask for ({self.rows},)"
                )
        self._check_present()
        if self.label is None:
            return
        if self.rows and not -1 <= self.label.min() <= self.label.max() < self.classes:
            raise DataError(
                f"'{self.name}': labels must lie in 0..{self.classes - 1}, the {self.classes} class names, or be -1 "
                "for none"
            )

    def _check_present(self) -> None:
        for name, here in self.present.items():
            if name not in self.arrays:
                raise DataError(f"'{self.name}': `present` knows no modality '{name}'{suggest(name, self.arrays)}")
            if here.shape != (self.rows,) or here.dtype != bool:
                raise DataError(
                    f"'{self.name}': present of '{name}' is {here.shape} {here.dtype}; {self.rows} pairs ask for "
                    f"({self.rows},) bool"
                )
        if len(self.present) == len(self.arrays):
            nothing = ~np.logical_or.reduce(list(self.present.values()))
            if nothing.any():
                raise DataError(
                    f"'{self.name}': row {int(nothing.argmax())} has none of {', '.join(self.arrays)}; leave it out"
                )

    @property
    def rows(self) -> int:
        """Number of pairs."""
        return len(next(iter(self.arrays.values())))

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def content(self, modality: str) -> str:
        """Give the hash of a modality's stored samples, computed at the first call and remembered."""
        if modality not in self.known:
            self.known[modality] = hash_array(self.arrays[modality])
        return self.known[modality]

    @functools.cached_property
    def facts(self) -> str:
        """The hash of labels, groups, split and of what is absent."""
        given = (b"" if c is None else c.tobytes() for c in (self.label, self.group, self.split))
        absent = [name for name in sorted(self.present) if not self.present[name].all()]
        return digest(*given, *(part for name in absent for part in (name, self.present[name].tobytes())))


def hash_array(array: np.ndarray) -> str:
    """Hash an array's dtype, shape and content into 16 hexadecimal digits, a part at a time."""
    state = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    rows = max(1, (1 << 24) // max(1, array[:1].nbytes))  # 16 MiB at a time, whatever the array's size
    for start in range(0, len(array), rows):
        state.update(np.ascontiguousarray(array[start : start + rows]).view(np.uint8).data)
    return state.hexdigest()[:16]
