import numpy as np
import pytest
from sklearn import metrics as reference

from crossdistill.errors import DataError
from crossdistill.evaluation import (
    accuracy,
    average_precision,
    balanced_accuracy,
    correct,
    expected_calibration_error,
    macro_f1,
    negative_log_likelihood,
    recall_at_k,
    reciprocal_rank,
)


@pytest.fixture(params=[0, 1, 2])
def rng(request):
    return np.random.default_rng(request.param)


def labels(rng, n=60, classes=7):
    label = rng.choice(classes, n, p=np.arange(1, classes + 1) / (classes * (classes + 1) / 2)) - 3
    return np.where(rng.random(n) < 0.5, label, rng.integers(-3, classes, n)), label


def test_classification_metrics_are_those_of_scikit_learn(rng):
    prediction, label = labels(rng)
    prediction[prediction == label.max()] = label.max() + 9  # a class never seen, and one never predicted
    assert accuracy(prediction, label) == pytest.approx(reference.accuracy_score(label, prediction))
    assert macro_f1(prediction, label) == pytest.approx(
        reference.f1_score(label, prediction, average="macro", zero_division=0)
    )
    recalls = reference.recall_score(label, prediction, average=None, labels=np.unique(label), zero_division=0)
    assert balanced_accuracy(prediction, label) == pytest.approx(recalls.mean())
    assert correct(prediction, label).mean() == accuracy(prediction, label)


def test_words_are_labels_too():
    prediction, label = ["cat", "dog", "cat"], ["cat", "cat", "dog"]
    assert correct(prediction, label).tolist() == [True, False, False]
    assert balanced_accuracy(prediction, label) == 0.25
    assert macro_f1(prediction, label) == 0.25


def test_negative_log_likelihood_is_that_of_scikit_learn(rng):
    p = rng.dirichlet(np.ones(4), size=30)
    label = rng.integers(0, 4, 30)
    values = negative_log_likelihood(p, label)
    assert values.shape == (30,)
    assert values.mean() == pytest.approx(reference.log_loss(label, p, labels=range(4)))
    assert negative_log_likelihood([[1.0, 0.0]], [1])[0] == pytest.approx(-np.log(np.finfo(float).eps))
    assert negative_log_likelihood([[1.0, 0.0]], [0])[0] == 0


def slow_calibration(p, label, bins):
    confidence, right, total = p.max(axis=1), p.argmax(axis=1) == label, 0.0
    for i in range(bins):
        inside = (confidence > i / bins) & (confidence <= (i + 1) / bins)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return total


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_calibration_error_follows_its_equation(rng, bins):
    p, label = rng.dirichlet(np.ones(3), size=80), rng.integers(0, 3, 80)
    assert expected_calibration_error(p, label, bins=bins) == pytest.approx(slow_calibration(p, label, bins))


def test_calibration_error_at_its_ends():
    assert expected_calibration_error([[1.0, 0.0]] * 4, [0] * 4) == 0
    assert expected_calibration_error([[1.0, 0.0]] * 4, [1] * 4) == 1
    assert expected_calibration_error([[0.75, 0.25]] * 4, [0, 0, 0, 1]) == 0


@pytest.mark.parametrize("shift", [0.0, -100.0])
@pytest.mark.parametrize("decimals", [6, 0])
def test_average_precision_is_that_of_scikit_learn(rng, shift, decimals):
    score = rng.normal(size=(20, 12)).round(decimals) + shift  # rounded to whole numbers: many ties
    relevant = rng.random((20, 12)) < 0.3
    relevant[:, 3] = True
    expected = [reference.average_precision_score(r, s) for r, s in zip(relevant, score, strict=True)]
    assert average_precision(score, relevant) == pytest.approx(expected)


def slow_places(score, relevant):
    """Places of the relevant candidates of one query, irrelevant ones first among equals."""
    order = sorted(range(len(score)), key=lambda j: (-score[j], relevant[j]))
    return [place for place, j in enumerate(order, 1) if relevant[j]]


@pytest.mark.parametrize("shift", [0.0, -100.0])
def test_ranks_do_not_depend_on_the_sign_of_scores(rng, shift):
    score = rng.normal(size=(20, 9)).round(1) + shift
    relevant = rng.random((20, 9)) < 0.4
    relevant[:, 0] = True
    places = [slow_places(s, r) for s, r in zip(score, relevant, strict=True)]
    assert reciprocal_rank(score, relevant) == pytest.approx([1 / min(p) for p in places])
    for k in (1, 3, 20):
        expected = [sum(place <= k for place in p) / len(p) for p in places]
        assert recall_at_k(score, relevant, k) == pytest.approx(expected)


def test_negative_scores_of_one_query():
    score, relevant = [[-0.2, -0.1, -0.9]], [[True, False, False]]
    assert reciprocal_rank(score, relevant)[0] == 0.5
    assert average_precision(score, relevant)[0] == 0.5


def test_constant_scores_win_nothing():
    score, relevant = np.zeros((1, 10)), np.eye(10, dtype=bool)[:1]
    assert reciprocal_rank(score, relevant)[0] == 0.1
    assert recall_at_k(score, relevant, 9)[0] == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: accuracy([], []), "n >= 1"),
        (lambda: accuracy([1, 2], [1]), "one entry for each of 1 rows"),
        (lambda: negative_log_likelihood([[0.5, 0.6]], [2]), r"integers in 0 \.\. 1"),
        (lambda: negative_log_likelihood([[0.5, 0.5]], [0.0]), "integers"),
        (lambda: negative_log_likelihood([[1.5, -0.5]], [0]), r"within \[0, 1\]"),
        (lambda: reciprocal_rank([[1.0, 2.0]], [[False, False]]), "query 0 has no relevant"),
        (lambda: average_precision([[1.0, np.nan]], [[True, False]]), "NaN"),
        (lambda: recall_at_k([[1.0]], [[True]], 0), "k must be >= 1"),
        (lambda: recall_at_k([[1.0]], [[True, False]], 1), "must both be"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(DataError, match=message):
        call()
