"""Retrieval across modalities: at which place a query finds its partner."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from crossdistill.errors import ConfigError, DataError
from crossdistill.evaluation._checks import Whole, feature_rows, label_column, unit_rows

BLOCK = 1024
"""Queries compared at once, which bounds memory to BLOCK times the candidates."""


def partner_ranks(
    queries: ArrayLike,
    candidates: ArrayLike,
    *,
    query_group: ArrayLike | None = None,
    candidate_group: ArrayLike | None = None,
    block: int = BLOCK,
) -> Whole:
    """Give the place, by cosine, of the nearest right candidate of each query: 1 is the best.

    Candidates as near as the right one count against it, so that collapsed embeddings find nothing.

    Args:
        queries: Embeddings (q, d) of one modality.
        candidates: Embeddings (m, d) of the other, in the same space.
        query_group: What a query is of, (q,); any candidate of its group is right. None: row i's partner is row i.
        candidate_group: The same for candidates, (m,); given if and only if `query_group` is.
        block: Queries compared at once.

    Returns:
        Ranks (q,) int64 in 1 .. m.

    Raises:
        DataError: If shapes do not fit, or a query has no right candidate.
        ConfigError: If block < 1 or one group alone is given.
    """
    asked = unit_rows(feature_rows("queries", queries))
    offered = unit_rows(feature_rows("candidates", candidates, width=asked.shape[1]))
    if block < 1 or (query_group is None) != (candidate_group is None):
        raise ConfigError("ranks need block >= 1, and the groups of queries and candidates together or not at all")
    if query_group is None or candidate_group is None:
        if len(asked) != len(offered):
            raise DataError(f"row i of both must be one pair; received {len(asked)} queries, {len(offered)} candidates")
        mine, theirs = np.arange(len(asked)), np.arange(len(offered))
    else:
        mine = label_column("query_group", query_group, len(asked))
        theirs = label_column("candidate_group", candidate_group, len(offered))
    if lonely := np.flatnonzero(~np.isin(mine, theirs)).tolist():
        raise DataError(f"query {lonely[0]} has no right candidate (group {mine[lonely[0]]!s}); leave it out")
    places: list[Whole] = []
    for start in range(0, len(asked), block):
        cosine = asked[start : start + block] @ offered.T
        right = mine[start : start + block, None] == theirs
        best = np.where(right, cosine, -np.inf).max(axis=1, keepdims=True)
        places.append(1 + ((cosine >= best) & ~right).sum(axis=1))
    return np.concatenate(places).astype(np.int64)


def found_within(rank: ArrayLike, k: int) -> NDArray[np.bool_]:
    """Tell query by query whether its partner is among the first k (recall@k is the mean), (q,).

    Raises:
        ConfigError: If k < 1.
    """
    if k < 1:
        raise ConfigError(f"recall@k needs k >= 1; received {k}")
    return label_column("rank", rank) <= k
