"""Reports on competition: identities of the numbers, and who wins where one modality is plainly stronger."""

import doctest

import numpy as np
import pytest

from crossdistill.diagnostics import competition
from crossdistill.diagnostics.competition import modality_competition
from crossdistill.diagnostics.competition_report import LearningSpeed, competition_report, probe_gap
from crossdistill.errors import ConfigError, DataError, NotMeaningful


def views(strengths=(1.5, 0.6), n=300, classes=4, width=6, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, size=n)
    means = [strength * rng.normal(size=(classes, width)) for strength in strengths]
    return *(m[y] + rng.normal(size=(n, width)) for m in means), y


def logits(n=120, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    right = np.eye(classes)[y]
    return 3 * right + rng.normal(size=(n, classes)), 0.7 * right + rng.normal(size=(n, classes)), y


def test_the_numbers_are_what_their_definitions_say():
    a, b, y = logits()
    bias = np.array([0.3, -0.2, 0.0])
    found = competition_report({"a": a, "b": b}, y, bias=bias, alone={"b": b + 1, "a": a})
    right = lambda z: (z.argmax(1) == y).mean()  # noqa: E731
    assert found.joint.value == right(a + b + bias)
    assert found.branch["b"].value == right(b + bias)
    assert found.utilisation["a"].value == pytest.approx(1 - right(a.mean(0) + b + bias) / found.joint.value)
    for r, (part, alone) in enumerate(((a, a), (b, b + 1))):
        for j in range(3):
            own = y == j
            assert found.contribution[r, j] == pytest.approx(part[own, j].mean() - part[:, j].mean())
            assert found.recall[r, j] == pytest.approx(((part + bias)[own].argmax(1) == j).mean())
            assert found.recall_alone[r, j] == pytest.approx((alone[own].argmax(1) == j).mean())
    log_p = [z - np.logaddexp.reduce(z, axis=1, keepdims=True) for z in (a, b)]
    assert found.headroom["ensemble"].value == pytest.approx(right(log_p[0] + log_p[1]) - found.joint.value)
    assert found.headroom["best"].value == pytest.approx(max(right(a), right(b)) - found.joint.value)
    assert found.winners == ("a", "a", "a")
    assert found.win_share == {"a": 1, "b": 0}


def test_exchanged_modalities_exchange_rows_and_renamed_classes_permute_the_table():
    a, b, y = logits()
    found, swapped = competition_report({"a": a, "b": b}, y), competition_report({"b": b, "a": a}, y)
    np.testing.assert_array_equal(found.recall, swapped.recall[::-1])
    assert found.win_share == swapped.win_share
    order = np.array([2, 0, 1])
    moved = competition_report({"a": a[:, order], "b": b[:, order]}, np.argsort(order)[y])
    np.testing.assert_allclose(moved.contribution, found.contribution[:, order])


def test_a_branch_that_says_nothing_is_unused_and_the_only_one_that_does_is_all():
    a, _, y = logits()
    found = competition_report({"a": 20 * a, "b": np.zeros_like(a)}, y, alone={"a": a, "b": a})
    assert found.utilisation["b"].value == found.utilisation["b"].standard_error == 0
    chance = 1 / 3  # a constant is right about one class
    assert found.utilisation["a"].value == pytest.approx(1 - chance / found.joint.value)
    assert found.failed["a"] == 0
    assert found.failed["b"] == pytest.approx(2 / 3)
    gap = competition_report({"a": a, "b": a}, y).joint
    low = {"a": gap.__class__(-0.2, 0.0, None, None, 10), "b": gap.__class__(-0.2, 0.0, None, None, 10)}
    assert found.lost(low) == ("b",)
    assert found.lost({"b": gap.__class__(-0.02, 0.0, None, None, 10)}) == ()


def test_unknown_labels_are_left_out_and_groups_are_counted():
    a, b, y = logits()
    known = np.arange(120) % 4 > 0
    groups = np.arange(120) // 4
    found = competition_report({"a": a, "b": b}, np.where(known, y, -1), groups=groups)
    same = competition_report({"a": a[known], "b": b[known]}, y[known], groups=groups[known])
    assert found.joint == same.joint
    assert found.joint.n == 30
    many = [np.repeat(part, 5, axis=0) for part in (a, b, y)]
    grouped = competition_report({"a": many[0], "b": many[1]}, many[2], groups=np.repeat(np.arange(120), 5))
    single = competition_report({"a": a, "b": b}, y)
    for name in ("a", "b"):  # copies of a pair say nothing new
        assert grouped.utilisation[name].standard_error == pytest.approx(single.utilisation[name].standard_error)


def test_errors_of_shares_are_their_spread_over_draws():
    found = [competition_report(dict(zip("ab", logits(seed=seed)[:2], strict=True)), logits()[2]) for seed in range(80)]
    for name in "ab":
        spread = np.std([one.utilisation[name].value for one in found])
        assert np.mean([one.utilisation[name].standard_error for one in found]) == pytest.approx(spread, rel=0.3)


def test_the_probe_gap_is_below_zero_for_an_encoder_that_lost():
    x, _, y = views()
    noisy = x + 3 * np.random.default_rng(5).normal(size=x.shape)
    gap = probe_gap(noisy, x, y)
    assert gap.high < -0.05
    assert probe_gap(x, x, y, seed=0).value == pytest.approx(0, abs=0.03)
    assert probe_gap(x, noisy, y).low > 0.05


def test_learning_speed_adds_up_squares_and_names_the_leader():
    race = LearningSpeed()
    weights, gradients = np.array([1.0, 2.0]), np.array([0.1, 0.2])
    for factor in (1, 2):
        race.add({"a": [(weights, factor * gradients), (weights, gradients)], "b": [(weights, 0.1 * gradients)]})
    assert race.speed["a"] == pytest.approx(0.01 * (2 + 5) / 2)
    assert race.speed["b"] == pytest.approx(2 * 1e-4)
    assert race.leads["a"] == pytest.approx(np.log10(race.speed["a"] / race.speed["b"])) == -race.leads["b"]
    with pytest.raises(DataError, match="'a' are 0"):
        race.add({"a": [(np.zeros(2), gradients)]})
    with pytest.raises(NotMeaningful, match="two branches"):
        _ = LearningSpeed().leads


def test_the_stronger_modality_wins_and_was_foretold():
    x, t, y = views()
    found = modality_competition(x, t, y, seeds=3)
    assert found.source_share.value > 0.7
    assert found.agreement.value > 0.7
    assert found.probe_agreement.value > 0.7
    assert found.learning_lead.value > 0
    assert found.source_won.shape == found.foretold.shape == found.probed.shape == (3, 4)
    assert found.alone["source"].value > found.alone["target"].value + 0.1
    assert found.joint.n == 120
    turned = modality_competition(t, x, y, seeds=3)
    assert turned.source_share.value < 0.3
    assert found.failure["target"].value > found.failure["source"].value


def test_equal_modalities_share_the_classes():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 6, size=400)
    means = np.linalg.qr(rng.normal(size=(8, 8)))[0][:6] * 3
    x, t = means[y] + rng.normal(size=(400, 8)), means[y] + rng.normal(size=(400, 8))
    found = modality_competition(x, t, y, seeds=5)
    assert 0.2 < found.source_share.value < 0.8
    assert found.flip_rate > 0.25
    assert found.agreement.value > 0.7


def test_wide_features_are_cut_to_components_and_groups_are_not_split():
    x, t, y = views(n=240)
    wide = x @ np.random.default_rng(1).normal(size=(6, 90))
    groups = np.arange(240) // 3
    found = modality_competition(wide, t, y, groups=groups, seeds=2)
    assert 0 < found.joint.n <= 80
    assert found.joint.value > 0.6


def test_what_tells_nothing_is_withheld():
    a, b, y = logits()
    x, t, label = views(n=60)
    with pytest.raises(DataError, match="two modalities"):
        competition_report({"a": a}, y)
    with pytest.raises(DataError, match="of the same"):
        competition_report({"a": a, "b": b}, y, alone={"a": a})
    with pytest.raises(DataError, match="same pairs and classes"):
        competition_report({"a": a, "b": b[:, :2]}, y)
    with pytest.raises(DataError, match="bias"):
        competition_report({"a": a, "b": b}, y, bias=[1.0])
    with pytest.raises(DataError, match="0 to 2"):
        competition_report({"a": a, "b": b}, y + 1)
    with pytest.raises(NotMeaningful, match="class 2 has 1"):
        competition_report({"a": a[:32], "b": b[:32]}, np.append(y[:31] % 2, 2))
    with pytest.raises(NotMeaningful, match="two classes or more are needed; received 1"):
        modality_competition(x, t, np.ones(60))
    with pytest.raises(NotMeaningful, match="constant"):
        modality_competition(x, np.ones((60, 2)), label)
    with pytest.raises(NotMeaningful, match="one side"):
        modality_competition(x, t, label, groups=label)
    with pytest.raises(DataError, match="one pair"):
        probe_gap(x, t[:-1], label)
    for bad in ({"seeds": 1}, {"neurons": 0}, {"level": 2.0}, {"seed": -1}):
        with pytest.raises(ConfigError):
            modality_competition(x, t, label, **bad)


def test_the_example_of_the_docstring():
    assert doctest.testmod(competition).failed == 0
    assert doctest.testmod(competition).attempted > 0
