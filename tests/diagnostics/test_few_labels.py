"""Paired cross-validation: no label reaches its own prediction, and closed forms are the plain computations."""

import dataclasses

import numpy as np
import pytest

from crossdistill.diagnostics import few_labels
from crossdistill.diagnostics.few_labels import (
    balance_weights,
    episode_accuracies,
    paired_cross_validation,
    powered_difference,
    probe_answers,
)
from crossdistill.diagnostics.spreading import label_spreading, spread
from crossdistill.errors import NotMeaningful
from crossdistill.evaluation._checks import unit_rows


def world(n=200, classes=4, k=6, seed=0):
    """Two embeddings, of which the second is the noisier; k labelled rows a class."""
    rng = np.random.default_rng(seed)
    truth = rng.permutation(np.arange(n) % classes)
    centres = rng.normal(size=(classes, 12))
    good, bad = (unit_rows(centres[truth] + noise * rng.normal(size=(n, 12))) for noise in (0.8, 3.0))
    labelled = np.concatenate([np.flatnonzero(truth == c)[:k] for c in range(classes)])
    return {"good": good, "bad": bad}, labelled, truth


def scored(embeddings, labelled, code, **given):
    operator = label_spreading(list(embeddings.values()), sources=labelled)
    return paired_cross_validation(embeddings, operator, labelled, code, **given)


def folds_of(code, groups=None, seed=0, repeat=0):
    return few_labels._folds(code, groups, int(np.bincount(code).min()), few_labels.REPEATS * seed + repeat)


def test_predictions_and_pseudo_labels_are_those_of_probes_fitted_without_the_fold():
    embeddings, labelled, truth = world()
    code, found = truth[labelled], scored(*world()[:2], world()[2][world()[1]])
    operator = label_spreading(list(embeddings.values()))
    for repeat in range(2):
        for held in folds_of(code, repeat=repeat):
            kept = np.setdiff1d(np.arange(len(code)), held)
            for name, rows in embeddings.items():
                expected = probe_answers(rows[labelled[kept]], code[kept], rows[labelled[held]], 4)
                assert np.array_equal(found.predicted[name][repeat, held], expected)
            pseudo = spread(operator[:, labelled[kept]], code[kept], 4)
            assert np.array_equal(found.spread[repeat, held], pseudo[labelled[held]])


def test_means_over_unlabelled_rows_are_those_of_a_plain_loop():
    embeddings, labelled, truth = world()
    code, rest = truth[labelled], np.setdiff1d(np.arange(200), labelled)
    found = scored(embeddings, labelled, code)
    operator = label_spreading(list(embeddings.values()))
    shares = []
    for repeat in range(2):
        for held in folds_of(code, repeat=repeat):
            kept = np.setdiff1d(np.arange(len(code)), held)
            pseudo = spread(operator[:, labelled[kept]], code[kept], 4)[rest]
            answers = probe_answers(embeddings["good"][labelled[kept]], code[kept], embeddings["good"][rest], 4)
            shares.append(np.mean([(answers == pseudo)[pseudo == c].mean() for c in np.unique(pseudo)]))
    assert found.pseudo_mean["good"] == pytest.approx(np.mean(shares))
    assert found.n_unlabelled == len(rest)


def test_no_label_of_a_fold_reaches_its_predictions_or_pseudo_labels():
    embeddings, labelled, truth = world()
    code, operator = truth[labelled], label_spreading(list(embeddings.values()), sources=labelled)
    for held in folds_of(code):
        changed, kept = code.copy(), np.setdiff1d(np.arange(len(code)), held)
        changed[held] = (code[held] + 1) % 4
        probe = few_labels._Probe(embeddings["bad"][labelled], len(code))
        assert np.array_equal(probe.without(held, code, 4), probe.without(held, changed, 4))
        assert np.array_equal(spread(operator[:, kept], code[kept], 4), spread(operator[:, kept], changed[kept], 4))
    # a label that is not held out does reach them
    changed = code.copy()
    changed[kept] = (code[kept] + 1) % 4
    assert not np.array_equal(probe.without(held, code, 4), probe.without(held, changed, 4))


def test_the_better_embedding_is_found_with_its_error_and_equal_ones_differ_by_nothing():
    embeddings, labelled, truth = world(n=400, k=20)
    found = scored(embeddings | {"again": embeddings["good"].copy()}, labelled, truth[labelled])
    difference = found.difference("good", "bad", level=0.95)
    rest = np.setdiff1d(np.arange(400), labelled)
    right = [
        (probe_answers(rows[labelled], truth[labelled], rows[rest], 4) == truth[rest]).mean()
        for rows in embeddings.values()
    ]
    assert difference.low <= right[0] - right[1] <= difference.high  # 0.5 or so, in an interval of some 0.2
    assert difference.low > 0
    nothing = found.difference("good", "again", level=0.95)
    assert (nothing.value, nothing.standard_error, nothing.settings["lam"]) == (0, 0, 0)
    assert found.accuracy("good", level=0.95).value == pytest.approx(found.hits["good"].mean())


def test_differences_between_two_scores_pair_the_same_rows():
    embeddings, labelled, truth = world()
    found = scored(embeddings, labelled, truth[labelled])
    once = powered_difference(found, "good", found, "bad", level=0.9)
    assert once == found.difference("good", "bad", level=0.9)
    assert once.value == pytest.approx(-powered_difference(found, "bad", found, "good", level=0.9).value)


def test_labels_without_meaning_give_chance():
    embeddings, labelled, truth = world(n=600, classes=10, k=20)
    code = np.random.default_rng(0).permutation(truth[labelled])
    found = scored(embeddings, labelled, code)
    for name in embeddings:  # chance is 0.1; one standard error is 0.02
        assert found.accuracy(name, level=0.95).value == pytest.approx(0.1, abs=0.06)


def test_classes_count_alike():
    embeddings, _, truth = world(n=400)
    labelled = np.concatenate([np.flatnonzero(truth == c)[: (20 if c else 4)] for c in range(4)])
    code = truth[labelled]
    found = scored(embeddings, labelled, code)
    recalls = [found.hits["good"][code == c].mean() for c in range(4)]
    accuracy = found.accuracy("good", level=0.95)
    assert accuracy.value == pytest.approx(np.mean(recalls))
    assert accuracy.value != pytest.approx(found.hits["good"].mean())


def test_groups_are_not_split_where_every_class_has_two():
    embeddings, labelled, truth = world(k=12)
    code, groups = truth[labelled], np.arange(200)
    groups[labelled] = np.arange(48) % 5
    for held in folds_of(code, groups[labelled]):
        assert not set(groups[labelled[held]]) & set(groups[np.delete(labelled, held)])
    by_group = scored(embeddings, labelled, code, groups=groups)
    assert not np.array_equal(by_group.predicted["bad"], scored(embeddings, labelled, code).predicted["bad"])
    # a class in one group: nothing else can be done than to split it
    alone = scored(embeddings, labelled, code, groups=truth)
    assert np.array_equal(alone.predicted["bad"], scored(embeddings, labelled, code).predicted["bad"])


def test_errors_are_over_groups_and_rows_beside_labelled_ones_are_not_looked_at():
    embeddings, labelled, truth = world(n=400, k=20)
    code, groups = truth[labelled], np.arange(400) // 2
    by_row = scored(embeddings, labelled, code)
    alone = dataclasses.replace(by_row, groups=np.arange(80))
    first, second = by_row.difference("good", "bad", level=0.9), alone.difference("good", "bad", level=0.9)
    assert (second.value, second.standard_error) == pytest.approx((first.value, first.standard_error))
    # six groups: the plain sum over them
    groups[labelled] = 1000 + np.arange(80) % 6
    found = scored(embeddings, labelled, code, groups=groups)
    accuracy, hits = found.accuracy("bad", level=0.9), found.hits["bad"]
    sums = [(hits - hits.mean())[np.arange(80) % 6 == g].sum() * 6 / 80 for g in range(6)]
    assert accuracy.value == pytest.approx(hits.mean())  # classes have as many rows each
    assert (accuracy.standard_error, accuracy.n) == (pytest.approx(np.std(sums, ddof=1) / 6**0.5), 6)
    # two rows a group elsewhere: so many of them are counted, and those of a labelled group are not
    groups[:] = np.arange(400) // 2
    shared = np.isin(groups, groups[labelled])
    assert scored(embeddings, labelled, code, groups=groups).n_unlabelled == len(set(groups[~shared]))


def test_an_accuracy_without_a_miss_is_not_beyond_doubt():
    _, labelled, truth = world(n=200, k=10)
    hot = np.eye(4)[truth]
    found = scored({"right": hot, "wrong": np.eye(4)[(truth + np.arange(200)) % 4]}, labelled, truth[labelled])
    accuracy = found.accuracy("right", level=0.95)
    assert (accuracy.value, accuracy.high) == (1, 1)
    assert accuracy.low == pytest.approx(0.9124, abs=1e-4)  # 40 / (40 + z^2)
    assert accuracy.standard_error > 0
    assert 0 <= found.accuracy("wrong", level=0.95).low < found.accuracy("wrong", level=0.95).high <= 1


def test_the_same_seed_gives_the_same_numbers_and_another_other_folds():
    embeddings, labelled, truth = world()
    first, second, other = (scored(embeddings, labelled, truth[labelled], seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(first.predicted["bad"], second.predicted["bad"])
    assert first.pseudo_mean == second.pseudo_mean
    assert not np.array_equal(first.predicted["bad"], other.predicted["bad"])


def test_a_single_label_of_a_class_cannot_be_cross_validated():
    embeddings, labelled, truth = world()
    with pytest.raises(NotMeaningful, match="class 0 has 1"):
        scored(embeddings, labelled[5:], truth[labelled[5:]])


def test_all_rows_labelled_leaves_the_plain_difference():
    embeddings, _, truth = world(n=60)
    found = scored(embeddings, np.arange(60), truth)
    difference = found.difference("good", "bad", level=0.9)
    assert (found.n_unlabelled, difference.settings["lam"]) == (0, 0)
    assert difference.value == pytest.approx((found.hits["good"] - found.hits["bad"]).mean())


def test_episodes_rank_embeddings_by_what_is_labelled_and_refuse_nothing_to_score():
    embeddings, _, truth = world(n=400)
    found = episode_accuracies(embeddings, truth, 3)
    assert found["good"] > found["bad"] + 0.1
    assert found == episode_accuracies(embeddings, truth, 3)
    for bad in (np.zeros(400, dtype=int), np.arange(400)):
        with pytest.raises(NotMeaningful):
            episode_accuracies(embeddings, bad, 1)


def test_weights_sum_to_one_whatever_classes_occur():
    for code in ([0, 0, 2], [1], []):
        weights = balance_weights(np.array(code, dtype=int), 4)
        assert weights.sum() == pytest.approx(1.0 if code else 0.0)
