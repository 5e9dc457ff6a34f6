"""The rule of CCH and its closed form: what helps, what does not, what cannot be told, and what is left out."""

import doctest

import numpy as np
import pytest

from crossdistill.diagnostics import complementary as module
from crossdistill.diagnostics.complementary import complementarity, rank_teachers
from crossdistill.diagnostics.gaussian_risk import GaussianTeacher, gaussian_gap
from crossdistill.errors import ConfigError, DataError, NotMeaningful

SHARES = (0, 0.1 / 1.1, 0.3 / 1.3, 0.5, 0.75)
# (bias, teacher noise, common noise) of 40 labels and 10 columns, label noise 0.7, and the excess risks expected
CASES = {
    "good": (0.0, 0.1, 0.1, (0.241, 0.206, 0.157, 0.086, 0.047)),
    "the labels": (0.0, 0.7, 0.7, (0.241, 0.241, 0.241, 0.241, 0.241)),
    "follows label noise": (0.0, 1.3, 0.9, (0.241, 0.255, 0.277, 0.328, 0.384)),
    "noise": (0.3, 1.0, 0.0, (0.241, 0.205, 0.177, 0.222, 0.378)),
    "a constant": (0.3, 0.0, 0.0, (0.241, 0.202, 0.159, 0.135, 0.184)),
    "wrong scale": (1.2, 0.1, 0.1, (0.241, 0.215, 0.221, 0.386, 0.722)),
}


def teacher(bias, noise, common, changed=()):
    kept = {"n": 40, "d": 10, "label_noise": 0.7, "teacher_noise": noise, "common_noise": common, "bias": bias}
    return GaussianTeacher(**(kept | dict(changed)))


def world(n, scale, noise, common, seed=0):
    """Give a student's best prediction of the label, the label and a teacher, (n, 1) each."""
    rng = np.random.default_rng(seed)
    student, e, free = rng.normal(size=(3, n, 1))
    slope = common / 0.7
    h = slope * 0.7**0.5 * e + max(0.0, noise - slope * common) ** 0.5 * free
    return student, 0.3**0.5 * student + 0.7**0.5 * e, scale * 0.3**0.5 * student + h


def views(n=1200, seed=0):
    """Three classes; logits of a student, of a teacher that sees what it sees, and of one that sees nothing."""
    rng = np.random.default_rng(seed)
    label = np.arange(n) % 3
    student = 1.2 * np.eye(3)[label] + rng.normal(size=(n, 3))
    return label, student, student + 0.5 * rng.normal(size=(n, 3)), rng.normal(size=(n, 3))


@pytest.mark.parametrize("case", CASES)
def test_excess_risks_are_those_of_the_closed_form_and_of_simulation(case):
    bias, noise, common, expected = CASES[case]
    made = teacher(bias, noise, common)
    np.testing.assert_allclose([made.risk(share) for share in SHARES], expected, atol=6e-4)
    rng = np.random.default_rng(0)
    scale = 1 + (bias / 0.3) ** 0.5 * (1 if case == "wrong scale" else -1)
    truth = np.zeros(10)
    truth[0] = 0.3**0.5
    slope, total = common / 0.7, np.zeros(len(SHARES))
    for _ in range(1000):
        x = rng.normal(size=(40, 10))
        e, free = rng.normal(size=(2, 40))
        y = x @ truth + 0.7**0.5 * e
        t = scale * x @ truth + slope * 0.7**0.5 * e + max(0.0, noise - slope * common) ** 0.5 * free
        own, taught = np.linalg.lstsq(x, np.stack([y, t], axis=1), rcond=None)[0].T
        total += [np.sum(((1 - a) * own + a * taught - truth) ** 2) for a in SHARES]
    np.testing.assert_allclose(total / 1000, [made.risk(share) for share in SHARES], rtol=0.07)  # 3 errors of a mean


def test_the_best_share_is_the_least_of_the_curve():
    for bias, noise, common, _ in CASES.values():
        made = teacher(bias, noise, common)
        grid = np.linspace(0, 1, 2001)
        risks = [made.risk(share) for share in grid]
        best = made.best()
        assert made.risk(best.share) <= min(risks) + 1e-12
        assert best.gain == pytest.approx(risks[0] - min(risks), abs=1e-6)
        assert made.helps == (best.gain > 0)
    labels = teacher(0.0, 0.7, 0.7)
    assert np.ptp([labels.risk(share) for share in SHARES]) < 1e-15
    for wrong in ({"n": 11}, {"bias": -1.0}, {"common_noise": 0.9}, {"label_noise": float("nan")}):
        with pytest.raises(ConfigError):
            teacher(0.0, 0.7, 0.7, wrong)
    with pytest.raises(ConfigError, match="share"):
        labels.risk(1.5)
    with pytest.raises(ConfigError, match="noise above 0"):
        gaussian_gap(1.0, 0.0, 1.0, 1.0)


def test_verdicts_of_the_gaussian_world():
    expected = {"good": "help", "the labels": "undecided", "follows label noise": "no help", "noise": "no help"}
    scales = {"good": 1, "the labels": 1, "follows label noise": 1, "noise": 0, "wrong scale": 3}
    expected["wrong scale"] = "help"  # which the closed form denies for large weights: the rule is blind to scale
    for case, verdict in expected.items():
        _, noise, common, _ = CASES[case]
        student, label, taught = world(6000, scales[case], noise, common)
        found = complementarity(taught, student, label)
        assert found.verdict == verdict, found.reason
        gap = gaussian_gap(scales[case] ** 2 * 0.3, noise, 0.3, 0.7)
        assert found.gap.value == pytest.approx(gap, abs=0.06)  # three errors
        assert found.gap.value == pytest.approx(found.shared.value - found.known.value)
        assert abs(found.null_shared) < 0.01 > abs(found.null_known)
    assert teacher(*CASES["wrong scale"][:3]).risk(0.5) > teacher(*CASES["wrong scale"][:3]).risk(0.0)


def test_labels_as_their_own_teacher_have_no_gap():
    label, student, _, _ = views()
    for estimator, given in (("gaussian", np.eye(3)[label]), ("discrete", label), ("discrete", np.eye(3)[label])):
        found = complementarity(given, student, label, estimator=estimator)
        assert found.gap.value == pytest.approx(0, abs=1e-10)
        assert found.verdict == "undecided"


def test_a_shared_nuisance_turns_the_rule_on_features_and_not_on_predictions():
    from crossdistill.diagnostics.information_prepared import probe_logits

    label, student, _, other = views()
    nuisance, own = np.random.default_rng(7).normal(size=(2, 1200, 1))
    a, b = np.hstack([other, nuisance]), np.hstack([student, nuisance + 0.1 * own])
    assert complementarity(other, student, label).verdict == "no help"
    assert complementarity(a, b, label).verdict == "help"
    predicted = complementarity(probe_logits(a, label), probe_logits(b, label), label, estimator="discrete")
    assert predicted.verdict == "no help"


def test_teachers_are_ranked_with_paired_differences():
    label, student, good, blind = views(600)
    half = 0.5 * good + blind
    for estimator in ("gaussian", "discrete", "ksg"):
        found = rank_teachers({"blind": blind, "good": good, "half": half}, student, label, estimator=estimator)
        assert list(found.teachers) == ["good", "half", "blind"]
        assert found.best == "good"
        assert list(found.differences) == [("good", "half"), ("good", "blind"), ("half", "blind")]
        apart = found.differences["good", "blind"]
        gaps = [found.teachers[name].gap.value for name in ("good", "blind")]
        assert apart.value == pytest.approx(gaps[0] - gaps[1])
        alone = complementarity(good, student, label, estimator=estimator)
        assert found.teachers["good"] == alone
    twin = rank_teachers({"good": good, "twin": good}, student, label)
    assert twin.best is None
    assert twin.differences["good", "twin"].standard_error == 0
    assert rank_teachers({"good": good}, student, label).best == "good"


def test_pairs_without_label_serve_the_first_term_alone():
    label, student, good, _ = views()
    known = np.arange(1200) % 4 == 0
    partial = complementarity(good, student, np.where(known, label, -1))
    whole = complementarity(good, student, label)
    assert partial.shared.value == whole.shared.value
    labelled = complementarity(good[known], student[known], label[known])
    assert partial.known.value == pytest.approx(labelled.known.value, abs=1e-12)
    assert partial.gap.settings["labelled"] == 300
    assert partial.known.standard_error > whole.known.standard_error
    words = np.array(["x", "y", "z"])[label]
    assert complementarity(good, student, words).gap == whole.gap


def test_networks_serve_too():
    label, student, good, blind = views(600)
    for estimator in ("infonce", "latent"):
        found = rank_teachers({"blind": blind, "good": good}, student, label, estimator=estimator)
        assert found.best == "good"
        assert found.teachers["blind"].verdict == "no help"


def test_what_does_not_fit_is_refused_and_what_is_not_meaningful_withheld():
    label, student, good, _ = views(300)
    with pytest.raises(DataError, match="same pairs"):
        complementarity(good[:-1], student, label)
    with pytest.raises(DataError, match="one entry for each of 300"):
        complementarity(good, student, label[:-1])
    with pytest.raises(DataError, match="all are -1"):
        complementarity(good, student, np.full(300, -1))
    with pytest.raises(DataError, match="not finite in row 3"):
        complementarity(np.where(np.arange(300)[:, None] == 3, np.nan, good), student, label)
    with pytest.raises(NotMeaningful, match="50 pairs"):
        complementarity(good, student, np.where(np.arange(300) < 49, label, -1))
    with pytest.raises(NotMeaningful, match="smallest has"):
        complementarity(good, student, np.where(label == 2, np.where(np.arange(300) < 20, 2, -1), label))
    for estimator in ("auto", "classifier"):
        with pytest.raises(ConfigError, match="one estimator"):
            complementarity(good, student, label, estimator=estimator)
    with pytest.raises(ConfigError, match="one teacher or more"):
        rank_teachers({}, student, label)


def test_the_example_of_the_docstring():
    assert doctest.testmod(module).failed == 0
    assert doctest.testmod(module).attempted > 0
