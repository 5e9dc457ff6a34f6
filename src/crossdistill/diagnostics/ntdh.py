"""The Non-target Divergence Hypothesis, measured: how differently do two networks spread what is not the label?

    q = softmax over the c - 1 classes other than a row's own
    js     1/2 [ KL(q_s || m) + KL(q_t || m) ],  m = (q_s + q_t) / 2     in [0, ln 2]
    ntdh   1/2 [ KL(m || q_s) + KL(m || q_t) ]                           the released code's; unbounded
    kl     KL(q_t || q_s)                                                the non-target part of DKD

The hypothesis: the smaller, the better cross-modal distillation. Its authors measure a student that was distilled,
which is post hoc; to foretell, take one that was trained by itself on labels (our choice).

Source: Chen et al. 2024, of which abstract, start and released code were available. Shapes: n pairs, c classes. Nats.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax, logsumexp

from crossdistill.diagnostics.estimate import Estimate
from crossdistill.diagnostics.labelled import UNKNOWN, Counted, labelled_pairs
from crossdistill.diagnostics.probes import Ridge, block, check_folds, dealt_folds, expanded, log_probabilities
from crossdistill.diagnostics.varying import check_varies
from crossdistill.errors import ConfigError, DataError, NotMeaningful, suggest
from crossdistill.evaluation._checks import Doubles, Whole, feature_rows, label_column

Kind = Literal["js", "ntdh", "kl"]
Student = Literal["independent", "distilled"]


def nontarget_estimate(
    teacher: ArrayLike,
    student: ArrayLike,
    labels: ArrayLike,
    *,
    trained: Student,
    kind: Kind = "js",
    groups: ArrayLike | None = None,
    level: float = 0.95,
) -> Estimate:
    """Estimate the non-target divergence of two networks from their logits on held-out pairs.

    Args:
        teacher: (n, c) logits on the source.
        student: (n, c) on the target of the same pairs.
        labels: (n,) whole numbers 0 to c - 1, columns of the logits; -1 where unknown, left out.
        trained: How the student was: "independent" of the teacher, which can foretell, or "distilled" from it, which is
            the published, post hoc quantity. It is told with the number.
        kind: See the module.
        groups: (n,) what a pair belongs to; errors are then of groups.
        level: Of the interval, a normal one.

    Raises:
        DataError: If shapes do not fit, or a number is not finite.
        ConfigError: If a parameter is out of range.
        NotMeaningful: If there are two classes, where it is always 0, or fewer than two labelled pairs or groups.

    Examples:
        >>> import numpy as np
        >>> z = np.random.default_rng(0).normal(size=(200, 5))
        >>> shifted = z + 10 * np.eye(5)[np.arange(200) % 5]  # surer of the label, and no other in the rest
        >>> found = nontarget_estimate(z, shifted, np.arange(200) % 5, trained="independent")
        >>> round(found.value, 6), found.n
        (0.0, 200)
    """
    _check_word("trained", trained, get_args(Student))
    _check_word("kind", kind, get_args(Kind))
    z_t, z_s = feature_rows("teacher", teacher), feature_rows("student", student)
    if z_t.shape != z_s.shape:
        raise DataError(f"teacher and student must have the same pairs and classes; received {z_t.shape}, {z_s.shape}")
    n, c = z_t.shape
    label = label_column("labels", labels, n)
    if label.dtype.kind not in "iu" or label.min() < UNKNOWN or label.max() >= c:
        raise DataError(f"labels must be whole numbers from 0 to {c - 1}, or -1 where unknown")
    rows = np.flatnonzero(label != UNKNOWN)
    _check_many(c)
    count = Counted(None if groups is None else label_column("groups", groups, n)[rows], len(rows), level)
    return _estimate(z_t[rows], z_s[rows], label[rows], kind, count, f"student: {trained}")


def nontarget_of_probes(
    source: ArrayLike,
    target: ArrayLike,
    labels: ArrayLike,
    *,
    kind: Kind = "js",
    groups: ArrayLike | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Estimate it before there are networks: between ridge probes on the features of two modalities, out of fold.

    Args:
        source: (n, any) features; the teacher is a probe on them.
        target: (n, any); the independent student is a probe on them.
        labels: (n,) classes; -1 where unknown, left out.
        kind: See the module.
        groups: (n,) what must not be split.
        level: Of the interval, a normal one of pairs or groups; probes are not fitted anew.
        seed: Of folds and random features.

    Raises:
        DataError: If shapes do not fit or a number is not finite.
        ConfigError: If a parameter is out of range.
        NotMeaningful: If there are two classes, where it is always 0, one has fewer than 10 rows or is in too few
            groups, or no column of a side varies.
    """
    _check_word("kind", kind, get_args(Kind))
    x, y, label, group = labelled_pairs("source", source, "target", target, labels, groups, seed)
    check_varies("source", x)
    check_varies("target", y)
    classes, code = np.unique(label, return_inverse=True)
    _check_many(len(classes))
    count = Counted(group, len(code), level)
    rng = np.random.default_rng(seed)
    fold = dealt_folds(code, count.unit, rng)
    check_folds(classes, code, fold)
    onehot = np.eye(len(classes))[code]
    z_t, z_s = (
        log_probabilities(Ridge(expanded([block(side, rng)], rng), fold).scores(onehot), code, fold)[0]
        for side in (x, y)
    )
    return _estimate(z_t, z_s, code, kind, count, "teacher and independent student: ridge probes, out of fold")


def _estimate(z_t: Doubles, z_s: Doubles, code: Whole, kind: Kind, count: Counted, note: str) -> Estimate:
    others: NDArray[np.bool_] = code[:, None] != np.arange(len(z_t[0]))
    log_t, log_s = (log_softmax(z[others].reshape(len(z), -1), axis=1) for z in (z_t, z_s))
    log_m = logsumexp([log_t, log_s], axis=0) - np.log(2)
    if kind == "kl":
        rows = _kl(log_t, log_s)
    elif kind == "js":
        rows = (_kl(log_s, log_m) + _kl(log_t, log_m)) / 2
    else:
        rows = (_kl(log_m, log_s) + _kl(log_m, log_t)) / 2
    settings = {"kind": kind, "unit": "nats", "classes": z_t.shape[1], "student": note}
    return count.mean(rows, "non-target divergence", settings, note)


def _kl(log_p: Doubles, log_q: Doubles) -> Doubles:
    """Give KL of rows (n, c), which rounding alone can make negative."""
    return np.maximum((np.exp(log_p) * (log_p - log_q)).sum(axis=1), 0.0)


def _check_many(c: int) -> None:
    if c < 3:
        raise NotMeaningful(f"the non-target divergence is always 0 with two classes, and says nothing; received {c}")


def _check_word(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{name}: '{value}' is none of the words allowed{suggest(value, known)}")
