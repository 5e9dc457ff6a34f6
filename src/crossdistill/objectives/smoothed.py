"""Coordinates of all pairs in which a walk on their neighbourhoods has made alike what belongs together.

Plain arrays in, plain arrays out; no label is read. See `focused` for what they are for, and the sources.
"""

from __future__ import annotations

import functools
import math
import warnings
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from crossdistill.errors import ConfigError, ObjectiveError, suggest
from crossdistill.nearest import Search, check_search
from crossdistill.objectives._graph import (
    Graph,
    Operator,
    check_features,
    components,
    deflated,
    displacement,
    leading,
    neighbour_graph,
    shared_clusters,
)
from crossdistill.objectives.base import full_precision, unit
from crossdistill.registry import Pairing

LONGEST, STEP = 8.0, 0.5
"""An automatic walk's length: its cap, and what it is a multiple of."""
WALKED_TO = 10.0
"""The participation that an automatic walk stops at, unless both graphs share many clusters."""

LEAST_SHARE, SHARPNESS = 0.25, 4
"""An automatic share of the target's graph: where it is not the better one, and how sharply it grows where it is."""


class SmoothedTarget:
    """Coordinates whose cosines say how alike the walks from two pairs are; plain arrays in, plain arrays out.

        S = (1 - beta) S_teacher + beta S_target                  "mix"
        S = S_teacher S_target S_teacher, with t / 3 for t        "product"
        S = U diag(w) U^T,   Y = U (max(w, 0) / w_1)^t            without the trivial eigenvector

    so Y Y^T = S^2t without its negative part, up to the factor w_1^-2t, w_1 the largest w: without it a long walk would
    underflow to zero, and cosines do not depend on it. S_teacher and S_target are the graphs of `neighbour_graph`. The
    trivial eigenvector of one graph is sqrt(D), which is deflated. A mix has none in closed form: its first one is
    dropped where the graph is connected, and the mean of both sqrt(D) is deflated where it is not.

    Args:
        k: Neighbours; 10, and 20 was as good (measured).
        target_share: beta in [0, 1], the share of the target's own graph: 0 is the teacher's alone, 1 the target's
            alone. "auto", the default, trusts the graph whose neighbours stay neighbours in the other modality:

                beta = r / (r + 3),   r = max(1, a / b)^4

            with a how far apart the teacher's neighbours are in the target's features, and b the target's in the
            teacher's, both as the mean share of rows that are nearer, 1/2 by chance: a quarter, or more where the
            target knows more of the teacher than the teacher of it. It stays a quarter where pairs were matched by
            label: they share the class alone, and a and b tell of what else there is. The rule is ours
            (docs/benchmarks/focused.md).
        combine: "mix", or "product" (alternating diffusion), which has no beta.
        walk: t, at least 0. "auto", the default, is the smallest multiple of 0.5 whose participation is at most 10, and
            8 at most: walks are short where neighbourhoods are loose. Where both graphs fall into 40 clusters or more
            alike (`shared_clusters`) it ends at half of their number, or of the coordinates where that is less, as a
            longer one would merge small classes. Neither one graph alone nor rows with groups are asked for clusters.
        n_coords: m at most; 128.
        seed: Of the eigenvector solver's start.
        n_classes_hint: Classes that one hopes to tell apart: the walk is made no longer than keeps the participation
            (sum f)^2 / sum f^2, f = w^2t, at that number, or at half of the coordinates where that is less, and "auto"
            is the longest such. None knows of none.
        affinity: "linear" is the limit S = Z Z^T of the teacher's raw rows, nothing centred and nothing dropped: with
            walk 0.5 the cosines of Y are the teacher's own.
        search: How neighbours are looked for: "exact", "approximate" (needs faiss), or "auto", which is exact up to
            50,000 pairs and on an accelerator.

    Attributes:
        coordinates: Y (n, m).
        eigenvalues: w of the coordinates (m,).
        participation: About how many coordinates count after the walk.
        n_components: Connected components of the graph.
        walk: t, chosen where it was "auto".
        target_share: beta, chosen where it was "auto".

    Raises:
        ConfigError: If a parameter is out of range.
    """

    coordinates: Tensor
    eigenvalues: Tensor
    participation: float
    n_components: int
    walk: float
    target_share: float

    def __init__(
        self,
        k: int = 10,
        target_share: float | Literal["auto"] = "auto",
        *,
        combine: Literal["mix", "product"] = "mix",
        walk: float | Literal["auto"] = "auto",
        n_coords: int = 128,
        seed: int = 0,
        n_classes_hint: int | None = None,
        affinity: Literal["local", "linear"] = "local",
        search: Search = "auto",
    ) -> None:
        check_search(search)
        if k < 1 or n_coords < 1:
            raise ConfigError(f"k and n_coords must be at least 1; received {k} and {n_coords}")
        if target_share != "auto" and not 0 <= target_share <= 1:
            raise ConfigError(f"target_share must be in [0, 1], or 'auto'; received {target_share!r}")
        if combine not in ("mix", "product"):
            raise ConfigError(f"combine must be 'mix' or 'product'; received '{combine}'")
        if walk != "auto" and not (math.isfinite(walk) and walk >= 0):
            raise ConfigError(f"walk must be a number at least 0, or 'auto'; received {walk!r}")
        if n_classes_hint is not None and n_classes_hint < 2:
            raise ConfigError(f"n_classes_hint must be at least 2; received {n_classes_hint}")
        if affinity not in ("local", "linear"):
            raise ConfigError(f"affinity must be 'local' or 'linear'; received '{affinity}'")
        self.k, self.combine, self._asked, self._asked_share = k, combine, walk, target_share
        if target_share != "auto":
            self.target_share = float(target_share)
        self.n_coords, self.seed, self.n_classes_hint = n_coords, seed, n_classes_hint
        self.affinity: Literal["local", "linear"] = affinity
        self.search: Search = search
        self._graphs: dict[str, Graph] = {}

    @full_precision
    @torch.no_grad()
    def fit(
        self,
        z_teacher: Tensor | None,
        features_target: Tensor | None = None,
        group: Tensor | None = None,
        *,
        pairing: Pairing = "natural",
    ) -> SmoothedTarget:
        """Compute the coordinates of n pairs; twice the same on the same machine.

        Args:
            z_teacher: (n, d_t) the teacher's features; None is for target_share 1 alone, which does not read them.
            features_target: (n, d_h) generic features of the target's samples, see `generic_features`. None takes the
                teacher's graph alone, with a warning where a share was asked for.
            group: (n,) int64; pairs of one group are no neighbours.
            pairing: "natural" for pairs of one event, "class" where they were matched by label; an automatic
                share asks.

        Returns:
            Itself.

        Raises:
            ObjectiveError: If rows are fewer than 4 k, not finite, all the same, or no pairs; or have too few
                neighbours outside their group; or if pairing is no such word.
        """
        if pairing not in get_args(Pairing):
            raise ObjectiveError(f"pairing is '{pairing}'{suggest(pairing, get_args(Pairing))}")
        needs_teacher, shared = self.reads_teacher, self.reads_target
        if features_target is None and shared and self.affinity == "local":
            if z_teacher is None:
                raise ObjectiveError("a target of no features at all: give z_teacher, features_target, or both")
            warnings.warn("no features of the target: the teacher's graph stands alone", stacklevel=2)
            shared, needs_teacher = False, True
        if z_teacher is None and (needs_teacher or self.affinity == "linear"):
            raise ObjectiveError("z_teacher may be left out with target_share 1 alone, and never of affinity 'linear'")
        if z_teacher is not None and features_target is not None and len(z_teacher) != len(features_target):
            raise ObjectiveError(
                f"rows must be pairs; received {len(z_teacher)} of the teacher, {len(features_target)} of the target"
            )
        if self.affinity == "linear":
            assert z_teacher is not None
            return self._fit_linear(z_teacher)
        given = {"teacher": z_teacher if needs_teacher else None, "target": features_target if shared else None}
        read = {name: check_features(rows) for name, rows in given.items() if rows is not None}
        n = len(next(iter(read.values())))
        if n < 4 * self.k:
            raise ObjectiveError(f"k={self.k} neighbours need at least {4 * self.k} pairs; received {n}; lower k")
        precise = functools.reduce(torch.promote_types, (rows.dtype for rows in read.values()))
        self._graphs = {
            name: neighbour_graph(
                rows.to(precise), self.k, standardise=name == "target", group=group, search=self.search
            )
            for name, rows in read.items()
        }
        if self._asked_share == "auto":
            self.target_share = self._trusted(group, pairing)
        self._grouped = group is not None
        self._solve()
        return self

    @property
    def reads_teacher(self) -> bool:
        """Whether `fit` needs the teacher's features."""
        return self._asked_share != 1 or self.combine == "product"

    @property
    def reads_target(self) -> bool:
        """Whether `fit` wants features of the target."""
        return self._asked_share != 0 or self.combine == "product"

    def _trusted(self, group: Tensor | None, pairing: Pairing) -> float:
        """Give the target's graph the larger a share, the nearer its neighbours stay in the teacher's features."""
        if len(self._graphs) == 1:
            return 0.0
        if pairing == "class":
            return LEAST_SHARE
        teacher, target = self._graphs["teacher"], self._graphs["target"]
        a = displacement(teacher, target, group=group, seed=self.seed)
        b = displacement(target, teacher, group=group, seed=self.seed)
        heard = max(a, b) ** SHARPNESS
        return heard / (heard + (1 / LEAST_SHARE - 1) * b**SHARPNESS) if heard > 0 else LEAST_SHARE

    def _clusters(self) -> int:
        """Count the clusters that both graphs share; one graph shares none, and groups would be their own."""
        known = len(self._graphs) == 2 and not self._grouped
        return shared_clusters(*self._graphs.values(), seed=self.seed) if known else 0

    def _fit_linear(self, z: Tensor) -> SmoothedTarget:
        """Decompose Z Z^T, whose eigenvectors are the left singular ones of Z; kept at unit length."""
        rows = unit(check_features(z))
        left, singular, _ = cast("tuple[Tensor, Tensor, Tensor]", torch.linalg.svd(rows, full_matrices=False))
        self.n_components = 1
        self._keep(left[:, : self.n_coords], singular[: self.n_coords].square(), exponent=1.0)
        return self

    def _solve(self) -> None:
        graphs = self._graphs
        first = next(iter(graphs.values()))
        n, single = len(first.degree), len(graphs) == 1
        self.n_components = components(*graphs.values())
        apply, wanted = self._operator(), min(self.n_coords, n - 1)
        if single or self.n_components > 1:
            apply = deflated(apply, self._trivial())
            values, vectors = leading(apply, n, wanted, example=first.degree, seed=self.seed)
        else:
            values, vectors = leading(apply, n, wanted + 1, example=first.degree, seed=self.seed)
            values, vectors = values[1:], vectors[:, 1:]
        self._keep(vectors, values, exponent=1 / 3 if self.combine == "product" and not single else 1.0)

    def _operator(self) -> Operator:
        graphs = self._graphs
        if len(graphs) == 1:
            return next(iter(graphs.values()))
        teacher, target, share = graphs["teacher"], graphs["target"], self.target_share
        if self.combine == "product":
            return lambda v: teacher(target(teacher(v)))
        return lambda v: (1 - share) * teacher(v) + share * target(v)

    def _shares(self) -> dict[str, float]:
        """Say how much each graph counts in the trivial direction, and for new pairs."""
        if len(self._graphs) == 1:
            return dict.fromkeys(self._graphs, 1.0)
        if self.combine == "product":
            return {"teacher": 1.0, "target": 0.0}
        return {"teacher": 1 - self.target_share, "target": self.target_share}

    def _trivial(self) -> Tensor:
        """Give the direction that says nothing: sqrt(D), of a mix the shares' mean of both."""
        share, roots = self._shares(), {name: graph.degree.sqrt() for name, graph in self._graphs.items()}
        return torch.stack([share[name] * root / root.norm() for name, root in roots.items()]).sum(dim=0)

    def _keep(self, vectors: Tensor, values: Tensor, *, exponent: float) -> None:
        """Choose the walk, and weigh the eigenvectors by it."""
        positive = values.clamp(min=0)
        relative = positive / positive.max().clamp(min=torch.finfo(values.dtype).tiny)

        def participation(t: float) -> float:
            f = relative.double() ** (2 * t * exponent)
            return float(f.sum() ** 2 / f.square().sum().clamp(min=torch.finfo(torch.float64).tiny))

        lengths = [STEP * number for number in range(1, int(LONGEST / STEP) + 1)]
        wanted = min(self.n_classes_hint or 0, len(values) / 2)  # more than that leaves the walk nothing to do
        longest = [t for t in lengths if participation(t) >= wanted]
        if self._asked != "auto":
            self.walk = float(self._asked)
        elif self.n_classes_hint is None:
            stop = max(WALKED_TO, min(self._clusters() / 2, len(values) / 2))
            self.walk = next((t for t in lengths if participation(t) <= stop), LONGEST)
        else:
            self.walk = LONGEST
        if self.n_classes_hint is not None:
            self.walk = min(self.walk, max(longest, default=STEP))
        power = self.walk * exponent
        self.eigenvalues, self.participation = values, participation(self.walk)
        self.coordinates = vectors * relative**power
        # Nyström: a new row of S, times U w^(power - 1) up to a factor; a walk below one step counts as one.
        self._landing = torch.where(positive > 0, vectors * relative ** max(power - 1, 0.0), 0.0)
        if len(self._graphs) == 2 and self.combine == "product":
            self._landing = self._graphs["target"](self._graphs["teacher"](self._landing))

    @full_precision
    @torch.no_grad()
    def extend(self, z_teacher: Tensor | None, features_target: Tensor | None = None) -> Tensor:
        """Place new pairs among those that were fitted, by their neighbours there (Nyström's extension).

        Args:
            z_teacher: (b, d_t) the teacher's features of new pairs.
            features_target: (b, d_h) generic features of their targets; where they, or the teacher's, are not known,
                the other graph alone places them.

        Returns:
            Coordinates (b, m); only their directions mean something.

        Raises:
            ObjectiveError: If nothing was fitted, neither side can be placed, or rows are not as wide as those fitted.
        """
        if not self._graphs:
            raise ObjectiveError("nothing was fitted with neighbours, so new pairs cannot be placed: call fit first")
        share = self._shares()
        given = {"teacher": z_teacher, "target": features_target}
        landed = [
            share[name] * graph.landing(rows, self._landing)
            for name, graph in self._graphs.items()
            if share[name] and (rows := given[name]) is not None
        ]
        if not landed:
            raise ObjectiveError(f"new pairs are placed by the features of {' or '.join(self._graphs)}; none are given")
        return torch.stack(landed).sum(dim=0)
