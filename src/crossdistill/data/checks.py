"""The checks at the border: what is wrong with data is said before any training, all of it at once, file by file."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from crossdistill.data.columns import SPLITS
from crossdistill.errors import DataError, suggest

SHOWN = 10
"""Problems that are looked for and shown at once: enough to see a pattern, few enough to read."""

MOST = 10 * SHOWN
"""Problems of one kind that are counted; a million wrong rows need no million messages."""

LONG = 1000
"""Digits from which on a class's name is a word like any other."""

ALIASES = {"train": 0, "training": 0, "validation": 1, "val": 1, "valid": 1, "dev": 1, "test": 2, "testing": 2}
"""Words for the splits that are understood in folders and tables."""


@dataclass
class Problems:
    """What was found wrong (errors) and odd (warnings) in one source of data.

    Attributes:
        where: The file or folder, for the message.
        errors: In the order in which they were found.
        warnings: Likewise.
    """

    where: str
    errors: list[str] = field(default_factory=list[str])
    warnings: list[str] = field(default_factory=list[str])

    @property
    def full(self) -> bool:
        """Whether there is no use in looking on."""
        return len(self.errors) >= SHOWN

    def add(self, text: str) -> None:
        """Note an error."""
        self.errors.append(text)

    def warn(self, text: str) -> None:
        """Note something odd."""
        self.warnings.append(text)

    def raise_if_any(self) -> None:
        """Raise all errors as one.

        Raises:
            DataError: One line an error, at most ten.
        """
        if not self.errors:
            return
        if len(self.errors) == 1:
            raise DataError(f"{self.where}: {self.errors[0]}")
        more = f" (the first {SHOWN} of at least {len(self.errors)})" if len(self.errors) > SHOWN else ""
        lines = "".join(f"\n  - {error}" for error in self.errors[:SHOWN])
        raise DataError(f"{self.where}: {len(self.errors)} problems{more}:{lines}")


@dataclass(frozen=True)
class Contents:
    """What the one pass over a modality's samples found.

    Attributes:
        hashes: Of every sample (n,) int64; equal samples have equal ones.
        constant: Whether all numbers of a sample are equal (n,) bool.
        present: Which rows have a sample (n,) bool; None for all. Absent ones are like no other, and constant.
    """

    hashes: np.ndarray
    constant: np.ndarray
    present: np.ndarray | None = None


def hash_rows(array: np.ndarray) -> Contents:
    """Hash every sample of (n, *shape) and see whether it is constant."""
    hashes, constant = np.empty(len(array), dtype=np.int64), np.empty(len(array), dtype=bool)
    for i, sample in enumerate(array):
        hashes[i], constant[i] = hash_sample(sample)
    return Contents(hashes, constant)


def hash_sample(sample: np.ndarray) -> tuple[int, bool]:
    """Give a sample's 64-bit content hash (signed), and whether it is constant (never for a single number)."""
    flat = np.ascontiguousarray(sample).reshape(-1)
    word = hashlib.blake2b(flat.view(np.uint8).data, digest_size=8).digest()
    return int.from_bytes(word, "little", signed=True), bool(flat.size > 1 and (flat == flat[0]).all())


def read_split(values: Sequence[str], rows: Sequence[str], problems: Problems) -> np.ndarray:
    """Turn words for splits into 0, 1, 2 (n,) uint8; unknown and missing ones become problems."""
    places = {value: ALIASES.get(value.strip().lower(), -1) for value in set(values)}
    split = np.fromiter((places[value] for value in values), np.int64, len(values))
    wrong: list[int] = np.flatnonzero(split < 0)[:MOST].tolist()
    for i in wrong:
        problems.add(f"{rows[i]}: no split is called '{values[i]}'{suggest(values[i], SPLITS)}")
    return np.maximum(split, 0).astype(np.uint8)


def read_labels(values: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Turn class names into numbers 0..c-1 in sorted order, whole numbers by size; an empty word becomes -1."""
    names = sorted(set(values) - {""}, key=_order)
    number = {name: i for i, name in enumerate(names)}
    return np.fromiter((number.get(v, -1) for v in values), np.int64, len(values)), tuple(names)


def _order(name: str) -> tuple[int, int, str]:
    """Sort whole numbers by size, before words; Python reads no number of thousands of digits."""
    return (0, int(name), name) if name.isdecimal() and len(name) < LONG else (1, 0, name)


def read_groups(values: Sequence[str], rows: Sequence[str], problems: Problems) -> np.ndarray:
    """Turn names of groups into numbers (n,) int64; missing ones become problems."""
    number = {name: i for i, name in enumerate(sorted(set(values)))}
    group = np.fromiter((number[value] for value in values), np.int64, len(values))
    for i in np.flatnonzero(group == number.get("", -1))[:MOST].tolist():
        problems.add(f"{rows[i]}: the group is missing; give every row one or leave the column out")
    return group


def check_labels(
    label: np.ndarray,
    class_names: Sequence[str],
    split: np.ndarray,
    problems: Problems,
    *,
    made: bool = False,
) -> None:
    """Find classes that training never sees (errors), or the test never (warnings).

    `made` says that the split is ours, and so not to blame on the data.
    """
    advice = "the split was made here: give one of your own" if made else "move some there"
    labelled = "labelled " if (label < 0).any() else ""
    known = label >= 0
    counts = np.bincount(3 * label[known] + split[known], minlength=3 * len(class_names)).reshape(-1, 3)
    for c in np.flatnonzero(counts[:, 0] == 0)[:MOST].tolist():
        problems.add(
            f"class '{class_names[c]}' has no {labelled}training rows ({counts[c, 1]} validation, {counts[c, 2]} "
            f"test); {advice}, or leave the class out"
        )
    untested = np.flatnonzero((counts[:, 0] > 0) & (counts[:, 2] == 0)) if (split == 2).any() else np.empty(0, np.int64)
    for c in untested[:SHOWN].tolist():
        problems.warn(f"class '{class_names[c]}' has no test rows: nothing will be measured of it")
    if len(untested) > SHOWN:
        problems.warn(f"{len(untested) - SHOWN} more of the {len(class_names)} classes have no test rows either")


def check_groups(group: np.ndarray, split: np.ndarray, rows: Sequence[str], problems: Problems) -> None:
    """Find groups with rows on two sides of a split."""
    told: set[int] = set()
    for first, i in _across(group, split):
        if first in told:
            continue
        if len(told) == MOST:
            return
        told.add(first)
        problems.add(
            f"a group is on both sides of a split: {rows[first]} is {SPLITS[split[first]]}, {rows[i]} of the same "
            f"group is {SPLITS[split[i]]}"
        )


def _across(values: np.ndarray, split: np.ndarray) -> Iterator[tuple[int, int]]:
    """Give the rows whose value first stood in another split, after that first row, in order."""
    _, start, code = np.unique(values, return_index=True, return_inverse=True)
    first = start[code]
    for i in np.flatnonzero(split != split[first]).tolist():
        yield int(first[i]), i


def check_sizes(split: np.ndarray, problems: Problems) -> None:
    """Find splits with too few rows to train or to test."""
    train, _, test = np.bincount(split, minlength=3)
    if train < 2:
        problems.add(f"{train} training rows; at least 2 are needed, and hundreds to learn anything")
    if not test:
        problems.warn("no test rows: nothing can be measured at the end")


def check_present(
    present: Mapping[str, np.ndarray], contents: Mapping[str, Contents], rows: Sequence[str], problems: Problems
) -> dict[str, Contents]:
    """Find rows that have no modality at all (errors) and those that lack one (warnings).

    Returns:
        The contents, in which absent samples are equal to no other.
    """
    for name, here in present.items():
        problems.warn(f"'{name}': {len(here) - int(here.sum())} of {len(here)} pairs lack it")
    if len(present) == len(contents):
        for i in np.flatnonzero(~np.logical_or.reduce(list(present.values()))).tolist():
            problems.add(f"{rows[i]} has none of {', '.join(contents)}; leave it out")
    found = dict(contents)
    for name, here in present.items():
        c = contents[name]
        found[name] = Contents(np.where(here, c.hashes, -1 - np.arange(len(here))), c.constant | ~here, here)
    return found


def check_contents(
    contents: Mapping[str, Contents], kinds: Mapping[str, str], names: Mapping[str, Sequence[str]], problems: Problems
) -> None:
    """Find constant samples (warnings) and modalities that say nothing (errors).

    Args:
        contents: By modality.
        kinds: Of the modalities.
        names: Of the samples, by modality, for the message.
        problems: Where to note them.
    """
    for name, found in contents.items():
        there = np.arange(len(found.hashes)) if found.present is None else np.flatnonzero(found.present)
        constant = there[found.constant[there]]
        count, n = len(constant), len(there)
        if n > 1 and (found.hashes[there] == found.hashes[there[0]]).all():
            problems.add(f"'{name}': all {n} samples are equal; the modality says nothing")
        elif count * 2 > n:
            first = names[name][int(constant[0])]
            problems.add(f"'{name}': {count} of {n} {kinds[name]} samples are constant, the first: {first}")
        elif count:
            shown = ", ".join(names[name][int(i)] for i in constant[:3])
            problems.warn(f"'{name}': {count} of {n} samples are constant: {shown}{', ...' if count > 3 else ''}")


def find_leaks(contents: Mapping[str, Contents], kinds: Mapping[str, str], split: np.ndarray) -> np.ndarray:
    """Find rows to leave out so that `check_duplicates` has nothing to say: a mask (n,).

    Of equal samples on several sides of a split those of the test stay, then those of the validation.
    """
    if set(kinds.values()) == {"vector"}:
        columns = [_joint(contents)]
    else:
        columns = [own_hashes(found) for name, found in contents.items() if kinds[name] != "vector"]
    leaks = np.zeros(len(split), dtype=bool)
    for hashes in columns:
        _, code = np.unique(hashes, return_inverse=True)
        last = np.zeros(int(code.max()) + 1, dtype=split.dtype)
        np.maximum.at(last, code, split)
        leaks |= split < last[code]
    return leaks


def own_hashes(found: Contents) -> np.ndarray:
    """Give content hashes in which constant samples are all different: they are alike without being the same thing."""
    own = found.hashes.copy()
    own[found.constant] = -1 - np.arange(int(found.constant.sum()))
    return own


def check_duplicates(
    contents: Mapping[str, Contents],
    kinds: Mapping[str, str],
    names: Mapping[str, Sequence[str]],
    split: np.ndarray,
    problems: Problems,
) -> None:
    """Find equal samples on two sides of a split: a leak.

    Short vectors can be equal by chance, so equal ones are only a warning, unless all modalities of the pair are equal;
    constant samples are told elsewhere.
    """
    if set(kinds.values()) == {"vector"}:  # others are told of one by one
        one = next(iter(names.values()))
        for first, i in itertools.islice(_across(_joint(contents), split), MOST):
            problems.add(
                f"the same pair is on both sides of a split: {one[first]} ({SPLITS[split[first]]}) and {one[i]} "
                f"({SPLITS[split[i]]}); leave one out, or say duplicates: drop"
            )
    for name, found in contents.items():
        there = np.flatnonzero(~found.constant)
        for first, i in _across(found.hashes[there], split[there]):
            first, i = int(there[first]), int(there[i])
            text = (
                f"'{name}': the same sample is on both sides of a split: {names[name][first]} "
                f"({SPLITS[split[first]]}) and {names[name][i]} ({SPLITS[split[i]]})"
            )
            if kinds[name] == "vector":
                problems.warn(text)
                break
            problems.add(f"{text}; leave one out, or say duplicates: drop")
            if problems.full:
                return


def _joint(contents: Mapping[str, Contents]) -> np.ndarray:
    """Number the rows (n,) so that equal numbers mean equal samples in all modalities."""
    code = np.zeros(len(next(iter(contents.values())).hashes), np.int64)
    for found in contents.values():
        _, own = np.unique(found.hashes, return_inverse=True)
        _, code = np.unique(code * (int(own.max(initial=0)) + 1) + own, return_inverse=True)
    return code
