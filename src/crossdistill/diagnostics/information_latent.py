"""Mutual information of many columns by way of few: latents that are learnt on one half, and counted on the other.

    half of the pairs ─► towers f, g that correlate most ─► canonical latents, the most correlated first
    the other half    ─► KSG (or Ross's, for classes) on the first 1, 2, 3, ... latents ─► the highest

and the same with the halves changed over; the two are averaged. What encoders give of a row says no more than the row
does, so this is in spirit a lower estimate, and a good one where what is shared is of few dimensions.

Source: the approach is that of LMI (Gowri, Lun, Klein and Yin 2024), re-implemented on our own. Theirs trains encoders
by decoding both sides and takes 8 latents. Ours trains them to correlate (the "soft" maximal correlation loss, from
memory, unverified), which needs no decoder; starts from linear canonical directions, and keeps to these where a network
adds nothing; takes as few latents as carry the information (the authors advise the number with the highest estimate);
and corrects KSG, which is low for many latents, by the Gaussian of equal size of which it says the same (our own).

Shapes: n rows, d and e columns, m rows of a half, w latents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from crossdistill.diagnostics.information_knn import ksg, ross, untied
from crossdistill.diagnostics.information_known import KnownGaussians
from crossdistill.diagnostics.information_networks import Canonical, Floats, Towers, canonical, trained, whitening
from crossdistill.evaluation._checks import Doubles, Whole

MOST = 16
"""Latents at most."""
TRIED = (1, 2, 3, 4, 6, 8, 11, MOST)
"""How many of them are tried."""
TOLERANCE = 0.03
"""Nats, or share of the estimate where that is above 1, by which more latents or a network must be better than fewer or
none: about the noise of KSG on 1000 rows, so that the highest is not the luckiest."""
STEPS = 100
"""Of training at most: what is not linear is found within 50, and directions beyond the strongest are not wanted."""
LEAST_CORRELATION, MOST_CORRELATION = 0.05, 0.9999


@dataclass(frozen=True, eq=False)
class Latents:
    """Latents of one part of the pairs, learnt on another, standardised.

    Attributes:
        rows: (m,) which pairs they are of.
        x: (m, w), the most correlated first.
        y: (m, w); of classes, the latents of their indicators.
    """

    rows: Whole
    x: Doubles
    y: Doubles


class LatentInformation:
    """Information of any rows, the encoders held fixed; made by `latent_information`.

    Attributes:
        width: Latents that were taken.
        network: Whether those of the networks, or of the linear directions they started from.
        plain: The estimate on all rows before the correction.
        shares: How the information is spread over the latents, (width,), adding up to 1.
    """

    def __init__(self, halves: Sequence[Latents], code: Whole | None, k: int, width: int, network: bool, seed: int):
        self._halves, self._code, self._k, self._seed = halves, code, k, seed
        self.width, self.network = width, network
        self._known: dict[int, KnownGaussians] = {}
        self.shares: Doubles = np.mean([_shares(half, width) for half in halves], axis=0)
        every = np.ones(sum(len(half.rows) for half in halves), dtype=bool)
        self.plain, size = self._plain(every)
        self._step = max(1, size // 4)  # sizes of a half are rounded to this, so that sub-samples share corrections

    def __call__(self, rows: Whole) -> float:
        """Estimate from some of the pairs, whole numbers (any,)."""
        chosen = np.zeros(sum(len(half.rows) for half in self._halves), dtype=bool)
        chosen[rows] = True
        value, size = self._plain(chosen)
        return value if self._code is not None else self._corrected(value, size)

    def _plain(self, chosen: np.ndarray) -> tuple[float, int]:
        """Average over both halves; also the rows of a half."""
        values: list[float] = []
        sizes: list[int] = []
        for half in self._halves:
            here = np.flatnonzero(chosen[half.rows])
            code = None if self._code is None else self._code[half.rows[here]]
            values.append(_counted(half.x[here], half.y[here], code, self.width, self._k))
            sizes.append(len(here))
        return float(np.mean(values)), round(float(np.mean(sizes)))

    def _corrected(self, value: float, size: int) -> float:
        """Give the information of the Gaussian of which KSG says `value`, its correlations like those found."""
        size = max(self._k + 1, self._step * round(size / self._step))
        if size not in self._known:
            columns = (self.width, self.width)
            self._known[size] = KnownGaussians(size, columns, self.shares, k=self._k, seed=self._seed)
        return self._known[size].truth(value)


def latent_information(
    x: Doubles, y: Doubles, code: Whole | None, halves: tuple[Whole, Whole], *, k: int = 3, seed: int = 0
) -> LatentInformation:
    """Learn latents and choose how many to take.

    Args:
        x: (n, d), standardised.
        y: (n, e), standardised; of classes, their indicators.
        code: (n,) classes 0 .. c - 1 where y is of classes, else None.
        halves: Rows of the two, whole numbers, which no group is in both of.
        k: Neighbours.
        seed: Of the networks.
    """
    found: dict[bool, list[Latents]] = {False: [], True: []}
    for rows, held_out in (halves, halves[::-1]):
        cut = len(rows) * 3 // 4
        towers = trained(x, y, rows[:cut], rows[cut:], _start, _loss, steps=STEPS, seed=seed)
        for network, latents in _learnt(x, y, rows, held_out, towers).items():
            found[network].append(latents)
    scores: dict[tuple[bool, int], float] = {}
    for network, both in found.items():
        widest = min(latents.x.shape[1] for latents in both)
        for width in sorted({w for w in TRIED if w < widest} | {widest}):
            each = [_counted(h.x, h.y, None if code is None else code[h.rows], width, k) for h in both]
            scores[network, width] = float(np.mean(each))
    highest = max(scores.values())
    enough = highest - TOLERANCE * max(1.0, highest)
    network, width = next(key for key, score in scores.items() if score >= enough)  # linear and few latents first
    return LatentInformation(found[network], code, k, width, network, seed)


def _start(directions: Canonical, rng: np.random.Generator) -> tuple[Doubles, Doubles]:
    """Begin at canonical directions, scaled as the loss has them at its optimum; the rest are small and random."""
    size = np.sqrt(directions.correlations[:MOST])

    def filled(found: Doubles) -> Doubles:
        spare = rng.normal(size=(len(found), MOST - len(size)))
        return np.concatenate([found[:, : len(size)] * size, 0.1 * spare / len(found) ** 0.5], axis=1)

    return filled(directions.x), filled(directions.y)


def _loss(f: Floats, g: Floats) -> tuple[float, Callable[[], tuple[Floats, Floats]]]:
    """Give -mean f.g + 1/2 <cov f, cov g> of centred f and g (b, w): least where they are maximally correlated.

    Also what gives its gradients, which need no centring of their own: f and g are centred.
    """
    f, g, share = f - f.mean(axis=0), g - g.mean(axis=0), 1 / max(1, len(f) - 1)
    of_f: Floats = share * (f.T @ f)
    of_g: Floats = share * (g.T @ g)
    value = float(np.vdot(of_f, of_g)) / 2 - share * float(np.vdot(f, g))
    return value, lambda: (share * (f @ of_g - g), share * (g @ of_f - f))


def _learnt(x: Doubles, y: Doubles, rows: Whole, held_out: Whole, towers: Towers) -> dict[bool, Latents]:
    """Give held-out latents, without the networks (False) and, where training came to something, with them (True)."""
    sides = {False: (towers.of_x(x), towers.of_y(y)), True: towers(x, y)}
    found: dict[bool, Latents] = {}
    for network, (f, g) in sides.items():
        f, g = whitening(f[rows])(f), whitening(g[rows])(g)
        directions = canonical(f[rows], g[rows])
        f, g = (f @ directions.x[:, :MOST])[held_out], (g @ directions.y[:, :MOST])[held_out]
        found[network] = Latents(held_out, _standard(f), _standard(g))
    return found


def _standard(z: Doubles) -> Doubles:
    spread = z.std(axis=0)
    return untied((z - z.mean(axis=0)) / np.where(spread > 0, spread, 1.0))


def _counted(x: Doubles, y: Doubles, code: Whole | None, width: int, k: int) -> float:
    if code is None:
        return ksg(x[:, :width], y[:, :width], k)
    return ross(x[:, :width], code, k)


def _shares(half: Latents, width: int) -> Doubles:
    """Give how the Gaussian information of a half is spread over its latents, (width,), adding up to 1."""
    r = np.clip((half.x * half.y).mean(axis=0)[:width], LEAST_CORRELATION, MOST_CORRELATION)
    each = -0.5 * np.log1p(-(r**2))
    return each / each.sum()
