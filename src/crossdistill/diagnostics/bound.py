"""What theory says of the student's error: a certificate that is measured throughout, and a bound term by term.

    vote_certificate       Theorem G: Err(K_target) <= Err(K_source) + TV(K_source, K_target), without assumptions
    reconstructed_bound    Theorem R, a generalisation bound for the three steps of CMCD: most of it cannot be known
    rademacher_linear      its complexity of a linear head, by Monte Carlo
    kappa_lower_bound      its constant, from below

Theorem G and its proof are our own. **Theorem R is our reconstruction** of the form of the final bound of Lin et al.
2024 (CMCD), with proofs of our own: the paper's constants, its treatment of dependence in a batch and its informative
condition were not available to us. Do not print it as the paper's. At usual sizes it is vacuous; its worth is to show
which term is large. None of these foretells the gain.

Shapes: m labelled rows, d features, e encoders.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from crossdistill.diagnostics.distance import check_comparable, tv_at_most
from crossdistill.diagnostics.estimate import Estimate, check_level, normal_estimate
from crossdistill.errors import ConfigError, DataError, NotMeaningful
from crossdistill.evaluation._checks import Doubles, Whole, feature_rows, label_column, unit_rows

CHUNK = 4_000_000
"""Numbers drawn at once, which bounds memory to some 64 MB."""
CONTRACTION = 2.0
"""From a linear head to its cross-entropy: sqrt 2 of vector contraction times sqrt 2, the loss's Lipschitz constant."""


@dataclass(frozen=True)
class Certificate:
    """What the student's votes err at most; made by `vote_certificate`.

    Attributes:
        source_error: Of votes by the source's kernel.
        distance: Total variation of the two kernels.
        bound: On the error of votes by the target's kernel, their sum: low and high are of the sum.
        majority: The same for the majority of such votes, twice the upper end of `bound`, at most 1.
    """

    source_error: Estimate
    distance: Estimate
    bound: Estimate
    majority: float

    def as_json(self) -> dict[str, Any]:
        """Give all of it as plain values for a JSON file."""
        parts = {"source_error": self.source_error, "distance": self.distance, "bound": self.bound}
        return {**{name: part.as_json() for name, part in parts.items()}, "majority": self.majority}


def vote_certificate(source_error: Estimate, distance: Estimate) -> Certificate:
    """Bound the target's vote error by what is known before a single target label (Theorem G, our own).

    |Err(K_target) - Err(K_source)| <= TV, as each error is the mean under its kernel of a number in [0, 1]. Valid for
    any two kernels; below chance only where the modalities are close.

    Args:
        source_error: `vote_error` of the source embedding, on labelled items of the source.
        distance: `kernel_tv` of source and target, on pairs without labels; of the class-coarsened kind, far tighter,
            if the pairs have labels.

    Returns:
        A certificate whose interval adds the half-widths of both, which holds however the two depend on each other.

    Raises:
        ConfigError: If the two differ in size, tau or level.
    """
    check_comparable(source_error, distance)
    if not (source_error.bounded and distance.bounded):
        raise NotMeaningful("a certificate needs the intervals of both estimates")
    low, high = (
        min(1.0, (a or 0.0) + (b or 0.0))
        for a, b in ((source_error.low, distance.low), (source_error.high, distance.high))
    )
    bound = Estimate(
        min(1.0, source_error.value + distance.value),
        (source_error.standard_error or 0.0) + (distance.standard_error or 0.0),
        low,
        high,
        min(source_error.n, distance.n),
        distance.level,
        "sum of two intervals",
        {name: distance.settings[name] for name in ("size", "tau")},
        "the sum is 1 or more: nothing is certified" if high >= 1 else "",
    )
    return Certificate(source_error, distance, bound, min(1.0, 2 * high))


def rademacher_linear(
    features: ArrayLike,
    classes: int,
    *,
    norm: float = 1.0,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Give the empirical Rademacher complexity of linear heads of Frobenius norm at most `norm`, by Monte Carlo.

    (norm / m) mean_r || Z' s_r ||_F with signs s_r (m, classes); never above norm sqrt(classes / m), by Jensen. A
    diagnostic, vacuous for m < 1000: print the cross-validated error beside it.

    Args:
        features: (m, d) of the labelled rows; scaled to unit length here.
        classes: Outputs of the head, >= 1.
        norm: Of the head's weight.
        draws: Of the signs; 2000 give an error of some thousandth of the value.
        level: Of the interval, which is of the Monte Carlo alone.
        seed: Of the signs.

    Raises:
        DataError: If features are not (m, d), finite.
        ConfigError: If a parameter is out of range.
    """
    z = unit_rows(feature_rows("features", features))
    if classes < 1 or draws < 2 or seed < 0 or not 0 < norm < math.inf:
        raise ConfigError(
            f"need classes >= 1, draws >= 2, seed >= 0 and norm > 0; received {classes}, {draws}, {seed}, {norm}"
        )
    m = len(z)
    rng, step = np.random.default_rng(seed), max(1, CHUNK // (classes * max(z.shape)))
    parts: list[Doubles] = []
    for start in range(0, draws, step):
        held = min(step, draws - start)
        signs = 2.0 * rng.integers(0, 2, size=(m, held * classes)) - 1
        square = np.square(z.T @ signs).sum(axis=0).reshape(held, classes).sum(axis=1)
        parts.append(np.sqrt(square) * norm / m)
    found = np.concatenate(parts)
    return normal_estimate(
        float(found.mean()),
        float(found.std(ddof=1)) / draws**0.5,
        draws,
        level=level,
        kind="Monte Carlo over signs",
        settings={"rows": m, "classes": classes, "norm": norm, "draws": draws, "seed": seed},
        note="vacuous below 1000 labelled rows: read the cross-validated error instead" if m < 1000 else "",
    )


def kappa_lower_bound(
    losses: ArrayLike,
    distances: ArrayLike,
    best: int,
    *,
    groups: ArrayLike | None = None,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Bound the constant of Theorem R from below: how much risk a unit of total variation can cost.

    max over encoders of (risk - risk of the best) / TV(K, K of the best). Other encoders could only raise it: it is no
    certificate, and a bound that uses it is none either.

    Args:
        losses: (e, m) of the best head on each encoder (checkpoints, seeds), per test item of a large labelled set.
        distances: (e,) `kernel_tv` values to the best encoder, above 0; that of the best itself is not read.
        best: Which encoder that is.
        groups: (m,) what an item belongs to.
        draws: Of the bootstrap over items or groups.
        level: Of the percentile interval.
        seed: Of the draws.

    Raises:
        DataError: If shapes do not fit, a number is not finite, or a distance is not above 0.
        ConfigError: If a parameter is out of range.
        NotMeaningful: If there is one item, group or encoder only.
    """
    loss, apart = feature_rows("losses", losses), np.asarray(distances, dtype=np.float64)
    e, m = len(loss), int(loss.shape[1])
    check_level(level)
    if apart.shape != (e,) or not 0 <= best < e or draws < 2 or seed < 0:
        raise ConfigError(
            f"need distances ({e},), best 0 to {e - 1}, draws >= 2 and seed >= 0; "
            f"received {apart.shape}, {best}, {draws}, {seed}"
        )
    others = np.arange(e) != best
    if not (np.isfinite(apart[others]) & (apart[others] > 0)).all():
        raise DataError("distances to the best encoder must be finite and above 0")
    items = np.arange(m) if groups is None else label_column("groups", groups, m)
    code: Whole = np.unique(items, return_inverse=True)[1].astype(np.int64)
    count = np.bincount(code).astype(np.float64)
    u = len(count)
    if e < 2 or u < 2:
        raise NotMeaningful(f"a bound on kappa needs two encoders and two items or groups; received {e} and {u}")
    rise = (loss[others] - loss[best]) / apart[others, None]
    sums = np.stack([np.bincount(code, weights=row) for row in rise], axis=1)  # (u, e - 1)
    rng, step, found = np.random.default_rng(seed), max(1, CHUNK // u), list[Doubles]()
    for start in range(0, draws, step):
        often = rng.multinomial(u, np.full(u, 1 / u), size=min(step, draws - start)).astype(np.float64)
        found.append((often @ sums / (often @ count)[:, None]).max(axis=1))
    drawn = np.concatenate(found)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(
        float(rise.mean(axis=1).max()),
        float(drawn.std(ddof=1)),
        float(low),
        float(high),
        u,
        level,
        f"bootstrap of {u} {'items' if groups is None else 'groups'}",
        {"encoders": e, "draws": draws, "seed": seed},
        "a lower bound of kappa, never a certificate",
    )


@dataclass(frozen=True)
class Term:
    """One term of `ReconstructedBound`.

    Attributes:
        name: "modality distance", "step 1", "step 2", "step 3" or "deviation".
        value: In its own unit: of total variation for the first three, of the loss for the others; None if unknown.
        how: "measured" on data, "computed" from sizes and constants that were given, or "unknown".
        about: What it is, and what to know of the number, in a line.
    """

    name: str
    value: float | None
    how: Literal["measured", "computed", "unknown"]
    about: str


@dataclass(frozen=True)
class ReconstructedBound:
    """Theorem R term by term, our reconstruction and not the paper's statement; made by `reconstructed_bound`.

    Attributes:
        terms: The five.
        kappa: What total variation costs in risk; None if not given.
        total: kappa (distance + step 1 + step 2) + step 3 + deviation; None where one of them is unknown.
        loss_bound: The largest cross-entropy that such a head can have, in nats.
        delta: Probability that the bound fails, had its premises held.
    """

    terms: tuple[Term, ...]
    kappa: float | None
    total: float | None
    loss_bound: float
    delta: float

    @property
    def vacuous(self) -> bool:
        """Whether it says no more than the largest loss does; so too where a term is unknown."""
        return self.total is None or self.total >= self.loss_bound

    def as_json(self) -> dict[str, Any]:
        """Give all of it as plain values for a JSON file, marked as a reconstruction."""
        return {
            "source": "our reconstruction of the form of the bound, not the paper's own statement",
            "terms": [{"name": t.name, "value": t.value, "how": t.how, "about": t.about} for t in self.terms],
            "kappa": self.kappa,
            "total": self.total,
            "vacuous": self.vacuous,
            "loss_bound": self.loss_bound,
            "delta": self.delta,
        }


def reconstructed_bound(
    distance: Estimate,
    rademacher: Estimate,
    *,
    kappa: float | None = None,
    n_source: int | None = None,
    n_pairs: int | None = None,
    log_brackets_source: float | None = None,
    log_brackets_target: float | None = None,
    kl_held_out: Estimate | None = None,
    delta: float = 0.05,
) -> ReconstructedBound:
    """Lay out the excess risk of a distilled student with a linear head, term by term (Theorem R, our reconstruction).

        risk - best risk  <=  kappa [ TV(K_source*, K_target*)                                 modality distance
                                      + 3 sqrt(log(6 N_source / delta) / n)                    step 1, the teacher
                                      + 3 sqrt(log(6 N_target / delta) / M') ]                 step 2, the student
                              + 2 Rad(loss of a linear head)                                   step 3
                              + b sqrt(2 log(6 / delta) / m)                                   deviation, m labels

    with M' sets of pairs and L1 bracketing numbers N, which nobody can compute for networks: their terms stay unknown
    unless they are given. Silent premises: source samples and pairs have one law; step 1 fits the same kernel; n and M'
    count independent groups, not rows; the student is independent of the labels.

    Args:
        distance: `kernel_tv` of the best student found or of the ridge student, an estimate of the first term from
            above.
        rademacher: `rademacher_linear` on the labelled rows; times 2 for the cross-entropy.
        kappa: What a unit of total variation costs; `kappa_lower_bound` bounds it from below only.
        n_source: Independent samples of the source that the teacher was trained on.
        n_pairs: Pairs that the student was trained on, of which `size` make a set.
        log_brackets_source: Logarithm of the bracketing number of the teacher's class at 1 / n_source.
        log_brackets_target: Of the student's, at 1 / M'. It presumes that the class holds the truth.
        kl_held_out: `kernel_kl` of teacher and trained student on held-out pairs. It replaces the second step's term by
            what it bounds, whether or not the class holds the truth: total variation by Pinsker's inequality.
        delta: Probability of failure, in (0, 1).

    Returns:
        The terms, and the total where all are known.

    Raises:
        ConfigError: If a parameter is out of range, or the KL has another size or tau than the distance.
    """
    if not 0 < delta < 1 or (kappa is not None and not 0 <= kappa < math.inf):
        raise ConfigError(f"need delta in (0, 1) and kappa >= 0; received {delta} and {kappa}")
    for name, count in (("n_source", n_source), ("n_pairs", n_pairs)):
        if count is not None and count < 1:
            raise ConfigError(f"{name} must be 1 or more; received {count}")
    if kl_held_out is not None:
        check_comparable(distance, kl_held_out)
    classes, norm, m = (rademacher.settings.get(name) for name in ("classes", "norm", "rows"))
    if classes is None or norm is None or m is None:
        raise ConfigError("rademacher must be what rademacher_linear gives, with its settings")
    size = int(distance.settings["size"])
    # logits of unit features differ by sqrt 2 times the head's norm at most
    loss_bound = math.log(classes) + 2**0.5 * norm
    step_1 = _likelihood_term("step 1", "the teacher's training", log_brackets_source, n_source, delta)
    if kl_held_out is not None:
        about = f"sqrt(KL / 2) or sharper of {kl_held_out.value:.3g} nats between teacher and student, held out"
        step_2 = Term("step 2", tv_at_most(max(kl_held_out.value, 0.0)), "measured", about)
    else:
        sets = None if n_pairs is None else n_pairs // size
        step_2 = _likelihood_term("step 2", "the student's training", log_brackets_target, sets, delta)
    terms = (
        Term("modality distance", distance.value, "measured", "total variation of the kernels, estimated from above"),
        step_1,
        step_2,
        Term(
            "step 3",
            2 * CONTRACTION * rademacher.value,
            "measured",
            f"twice the Rademacher complexity of the loss of a linear head, {m} labels; vacuous below 1000",
        ),
        Term(
            "deviation",
            loss_bound * math.sqrt(2 * math.log(6 / delta) / m),
            "computed",
            f"chance in {m} labels, for losses up to {loss_bound:.3g} nats",
        ),
    )
    values = [term.value for term in terms]
    known = [value for value in values if value is not None]
    total = None
    if kappa is not None and len(known) == len(values):
        total = kappa * sum(known[:3]) + sum(known[3:])
    return ReconstructedBound(terms, kappa, total, loss_bound, delta)


def _likelihood_term(name: str, whose: str, log_brackets: float | None, count: int | None, delta: float) -> Term:
    """Give 3 sqrt(log(6 N / delta) / count), capped at 1 as any total variation is."""
    if log_brackets is None or count is None:
        return Term(name, None, "unknown", f"{whose}: its bracketing number cannot be computed for a network")
    if not 0 <= log_brackets < math.inf or count < 1:
        raise ConfigError(
            f"{name}: need a logarithm of a bracketing number >= 0 and a sample; received {log_brackets} and {count}"
        )
    value = 3 * math.sqrt((log_brackets + math.log(6 / delta)) / count)
    return Term(
        name, min(1.0, value), "computed", f"{whose} on {count} independent draws, presuming the truth in class"
    )
