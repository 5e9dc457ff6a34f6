"""Which channels of a teacher does the student's modality share? The Modality Focusing Hypothesis (Xue et al. 2023).

A pair's features that decide the label are of three kinds: in both modalities ("general"), or in one alone. gamma, the
share of the general ones, decides whether distillation between modalities helps, not how good the teacher is; so a
teacher may teach better without the channels that its student cannot follow.

    venn_ratios             alpha, beta and gamma of a world whose deciding features are known
    modality_generality     Algorithm 1: rank the channels of a trained teacher
    nullify                 take channels from a teacher, whose head stays as it is

Source: released code for Algorithm 1 and nullification; the ratios are from memory of the paper, unverified, and gamma
is as the code has it. The closed form for linear heads is our derivation. gamma cannot be read from the scores.

Shapes: n pairs, d channels, k classes, m permutations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from crossdistill.errors import ConfigError, DataError, suggest
from crossdistill.evaluation._checks import Doubles, Whole, feature_rows

Distance = Literal["squared", "absolute"]
Kept = Literal["general", "least_general", "random"]
Head = Callable[[Doubles], ArrayLike] | tuple[ArrayLike, ArrayLike]
"""From features (n, d) to logits (n, k): a function of arrays, or (weight (k, d), bias (k,)) of a linear layer."""

CHUNK = 4_000_000
"""Permuted logits held at once, which bounds memory to some 64 MB."""

STACK = 50_000
"""Numbers of permuted features that a head is given at once, whole permutations: 400 kB, which a cache holds."""


class Ratios(NamedTuple):
    """Shares of the deciding features; see `venn_ratios`."""

    alpha: float
    beta: float
    gamma: float


def venn_ratios(
    specific_a: int, specific_b: int, shared: int, *, per: Literal["union", "modality"] = "union"
) -> Ratios:
    """Give the ratios of the modality Venn diagram from counts of deciding features.

    Args:
        specific_a: Deciding features of modality a alone, >= 0.
        specific_b: Of modality b alone.
        shared: Of both; one of the three counts at least is above 0.
        per: Of what alpha and beta are shares: of all deciding features ("union", so that alpha + beta + gamma = 1), or
            of those of their own modality ("modality", as a figure of the paper has it). gamma is always intersection
            over union.

    Raises:
        ConfigError: If a count is negative, or nothing decides in what a share is of.
    """
    if min(specific_a, specific_b, shared) < 0 or specific_a + specific_b + shared == 0:
        raise ConfigError(
            f"counts of deciding features must be >= 0, and not all 0; received {specific_a}, {specific_b}, {shared}"
        )
    _check_word("per", per, ("union", "modality"))
    union = specific_a + specific_b + shared
    of_a, of_b = (union, union) if per == "union" else (specific_a + shared, specific_b + shared)
    if not (of_a and of_b):
        raise ConfigError("a modality without deciding features has no share per modality; take per='union'")
    return Ratios(specific_a / of_a, specific_b / of_b, shared / union)


@dataclass(frozen=True, eq=False)
class Generality:
    """How modality-general each channel of a teacher is; made by `modality_generality`.

    Attributes:
        scores: (d,) float64, mean distance of teacher and student once that channel is permuted. Larger is more
            general: what breaks when the channel goes is what the two had in common.
        standard_errors: (d,) of the scores less the baseline, over pairs: what other pairs would have given.
        baseline: The distance with no channel permuted.
    """

    scores: Doubles
    standard_errors: Doubles
    baseline: float

    @property
    def excess(self) -> Doubles:
        """Scores less the baseline, (d,). Below 0 where a channel pulls the teacher away from the student."""
        return self.scores - self.baseline

    @property
    def normalised(self) -> Doubles:
        """Scores brought to [0, 1] as the authors do, (d,); all 0 where all are equal."""
        span = float(np.ptp(self.scores))
        return (self.scores - self.scores.min()) / span if span else np.zeros_like(self.scores)

    @property
    def order(self) -> Whole:
        """Channels, the most general first, (d,); equal ones by position."""
        return np.argsort(-self.scores, kind="stable")

    @property
    def told_apart(self) -> np.ndarray:
        """Whether a score lies more than two standard errors from the baseline, (d,) bool.

        A channel that does not is either the teacher's own or decides nothing: scores alone cannot say which.
        """
        return np.abs(self.excess) > 2 * self.standard_errors

    def kept(self, count: int, which: Kept = "general", *, seed: int = 0) -> Whole:
        """Choose channels to keep, for `nullify` or for training a teacher on these alone.

        Args:
            count: How many, 1 to d. The authors keep a quarter (RAVDESS) or half (VGGSound).
            which: "general", those of the highest scores; "least_general", of the lowest, which mixes the teacher's own
                channels with those that decide nothing; "random", the control (without replacement).
            seed: Of "random".

        Returns:
            (count,) int64, ascending.

        Raises:
            ConfigError: If a parameter is out of range.
        """
        d = len(self.scores)
        _check_word("which", which, get_args(Kept))
        if not 1 <= count <= d:
            raise ConfigError(f"count, the channels to keep, must be 1 to {d}; received {count}")
        if which == "random":
            return np.sort(np.random.default_rng(seed).permutation(d)[:count])
        order = self.order
        return np.sort(order[:count] if which == "general" else order[d - count :])


def modality_generality(
    features: ArrayLike,
    head: Head,
    student_logits: ArrayLike,
    *,
    distance: Distance = "squared",
    method: Literal["auto", "closed_form", "permutation"] = "auto",
    n_permutations: int = 10,
    seed: int = 0,
) -> Generality:
    """Rank a teacher's channels by how much of its agreement with the student hangs on each (Algorithm 1).

    score_i = E_perm dist( head(features with column i permuted over the pairs), student_logits )

    Both networks should have been trained together, on CE + CE + the mean squared distance of their logits, as the
    authors do for all but VGGSound: of two networks trained apart the ranking is much worse (81 % of the shared
    channels found, not 97 %, on the synthetic data). It breaks down where channels are as many as pairs.

    For a linear head and "squared" the expectation has a closed form, r being teacher less student logits:

        score_i = mean(r^2) + mean_c( 2 w_ic^2 var(x_i) - 2 w_ic cov(x_i, r_c) )

    Standard errors (ours) are those of a mean over ordered couples of pairs, one that lends its entry and one that
    takes it; the noise of few permutations is in them.

    Args:
        features: (n, d) of the teacher on its modality, before `head`, n >= 2; rank maps by channel, pooled.
        head: What makes logits of them: a function from float64 arrays (any, d) to (any, k), row by row (networks in
            eval mode), or (weight (k, d), bias (k,)) of a linear layer, which is much faster.
        student_logits: (n, k) of the student on the partners of the same pairs.
        distance: Mean over pairs and classes of the "squared" (as released for synthetic data and RAVDESS) or
            "absolute" (VGGSound) difference of logits.
        method: "closed_form", "permutation", or "auto": the former where it is known, else the latter.
        n_permutations: Of each channel; 10 as released for RAVDESS, 100 elsewhere: it hardly matters.
        seed: Of the permutations.

    Raises:
        DataError: If shapes do not fit or a number is not finite.
        ConfigError: If a parameter is out of range, or "closed_form" is asked for what has none.

    Examples:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(200, 3))
        >>> weight, bias = np.array([[1.0, 1.0, 0.0]]), np.zeros(1)  # the teacher uses columns 0 and 1
        >>> found = modality_generality(x, (weight, bias), x[:, :1])  # the student sees column 0 alone
        >>> found.order[0], found.told_apart.tolist()
        (np.int64(0), [True, False, False])
    """
    x = feature_rows("features", features)
    target = feature_rows("student_logits", student_logits)
    if len(x) != len(target) or len(x) < 2:
        raise DataError(
            f"features and student_logits must be of the same pairs, two or more; received {len(x)} and {len(target)}"
        )
    _check_word("distance", distance, get_args(Distance))
    _check_word("method", method, ("auto", "closed_form", "permutation"))
    if n_permutations < 1 or seed < 0:
        raise ConfigError(f"need n_permutations >= 1 and seed >= 0; received {n_permutations} and {seed}")
    weight, apply = _head(head, x.shape[1], target.shape[1])
    apart = apply(x) - target
    baseline = float(_size(apart, distance).mean())
    exact = weight is not None and distance == "squared"
    if method == "closed_form" and not exact:
        raise ConfigError("a closed form is known for a linear head, given as (weight, bias), and squared distance")
    if exact and method != "permutation":
        assert weight is not None
        return _closed_form(x, weight, apart, baseline)
    own = _size(apart, distance).mean(axis=1)
    if weight is None:
        at_once = max(1, STACK // x.size)

        def change(channel: int, orders: Whole) -> Doubles:
            found = np.empty(orders.shape)
            for first in range(0, len(orders), at_once):
                some = orders[first : first + at_once]
                broken = np.tile(x, (len(some), 1))
                broken[:, channel] = x[some, channel].ravel()
                away = apply(broken).reshape(*some.shape, -1) - target
                found[first : first + at_once] = _size(away, distance).mean(axis=2) - own
            return found
    elif distance == "squared":
        push, pull = (weight**2).mean(axis=0), 2 * apart @ weight / len(weight)

        def change(channel: int, orders: Whole) -> Doubles:
            moved = x[:, channel][orders]
            moved -= x[:, channel]  # logits move by this, times the weights: a square of that, and a cross term
            return moved * (moved * push[channel] + pull[:, channel])
    else:

        def change(channel: int, orders: Whole) -> Doubles:
            moved = x[:, channel][orders] - x[:, channel]
            return np.abs(apart + moved[:, :, None] * weight[:, channel]).mean(axis=2) - own

    step = max(1, CHUNK // apart.size)
    rng = np.random.default_rng(seed)
    excess, errors = _by_permutation(change, len(x), x.shape[1], n_permutations, step, rng)
    return Generality(baseline + excess, errors, baseline)


def nullify(
    features: ArrayLike,
    kept: ArrayLike,
    *,
    fill: Literal["mean", "zero"] = "mean",
    reference: ArrayLike | None = None,
) -> Doubles:
    """Take all channels but some from a teacher's features; its head, applied to the result, stays as it is.

    Args:
        features: (n, d).
        kept: Channels that stay, as `Generality.kept` gives them.
        fill: What stands in the others: their "mean" (as released for RAVDESS, there of the current batch, so that
            outputs depended on it) or "zero" (VGGSound).
        reference: Features (any, d) that the mean is of, such as the training set's; None is `features` itself.

    Returns:
        (n, d) float64, a copy.

    Raises:
        DataError: If shapes do not fit, or `kept` names no channel or one that is not there.
        ConfigError: If `fill` is another word.
    """
    x = feature_rows("features", features)
    _check_word("fill", fill, ("mean", "zero"))
    chosen: NDArray[Any] = np.asarray(kept)
    d = x.shape[1]
    if chosen.ndim != 1 or not len(chosen) or chosen.dtype.kind not in "iu" or chosen.min() < 0 or chosen.max() >= d:
        raise DataError(f"kept must be whole numbers (count,) of channels 0 to {d - 1}, one or more")
    source = x if reference is None else feature_rows("reference", reference, width=d)
    gone = np.ones(d, dtype=bool)
    gone[chosen] = False
    x = x.copy()
    x[:, gone] = source[:, gone].mean(axis=0) if fill == "mean" else 0.0
    return x


def _head(head: Head, d: int, k: int) -> tuple[Doubles | None, Callable[[Doubles], Doubles]]:
    """Give the weight (k, d) of a linear head, or None, and the head as a function with checks."""
    if callable(head):

        def apply(x: Doubles) -> Doubles:
            logits = feature_rows("the head's logits", head(x))
            if logits.shape != (len(x), k):
                raise DataError(
                    f"the head must give logits ({len(x)}, {k}) as the student does; it gave {logits.shape}"
                )
            return logits

        return None, apply
    weight, bias = feature_rows("the head's weight", head[0], width=d), np.asarray(head[1], dtype=np.float64)
    if weight.shape[0] != k or bias.shape != (k,) or not np.isfinite(bias).all():
        raise DataError(
            f"a linear head must be (weight ({k}, {d}), bias ({k},)), finite, as the student has {k} logits; "
            f"received shapes {weight.shape} and {bias.shape}"
        )
    return weight, lambda x: x @ weight.T + bias


def _closed_form(x: Doubles, weight: Doubles, apart: Doubles, baseline: float) -> Generality:
    """Give the expectation over permutations for a linear head and squared distance; centred terms of each pair."""
    centred, r = x - x.mean(axis=0), apart - apart.mean(axis=0)
    spread = 2 * (weight**2).mean(axis=0) * centred**2
    terms = spread - 2 * centred * (r @ weight) / len(weight)
    return Generality(baseline + terms.mean(axis=0), terms.std(axis=0, ddof=1) / len(x) ** 0.5, baseline)


def _by_permutation(
    change: Callable[[int, Whole], Doubles], n: int, d: int, m: int, step: int, rng: np.random.Generator
) -> tuple[Doubles, Doubles]:
    """Average over m permutations of each of d channels; give scores less the baseline and their errors, (d,) each.

    A channel's permutations are m ones drawn for all channels, each after one of its own: to the channel they are as if
    drawn for it alone, at a fraction of the time.

    Args:
        change: From a channel and orders (any, n) to what is added to the distance of each pair (any, n).
        n: Pairs.
        d: Channels.
        m: Permutations.
        step: Permutations held at once.
        rng: Draws them.
    """
    own = rng.permuted(np.tile(np.arange(n), (d, 1)), axis=1)
    taken, lent = np.zeros((d, n)), np.zeros((d, n))  # what a pair adds as the one that takes an entry, and lends it
    for start in range(0, m, step):
        common = rng.permuted(np.tile(np.arange(n), (min(step, m - start), 1)), axis=1)
        for i in range(d):
            orders = common[:, own[i]]
            added = change(i, orders)
            taken[i] += added.sum(axis=0)
            lent[i] += np.bincount(orders.ravel(), weights=added.ravel(), minlength=n)
    return taken.mean(axis=1) / m, ((taken + lent) / m).std(axis=1, ddof=1) / n**0.5


def _size(apart: Doubles, distance: Distance) -> Doubles:
    return apart**2 if distance == "squared" else np.abs(apart)


def _check_word(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{name}: '{value}' is none of the words allowed{suggest(value, known)}")
