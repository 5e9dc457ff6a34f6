"""Whether features vary at all: what is constant up to rounding has no neighbours, no probe and no information."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crossdistill.errors import NotMeaningful
from crossdistill.evaluation._checks import Doubles

ROUNDING = 1e-12
"""Of a column's largest entry: a column that spans less is constant."""


def varying(x: Doubles) -> NDArray[np.bool_]:
    """Tell which columns of (n, d) vary, (d,)."""
    size = np.abs(x).max(axis=0)
    return np.ptp(x / np.where(size > 0, size, 1.0), axis=0) > ROUNDING


def check_varies(name: str, x: Doubles) -> None:
    """Withhold what needs features (n, d) that differ between rows.

    Raises:
        NotMeaningful: If no column varies.
    """
    if not varying(x).any():
        raise NotMeaningful(f"{name}: none of its {x.shape[1]} columns varies over {len(x)} rows")
