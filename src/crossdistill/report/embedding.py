"""Maps of feature spaces: the same test samples as teacher, student and control see them, in two dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA  # pyright: ignore[reportMissingTypeStubs] # scikit-learn has none
from sklearn.manifold import TSNE  # pyright: ignore[reportMissingTypeStubs] # scikit-learn has none
from threadpoolctl import threadpool_limits  # pyright: ignore[reportMissingTypeStubs] # it has none

from crossdistill.report.evidence import Evidence, Maps
from crossdistill.report.svg import blank, style, to_svg

POINTS = 600  # three maps of this size take about five seconds on one core
CLASSES = 12  # more colours cannot be told apart
NEIGHBOURS = 10
COLOURS = (
    "#1f6feb", "#d1495b", "#137a3c", "#c26a00", "#7a4fbf", "#0f8b8d",
    "#b0306e", "#6b8e23", "#5b4636", "#4a5568", "#00a0dc", "#a0522d",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P")


@dataclass(frozen=True, kw_only=True)
class Map:
    """One space: its picture, and how often the nearest neighbours in the full space share the class."""

    title: str
    svg: str
    agreement: float
    width: int


@dataclass(frozen=True, kw_only=True)
class Legend:
    """One class: its name, colour and marker ("o", "s", "^", "D", "v", "P")."""

    name: str
    colour: str
    marker: str


@dataclass(frozen=True, kw_only=True)
class Atlas:
    """All maps of a run.

    Attributes:
        maps: One a space.
        legend: Classes shown.
        points: Samples shown.
        total: Samples stored.
        drawn: Samples of the shown classes, if only some of them are shown, else 0.
        classes: Classes stored.
        neighbours: How many nearest neighbours each agreement is about.
        chance: Share of equal classes among the shown samples if spaces said nothing.
    """

    maps: list[Map]
    legend: list[Legend]
    points: int
    total: int
    drawn: int
    classes: int
    neighbours: int
    chance: float


def draw_maps(maps: Maps, evidence: Evidence) -> Atlas:
    """Choose the samples, project every space and draw it.

    At most 600 samples and the 12 most frequent classes are shown; which samples is drawn with a fixed seed.

    Args:
        maps: Labels (n,) and spaces (n, d).
        evidence: Names of the classes.

    Returns:
        Pictures, legend and what was left out.
    """
    classes, counts = np.unique(maps.labels, return_counts=True)
    shown = np.sort(classes[np.argsort(-counts, kind="stable")[:CLASSES]])
    chosen = np.flatnonzero(np.isin(maps.labels, shown))
    available = len(chosen)
    if available > POINTS:
        chosen = np.sort(np.random.default_rng(0).choice(chosen, POINTS, replace=False))
    labels = maps.labels[chosen]
    names = [evidence.class_name(int(label)) for label in shown]
    same = np.array([np.sum(labels == label) for label in labels])
    k = max(1, min(NEIGHBOURS, int(same.min()) - 1))  # so that a perfect space reaches 100 % in every class
    drawn: list[Map] = []
    for index, (title, features) in enumerate(maps.spaces.items()):
        agreement = neighbour_agreement(features[chosen], labels, k)
        svg = _scatter(project(features[chosen]), labels, shown, names, f"map{index}", title, agreement)
        drawn.append(Map(title=title, svg=svg, agreement=agreement, width=features.shape[1]))
    return Atlas(
        maps=drawn,
        legend=[Legend(name=name, colour=COLOURS[i], marker=MARKERS[i % len(MARKERS)]) for i, name in enumerate(names)],
        points=len(labels),
        total=len(maps.labels),
        drawn=available if available > len(labels) else 0,
        classes=len(classes),
        neighbours=k,
        chance=float(np.mean((same - 1) / max(len(labels) - 1, 1))),
    )


def project(features: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bring features (n, d) to the plane (n, 2): PCA to at most 50 dimensions, then t-SNE (van der Maaten 2008).

    Seed and number of threads are fixed, since the order of a parallel sum changes the map. Features that are all equal
    stay one point.
    """
    centred = features - features.mean(0)
    spread = float(np.abs(centred).max())
    n, d = features.shape
    if spread == 0 or n < 4:
        return np.zeros((n, 2))
    with threadpool_limits(limits=1):
        if d > 2:
            pca: Any = PCA(min(50, n, d), svd_solver="full")
            centred = np.asarray(pca.fit_transform(centred / spread), dtype=np.float64)
        start = np.zeros((n, 2))
        start[:, : min(2, d)] = centred[:, :2]
        start *= 1e-4 / (float(start[:, 0].std()) or 1.0)
        init: Any = start.astype(np.float32)
        tsne: Any = TSNE(init=init, perplexity=min(30.0, (n - 1) / 3), max_iter=500, random_state=0)
        return np.asarray(tsne.fit_transform(centred), dtype=np.float64)


def neighbour_agreement(features: NDArray[np.float64], labels: NDArray[np.int64], k: int) -> float:
    """Share of the k nearest neighbours (Euclidean, full space, itself excluded) that have the sample's class.

    Args:
        features: (n, d).
        labels: (n,).
        k: Number of neighbours, at most n − 1.

    Returns:
        A fraction in [0, 1]; 0 for a single sample.
    """
    k = min(k, len(labels) - 1)
    if k < 1:
        return 0.0
    squares = (features**2).sum(1)
    distances = squares[:, None] - 2 * features @ features.T + squares
    np.fill_diagonal(distances, np.inf)
    nearest = np.argsort(distances, axis=1, kind="stable")[:, :k]
    hits: NDArray[np.bool_] = labels[nearest] == labels[:, None]
    return float(hits.mean())


def _scatter(
    points: NDArray[np.float64],
    labels: NDArray[np.int64],
    shown: NDArray[np.int64],
    names: Sequence[str],
    name: str,
    title: str,
    agreement: float,
) -> str:
    with style():
        figure = blank(300, 280)
        axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
        axes.set_axis_off()
        for index, label in enumerate(shown):
            x, y = points[labels == label].T
            axes.scatter(
                x,
                y,
                s=15,
                c=COLOURS[index],
                marker=MARKERS[index % len(MARKERS)],
                alpha=0.75,
                linewidths=0,
                rasterized=True,
            )
        axes.margins(0.06)
        count = f"map of {len(points)} test samples of {len(names)} classes"
        what = f"{title}: {count}. {agreement:.0%} of nearest neighbours share the class"
        return to_svg(figure, name, what)
