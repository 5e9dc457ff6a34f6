"""Is row i of the source the partner of row i of the target? A test of the pairing, before weeks are spent on it.

    target ──ridge student, out of fold──►  Zhat in the source's coordinates
    score of row i = where its own Z is among other rows' Z, seen from Zhat_i; chance if the pairing is random

Three looks at the scores: all rows together, with a permutation test; neighbouring rows among themselves, which finds
pairs that are right up to their class alone; and the partner k rows away, which finds arrays that slipped. Rows are
left out of a fit by stretches, so that a row's neighbours do not speak for it.

Source: our own; retrieval in sets of 64 from forecast's first study.

Shapes: n pairs, m = rows of a set.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from crossdistill.diagnostics.ridge import ridge_student
from crossdistill.errors import ConfigError, DataError, NotMeaningful
from crossdistill.evaluation._checks import Doubles, Labels, Whole, feature_rows, label_column, unit_rows

RETRIEVAL_SIZE = 64
SET_ROWS = 512
"""Rows that are compared with each other, which bounds memory and time for many pairs."""
INFLATION = 2**0.5
"""Of the deviation that permuting partners gives, pair by pair of folds: each fold is predicted from the others and has
a part in theirs, so that a chance likeness of two rows counts twice."""
LEAST_PAIRS = 50
STRETCH = 64
"""Neighbouring rows that leave a fit together, and are compared among themselves; fewer where pairs are few."""
LAGS = 8
WINDOWS = 16
"""Parts of the array in which a slip or a shuffle is looked for."""


@dataclass(frozen=True)
class Slip:
    """Rows whose partner is another row: of the target's row i, the source's row i + `lag`."""

    first: int
    last: int
    lag: int


@dataclass(frozen=True, eq=False)
class PairingTest:
    """What the scores of all pairs say; made by `pairing_test`.

    Attributes:
        retrieval: How often a row's own source is the nearest of 64 (or `set_size`) to its prediction; chance 1/64.
        set_size: That number.
        p_value: Of a random pairing, by permutation of the pairs; 1 / (permutations + 1) at least.
        z: Mean score of all rows in standard errors of a random pairing: about 0 there.
        local_z: The same among neighbouring rows: small where partners are right up to their stretch alone.
        within_z: The same among rows of one label: small where partners are right up to their label alone. None without
            labels.
        percentile: (n,) share of other rows that are farther from the prediction than the row's own source.
        shuffled: First and last row of parts in which the pairing is random while it holds elsewhere.
        slips: Parts in which the source has slipped against the target.
        mixed: Share of pairs that look random among good ones, 0.1 and more, all over the array; 0 where it cannot be
            told. Kinds that features confuse (6 and 9) look alike.
    """

    retrieval: float
    set_size: int
    p_value: float
    z: float
    local_z: float
    within_z: float | None
    percentile: Doubles
    shuffled: tuple[tuple[int, int], ...]
    slips: tuple[Slip, ...]
    mixed: float


def pairing_test(
    source: ArrayLike,
    target: ArrayLike,
    *,
    labels: ArrayLike | None = None,
    permutations: int = 999,
    seed: int = 0,
) -> PairingTest:
    """Test whether rows of two arrays are partners, as far as a shallow map from target to source can see.

    A pairing at chance says that the rows are shuffled, that the two share nothing, or that the features hide it from
    the ridge student (raw pixels and strokes do, embeddings seldom). Costs the ridge student and little more.

    Args:
        source: (n, d) teacher embedding or features.
        target: (n, D) features of the partners.
        labels: (n,) for `within_z`.
        permutations: Of the pairs, within sets of 512 rows or fewer that were left out of the same fit. Their spread is
            widened by sqrt 2 for what the fits share, which makes p right to a little, not exact.
        seed: Of the ridge student, the sets and the permutations.

    Raises:
        DataError: If shapes do not fit or a number is not finite.
        ConfigError: If a parameter is out of range.
        NotMeaningful: If there are fewer than 50 pairs.
    """
    z, x = unit_rows(feature_rows("source", source)), feature_rows("target", target)
    n = len(z)
    if len(x) != n:
        raise DataError(f"row i of both must be one pair; received {n} and {len(x)} rows")
    if permutations < 99 or seed < 0:
        raise ConfigError(f"need permutations >= 99 and seed >= 0; received {permutations} and {seed}")
    if n < LEAST_PAIRS:
        raise NotMeaningful(f"a test of the pairing needs {LEAST_PAIRS} pairs; received {n}")
    label = None if labels is None else label_column("labels", labels, n)
    rng = np.random.default_rng(seed)
    length = max(8, min(STRETCH, n // 20))
    stretch = np.minimum(np.arange(n) // length, n // length - 1)
    student = ridge_student(x, z, groups=stretch, seed=seed)
    mean = z.mean(axis=0)
    asked, offered = unit_rows(student.values - mean), z - mean
    percentile, drawn = np.empty(n), np.zeros(permutations)
    everywhere, within = _Sum(), _Sum()
    for rows in _sets(student.fold, rng):
        similarity = asked[rows] @ offered[rows].T
        own = np.diagonal(similarity)
        # equal ones count half, so that a constant source is at chance
        below = (similarity < own[:, None]).sum(axis=1) + ((similarity == own[:, None]).sum(axis=1) - 1) / 2
        percentile[rows] = below / (len(rows) - 1)
        scores = _standardised(similarity)
        everywhere.add(scores)
        for of in [] if label is None else _by_label(label[rows]):
            within.add(_standardised(similarity[np.ix_(of, of)]))
        orders = rng.permuted(np.tile(np.arange(len(rows)), (permutations, 1)), axis=1)
        drawn += scores[np.arange(len(rows)), orders].sum(axis=1)
    size = min(RETRIEVAL_SIZE, int(np.bincount(student.fold).min()))
    local, lagged = _local_scores(asked, offered, length, min(LAGS, length // 4))
    return PairingTest(
        retrieval=float(np.mean(percentile ** (size - 1))),
        set_size=size,
        # sums of the same numbers in another order differ by rounding
        p_value=float((1 + np.sum(INFLATION * drawn >= everywhere.total - 1e-9 * n)) / (1 + permutations)),
        z=everywhere.z,
        local_z=float(local.sum()) / (INFLATION * local.size**0.5),
        within_z=None if label is None else within.z,
        percentile=percentile,
        shuffled=_shuffled_parts(local.ravel()),
        slips=_slips(local, lagged),
        mixed=_mixed(percentile),
    )


@dataclass
class _Sum:
    """The sum of partners' scores and its variance over random pairings."""

    total: float = 0.0
    variance: float = 0.0

    def add(self, scores: Doubles) -> None:
        """Add those of a set (m, m), rows of mean 0."""
        self.total += float(np.diagonal(scores).sum())
        centred = scores - scores.mean(axis=0)  # of a random permutation's sum (Hoeffding 1951)
        self.variance += float(np.square(centred).sum()) / (len(scores) - 1)

    @property
    def z(self) -> float:
        return self.total / (INFLATION * self.variance**0.5) if self.variance else 0.0


def _sets(fold: Whole, rng: np.random.Generator) -> list[Whole]:
    """Split each fold at random into sets of nearly equal size, SET_ROWS at most."""
    found: list[Whole] = []
    for h in range(int(fold.max()) + 1):
        rows = rng.permutation(np.flatnonzero(fold == h))
        found += np.array_split(rows, -(-len(rows) // SET_ROWS))
    return found


def _by_label(label: Labels) -> list[Whole]:
    """Give the positions of each label that two rows have, or more."""
    of = [np.flatnonzero(label == value) for value in np.unique(label)]
    return [positions for positions in of if len(positions) > 1]


def _standardised(similarity: Doubles) -> Doubles:
    """Bring each row (..., m) to mean 0 and deviation 1; rows that see no difference become 0."""
    similarity = similarity - similarity.mean(axis=-1, keepdims=True)
    spread = similarity.std(axis=-1, keepdims=True)
    return np.where(spread > 1e-12, similarity / np.where(spread > 1e-12, spread, 1.0), 0.0)


def _local_scores(asked: Doubles, offered: Doubles, length: int, lags: int) -> tuple[Doubles, dict[int, Doubles]]:
    """Score partners among the rows of their stretch (s, length), and rows a lag away likewise, NaN beyond the end."""
    whole = len(asked) // length * length
    shape = (-1, length, asked.shape[1])
    scores = _standardised(asked[:whole].reshape(shape) @ offered[:whole].reshape(shape).swapaxes(1, 2))
    lagged: dict[int, Doubles] = {}
    for lag in range(-lags, lags + 1):
        found = np.full(scores.shape[:2], np.nan)
        i = np.arange(max(0, -lag), min(length, length - lag))
        found[:, i] = scores[:, i, i + lag]
        lagged[lag] = found
    return lagged.pop(0), lagged


def _parts(n: int) -> list[Whole]:
    return np.array_split(np.arange(n), max(1, min(WINDOWS, n // 50)))


def _shuffled_parts(local: Doubles) -> tuple[tuple[int, int], ...]:
    """Find parts at chance (n,) where as many rows of the better parts are far above it."""
    found: list[tuple[int, int]] = []
    # not the median, which is at chance too where half of the rows are shuffled
    usual = float(np.quantile([local[part].mean() for part in _parts(len(local))], 0.75))
    for part in _parts(len(local)):
        root = len(part) ** 0.5
        if local[part].mean() * root < 2 and usual * root > 11:
            first, last = int(part[0]), int(part[-1])
            if found and found[-1][1] == first - 1:
                first = found.pop()[0]
            found.append((first, last))
    return tuple(found)


def _slips(local: Doubles, lagged: dict[int, Doubles]) -> tuple[Slip, ...]:
    """Find runs of parts in which another row's source is surely nearer than the row's own, and which row that is."""
    flat, parts = local.ravel(), _parts(local.size)
    starts, lags = [int(part[0]) for part in parts], list(lagged)
    apart = np.stack([lagged[lag].ravel() for lag in lags]) - flat
    there = np.isfinite(apart)
    apart = np.where(there, apart, 0)
    # sums up to the start of each part (lags, parts + 1), of which a run has the difference
    count, total, square = (
        np.pad(np.cumsum(np.add.reduceat(x, starts, axis=1), axis=1), ((0, 0), (1, 0)))
        for x in (there.astype(np.float64), apart, apart**2)
    )
    found: list[Slip] = []
    waiting = [(0, len(parts))]
    while waiting:
        low, high = waiting.pop()
        best = (6.0, 0, 0, 0)  # standard errors: thousands of runs and lags, and rows are not quite independent
        for i in range(low, high):
            for j in range(i + 1, high + 1):
                n = count[:, j] - count[:, i]
                mean = (total[:, j] - total[:, i]) / n
                spread = np.sqrt(np.maximum((square[:, j] - square[:, i]) / n - mean**2, np.finfo(np.float64).tiny))
                surely = mean * np.sqrt(n) / spread
                best = max(best, (float(surely.max()), lags[int(surely.argmax())], i, j))
        _, lag, i, j = best
        if lag:
            found.append(Slip(starts[i], int(parts[j - 1][-1]), lag))
            waiting += [(low, i), (j, high)]
    return tuple(sorted(found, key=lambda slip: slip.first))


def _mixed(percentile: Doubles) -> float:
    """Estimate the share of random pairs among good ones: these leave the lower half of percentiles nearly empty."""
    low, next_low = np.mean(percentile < 0.25), np.mean((percentile >= 0.25) & (percentile < 0.5))
    told = np.mean(percentile > 0.9) > 0.5 and low >= 0.025 and low * len(percentile) >= 10 and low >= 0.7 * next_low
    return float(min(1.0, 4 * low)) if told else 0.0
