"""Prediction-powered means: many pseudo-labelled rows lower the variance of what few labelled ones say."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from crossdistill.diagnostics.estimate import Estimate, normal_estimate
from crossdistill.errors import DataError, NotMeaningful
from crossdistill.evaluation._checks import label_column


def ppi_mean(d: ArrayLike, p: ArrayLike, p_bar: float, n_unlabelled: int, *, level: float = 0.95) -> Estimate:
    """Give the mean of d over the population, corrected by p, which is known of unlabelled rows too.

        mean d + lam (p_bar - mean p)       lam = clip( cov(d, p) / var(p) / (1 + n / n_unlabelled), 0, 1 )
        se^2 = var(d - lam p) / n + lam^2 var(p) / n_unlabelled

    Whatever p is, the mean is unbiased for the population's mean of d, up to the estimate of lam: a p that says
    nothing of d gets lam near 0 and changes nothing. After Angelopoulos et al. 2023 (prediction-powered inference;
    from memory, unverified); its use for paired differences scored against pseudo-labels is our own.

    Args:
        d: (n,) what is wanted of each labelled row, such as the paired difference of two probes' hits.
        p: (n,) the same scored against pseudo-labels that the row's own label took no part in.
        p_bar: Mean of p over the unlabelled rows.
        n_unlabelled: How many those are; 0 leaves the plain mean.
        level: Of the normal interval, in (0, 1).

    Returns:
        The estimate, in the unit of d; `settings` holds "lam" and "n_unlabelled".

    Raises:
        DataError: If lengths differ or a value is not finite.
        NotMeaningful: If there are fewer than 2 labelled rows.
        ConfigError: If `level` is out of range.
    """
    first = label_column("d", d).astype(np.float64)
    second = label_column("p", p, len(first)).astype(np.float64)
    n = len(first)
    if not (np.isfinite(first).all() and np.isfinite(second).all() and np.isfinite(p_bar)) or n_unlabelled < 0:
        raise DataError("a prediction-powered mean needs finite d, p and p_bar, and n_unlabelled >= 0")
    if n < 2:
        raise NotMeaningful("a mean of one labelled row has no known error; label two rows or more")
    spread = float(second.var(ddof=1))
    lam = 0.0
    rounding = n * np.finfo(np.float64).eps * float(np.abs(second).max())  # what equal numbers may seem to vary by
    if n_unlabelled and spread > rounding**2:
        slope = float(np.cov(first, second)[0, 1]) / spread
        lam = min(max(slope / (1 + n / n_unlabelled), 0.0), 1.0)
    variance = float((first - lam * second).var(ddof=1)) / n
    variance += lam**2 * spread / n_unlabelled if n_unlabelled else 0.0
    return normal_estimate(
        float(first.mean()) + lam * (float(p_bar) - float(second.mean())),
        variance**0.5,
        n,
        level=level,
        kind="prediction-powered mean over labelled rows",
        settings={"lam": lam, "n_unlabelled": n_unlabelled},
    )
