"""Neighbourhood graphs of a whole set of rows, the walk's leading coordinates on them, and nothing n x n in memory.

Known parts, from memory: self-tuning affinities (Zelnik-Manor & Perona 2004), diffusion maps (Coifman & Lafon 2006),
block power iteration with Rayleigh-Ritz. Shapes: n rows of width d, k neighbours, m coordinates.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from crossdistill.errors import ObjectiveError
from crossdistill.nearest import Search, nearest
from crossdistill.objectives.base import unit

Operator = Callable[[Tensor], Tensor]
"""A symmetric (n, n) matrix by what it does to (n, c)."""

SMALLEST_SCALE = 1e-6
"""Floor of a row's scale (cosine distance to its k-th neighbour), where rows are duplicates."""
SCALES_APART = 256.0
"""A scale is at least the largest over this, so that the weight of no row's neighbour is below exp(-16)."""
DENSE_ROWS = 1024
"""Rows up to which all eigenvectors are computed at once, in a second or less."""
SPARE, STEPS, EVERY = 40, 60, 3
"""Vectors iterated beside the wanted ones, steps, and steps between two orthonormalisations."""
RANKED = 2048
"""Rows whose neighbours are ranked, and those that they are ranked among, when two graphs are compared."""
CLUSTERED = 4096
"""Rows that are put into clusters when two graphs are compared: some seconds' work at most."""
CLUSTERS = (20, 40, 80, 160, 320)
"""Numbers of clusters that are tried when two graphs are compared."""
FEWEST_ROWS = 6
"""Rows a cluster at least, on average, for a number to be tried."""
ALIKE, MORE_ALIKE = 0.1, 1.1
"""Adjusted mutual information below which two clusterings share too little for their number to mean anything, and how
many times that of the least number another's must be to be believed."""
COLUMNS = 1024
"""Generic features that pictures and series are averaged down to, so that a million pairs fit into memory."""


@dataclass(frozen=True)
class Graph:
    """S = D^-1/2 W D^-1/2 of n rows, and what is needed to place a new row in it.

    Attributes:
        matrix: S, sparse (n, n), symmetric, zero diagonal.
        degree: D = W 1, (n,), positive.
        scale: Cosine distance of each row to its k-th neighbour, floored, (n,).
        rows: The rows, centred, at unit length (n, d).
        mean: What was subtracted of them, (d,).
        spread: What they were divided by, (d,).
        k: Neighbours.
        search: How they are looked for.
    """

    matrix: Tensor
    degree: Tensor
    scale: Tensor
    rows: Tensor
    mean: Tensor
    spread: Tensor
    k: int
    search: Search

    def __call__(self, vectors: Tensor) -> Tensor:
        """Give S v, (n, c) to (n, c)."""
        return cast("Tensor", torch.sparse.mm(self.matrix, vectors))

    def landing(self, new: Tensor, values: Tensor) -> Tensor:
        """Give the rows of S that new rows (b, d) would have, times values (n, c) of the old ones (Nyström): (b, c)."""
        if new.shape[1:] != self.rows.shape[1:]:
            raise ObjectiveError(
                f"new rows must be as wide as the graph's, (b, {self.rows.shape[1]}); received {tuple(new.shape)}"
            )
        queries = unit((new.to(self.rows) - self.mean) / self.spread)
        near, similarity = nearest(self.rows, self.k, queries=queries, search=self.search)
        away = (1 - similarity).clamp(min=0)
        own = away[:, -1:].clamp(min=float(self.scale.min()))
        weights = (-away / (own * self.scale[near]).sqrt()).exp()
        weights = weights / (weights.sum(dim=1, keepdim=True) * self.degree[near]).sqrt()
        return torch.einsum("bk,bkc->bc", weights, values[near])


def neighbour_graph(
    features: Tensor,
    k: int = 10,
    *,
    standardise: bool = False,
    group: Tensor | None = None,
    search: Search = "auto",
) -> Graph:
    """Join each row to its k nearest, with weights that fall with the cosine distance, in the scale of both places.

        d_ij = 1 - cos(z_i, z_j),   s_i = d to the k-th neighbour,   W_ij = exp(-d_ij / sqrt(s_i s_j))

    if j is among the k nearest of i, or i of j; else 0, and W_ii = 0.

    Args:
        features: (n, d), finite; they are centred, as the common mean dominates the cosines of learnt embeddings.
        k: Neighbours, the row itself not counted.
        standardise: Divide each column by its standard deviation first.
        group: (n,) int64; rows of one's own group are no neighbours.
        search: See `crossdistill.nearest.nearest`.

    Raises:
        ObjectiveError: If features are not finite, or the same in all rows, or k is n or more.
    """
    n = len(check_features(features))
    if not 1 <= k < n:
        raise ObjectiveError(f"k must be at least 1 and below the number of rows; received k={k} and {n} rows")
    scaled, mean, spread = _centred(features, standardise)
    rows = unit(scaled)
    if not bool(rows.any()):
        raise ObjectiveError(f"a graph needs features that differ; all {n} rows are the same")
    near, similarity = nearest(rows, k, group=group, search=search)
    scale = (1 - similarity[:, -1]).clamp(min=0)
    scale = scale.clamp(min=max(SMALLEST_SCALE, float(scale.max()) / SCALES_APART))
    row, column = torch.arange(n, device=rows.device).repeat_interleave(k), near.flatten()
    # An edge that both ends chose stands twice, with distances that may differ in the last bit: each is kept once.
    both_ways = torch.minimum(row, column) * n + torch.maximum(row, column)
    key, place = cast("tuple[Tensor, Tensor]", both_ways.unique(return_inverse=True))
    away = similarity.new_zeros(len(key)).scatter_reduce(
        0, place, (1 - similarity.flatten()).clamp(min=0), "amax", include_self=False
    )
    low, high = key // n, key % n
    weight = (-away / (scale[low] * scale[high]).sqrt()).exp()
    degree = weight.new_zeros(n).index_add(0, low, weight).index_add(0, high, weight)
    weight = weight / (degree[low] * degree[high]).sqrt()
    both = torch.stack([torch.cat([low, high]), torch.cat([high, low])])
    matrix = torch.sparse_coo_tensor(both, torch.cat([weight, weight]), (n, n), check_invariants=False).coalesce()
    return Graph(matrix, degree, scale, rows, mean, spread, k, search)


def check_features(features: Tensor) -> Tensor:
    """Give features (n, d) as they are.

    Raises:
        ObjectiveError: If they are of another shape, no floating point numbers, or not finite.
    """
    if features.ndim != 2 or not features.is_floating_point():
        raise ObjectiveError(f"a graph is made of features (n, d); received {tuple(features.shape)} {features.dtype}")
    if not bool(features.isfinite().all()):
        bad = int((~features.isfinite().all(dim=1)).sum())
        raise ObjectiveError(f"a graph needs finite features; {bad} of {len(features)} rows are not")
    return features


def _centred(features: Tensor, standardise: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Subtract the columns' means, divide by their spreads if asked; a column that does not vary is left at zero."""
    x = features if features.dtype == torch.float64 else features.float()
    mean = x.mean(dim=0)
    centred = x - mean
    noise = torch.finfo(x.dtype).eps * len(x) ** 0.5 * x.abs().amax(dim=0)  # what rounding leaves of a constant
    varies = centred.abs().amax(dim=0) > noise
    spread = torch.where(varies, centred.square().mean(dim=0).sqrt() if standardise else 1.0, torch.inf)
    return centred / spread, mean, spread


def components(*graphs: Graph) -> int:
    """Count the connected components of the graphs' union: each row takes the smallest number that reaches it."""
    start, end = (torch.cat([graph.matrix.indices()[side] for graph in graphs]) for side in (0, 1))
    label = torch.arange(len(graphs[0].degree), device=start.device)
    while True:
        lowest = label.scatter_reduce(0, end, label[start], "amin")
        lowest = lowest[lowest]
        if torch.equal(lowest, label):
            return len(cast("Tensor", label.unique()))
        label = lowest


def displacement(graph: Graph, other: Graph, *, group: Tensor | None = None, seed: int = 0) -> float:
    """Say how far apart the neighbours of one graph are in the other's rows: 0 next to each other, 1/2 by chance.

    It is the mean over edges (i, j) of the share of all rows that are nearer to i than j is, in the other's cosines:
    half of the information imbalance (Glielmo et al. 2022, from memory, unverified), with symmetric neighbours. Beyond
    `RANKED` rows it is estimated from that many, drawn by the seed.

    Args:
        graph: Whose edges are followed.
        other: The graph of the same n things in whose rows they are ranked.
        group: (n,) int64; rows of i's own group do not count.
        seed: Of the draw.
    """
    n, device = len(graph.degree), graph.degree.device
    chosen = _drawn(n, RANKED, seed).to(device)
    among = other.rows[chosen]
    cosine = (among @ among.T).fill_diagonal_(-torch.inf)
    allowed = cosine.new_full((len(chosen),), len(chosen) - 1.0)
    if group is not None:
        own = group.to(device)[chosen]
        same = own[:, None] == own
        cosine = cosine.masked_fill(same, -torch.inf)
        allowed = (~same).sum(dim=1).to(cosine)
    place = torch.full((n,), -1, device=device)
    place[chosen] = torch.arange(len(chosen), device=device)
    start, end = graph.matrix.indices()
    start, end = start[place[start] >= 0], end[place[start] >= 0]
    rounding = 8 * torch.finfo(cosine.dtype).eps  # two ways of computing one cosine: j is not nearer than itself
    shares: list[Tensor] = []
    for first in range(0, len(start), RANKED):
        i, j = start[first : first + RANKED], end[first : first + RANKED]
        away = (other.rows[i] * other.rows[j]).sum(dim=1, keepdim=True)
        shares.append((cosine[place[i]] > away + rounding).sum(dim=1) / allowed[place[i]].clamp(min=1))
    return float(torch.cat(shares).double().mean())


def shared_clusters(graph: Graph, other: Graph, *, seed: int = 0) -> int:
    """Say into how many clusters two graphs' rows fall alike: where what two clusterings share is the largest.

    With few large groups finer clusters share less; with many small ones they share more. The least number is kept
    unless another is clearly better.

    Args:
        graph: One graph.
        other: The other, of the same n things.
        seed: Of the `CLUSTERED` rows that are drawn where there are more.

    Returns:
        One of `CLUSTERS`; 0 if clusters are not alike, or rows are too few for any.
    """
    found = alike(graph, other, seed=seed)
    best = max(found, key=lambda number: found[number], default=0)
    if not best or found[best] < ALIKE:
        return 0
    return best if found[best] >= MORE_ALIKE * found[CLUSTERS[0]] else CLUSTERS[0]


def alike(graph: Graph, other: Graph, *, seed: int = 0) -> dict[int, float]:
    """Say what clusterings of two graphs' rows share, for each number of clusters that there are rows enough for.

    Both trees of Ward's method are cut into the same number of clusters, and these compared by their adjusted mutual
    information, which is 0 by chance whatever the number (Vinh et al. 2010, from memory, unverified). Cuts are rough,
    so a number's value is a mean with those half a step above and below it.

    Args:
        graph: One graph.
        other: The other, of the same n things.
        seed: Of the `CLUSTERED` rows that are drawn where there are more.
    """
    from scipy.cluster.hierarchy import fcluster, linkage
    from sklearn.metrics import adjusted_mutual_info_score  # pyright: ignore[reportUnknownVariableType]

    chosen = _drawn(len(graph.degree), CLUSTERED, seed).to(graph.degree.device)
    trees = [linkage(_distances(each.rows[chosen]).cpu().numpy(), "ward") for each in (graph, other)]

    @functools.cache
    def shared(number: int) -> float:
        cuts = (fcluster(tree, number, "maxclust") for tree in trees)
        return float(adjusted_mutual_info_score(*cuts))

    return {
        number: (shared(round(number / 2**0.5)) + 2 * shared(number) + shared(round(number * 2**0.5))) / 4
        for number in CLUSTERS
        if number * FEWEST_ROWS <= len(chosen)
    }


def _distances(rows: Tensor) -> Tensor:
    """Give the Euclidean distances of rows (n, d) at unit length, or 0, one after the other: (n (n - 1) / 2,)."""
    size = rows.square().sum(dim=1)
    above = torch.ones(len(rows), len(rows), dtype=torch.bool, device=rows.device).triu(1)
    return (size[:, None] + size - 2 * rows @ rows.T).clamp(min=0).sqrt()[above]


def _drawn(n: int, most: int, seed: int) -> Tensor:
    """Draw positions, `most` of n, or all in some order."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:most]


def leading(apply: Operator, size: int, count: int, *, example: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Find the largest eigenvalues, in falling order, of a symmetric matrix whose eigenvalues are in [-1, 1].

    Small ones are decomposed whole; else a block of random vectors is multiplied by (S + I) / 2, whose order is that of
    S, and turned into eigenvectors by Rayleigh-Ritz. The tail is then approximate, which a walk does not see.

    Args:
        apply: The matrix.
        size: n.
        count: How many are wanted.
        example: A tensor of the device and precision to compute in.
        seed: Of the random start; torch's global generator is left alone.

    Returns:
        Eigenvalues (count,) and eigenvectors (n, count).
    """
    block = min(size, count + SPARE)
    if size <= DENSE_ROWS or 2 * block >= size:
        whole = apply(torch.eye(size, dtype=example.dtype, device=example.device))
        values, vectors = _falling(whole)
        return values[:count], vectors[:, :count]
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(size, block, generator=generator, dtype=torch.float64).to(example)
    basis = _orthonormal(start)
    for step in range(1, STEPS + 1):
        basis = (apply(basis) + basis) / 2
        if step % EVERY == 0:
            basis = _orthonormal(basis)
    values, turn = _falling(basis.T @ apply(basis))
    return values[:count], basis @ turn[:, :count]


def _falling(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Decompose a matrix that is symmetric but for rounding; the largest eigenvalue first."""
    values, vectors = cast("tuple[Tensor, Tensor]", torch.linalg.eigh((matrix + matrix.T) / 2))
    return values.flip(0), vectors.flip(1)


def _orthonormal(block: Tensor) -> Tensor:
    return cast("Tensor", torch.linalg.qr(block).Q)


def deflated(apply: Operator, direction: Tensor) -> Operator:
    """Move one direction (n,) out of a matrix, to the eigenvalue -1, where no walk comes."""
    v = direction[:, None] / cast("Tensor", direction.norm())

    def without(vectors: Tensor) -> Tensor:
        along = v.T @ vectors
        out = apply(vectors - v @ along)
        return out - v @ (v.T @ out) - v @ along

    return without


def generic_features(x: Tensor) -> Tensor:
    """Describe raw inputs without learning: what the graph of the target is made of, (b, ...) to (b, d).

    Vectors (b, d) stay as they are. Series (b, c, t) get the moduli of their Fourier transform along t beside them, for
    two of one kind seldom begin together. Pictures and spectrograms (b, c, h, w) are blurred a little (3 x 3 mean).
    Series and pictures of more than about 1024 numbers are averaged over time or space to fewer. Anything else is
    flattened.

    Args:
        x: Inputs as the networks read them, without augmentation.
    """
    x = x if x.dtype == torch.float64 else x.float()
    if x.ndim == 3:
        width = max(1, COLUMNS // x.shape[1])
        moduli = cast("Tensor", torch.fft.rfft(x, dim=2)).abs()
        fewer = [F.adaptive_avg_pool1d(s, width) if s.shape[2] > width else s for s in (x, moduli)]
        return torch.cat([s.flatten(1) for s in fewer], dim=1)
    if x.ndim == 4:
        x = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        side = max(1, int((COLUMNS / x.shape[1]) ** 0.5))
        if x.shape[2] * x.shape[3] > side * side:
            x = F.adaptive_avg_pool2d(x, (min(side, x.shape[2]), min(side, x.shape[3])))
    return x.flatten(1)
