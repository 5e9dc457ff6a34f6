import numpy as np
import pytest

from crossdistill.errors import ConfigError, DataError
from crossdistill.evaluation import found_within, partner_ranks, reciprocal_rank


@pytest.mark.parametrize("block", [1, 4, 1000])
def test_ranks_agree_with_the_metric_on_scores(block):
    rng = np.random.default_rng(0)
    a = rng.normal(size=(30, 5))
    b = 3 * a + 2 * rng.normal(size=(30, 5))
    cosine = (a / np.linalg.norm(a, axis=1)[:, None]) @ (b / np.linalg.norm(b, axis=1)[:, None]).T
    rank = partner_ranks(a, b, block=block)
    assert 1 / rank == pytest.approx(reciprocal_rank(cosine, np.eye(30, dtype=bool)))
    assert rank.min() >= 1
    assert found_within(rank, 30).all()
    assert found_within(rank, 5).mean() == (rank <= 5).mean()


@pytest.mark.parametrize("block", [2, 1000])
def test_any_candidate_of_the_group_is_right(block):
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(12, 3)), rng.normal(size=(20, 3))
    mine, theirs = rng.integers(0, 4, 12), np.arange(20) % 4
    cosine = (a / np.linalg.norm(a, axis=1)[:, None]) @ (b / np.linalg.norm(b, axis=1)[:, None]).T
    rank = partner_ranks(a, b, query_group=mine, candidate_group=theirs, block=block)
    assert 1 / rank == pytest.approx(reciprocal_rank(cosine, mine[:, None] == theirs))


def test_identical_sides_find_themselves_and_collapsed_ones_nothing():
    x = np.random.default_rng(2).normal(size=(10, 4))
    assert (partner_ranks(x, 7 * x) == 1).all()
    assert (partner_ranks(-x, x) == 10).all()
    assert (partner_ranks(np.ones((10, 4)), np.ones((10, 4))) == 10).all()
    assert (partner_ranks(np.zeros((10, 4)), x) == 10).all()


def test_what_does_not_fit_is_refused():
    x = np.eye(3)
    with pytest.raises(DataError, match="3 queries, 2 candidates"):
        partner_ranks(x, x[:2])
    with pytest.raises(DataError, match=r"query 1 has no right candidate \(group z\)"):
        partner_ranks(x, x, query_group=["a", "z", "a"], candidate_group=["a", "b", "b"])
    with pytest.raises(ConfigError, match="together"):
        partner_ranks(x, x, query_group=[1, 2, 3])
    with pytest.raises(ConfigError, match="block"):
        partner_ranks(x, x, block=0)
    with pytest.raises(ConfigError, match="k >= 1"):
        found_within([1], 0)
