"""The parts of a forecast: what stands for the student has seen no row that it is judged on."""

import dataclasses

import numpy as np
import pytest

from crossdistill.diagnostics import parts as module
from crossdistill.diagnostics.parts import Target, measure
from crossdistill.errors import NotMeaningful


def weak(n=400, strength=0.15, k=20, seed=0, groups=None):
    """Four classes of which the target shows little; its noise is independent of the teacher's."""
    rng = np.random.default_rng(seed)
    truth = rng.permutation(np.arange(n) % 4)
    teacher = 3 * rng.normal(size=(4, 8))[truth] + rng.normal(size=(n, 8))
    target = np.concatenate([strength * teacher + rng.normal(size=(n, 8)), rng.normal(size=(n, 12))], axis=1)
    index = np.concatenate([np.flatnonzero(truth == c)[:k] for c in range(4)])
    return Target.checked(target, truth[index], index, ssl=None, groups=groups, level=0.9, seed=seed), teacher


def test_the_pilot_agrees_with_pseudo_labels_alike_on_labelled_and_unlabelled_rows():
    """Where it was trained on the unlabelled rows it agreed on 0.9 of them, and on 0.4 of the labelled ones."""
    apart, plain = [], []
    for seed in range(4):
        scores = measure(*weak(seed=seed), proxy="pilot").scores
        on_labelled = (scores.weights * scores.pseudo["pilot"]).mean()
        apart.append(scores.pseudo_mean["pilot"] - on_labelled)
        plain.append((scores.weights * (scores.hits["pilot"] - scores.hits["raw"])).mean())
        corrected = scores.difference("pilot", "raw", level=0.9)
        assert corrected.settings["n_unlabelled"] == 133
        assert abs(corrected.value - plain[-1]) < 0.15  # it was 0.3 and more
    assert abs(np.mean(apart)) < 0.08  # a standard error is 0.07 of one, 0.035 of four


def test_the_pilot_trains_on_no_row_of_the_labelled_or_looked_at_ones():
    world, _ = weak(n=900)
    unseen, unlabelled = module._unseen(world)
    assert set(world.rows[unlabelled]) | set(world.index) == set(unseen)
    assert (len(unlabelled), len(set(unlabelled) & set(range(80)))) == (300, 0)
    # a limit on rows, where there are many pairs
    assert len(module._unseen(weak(n=3000)[0])[1]) == module.UNLABELLED


def test_rows_are_held_out_by_whole_groups_and_none_where_the_labelled_ones_groups_are_trained_on():
    rng = np.random.default_rng(0)
    world, _ = weak(n=900, groups=rng.integers(0, 300, 900), k=8)
    unseen, unlabelled = module._unseen(world)
    trained = np.delete(np.arange(900), unseen)
    assert not set(world.groups[trained]) & set(world.groups[unseen])
    assert not set(world.groups[world.index]) & set(world.groups[world.rows[unlabelled]])
    assert 250 < len(unlabelled) <= 300
    everywhere = dataclasses.replace(world, groups=np.arange(900) % 8)
    unseen, unlabelled = module._unseen(everywhere)
    assert (unseen.tolist(), len(unlabelled)) == (world.index.tolist(), 0)


def test_too_few_pairs_leave_plain_cross_validation():
    world, teacher = weak(n=220)
    found = measure(world, teacher, proxy="pilot")
    difference, scores = found.parts["p_pilot"], found.scores
    assert (difference.settings["lam"], scores.n_unlabelled) == (0, 0)
    assert difference.value == pytest.approx((scores.weights * (scores.hits["pilot"] - scores.hits["raw"])).mean())
    assert measure(world, teacher, proxy="ridge").scores.n_unlabelled == 140


def copies(groups, rep, seed):
    """Rows that are near copies of few: four classes of which a group is one, of `rep` rows each; eighty labelled."""
    rng = np.random.default_rng(seed)
    kind = np.arange(groups) % 4
    latent = 3 * np.random.default_rng(99).normal(size=(4, 8))[kind] + 3 * rng.normal(size=(groups, 8))
    target = np.concatenate([0.5 * latent + 2 * rng.normal(size=(groups, 8)), rng.normal(size=(groups, 12))], axis=1)
    latent, target = (np.repeat(rows, rep, axis=0) for rows in (latent, target))
    latent, target = (rows + 0.05 * rng.normal(size=rows.shape) for rows in (latent, target))
    group = np.repeat(np.arange(groups), rep)
    known = {"ssl": None, "groups": group, "level": 0.9, "seed": seed}
    return Target.checked(target, np.repeat(kind, rep)[:80], np.arange(80), **known), latent


def test_the_error_is_the_spread_over_draws_where_rows_are_near_copies():
    drawn = [measure(*copies(60, 5, seed), proxy="ridge").parts["p_max"] for seed in range(12)]
    spread = np.std([one.value for one in drawn], ddof=1)  # itself known to a fifth
    told = np.mean([one.standard_error for one in drawn])
    assert 0.6 < told / spread < 1.7  # over rows: 0.4 or so
    assert drawn[0].n == 16


def test_labels_in_few_groups_have_no_error():
    with pytest.raises(NotMeaningful, match="in 5 of them or more; all 80 are in 4"):
        copies(20, 20, 0)


def test_retrieval_counts_ties_by_what_a_draw_among_them_would_find():
    rows = np.eye(64)
    assert module._retrieval(rows, rows, 0) == (1, 1 / 64)
    twice = np.repeat(np.eye(32), 2, axis=0)  # each embedding is that of two rows
    assert module._retrieval(twice, twice, 0) == (0.5, 1 / 64)
    assert module._retrieval(np.ones((64, 2)), np.ones((64, 2)), 0) == (1 / 64, 1 / 64)
    wrong = np.roll(rows, 1, axis=0)
    assert module._retrieval(rows, wrong, 0) == (0, 1 / 64)
