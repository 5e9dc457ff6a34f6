"""A split for data that came without one: seeded, stratified by class, whole groups on one side."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

SHARES = (0.7, 0.1, 0.2)
"""Shares of training, validation and test."""


def make_split(
    n: int,
    *,
    label: np.ndarray | None = None,
    group: np.ndarray | None = None,
    same: Sequence[np.ndarray] = (),
    seed: int = 0,
) -> np.ndarray:
    """Split rows 70/10/20.

    Units that must stay together (rows of one group, and rows with equal samples) go, in random order and the large
    ones first, to the split that lacks most of their classes. Rows without label are for training, and so are the units
    they are in; where too little would be left to test by, only units without any label are.

    Args:
        n: Number of rows.
        label: Classes (n,) to stratify by; -1 is no label.
        group: Groups (n,) that are kept whole.
        same: Further columns (n,) of content hashes; rows that agree in one are kept together.
        seed: Of the order.

    Returns:
        0 train, 1 validation, 2 test (n,) uint8.
    """
    rng = np.random.default_rng(seed)
    unit = _components(n, [*same, *([] if group is None else [group])])
    label = np.zeros(n, dtype=np.int64) if label is None else label
    if unit.max(initial=-1) + 1 == n:
        return _single_rows(label, rng)
    known = label >= 0
    units, classes = int(unit.max()) + 1, int(label.max()) + 1
    # (unit, class) and how many rows of a unit are of that class: as a table they would be units times classes
    both, counts = np.unique(unit[known] * classes + label[known], return_counts=True)
    own, kinds = both // max(1, classes), both % max(1, classes)
    of_class = np.bincount(label[known], minlength=classes)
    order = rng.permutation(units)
    order = order[np.argsort(-np.bincount(unit[known], minlength=units)[order], kind="stable")]
    partly = np.bincount(unit[~known], minlength=units) > 0
    for trains in (partly, partly & (np.bincount(unit[known], minlength=units) == 0)):
        where = _dealt(own, kinds, counts, order[~trains[order]], trains, of_class)
        if _enough(where[unit[known]]):
            break
    return where[unit]


def _dealt(
    own: np.ndarray, kinds: np.ndarray, counts: np.ndarray, order: np.ndarray, trains: np.ndarray, of_class: np.ndarray
) -> np.ndarray:
    """Deal units to the splits.

    Args:
        own: Unit of each entry (m,), ascending; a unit has an entry for each of its classes.
        kinds: Class of each entry (m,).
        counts: Rows of each entry (m,).
        order: Units that are dealt, the first ones first.
        trains: Which units (u,) are in training already.
        of_class: Rows of each class (c,).

    Returns:
        Split of each unit (u,) uint8.
    """
    starts = np.searchsorted(own, np.arange(len(trains) + 1))
    target = np.array(SHARES)[:, None] * of_class
    filled, where = np.zeros_like(target), np.zeros(len(trains), dtype=np.uint8)
    given = trains[own]
    filled[0] = np.bincount(kinds[given], counts[given], minlength=len(of_class))
    for u in order:
        held = slice(starts[u], starts[u + 1])
        its, size = kinds[held], counts[held]
        # how much nearer to the target, relative to the split's size, the unit brings each split
        gain = (size * (2 * (target[:, its] - filled[:, its]) - size) / np.maximum(target[:, its], 1e-9)).sum(axis=1)
        where[u] = int(np.argmax(gain))
        filled[where[u], its] += size
    return where


def _enough(split: np.ndarray) -> bool:
    """Say whether validation and test have half of what they should of the labelled rows."""
    found = np.bincount(split, minlength=3)[:3]
    return bool((2 * found >= np.array([0, *SHARES[1:]]) * found.sum()).all())


def why_no_test(n: int, label: np.ndarray | None, group: np.ndarray | None) -> str:
    """Say why `make_split` left nothing for the test, and what to do about it."""
    known = np.ones(n, dtype=bool) if label is None else label >= 0
    if group is not None:
        count, labelled = len(np.unique(group)), len(np.unique(group[known]))
        some = "" if known.all() else f", {labelled} of them with labels,"
        why, what = f"{count} groups{some} are too few to keep whole", "give more groups"
    elif label is not None:
        counts = np.bincount(label[known])
        why = f"no class has 3 labelled rows that differ (of {np.count_nonzero(counts)} the largest has {counts.max()})"
        what = "give more rows a class, leave the label out if it is no class but a number or a name"
    else:
        why, what = f"{n} rows, equal ones counted as one, are too few", "give more rows"
    return f"no test rows can be split off: {why}; {what}, or give a split of your own (train, validation, test)"


def _single_rows(label: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Split every class by itself; a class of three or more rows has one in each of training and test."""
    split = np.zeros(len(label), dtype=np.uint8)
    order = np.argsort(label, kind="stable")
    bounds: list[int] = np.searchsorted(label[order], np.arange(int(label.max(initial=-1)) + 2)).tolist()
    for start, stop in itertools.pairwise(bounds):
        if start == stop:
            continue
        rows = rng.permutation(order[start:stop])
        test = max(round(SHARES[2] * len(rows)), int(len(rows) >= 3))
        validation = round(SHARES[1] * len(rows))
        split[rows[:test]] = 2
        split[rows[test : test + validation]] = 1
    return split


def _components(n: int, columns: Sequence[np.ndarray]) -> np.ndarray:
    """Number the sets of rows (n,) that are linked by equal entries in any column."""
    parent = list(range(n))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for column in columns:
        _, start, code = np.unique(column, return_index=True, return_inverse=True)
        first = start[code]
        for i in np.flatnonzero(first != np.arange(n)).tolist():
            parent[root(i)] = root(int(first[i]))
    roots, above = np.array(parent, dtype=np.int64), np.empty(0, np.int64)
    while not np.array_equal(roots, above):
        roots, above = roots[roots], roots
    return np.unique(roots, return_inverse=True)[1]
