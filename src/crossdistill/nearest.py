"""The nearest rows of each row, never holding all pairs of them: exactly by blocks, or by an index beyond that.

    rows 0..c  x  all rows  ─►  c x k        a block at a time, at most BLOCK similarities held

Below `objectives`: the index is faiss, an extra that is imported when it is needed.
"""

from __future__ import annotations

from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from crossdistill.errors import ConfigError, ObjectiveError

Search = Literal["auto", "exact", "approximate"]

BLOCK, BLOCK_AWAY = 2**26, 2**30
"""Similarities that are held at a time, on a CPU and on an accelerator: 256 MiB and 4 GiB in single precision."""
EXACT_ROWS = 50_000
"""Rows up to which "auto" is exact on a CPU: some minutes of one core; an accelerator is exact at any number."""
PROBED = 32
"""Cells of the index that a search looks into."""
MOST_CROWDED = 1024
"""Neighbours asked of the index at most where some are forbidden; rows that want more are searched exactly."""


def check_search(search: str) -> None:
    """Refuse a word that is no way of searching.

    Raises:
        ConfigError: With what is allowed.
    """
    if search not in get_args(Search):
        raise ConfigError(f"search must be one of {', '.join(get_args(Search))}; received '{search}'")


@torch.no_grad()
def nearest(
    rows: Tensor,
    k: int,
    *,
    queries: Tensor | None = None,
    group: Tensor | None = None,
    search: Search = "auto",
) -> tuple[Tensor, Tensor]:
    """Find the k rows of largest inner product with each row, itself left out, or with each query.

    Args:
        rows: (n, d) unit length, float32 or float64.
        k: Neighbours of each, below n.
        queries: (q, d) other rows whose neighbours among `rows` are looked for; None takes the rows themselves.
        group: (n,) int64; rows of one's own group are no neighbours. Without `queries` alone.
        search: "exact" compares all, in n^2 d operations and bounded memory; "approximate" asks faiss's inverted file,
            which is seeded and so gives the same each time, and misses a few; "auto" is exact up to 50,000 rows and on
            an accelerator. Queries are always compared with all: an index is not worth making for them.

    Returns:
        Positions (q or n, k) int64, the nearest first, and their inner products (q or n, k).

    Raises:
        ConfigError: If "approximate" is needed and faiss is not installed; the message names the extra.
        ObjectiveError: If a row has fewer than k others outside its group.
    """
    check_search(search)
    if queries is not None:
        return _exact(rows, k, queries, None, None)
    if search == "approximate" or (search == "auto" and len(rows) > EXACT_ROWS and rows.device.type == "cpu"):
        return _approximate(rows, k, group)
    return _exact(rows, k, rows, torch.arange(len(rows), device=rows.device), group)


def _exact(rows: Tensor, k: int, queries: Tensor, own: Tensor | None, group: Tensor | None) -> tuple[Tensor, Tensor]:
    """Compare all, a block of queries at a time; `own` (q,) says which row each query is, if it is one."""
    size = max(1, (BLOCK if rows.device.type == "cpu" else BLOCK_AWAY) // len(rows))
    found: list[Tensor] = []
    values: list[Tensor] = []
    for start in range(0, len(queries), size):
        block = queries[start : start + size] @ rows.T
        if own is not None:
            mine = own[start : start + size]
            block[torch.arange(len(block), device=block.device), mine] = -torch.inf
            if group is not None:
                block.masked_fill_(group[mine][:, None] == group[None, :], -torch.inf)
        top = block.topk(k, dim=1)
        found.append(top.indices)
        values.append(top.values)
    similarity = torch.cat(values) if values else rows.new_zeros(0, k)
    if bool((similarity == -torch.inf).any()):
        raise ObjectiveError(f"some rows have fewer than {k} others outside their group; lower k, or leave groups out")
    return torch.cat(found) if found else torch.zeros(0, k, dtype=torch.int64), similarity


def _approximate(rows: Tensor, k: int, group: Tensor | None) -> tuple[Tensor, Tensor]:
    """Ask an index for more than k, take out what is not allowed, and search exactly where too few are left."""
    faiss = _faiss()
    n, width = rows.shape
    data = rows.detach().float().cpu().contiguous().numpy()
    cells = max(1, min(int(4 * n**0.5), n // 40))
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, cells, faiss.METRIC_INNER_PRODUCT)
    index.train(data)  # seeded: the same cells each time
    index.add(data)
    index.nprobe = min(PROBED, cells)
    crowd = 1 if group is None else int(cast("Tensor", group.unique(return_counts=True)[1]).max())
    found = torch.from_numpy(index.search(data, min(n, k + min(crowd, MOST_CROWDED)))[1]).to(rows.device)
    own = torch.arange(n, device=rows.device)
    allowed = (found >= 0) & (found != own[:, None])
    if group is not None:
        allowed &= group[found.clamp(min=0)] != group[:, None]
    order = (~allowed).int().argsort(dim=1, stable=True)[:, :k]  # the allowed first, nearest first among them
    best = found.gather(1, order)
    size = max(1, BLOCK // (k * width))
    parts = [slice(start, start + size) for start in range(0, n, size)]
    similarity = torch.cat([(rows[best[part].clamp(min=0)] @ rows[part, :, None])[..., 0] for part in parts])
    lacking = (allowed.sum(dim=1) < k).nonzero()[:, 0]
    if len(lacking):
        best[lacking], similarity[lacking] = _exact(rows, k, rows[lacking], lacking, group)
    return best, similarity


def _faiss() -> Any:
    """Import faiss when an index is wanted, not before: it is an extra."""
    try:
        import faiss  # pyright: ignore[reportMissingImports] - an optional package
    except ImportError:
        raise ConfigError(
            f"approximate neighbours (more than {EXACT_ROWS} pairs on a CPU) need faiss; install it with: "
            "pip install 'crossdistill[graph]', or take search: exact, which is slow"
        ) from None
    return cast("Any", faiss)
