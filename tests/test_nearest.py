"""Neighbours found by blocks and by an index are those of the whole table of similarities."""

import sys

import pytest
import torch

from crossdistill import nearest as module
from crossdistill.errors import ConfigError, ObjectiveError
from crossdistill.nearest import nearest
from crossdistill.objectives import unit


def rows(n=60, d=5, seed=0):
    return unit(torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def slow(z, k, group=None):
    """The k best of each row, by sorting all of its similarities."""
    found = []
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i and (group is None or group[j] != group[i])]
        found.append(sorted(others, key=lambda j: -float(z[i] @ z[j]))[:k])
    return torch.tensor(found)


@pytest.mark.parametrize("block", [1, 7 * 60, 2**24])
@pytest.mark.parametrize("grouped", [False, True])
def test_blocks_give_what_sorting_everything_gives(monkeypatch, block, grouped):
    monkeypatch.setattr(module, "BLOCK", block)
    z, group = rows(), torch.arange(60) % 7 if grouped else None
    found, similarity = nearest(z, 6, group=group)
    assert torch.equal(found, slow(z, 6, group))
    torch.testing.assert_close(similarity, (z[:, None] * z[found]).sum(dim=2))


def test_queries_are_compared_with_all_rows():
    z = rows()
    found, similarity = nearest(z, 3, queries=z[10:20])
    assert torch.equal(found[:, 0], torch.arange(10, 20))  # a query is nobody's own row
    torch.testing.assert_close(similarity[:, 0], torch.ones(10, dtype=torch.float64))


def test_a_group_that_leaves_too_few_is_told():
    with pytest.raises(ObjectiveError, match="fewer than 5 others outside their group; lower k"):
        nearest(rows(12), 5, group=torch.tensor([0] * 9 + [1] * 3))


def test_an_unknown_search_and_a_missing_package_are_told(monkeypatch):
    with pytest.raises(ConfigError, match="search must be one of auto, exact, approximate; received 'fast'"):
        nearest(rows(), 3, search="fast")
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setattr(module, "EXACT_ROWS", 50)
    with pytest.raises(ConfigError, match=r"more than 50 pairs on a CPU\) need faiss.*crossdistill\[graph\]"):
        nearest(rows(), 3)
    assert torch.equal(nearest(rows(), 3, search="exact")[0], slow(rows(), 3))


@pytest.mark.parametrize("grouped", [False, True])
def test_an_index_finds_nearly_all_and_the_same_each_time(grouped):
    pytest.importorskip("faiss", exc_type=ImportError)
    z = unit(torch.randn(3000, 8, generator=torch.Generator().manual_seed(0)))
    group = torch.arange(3000) // 4 if grouped else None
    exact, _ = nearest(z, 10, group=group, search="exact")
    found, similarity = nearest(z, 10, group=group, search="approximate")
    assert torch.equal(found, nearest(z, 10, group=group, search="approximate")[0])
    assert (found[:, :, None] == exact[:, None, :]).any(dim=2).float().mean() > 0.95
    assert not (found == torch.arange(3000)[:, None]).any()
    if group is not None:
        assert not (group[found] == group[:, None]).any()
    torch.testing.assert_close(similarity, (z[:, None] * z[found]).sum(dim=2))


def test_rows_that_the_index_leaves_short_are_searched_exactly():
    pytest.importorskip("faiss", exc_type=ImportError)
    z = unit(torch.randn(400, 8, generator=torch.Generator().manual_seed(0)))
    group = (torch.arange(400) >= 380).long()  # 380 of one group: what the index gives first is forbidden to them
    found, _ = nearest(z, 15, group=group, search="approximate")
    assert torch.equal(found.sort(dim=1).values, nearest(z, 15, group=group)[0].sort(dim=1).values)
