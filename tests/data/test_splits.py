from __future__ import annotations

import numpy as np
import pytest

from crossdistill.data.splits import make_split


def counts(split: np.ndarray) -> list[int]:
    return np.bincount(split, minlength=3).tolist()


def test_shares_within_every_class():
    label = np.repeat(np.arange(3), [100, 50, 10])
    split = make_split(160, label=label)
    assert [counts(split[label == c]) for c in range(3)] == [[70, 10, 20], [35, 5, 10], [7, 1, 2]]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_small_classes_are_trained_first_and_tested_from_three_on(size):
    split = make_split(size, label=np.zeros(size, dtype=np.int64))
    assert (split == 0).any()
    assert (split == 2).any() == (size >= 3)


def test_the_split_is_a_function_of_the_seed():
    assert np.array_equal(make_split(200, seed=4), make_split(200, seed=4))
    assert not np.array_equal(make_split(200, seed=4), make_split(200, seed=5))


def test_groups_stay_whole_and_classes_balanced():
    rng = np.random.default_rng(0)
    group = rng.integers(0, 60, 1200)
    label = (group % 3 + (rng.random(1200) < 0.1)) % 3
    split = make_split(1200, label=label, group=group)
    for g in range(60):
        assert len(set(split[group == g].tolist())) == 1
    for c in range(3):
        assert np.array(counts(split[label == c])) / (label == c).sum() == pytest.approx([0.7, 0.1, 0.2], abs=0.05)


def test_rows_linked_over_several_columns_stay_together():
    first = np.arange(100)
    second = np.arange(100) + 1000
    first[1], second[2] = first[0], second[1]  # 0 - 1 by the first column, 1 - 2 by the second
    for seed in range(20):
        split = make_split(100, same=[first, second], seed=seed)
        assert split[0] == split[1] == split[2]


def test_rows_without_label_train_and_the_rest_is_split_as_if_alone():
    label = np.repeat([0, 1, -1], [100, 50, 70])
    split = make_split(220, label=label)
    assert [counts(split[label == c]) for c in (0, 1, -1)] == [[70, 10, 20], [35, 5, 10], [70, 0, 0]]
    assert np.array_equal(split[:150], make_split(150, label=label[:150]))


def test_units_with_a_row_without_label_train_whole():
    group = np.arange(300) // 3
    label = np.arange(300) // 3 % 2
    label[::30] = -1  # one row of every tenth group
    split = make_split(300, label=label, group=group)
    assert (split.reshape(100, 3) == split[::3, None]).all()
    assert (split[np.isin(group, group[label == -1])] == 0).all()
    for c in range(2):
        assert np.array(counts(split[label == c])) / (label == c).sum() == pytest.approx([0.7, 0.1, 0.2], abs=0.05)
    assert not make_split(10, label=np.full(10, -1), group=np.arange(10) // 2).any()


def test_where_every_unit_has_a_row_without_label_units_are_dealt_by_the_labels_that_they_have():
    rng = np.random.default_rng(0)
    group, label = rng.integers(0, 60, 1800), rng.integers(0, 3, 1800)
    label[rng.random(1800) < 0.3] = -1
    label[group >= 57] = -1
    split = make_split(1800, label=label, group=group)
    assert all(len(np.unique(split[group == g])) == 1 for g in range(60))
    assert (split[group >= 57] == 0).all()
    for c in range(3):
        assert np.array(counts(split[label == c])) / (label == c).sum() == pytest.approx([0.7, 0.1, 0.2], abs=0.05)


def by_table(n: int, label: np.ndarray, group: np.ndarray, seed: int) -> np.ndarray:
    """The same rule with one row a unit and one column a class, for rows that all have a label."""
    _, unit = np.unique(group, return_inverse=True)
    _, first = np.unique(group, return_index=True)
    unit = np.argsort(np.argsort(first))[unit]  # in the order of their first rows
    counts = np.zeros((unit.max() + 1, label.max() + 1))
    np.add.at(counts, (unit, label), 1)
    target = np.array([0.7, 0.1, 0.2])[:, None] * counts.sum(axis=0)
    order = np.random.default_rng(seed).permutation(len(counts))
    filled, where = np.zeros_like(target), np.zeros(len(counts), dtype=np.uint8)
    for u in sorted(order, key=lambda u: -counts[u].sum()):
        gain = (counts[u] * (2 * (target - filled) - counts[u]) / np.maximum(target, 1e-9)).sum(axis=1)
        where[u] = np.argmax(gain)
        filled[where[u]] += counts[u]
    return where[unit]


@pytest.mark.parametrize("classes", [2, 30])
@pytest.mark.parametrize("groups", [20, 90])
def test_the_rule_as_a_table_of_units_and_classes(classes, groups):
    for seed in range(5):
        rng = np.random.default_rng([seed, classes])
        label, group = rng.integers(0, classes, 200), rng.integers(0, groups, 200)
        split = make_split(200, label=label, group=group, seed=seed)
        assert np.array_equal(split, by_table(200, label, group, seed))


def test_many_units_of_many_classes_need_no_table_of_both():
    n = 18_000  # 9,000 units of 6,000 classes: 430 MB as a table of numbers
    split = make_split(n, label=np.arange(n) // 3, group=np.arange(n) // 2, seed=0)
    assert np.array_equal(split[::2], split[1::2])
    assert np.bincount(split) / n == pytest.approx([0.7, 0.1, 0.2], abs=0.2)
