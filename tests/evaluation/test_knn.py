from collections import defaultdict

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from crossdistill.errors import ConfigError, DataError
from crossdistill.evaluation import knn, knn_predict


def slow(train_x, train_y, x, k):
    answers = []
    for row in x:
        cosines = [row @ t / np.linalg.norm(row) / np.linalg.norm(t) for t in train_x]
        near = sorted(range(len(train_x)), key=lambda j: -cosines[j])[:k]
        votes = defaultdict(float)
        for j in near:
            votes[train_y[j]] += 1 + cosines[j]
        answers.append(max(votes, key=votes.get))
    return answers


@pytest.mark.parametrize("k", [1, 4, 5, 40])
def test_the_vote_follows_its_definition_in_any_blocks(monkeypatch, k):
    monkeypatch.setattr(knn, "BLOCK", 7)
    rng = np.random.default_rng(k)
    train_x, train_y, x = rng.normal(size=(40, 3)), rng.choice(list("pqr"), 40), rng.normal(size=(30, 3))
    assert knn_predict(train_x, train_y, x, k=k).tolist() == slow(train_x, train_y, x, k)


def test_equal_votes_go_to_the_nearest():
    train = [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]
    assert knn_predict(train, [1, 0, 1, 0], [[1.0, 0.0]], k=4).tolist() in ([0], [1])
    near_far = np.array([[1.0, 0.1], [1.0, -0.3], [1.0, -0.2]])
    assert knn_predict(near_far, [2, 1, 1], [[1.0, 0.0]], k=1).tolist() == [2]
    # classes 0 and 1: two neighbours each whose cosines add up to the same, the nearest is of class 1
    angles = np.arccos([0.9, 0.5, 0.7, 0.7])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert knn_predict(rows, [1, 1, 0, 0], [[1.0, 0.0]], k=4).tolist() == [1]


def test_fewer_rows_than_k_and_zero_rows_are_fine():
    assert knn_predict([[1.0, 0.0], [0.0, 1.0]], [3, 4], [[2.0, 1.0], [0.0, 0.0]], k=9).tolist()[0] == 3


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="k >= 1"):
        knn_predict([[1.0]], [0], [[1.0]], k=0)
    with pytest.raises(DataError, match="1 columns"):
        knn_predict([[1.0]], [0], [[1.0, 2.0]])
    with pytest.raises(DataError, match="one entry for each"):
        knn_predict([[1.0]], [0, 1], [[1.0]])
    with pytest.raises(ConfigError, match="did you mean 'euclidean'"):
        knn_predict([[1.0]], [0], [[1.0]], metric="euclid")


def test_euclidean_votes_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=80)
    x = rng.normal(size=(80, 4)) * 10 + y[:, None]
    asked = rng.normal(size=(50, 4)) * 10
    for k in (1, 3):  # no vote of one or of three is tied between two classes but 1 : 1 : 1, which the nearest wins
        model = KNeighborsClassifier(k).fit(x, y)
        near = y[model.kneighbors(asked, return_distance=False)]
        tied = np.array([len(set(row)) == k for row in near])
        expected = np.where(tied, near[:, 0], model.predict(asked))
        assert np.array_equal(knn_predict(x, y, asked, k=k, metric="euclidean"), expected)
    assert not np.array_equal(knn_predict(x, y, asked, k=3), expected)


def test_a_far_row_of_the_same_direction_is_near_by_cosine_alone():
    train, y = [[10.0, 0.0], [1.0, 0.5]], [0, 1]
    assert knn_predict(train, y, [[1.0, 0.0]], k=1).tolist() == [0]
    assert knn_predict(train, y, [[1.0, 0.0]], k=1, metric="euclidean").tolist() == [1]
