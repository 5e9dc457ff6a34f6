"""The small network in which modalities compete: additive late fusion with smoothed ReLU, trained by gradient descent.

    f_j(x) = sum_r f_j^r(x^r),   f_j^r(x^r) = sum_{l=1..m} sigma( <w_{j,l,r}, x^r> )
    sigma(a) = 0 for a <= 0,   a^q / (q beta^(q-1)) up to beta,   a - (1 - 1/q) beta beyond

While a network is small its neurons grow as dG/dt = rate (1 - 1/c) S G^(q-1), which blows up in finite time: the
modality whose neurons are there first takes the class, and what it has explained the other does not learn any more.

    winner_score      G(0) S^(1 / (q-2)): the larger one wins the class
    hitting_time      steps until a neuron leaves the polynomial zone
    win_probability   of a modality over initial weights, before any training
    FusionNetwork     the network, its training and the same forecast without known features

Source: Huang et al. 2022 (modality competition), of which only abstracts were available: network and rule from memory,
unverified; dynamics and probabilities are our derivation. Shapes: n pairs, r modalities, c classes, m neurons a class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import integrate, stats
from scipy.special import softmax

from crossdistill.errors import ConfigError, DataError
from crossdistill.evaluation._checks import Doubles, Whole


def smoothed_relu(a: ArrayLike, *, q: int = 3, beta: float = 0.5) -> Doubles:
    """Give sigma of the module, any shape; with q = 1 it is ReLU.

    Raises:
        ConfigError: If q < 1 or beta <= 0.
    """
    check_shape(q, beta)
    return _sigma(np.asarray(a, dtype=np.float64), q, beta)[0]


def check_shape(q: int, beta: float) -> None:
    """Refuse what is no smoothed ReLU.

    Raises:
        ConfigError: If q < 1 or beta is not above 0.
    """
    if q < 1 or not 0 < beta < float("inf"):
        raise ConfigError(f"a smoothed ReLU needs q >= 1 and beta > 0; received {q} and {beta}")


def _sigma(a: Doubles, q: int, beta: float) -> tuple[Doubles, Doubles]:
    """Give sigma and its slope."""
    bent = np.clip(a, 0.0, beta)
    ratio = bent / beta
    slope = (a > 0).astype(np.float64) if q == 1 else ratio
    for _ in range(q - 2):
        slope = slope * ratio  # powers of whole numbers, much faster than a power
    return bent * slope / q + np.maximum(a - beta, 0.0), slope


def winner_score(correlation: ArrayLike, strength: ArrayLike, *, q: int = 3) -> Doubles:
    """Give G S^(1/(q-2)), any shape: of two modalities the larger one wins the class.

    Args:
        correlation: G of each class and modality at the start, max_l [<w_jl, feature>]_+.
        strength: S, (1 / (n beta^(q-1))) times the sum over the class of the feature's coordinate to the power q.
        q: Power of the smoothed ReLU, > 2: with 2 or plain ReLU nothing separates.

    Raises:
        ConfigError: If q <= 2.
    """
    if q <= 2:
        raise ConfigError(f"modalities compete where q > 2; received {q}")
    return np.asarray(correlation, dtype=np.float64) * np.asarray(strength, dtype=np.float64) ** (1 / (q - 2))


def hitting_time(
    correlation: float, strength: float, *, q: int = 3, beta: float = 0.5, rate: float = 1.0, classes: float = np.inf
) -> float:
    """Give the steps of gradient descent until a neuron of correlation G reaches beta, where its growth turns linear.

        [ G^(2-q) - beta^(2-q) ] / [ (q-2) rate (1 - 1/classes) S ]

    Raises:
        ConfigError: If q <= 2, or G is not in (0, beta].
    """
    if q <= 2 or not 0 < correlation <= beta:
        raise ConfigError(f"a hitting time needs q > 2 and 0 < correlation <= beta; received {q}, {correlation}")
    return (correlation ** (2 - q) - beta ** (2 - q)) / ((q - 2) * rate * (1 - 1 / classes) * strength)


def win_probability(kappa: float, neurons: int) -> float:
    """Give the probability that the first modality wins a class: P( max_l g_l > kappa [max_l g'_l]_+ and > 0 ).

    Wide networks are won by the stronger modality, narrow ones by lot. p(kappa) + p(1 / kappa) = 1 - 4^-neurons: with
    the rest, no neuron of either starts on the right side and the class is dead.

    Args:
        kappa: (S_2 / S_1)^(1/(q-2)), > 0: how much stronger the other modality is.
        neurons: Gaussian neurons of a class in each modality.

    Raises:
        ConfigError: If a parameter is out of range.
    """
    if not 0 < kappa < float("inf") or neurons < 1:
        raise ConfigError(f"win_probability needs kappa > 0 and neurons >= 1; received {kappa} and {neurons}")

    def density(x: float) -> float:
        own = neurons * stats.norm.pdf(x) * stats.norm.cdf(x) ** (neurons - 1)
        return float(own * stats.norm.cdf(x / kappa) ** neurons)

    return float(integrate.quad(density, 0.0, 12.0, limit=200)[0])  # beyond 12 there is nothing


@dataclass(frozen=True, eq=False)
class FusionNetwork:
    """The network of the module; weights are never changed, training gives another one.

    Attributes:
        weights: Of each modality, (c, m, d_r).
        q: Power of the smoothed ReLU.
        beta: Where it turns linear.
    """

    weights: tuple[Doubles, ...]
    q: int = 3
    beta: float = 0.5

    @classmethod
    def drawn(
        cls,
        widths: Sequence[int],
        classes: int,
        *,
        neurons: int = 8,
        scale: float = 0.01,
        q: int = 3,
        beta: float = 0.5,
        seed: int = 0,
    ) -> FusionNetwork:
        """Draw weights N(0, scale^2); `neurons` below 8 leave some class without any that starts on the right side."""
        check_shape(q, beta)
        rng = np.random.default_rng(seed)
        return cls(tuple(scale * rng.standard_normal((classes, neurons, width)) for width in widths), q, beta)

    def only(self, modality: int) -> FusionNetwork:
        """Give the same network with one modality alone."""
        return FusionNetwork((self.weights[modality],), self.q, self.beta)

    def contributions(self, inputs: Sequence[Doubles]) -> Doubles:
        """Give f^r of each modality, (r, n, c); their sum are the logits."""
        return np.stack([self._branch(w, x)[0] for w, x in zip(self.weights, inputs, strict=True)])

    def correlations(self, features: Sequence[Doubles]) -> Doubles:
        """Give G (c, r) = max_l [<w_jl, feature_j>]_+ for known features (d_r, c) of each modality."""
        found = [np.einsum("cmd,dc->cm", w, m).max(axis=1) for w, m in zip(self.weights, features, strict=True)]
        return np.maximum(np.stack(found, axis=1), 0.0)

    def growth(self, inputs: Sequence[Doubles], code: Whole) -> Doubles:
        """Foretell the winners without knowing features: relative growth (c, r) of the fastest neuron, per unit time.

        max_l d/dt ln phi_l under gradient flow, phi_l = mean over class j of sigma(<w_jl, x>). In the small zone it is
        q rate S G^(q-2), so that the larger one is the larger `winner_score`. A dead class has 0 (our estimator).
        """
        _, slopes = self._errors(inputs, code)
        found = np.zeros((len(self.weights[0]), len(self.weights)))
        for r, (w, x) in enumerate(zip(self.weights, inputs, strict=True)):
            _, value, slope = self._branch(w, x)
            for j in range(len(w)):
                own = code == j
                if not own.any():
                    continue
                phi = value[own, j].mean(axis=0)
                push = slope[own, j].T @ x[own] / own.sum()  # d phi / d w, (m, d)
                rise = -(push * slopes[r][j]).sum(axis=1)
                alive = phi > 0
                found[j, r] = (rise[alive] / phi[alive]).max(initial=0.0)
        return found

    def trained(
        self, inputs: Sequence[Doubles], code: Whole, *, rate: float, steps: int
    ) -> tuple[FusionNetwork, Doubles]:
        """Train all branches together on the cross-entropy of their sum, by full-batch gradient descent.

        Returns:
            The network, and the learning speed of each branch, (r,): the sum over steps of |gradient|^2 / |weights|^2.

        Raises:
            DataError: If the weights leave what numbers can hold: the rate is too high.
        """
        now, speed = self, np.zeros(len(self.weights))
        for _ in range(steps):
            _, gradients = now._errors(inputs, code)
            speed += [np.square(g).sum() / np.square(w).sum() for g, w in zip(gradients, now.weights, strict=True)]
            moved = tuple(w - rate * g for w, g in zip(now.weights, gradients, strict=True))
            now = FusionNetwork(moved, self.q, self.beta)
        if not all(np.isfinite(w).all() for w in now.weights):
            raise DataError(f"training at rate {rate} left the finite numbers; take a lower one")
        return now, speed

    def _branch(self, w: Doubles, x: Doubles) -> tuple[Doubles, Doubles, Doubles]:
        """Give logits (n, c), and sigma and its slope of each neuron (n, c, m)."""
        a = (x @ w.reshape(-1, w.shape[2]).T).reshape(len(x), *w.shape[:2])
        value, slope = _sigma(a, self.q, self.beta)
        return value.sum(axis=2), value, slope

    def _errors(self, inputs: Sequence[Doubles], code: Whole) -> tuple[Doubles, list[Doubles]]:
        """Give the gradient of the loss with respect to logits (n, c), and to each branch's weights."""
        branches = [self._branch(w, x) for w, x in zip(self.weights, inputs, strict=True)]
        error = softmax(np.sum([logits for logits, _, _ in branches], axis=0), axis=1)
        error[np.arange(len(code)), code] -= 1
        error /= len(code)
        gradients = [
            ((error[:, :, None] * slope).reshape(len(x), -1).T @ x).reshape(w.shape)
            for (_, _, slope), w, x in zip(branches, self.weights, inputs, strict=True)
        ]
        return error, gradients
