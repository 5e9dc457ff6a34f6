"""How far apart two modalities are, as two embeddings of the same pairs see who is near whom; CMCD's theory, measured.

    K(j|i, S) = softmax_j( cos(z_i, z_j) / tau ),  j != i,  of a set S of `size` pairs drawn together

    kernel_tv        total variation of the two kernels, which bounds how much their votes differ (Theorem G, `bound`)
    kernel_kl        what similarity distillation minimises, less the entropy that no student can change
    kernel_entropy   of one kernel: whether tau is in a range where it says anything
    vote_error       how often a neighbour drawn by the kernel has another label
    mi_lower_bound   of two embeddings in one space, by contrast (van den Oord et al. 2018)

**`size` and `tau` are part of the quantity**: the same pairs give another number with others, and estimates that differ
in them are not compared. Distance foretells a student's accuracy, not its gain: what is close is also easily learnt
alone. The rows of a set depend on each other; errors therefore count sets, or groups where these are given.

Source: our own estimators for the theory of Lin et al. 2024 (CMCD), whose full text was not available to us; the
reviewed version measured no such distance, as far as its public reviews show.

Shapes: n pairs, s sets, m = `size` pairs a set, c classes, d features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.special import log_softmax, logsumexp

from crossdistill.diagnostics.estimate import Estimate, check_level
from crossdistill.diagnostics.varying import check_varies
from crossdistill.errors import ConfigError, DataError, NotMeaningful
from crossdistill.evaluation._checks import Doubles, Whole, feature_rows, label_column, unit_rows

SIZE = 64
TAU = 0.1
"""Similarity distillation's own default; accuracy is flat from 0.05 to 0.5."""
CHUNK = 4_000_000
"""Similarities held at once, which bounds memory to some 100 MB."""

Mask = NDArray[np.bool_]
Rows = Callable[[Sequence[Doubles], Whole], Doubles]
"""From similarities / tau of each embedding (s, m, m), -inf where j is no candidate, and positions (s, m) of their
pairs, to a number for each row (s, m)."""


def kernel_tv(
    source: ArrayLike,
    target: ArrayLike,
    *,
    labels: ArrayLike | None = None,
    size: int = SIZE,
    tau: float = TAU,
    groups: ArrayLike | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Give the total variation between the kernels of two embeddings of the same pairs, in [0, 1].

    mean_i 1/2 sum_j |K_source(j|i) - K_target(j|i)|, which is also that of the joint laws of (set, i, j).

    Args:
        source: (n, d) embedding of the source, on pairs that neither embedding was trained on.
        target: (n, any) of the target: a student, or `ridge_student(...).values` before there is one, which is an
            estimate from above. Widths may differ.
        labels: (n,) gives the class-coarsened distance, 1/2 sum_c |sum_{j of c} (K_source - K_target)(j|i)|: never
            larger, usually far smaller, and as good for bounding votes on these labels.
        size: Pairs of a set, >= 3.
        tau: Temperature of both kernels.
        groups: (n,) what a pair belongs to (a person, a photo with several sketches). The error is then that of other
            groups, by deleting one at a time; otherwise that of other sets.
        level: Of the interval, Student's over sets or groups, cut to [0, 1].
        seed: Of the partition into sets; pairs that fill no set are left out.

    Raises:
        DataError: If shapes do not fit or a number is not finite.
        ConfigError: If a parameter is out of range.
        NotMeaningful: If there are fewer than two sets or groups, or no column of an embedding varies.

    Examples:
        >>> import numpy as np
        >>> z = np.random.default_rng(0).normal(size=(640, 8))
        >>> noisy = z + np.random.default_rng(1).normal(size=z.shape)
        >>> found = kernel_tv(z, noisy)
        >>> 0.7 < found.low < found.value < found.high < 0.9, found.n
        (True, 10)
    """
    code = None if labels is None else _codes("labels", labels, len(feature_rows("source", source)))
    classes = 0 if code is None else int(code.max()) + 1

    def rows(logits: Sequence[Doubles], positions: Whole) -> Doubles:
        apart = _kernel(logits[0]) - _kernel(logits[1])
        if code is not None:
            apart = apart @ (code[positions][..., None] == np.arange(classes)).astype(np.float64)
        return np.abs(apart).sum(axis=-1) / 2

    names = {"coarsened": "by class"} if code is not None else {}
    return _estimate(rows, [("source", source), ("target", target)], size, tau, groups, level, seed, (0, 1), names)


def kernel_kl(
    source: ArrayLike,
    target: ArrayLike,
    *,
    size: int = SIZE,
    tau: float = TAU,
    groups: ArrayLike | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Give KL(K_source || K_target) in nats: similarity distillation's loss on these pairs, less the teacher's entropy.

    In [0, 2 / tau + ln(size - 1)]. Comparable for the same tau and size alone; `tv_at_most` bounds the total variation
    by it. For what overfitting costs, take the difference of held-out and training pairs (`independent_difference`).

    Args:
        source: (n, d).
        target: (n, any).
        size: As for `kernel_tv`, and so are the others.
        tau: Of both kernels.
        groups: (n,).
        level: Of the interval.
        seed: Of the partition.

    Raises:
        DataError: As `kernel_tv` does, and the rest too.
        ConfigError: Likewise.
        NotMeaningful: Likewise.
    """

    def rows(logits: Sequence[Doubles], _: Whole) -> Doubles:
        first, second = log_softmax(logits[0], axis=-1), log_softmax(logits[1], axis=-1)
        gone = np.isneginf(first)  # no candidate of either
        # rounding alone can make the sum negative
        return np.maximum((np.exp(first) * np.where(gone, 0, first - np.where(gone, 0, second))).sum(axis=-1), 0)

    most = 2 / tau + math.log(max(size - 1, 1)) if tau > 0 else math.inf
    return _estimate(rows, [("source", source), ("target", target)], size, tau, groups, level, seed, (0, most))


def kernel_entropy(
    z: ArrayLike,
    *,
    size: int = SIZE,
    tau: float = TAU,
    groups: ArrayLike | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Give the mean entropy of a kernel in nats; its note says where tau makes the kernel nearly one-hot or flat.

    Args:
        z: (n, d).
        size: As for `kernel_tv`, and so are the others.
        tau: Temperature.
        groups: (n,).
        level: Of the interval.
        seed: Of the partition.

    Raises:
        DataError: As `kernel_tv` does, and the rest too.
        ConfigError: Likewise.
        NotMeaningful: Likewise.
    """

    def rows(logits: Sequence[Doubles], _: Whole) -> Doubles:
        log_k = log_softmax(logits[0], axis=-1)
        return -(np.exp(log_k) * np.where(np.isneginf(log_k), 0, log_k)).sum(axis=-1)

    def note(value: float) -> str:
        held = math.exp(value)
        if held < 2:
            return f"tau {tau:g} is low: a row looks at {held:.1f} others"
        if held > 0.8 * (size - 1):
            return f"tau {tau:g} is high: a row looks at {held:.0f} of {size - 1} others nearly alike"
        return ""

    return _estimate(rows, [("z", z)], size, tau, groups, level, seed, (0, math.log(max(size - 1, 1))), note=note)


def vote_error(
    z: ArrayLike,
    labels: ArrayLike,
    *,
    size: int = SIZE,
    tau: float = TAU,
    groups: ArrayLike | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Give the error of a vote: j is drawn from K(.|i) and answers with its own label. In [0, 1].

    Of whoever votes with size - 1 labelled items; the majority of such votes errs at most twice as often.

    Args:
        z: (n, d).
        labels: (n,), of every row.
        size: As for `kernel_tv`, and so are the others.
        tau: Temperature.
        groups: (n,).
        level: Of the interval.
        seed: Of the partition.

    Raises:
        DataError: As `kernel_tv` does, and the rest too.
        ConfigError: Likewise.
        NotMeaningful: Likewise.
    """
    code = _codes("labels", labels, len(feature_rows("z", z)))

    def rows(logits: Sequence[Doubles], positions: Whole) -> Doubles:
        own = code[positions]
        return (_kernel(logits[0]) * (own[:, :, None] != own[:, None, :])).sum(axis=-1)

    return _estimate(rows, [("z", z)], size, tau, groups, level, seed, (0, 1))


def mi_lower_bound(
    source: ArrayLike,
    target: ArrayLike,
    *,
    size: int = SIZE,
    tau: float = TAU,
    groups: ArrayLike | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Give a lower bound of the mutual information of the two sides in nats: ln(size) less the CLIP loss of a set.

    The mean of both directions, each of them a bound. It can be negative, where it says nothing, and never exceeds
    ln(size): a value near that is a cap, not an estimate, and the note says so.

    Args:
        source: (n, d) embedding, in the same space as `target`: of a contrastive pair, or the teacher's and
            `ridge_student(...).values`. Whatever was fitted must have seen other pairs.
        target: (n, d).
        size: As for `kernel_tv`, and so are the others.
        tau: Of the contrast; any is a bound, some are tighter.
        groups: (n,).
        level: Of the interval.
        seed: Of the partition.

    Raises:
        DataError: If widths differ; and as `kernel_tv` does, the rest too.
        ConfigError: Likewise.
        NotMeaningful: Likewise.
    """
    first, second = feature_rows("source", source), feature_rows("target", target)
    if first.shape[1] != second.shape[1]:
        raise DataError(f"contrast needs one space: source has {first.shape[1]} columns, target {second.shape[1]}")

    def rows(logits: Sequence[Doubles], _: Whole) -> Doubles:
        across = logits[0]
        own = np.diagonal(across, axis1=-2, axis2=-1)
        # deleted pairs are -inf in their rows and columns, and their own numbers are not used
        count = np.isfinite(own).sum(axis=-1, keepdims=True)
        own = np.where(np.isfinite(own), own, 0)
        loss = (logsumexp(across, axis=-1) + logsumexp(across, axis=-2)) / 2 - own
        return np.log(np.maximum(count, 1)) - np.where(np.isfinite(loss), loss, 0)

    cap = math.log(max(size, 1))

    def note(value: float) -> str:
        return f"near the cap ln({size}) = {cap:.2f} of this bound; a larger size may give more" * (value > 0.9 * cap)

    arrays: list[tuple[str, ArrayLike]] = [("source", first), ("target", second)]
    return _estimate(rows, arrays, size, tau, groups, level, seed, (-math.inf, cap), note=note, across=True)


def tv_at_most(kl: float) -> float:
    """Bound total variation by a KL divergence in nats: the smaller of sqrt(kl / 2) and sqrt(1 - exp(-kl)).

    Pinsker's, and Bretagnolle and Huber's, which is the sharper above 1.6.

    Raises:
        ConfigError: If kl < 0.
    """
    if not kl >= 0:
        raise ConfigError(f"a KL divergence is 0 or more; received {kl}")
    return min(math.sqrt(kl / 2), math.sqrt(-math.expm1(-kl)))


def independent_difference(first: Estimate, second: Estimate) -> Estimate:
    """Give first - second of two estimates from different pairs, with Welch's interval.

    kernel_kl(held-out) - kernel_kl(training) is what similarity distillation lost to the finite number of pairs.

    Raises:
        ConfigError: If they were made with different settings (size, tau, level), and so are different quantities.
        NotMeaningful: If one has no standard error.
    """
    check_comparable(first, second)
    if first.standard_error is None or second.standard_error is None:
        raise NotMeaningful("a difference needs the standard errors of both estimates")
    parts = np.square([first.standard_error, second.standard_error])
    error, counts = float(np.sqrt(parts.sum())), np.array([first.n, second.n])
    freedom = float(parts.sum() ** 2 / np.sum(parts**2 / (counts - 1))) if error else 1.0
    value, half = first.value - second.value, _t_quantile(first.level, freedom) * error
    return Estimate(
        value,
        error,
        value - half,
        value + half,
        min(first.n, second.n),
        first.level,
        "Welch's t over both",
        {name: first.settings[name] for name in ("size", "tau")},
    )


def check_comparable(first: Estimate, second: Estimate) -> None:
    """Refuse to put two estimates of kernels together that are not of one quantity.

    Raises:
        ConfigError: If size, tau or level differ.
    """
    for name in ("size", "tau", "level"):
        a, b = ((e.level if name == "level" else e.settings.get(name)) for e in (first, second))
        if a != b or a is None:
            raise ConfigError(f"estimates of kernels compare for the same {name} only; received {a} and {b}")


def _estimate(
    rows: Rows,
    arrays: Sequence[tuple[str, ArrayLike]],
    size: int,
    tau: float,
    groups: ArrayLike | None,
    level: float,
    seed: int,
    bounds: tuple[float, float],
    names: dict[str, Any] | None = None,
    *,
    note: Callable[[float], str] = lambda _: "",
    across: bool = False,
) -> Estimate:
    """Average a number of each row over sets, with the error over sets or groups.

    Args:
        rows: Gives that number.
        arrays: Embeddings (n, any) with their names.
        size: Pairs a set.
        tau: Temperature.
        groups: (n,) or None.
        level: Of the interval.
        seed: Of the partition.
        bounds: That the quantity can't leave.
        names: Further settings.
        note: From the value to the note.
        across: Whether the two embeddings are compared with each other, the partner included, and not within.
    """
    check_level(level)
    if size < 3 or not (math.isfinite(tau) and tau >= 1e-4) or seed < 0:
        raise ConfigError(f"need size >= 3, tau >= 0.0001 and seed >= 0; received {size}, {tau} and {seed}")
    embeddings = {name: feature_rows(name, x) for name, x in arrays}
    for name, z in embeddings.items():
        check_varies(name, z)
    units = [unit_rows(z) for z in embeddings.values()]
    n = len(units[0])
    if len(units[-1]) != n:
        raise DataError(f"row i of both must be one pair; received {n} and {len(units[-1])} rows")
    n_sets = n // size
    if n_sets < 2:
        raise NotMeaningful(f"an error needs two sets of {size} pairs; received {n} pairs: take size {max(3, n // 8)}")
    code = None if groups is None else _codes("groups", groups, n)
    if code is not None and code.max() < 1:
        raise NotMeaningful("an error over groups needs two of them or more; received 1")
    sets = np.random.default_rng(seed).permutation(n)[: n_sets * size].reshape(n_sets, size)

    def similarities(positions: Whole) -> list[Doubles]:
        parts = [z[positions] for z in units]
        if across:
            return [parts[0] @ parts[1].swapaxes(-1, -2) / tau]
        found = [part @ part.swapaxes(-1, -2) / tau for part in parts]
        for logits in found:
            logits[:, np.arange(size), np.arange(size)] = -np.inf
        return found

    step = max(1, CHUNK // size**2)
    blocks = [sets[i : i + step] for i in range(0, n_sets, step)]
    of_rows = np.concatenate([rows(similarities(block), block) for block in blocks])
    value = float(of_rows.mean())
    if code is None:
        error, count = float(of_rows.mean(axis=1).std(ddof=1)) / n_sets**0.5, n_sets
    else:
        error, count = _jackknife(rows, similarities, sets, of_rows, code, across)
    half = _t_quantile(level, count - 1) * error
    settings = {"size": size, "tau": tau, "sets": n_sets, "seed": seed, **(names or {})}
    kind = f"t over {count} sets" if code is None else f"t over {count} groups, deleted one at a time"
    low, high = max(bounds[0], value - half), min(bounds[1], value + half)
    return Estimate(value, error, low, high, count, level, kind, settings, note(value))


def _jackknife(
    rows: Rows, similarities: Callable[[Whole], list[Doubles]], sets: Whole, of_rows: Doubles, code: Whole, across: bool
) -> tuple[float, int]:
    """Give the delete-a-group standard error and the number of groups that are in the sets.

    A group's rows leave as anchors and as candidates. Only the sets that hold some change, so all groups together cost
    at most `size` times the estimate.
    """
    total, present = float(of_rows.sum()), np.unique(code[sets])
    sums, counts = np.full(len(present), total), np.full(len(present), of_rows.size)
    for positions, own in zip(sets, of_rows, strict=True):
        members = np.unique(code[positions])
        stays = code[positions] != members[:, None]
        enough = stays.sum(axis=1) > 1  # of one row alone there is no kernel
        members, stays = members[enough], stays[enough]
        place, gone = np.searchsorted(present, members), np.searchsorted(present, np.unique(code[positions])[~enough])
        sums[gone] -= own.sum()
        counts[gone] -= own.size
        if not len(members):
            continue
        logits = [np.where(stays[:, None, :], x, -np.inf) for x in similarities(positions[None])]
        if across:
            logits = [np.where(stays[:, :, None], x, -np.inf) for x in logits]
        left = rows(logits, np.broadcast_to(positions, stays.shape))
        sums[place] += np.where(stays, left, 0).sum(axis=1) - own.sum()
        counts[place] += stays.sum(axis=1) - own.size
    if len(present) < 2 or counts.min() < 1:
        raise NotMeaningful("an error over groups needs two of them in the sets; one holds nearly all pairs")
    means = sums / counts
    g = len(means)
    return float(np.sqrt((g - 1) / g * np.square(means - means.mean()).sum())), g


def _kernel(logits: Doubles) -> Doubles:
    return np.exp(log_softmax(logits, axis=-1))


def _codes(name: str, values: ArrayLike, n: int) -> Whole:
    return np.unique(label_column(name, values, n), return_inverse=True)[1].astype(np.int64)


def _t_quantile(level: float, freedom: float) -> float:
    return float(stats.t.ppf((1 + level) / 2, freedom))
