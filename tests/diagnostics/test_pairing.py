"""Every border check finds what it is for, says where, and is silent on pairs that are in order."""

import doctest

import numpy as np
import pytest

from crossdistill.diagnostics import pairing
from crossdistill.diagnostics.pairing import check_pairs
from crossdistill.errors import ConfigError, DataError


def pairs(n=600, seed=0):
    rng = np.random.default_rng(seed)
    u = rng.normal(size=(n, 8))
    source = u @ rng.normal(size=(8, 12)) + 0.5 * rng.normal(size=(n, 12))
    return source, np.tanh(u) + 0.3 * rng.normal(size=(n, 8)), u[:, :4].argmax(axis=1)


def names(findings):
    return [(f.check, f.severity, f.array) for f in findings]


def only(findings):
    (found,) = findings
    return found


@pytest.mark.parametrize("seed", range(3))
def test_pairs_in_order_raise_no_alarm(seed):
    source, target, labels = pairs(seed=seed)
    groups, splits = np.arange(600) // 20, np.where(np.arange(600) < 400, "train", "test")
    assert check_pairs(source, target, labels=labels, groups=groups, splits=splits, seed=seed) == ()


def test_shuffled_pairs_stop_and_few_of_them_warn():
    source, target, _ = pairs()
    order = np.random.default_rng(1).permutation(600)
    found = only(check_pairs(source[order], target))
    assert (found.check, found.severity, found.array, found.rows) == ("pairing", "stop", "pairs", ())
    assert "chance 1.6%" in found.what
    few = order[order < 100]
    assert names(check_pairs(source[few], target[:100])) == [("pairing", "warn", "pairs")]
    assert names(check_pairs(source[:49], target[:49])) == [("few pairs", "warn", "pairs")]


@pytest.mark.parametrize("lag", [-2, -1, 1])
def test_arrays_shifted_as_a_whole_are_told_from_shuffled_ones(lag):
    source, target, _ = pairs()
    found = only(check_pairs(np.roll(source, lag, axis=0), target))
    assert (found.check, found.severity) == ("slip", "stop")
    # rolled by 1, the source's row 0 is in row 1: later
    assert f"{abs(lag)} row" in found.what
    assert ("later" if lag > 0 else "earlier") in found.what


def test_a_shift_within_sorted_classes_is_found_though_classes_still_match():
    rng = np.random.default_rng(0)
    label = np.repeat(np.arange(4), 300)
    u = 3 * rng.normal(size=(4, 8))[label] + rng.normal(size=(1200, 8))
    source, target = u + 0.3 * rng.normal(size=u.shape), np.tanh(u / 3) + 0.1 * rng.normal(size=u.shape)
    assert check_pairs(source, target) == ()
    found = only(check_pairs(np.roll(source, 1, axis=0), target))
    assert (found.check, found.severity) == ("slip", "stop")


def test_a_row_dropped_midway_a_shuffled_part_and_mixed_pairs_are_placed():
    source, target, _ = pairs(1600)
    found = only(check_pairs(np.delete(source, 800, axis=0), target[:-1]))
    assert (found.check, found.severity) == ("slip", "stop")
    assert "1 row earlier" in found.what
    assert 700 <= found.rows[0] <= 900
    part = source.copy()
    part[400:800] = source[400 + np.random.default_rng(0).permutation(400)]
    found = only(check_pairs(part, target))
    assert (found.check, found.severity) == ("shuffled part", "warn")
    assert 300 <= found.rows[0] <= 500
    mixed, rng = source.copy(), np.random.default_rng(0)
    rows = rng.permutation(1600)[:400]
    mixed[rows] = source[rng.permutation(rows)]
    found = only(check_pairs(mixed, target))
    assert (found.check, found.severity) == ("mixed pairs", "warn")
    assert np.isin(found.rows, rows).all()


def test_pairs_matched_by_label_are_said_to_be():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 4, 1200)
    offset = 3 * rng.normal(size=(4, 6))
    source, target = (offset[label] + rng.normal(size=(1200, 6)) for _ in range(2))
    assert names(check_pairs(source, target, labels=label)) == [("label pairs", "warn", "pairs")]
    assert check_pairs(source, target) == ()  # in no order and without labels it cannot be seen
    order = np.argsort(label, kind="stable")
    assert names(check_pairs(source[order], target[order])) == [("label pairs", "warn", "pairs")]


@pytest.mark.parametrize(("noise", "kind"), [(0.0, "1 exact, 0 near"), (0.01, "0 exact, 1 near")])
def test_copies_are_found_and_what_they_break_is_said(noise, kind):
    source, target, _ = pairs()
    target[500] = target[3] + noise * np.random.default_rng(0).normal(size=8)
    found = only(check_pairs(source, target))
    assert (found.check, found.severity, found.array, found.rows) == ("copies", "warn", "target", (3, 500))
    assert kind in found.what
    splits = np.arange(600) // 400
    found = only(check_pairs(source, target, splits=splits))
    assert (found.check, found.severity, found.array, found.rows) == ("leak", "stop", "target", (3, 500))
    groups = np.arange(600) // 20
    found = only(check_pairs(source, target, groups=groups))
    assert (found.check, found.severity, found.array, found.rows) == (
        "copies across groups",
        "warn",
        "target",
        (3, 500),
    )
    together = np.where(np.isin(np.arange(600), (3, 500)), -1, groups)
    assert check_pairs(source, target, groups=together) == ()  # which is what groups are for


def test_copies_in_many_columns_are_found_through_the_projection():
    rng = np.random.default_rng(0)
    source, target, _ = pairs(400)
    wide = target @ rng.normal(size=(8, 300)) + rng.normal(size=(400, 300))
    wide[300:310] = wide[:10] + 0.01 * rng.normal(size=(10, 300))
    found = only(check_pairs(source, wide))
    assert (found.check, found.rows) == ("copies", tuple(range(10)))
    assert "20 rows" in found.what


def test_a_photo_of_several_sketches_is_one_group_of_exact_copies():
    source, target, _ = pairs(600)
    source = np.repeat(source[::6], 6, axis=0)
    target = np.repeat(target[::6], 6, axis=0) + 0.3 * np.random.default_rng(0).normal(size=target.shape)
    found = only(check_pairs(source, target))
    assert (found.check, found.array) == ("copies", "source")
    assert "600 rows" in found.what
    assert check_pairs(source, target, groups=np.arange(600) // 6) == ()


def test_rows_near_by_chance_are_no_copies():
    rng = np.random.default_rng(0)
    for x in (
        rng.normal(size=(1500, 5)),
        np.repeat(rng.normal(size=(3, 6)), 500, axis=0) + 1e-3 * rng.normal(size=(1500, 6)),
    ):
        assert not [f for f in check_pairs(x, x + 0.1 * x.std(axis=0) * rng.normal(size=x.shape)) if "cop" in f.check]


def test_groups_on_two_sides_too_few_or_too_large_are_found():
    source, target, _ = pairs()
    groups, splits = np.arange(600) // 20, np.arange(600) // 390  # group 19 holds rows 380 to 399
    found = only(check_pairs(source, target, groups=groups, splits=splits))
    assert (found.check, found.severity, found.array, found.rows) == (
        "group leak",
        "stop",
        "groups",
        tuple(range(380, 390)),
    )
    assert "1 of 30 groups" in found.what
    assert "such as 19" in found.what
    five = np.arange(600) // 120
    found = only(check_pairs(source, target, groups=five))
    assert (found.check, found.severity) == ("groups", "warn")
    assert "takes 6" in found.what
    assert check_pairs(source, target, groups=five, level=0.9) == ()
    assert names(check_pairs(source, target, groups=np.zeros(600))) == [("groups", "stop", "groups")]
    large = np.where(np.arange(600) < 400, 0, np.arange(600))
    found = only(check_pairs(source, target, groups=large))
    assert (found.check, found.severity, found.rows) == ("groups", "warn", tuple(range(10)))


def test_a_source_that_cannot_tell_the_labels_stops():
    source, target, labels = pairs()
    mixed = np.random.default_rng(0).permutation(labels)
    found = [f for f in check_pairs(source, target, labels=mixed) if f.check == "teacher"]
    assert only(found).severity == "stop"
    assert "no better than chance" in only(found).what
    few = np.where(np.arange(600) < 100, mixed, -1)
    assert only(check_pairs(source, target, labels=few)).severity == "warn"
    assert check_pairs(source, target, labels=np.where(np.arange(600) < 100, labels, -1)) == ()
    # a rare class is one of four all the same
    rare = np.where(labels == 3, np.where(np.arange(600) % 5, 0, 3), labels)
    assert check_pairs(source, target, labels=rare) == ()


@pytest.mark.parametrize(("rare", "apart"), [(5, 2.0), (10, 2.0), (20, 1.4)])
def test_a_rare_class_that_cannot_be_told_from_chance_does_not_stop(rare, apart):
    # Bayes' balanced accuracy is Phi(apart / 2): 84 % and 76 %
    found = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        labels = rng.permutation(np.arange(300) < rare).astype(int)
        source = rng.normal(size=(300, 8))
        source[:, 0] += apart * labels
        target = source + 0.5 * rng.normal(size=source.shape)
        found += [f for f in check_pairs(source, target, labels=labels, seed=seed) if f.check == "teacher"]
    assert found
    assert all(f.severity == "warn" and f"({rare} rows of 1)" in f.what for f in found)


def test_a_source_that_tells_labels_the_wrong_way_round_is_worse_than_chance():
    # what the sign of the first column means changes from group to group, so that the others mislead
    rng = np.random.default_rng(0)
    group = np.arange(400) // 100
    u = rng.choice([-1, 1], 400)
    labels = ((u > 0) ^ (group % 2 == 1)).astype(int)
    source = np.hstack([u[:, None], np.zeros((400, 4))]) + 0.1 * rng.normal(size=(400, 5))
    target = source @ rng.normal(size=(5, 6)) + 0.1 * rng.normal(size=(400, 6))
    found = [f for f in check_pairs(source, target, labels=labels, groups=group, level=0.5) if f.check == "teacher"]
    assert "worse than chance" in only(found).what


def test_columns_and_rows_on_a_wrong_scale_are_named():
    source, target, _ = pairs()
    flat = np.hstack([target, np.full((600, 2), 7.0)])
    found = only(check_pairs(source, flat))
    assert (found.check, found.severity, found.array, found.columns) == ("constant columns", "warn", "target", (8, 9))
    found = only(check_pairs(source, target * [1, 1, 1, 1e4, 1, 1, 1, 1]))
    assert (found.check, found.columns) == ("scale", (3,))
    found = only(check_pairs(source, target + 100))
    assert (found.check, found.array) == ("one direction", "target")
    empty = target.copy()
    empty[[5, 7]] = 0
    found = [f for f in check_pairs(source, empty) if f.check == "zero rows"]
    assert only(found).rows == (5, 7)
    found = check_pairs(source, np.clip(np.rint(60 * target + 120), 0, 255))
    assert "bytes" in [f.check for f in found]
    assert names(check_pairs(np.ones_like(source), target)) == [("constant columns", "stop", "source")]


def test_a_source_that_is_the_target_once_more_is_found():
    source, target, _ = pairs()
    assert names(check_pairs(target, target)) == [("same array", "warn", "source")]
    other = (target[:, ::-1] * np.arange(1, 9) + 0.5).astype(np.float32)
    assert names(check_pairs(other, target)) == [("same array", "warn", "source")]
    assert check_pairs(target + 0.01 * source[:, :8], target) == ()
    flat = np.ones_like(target)
    assert {f.check for f in check_pairs(flat, target)} == {"constant columns"}


def test_a_source_of_one_column_is_no_embedding():
    source, target, _ = pairs()
    found = only(check_pairs(source[:, :1], target))
    assert (found.check, found.severity, found.array) == ("one column", "warn", "source")
    assert check_pairs(source[:, :2], target) == ()
    assert check_pairs(source, target[:, :1]) == ()


def test_findings_that_stop_come_first_and_become_plain_values():
    source, target, _ = pairs()
    flat = np.hstack([target, np.ones((600, 1))])
    found = check_pairs(source[::-1], flat)
    assert [f.severity for f in found] == ["stop", "warn"]
    assert found[1].as_json()["columns"] == [8]
    assert found[0].as_json()["check"] == "pairing"


def test_the_same_seed_gives_the_same_findings():
    source, target, labels = pairs()
    target[9] = target[8]
    assert check_pairs(source, target, labels=labels) == check_pairs(source, target, labels=labels)


def test_what_does_not_fit_is_refused():
    source, target, labels = pairs()
    with pytest.raises(DataError, match="600 and 599"):
        check_pairs(source, target[1:])
    with pytest.raises(DataError, match="groups"):
        check_pairs(source, target, groups=labels[1:])
    with pytest.raises(DataError, match="source has a value that is not finite in row 3"):
        check_pairs(np.where(np.arange(600)[:, None] == 3, np.nan, source), target)
    with pytest.raises(ConfigError, match="level"):
        check_pairs(source, target, level=95)
    with pytest.raises(ConfigError, match="seed"):
        check_pairs(source, target, seed=-1)


def test_examples_in_the_docstrings():
    found = doctest.testmod(pairing)
    assert found.failed == 0
    assert found.attempted > 0
