"""Which modality wins when two are trained together, per class, was it foretold, and what does it cost?

Small late-fusion networks are trained on two arrays of features, together and apart. `competition_report` says the same
of one's own network.

Source: Huang et al. 2022, see `fusion_network`; networks, splits and forecasts without known features are ours.
Shapes: n pairs, c classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import linalg
from scipy.special import log_softmax

from crossdistill.diagnostics.competition_report import CompetitionReport, competition_report, right_rows
from crossdistill.diagnostics.estimate import Estimate, check_level
from crossdistill.diagnostics.fusion_network import FusionNetwork
from crossdistill.diagnostics.labelled import Counted, labelled_pairs
from crossdistill.diagnostics.probes import FOLDS, block, dealt_folds
from crossdistill.errors import ConfigError, NotMeaningful
from crossdistill.evaluation import mean_interval
from crossdistill.evaluation._checks import Doubles, Whole

MOST_PAIRS, MOST_COLUMNS = 500, 64
"""That the small networks are trained on: pairs, and leading principal components of each modality."""
STEPS = 300
SHORT = STEPS // 50
"""The probe: 2 % of the steps."""


@dataclass(frozen=True, eq=False)
class Competition:
    """Who wins when small networks are trained on both modalities; made by `modality_competition`.

    Attributes:
        classes: (c,) labels.
        source_won: (seeds, c) bool, of the trained networks.
        foretold: (seeds, c) bool, by the initial network.
        probed: (seeds, c) bool, by the network after 2 % of the steps.
        source_share: Share of classes that the source wins.
        agreement: Share of classes where the initial network foretold the winner; 0.5 is chance where both win alike.
        probe_agreement: Likewise after 2 % of the steps.
        flip_rate: How often two seeds disagree about a class: 0 where strength decides, near 0.5 where the lot does.
        failure: Modality to the share of classes that its branch failed, by seeds.
        learning_lead: log10 of the source's learning speed over the target's.
        joint: Held-out accuracy of the joint networks.
        alone: Modality to that of networks trained on it alone.
        headroom: "ensemble" and "best" of those less the joint one's: what competition costs, in these networks.
        reports: Of each seed.
    """

    classes: np.ndarray
    source_won: np.ndarray
    foretold: np.ndarray
    probed: np.ndarray
    source_share: Estimate
    agreement: Estimate
    probe_agreement: Estimate
    flip_rate: float
    failure: Mapping[str, Estimate]
    learning_lead: Estimate
    joint: Estimate
    alone: Mapping[str, Estimate]
    headroom: Mapping[str, Estimate]
    reports: tuple[CompetitionReport, ...]


def modality_competition(
    source: ArrayLike,
    target: ArrayLike,
    labels: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    seeds: int = 5,
    neurons: int = 8,
    level: float = 0.95,
    seed: int = 0,
) -> Competition:
    """Train small late-fusion networks on two modalities, together and apart, and say who wins which class.

    Features are standardised and brought to at most 64 leading components each; one factor for both makes the mean
    length of class means 1, so that the two keep their relative strength. Smoothed ReLU with q = 3 and beta = 0.5,
    weights N(0, 0.01^2), 300 steps of gradient descent at rate c / 3; three fifths of the pairs, at most 500, are
    trained on, the others judge (our choices). All that is said is of these networks, and of one's own only as far as
    it is like them; for that there is `competition_report`.

    Args:
        source: (n, any) features.
        target: (n, any); row i is of the same pair.
        labels: (n,) classes; -1 where unknown, left out.
        groups: (n,) what must not be split between training and held-out pairs.
        seeds: Networks, each with weights of its own, >= 2; intervals of shares are Student's over them.
        neurons: Of a class in each modality; below 8 some class may start dead, and wide networks leave less to the
            lot.
        level: Of the intervals.
        seed: Of the split and of the weights.

    Raises:
        DataError: If shapes do not fit or a number is not finite.
        ConfigError: If a parameter is out of range.
        NotMeaningful: If there are fewer than two classes, one has fewer than 10 rows or is on one side of the split
            alone, or a modality is constant.

    Examples:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> y = rng.integers(0, 4, size=400)
        >>> strong, weak = rng.normal(size=(2, 4, 6)) * [[[2.0]], [[0.5]]]
        >>> found = modality_competition(
        ...     strong[y] + rng.normal(size=(400, 6)), weak[y] + rng.normal(size=(400, 6)), y, seeds=3
        ... )
        >>> found.source_share.value > 0.8, found.headroom["ensemble"].n
        (True, 160)
    """
    check_level(level)
    if seeds < 2 or neurons < 1:
        raise ConfigError(f"competition needs seeds >= 2 and neurons >= 1; received {seeds} and {neurons}")
    x, y, label, group = labelled_pairs("source", source, "target", target, labels, groups, seed)
    classes, code = np.unique(label, return_inverse=True)
    rng = np.random.default_rng(seed)
    unit = np.arange(len(code)) if group is None else np.unique(group, return_inverse=True)[1]
    fold = dealt_folds(code, unit, rng)
    train = rng.permutation(np.flatnonzero(fold >= FOLDS * 2 // 5))[:MOST_PAIRS]
    held = np.flatnonzero(fold < FOLDS * 2 // 5)
    if min(len(np.unique(code[part])) for part in (train, held)) < len(classes):
        raise NotMeaningful("some class is on one side of the split alone; its groups or its rows are too few")
    sides = _scaled([_components(block(side, rng), train) for side in (x, y)], code, train)
    seen, asked = [side[train] for side in sides], [side[held] for side in sides]
    runs = [
        _run(seen, code[train], asked, code[held], neurons, seed + i, None if group is None else group[held], level)
        for i in range(seeds)
    ]
    count = Counted(None if group is None else group[held], len(held), level)
    settings = {"seeds": seeds, "neurons": neurons, "q": 3, "beta": 0.5, "steps": STEPS, "trained_on": len(train)}
    won, foretold, probed = (np.stack([one[key] for one in runs]) for key in ("won", "foretold", "probed"))
    share = won.mean(axis=0)
    names = ("source", "target")

    def over_seeds(values: np.ndarray, kind: str) -> Estimate:
        found = mean_interval(values, level=level)
        error = float(values.std(ddof=1)) / seeds**0.5
        return Estimate(found.value, error, found.low, found.high, seeds, level, kind, settings)

    def over_rows(key: str, kind: str) -> Estimate:
        return count.mean(np.mean([one[key] for one in runs], axis=0), kind, settings)

    failure = np.array([[one["report"].failed[name] for name in names] for one in runs])
    return Competition(
        classes,
        won,
        foretold,
        probed,
        over_seeds(won.mean(axis=1), "t over seeds, share of classes"),
        over_seeds((won == foretold).mean(axis=1), "t over seeds, share of classes"),
        over_seeds((won == probed).mean(axis=1), "t over seeds, share of classes"),
        float((2 * share * (1 - share)).mean() * seeds / (seeds - 1)),
        {name: over_seeds(failure[:, r], "t over seeds, share of classes") for r, name in enumerate(names)},
        over_seeds(np.array([one["lead"] for one in runs]), "t over seeds"),
        over_rows("joint", "accuracy, mean over seeds"),
        {name: over_rows(name, "accuracy alone, mean over seeds") for name in names},
        {name: over_rows(name, "accuracy less the joint network's, mean over seeds") for name in ("ensemble", "best")},
        tuple(one["report"] for one in runs),
    )


def _run(
    seen: list[Doubles], code: Whole, asked: list[Doubles], truth: Whole, neurons: int, seed: int,
    group: np.ndarray | None, level: float,
) -> dict[str, Any]:  # fmt: skip
    """Train one network on both modalities and on each alone, and give its figures."""
    c = int(code.max()) + 1
    start = FusionNetwork.drawn([x.shape[1] for x in seen], c, neurons=neurons, seed=seed)
    rate = c / 3
    foretold, probed = (net.growth(seen, code).argmax(axis=1) == 0
                        for net in (start, start.trained(seen, code, rate=rate, steps=SHORT)[0]))  # fmt: skip
    joint, speed = start.trained(seen, code, rate=rate, steps=STEPS)
    branches = joint.contributions(asked)
    alone = [
        start.only(r).trained([x], code, rate=rate, steps=STEPS)[0].contributions([asked[r]])[0]
        for r, x in enumerate(seen)
    ]
    report = competition_report(
        dict(zip(("source", "target"), branches, strict=True)),
        truth,
        alone=dict(zip(("source", "target"), alone, strict=True)),
        groups=group,
        level=level,
    )
    right, own = right_rows(branches.sum(axis=0), truth), [right_rows(logits, truth) for logits in alone]
    return {
        "won": report.contribution.argmax(axis=0) == 0,
        "foretold": foretold,
        "probed": probed,
        "lead": float(np.log10(speed[0] / speed[1])),
        "joint": right,
        "source": own[0],
        "target": own[1],
        "ensemble": right_rows(log_softmax(np.stack(alone), axis=2).sum(axis=0), truth) - right,
        "best": max(own, key=lambda r: float(r.mean())) - right,
        "report": report,
    }


def _components(x: Doubles, train: Whole) -> Doubles:
    """Give at most `MOST_COLUMNS` leading principal components, found on training pairs."""
    x = x - x[train].mean(axis=0)
    if x.shape[1] <= MOST_COLUMNS:
        return x
    d = x.shape[1]
    gram = x[train].T @ x[train]
    return x @ linalg.eigh(gram, subset_by_index=[d - MOST_COLUMNS, d - 1], check_finite=False)[1]


def _scaled(sides: list[Doubles], code: Whole, train: Whole) -> list[Doubles]:
    """Multiply both modalities by one factor, that makes the mean length of class means 1."""
    lengths = [
        np.linalg.norm(side[train][code[train] == j].mean(axis=0)) for side in sides for j in np.unique(code[train])
    ]
    if min(float(np.abs(side).max(initial=0.0)) for side in sides) == 0:
        raise NotMeaningful("a modality is constant; there is nothing to compete with")
    return [side / np.mean(lengths) for side in sides]
