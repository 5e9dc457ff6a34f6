"""One call for everything: its verdict is the forecast's, what is not meaningful is withheld, and nothing leaks."""

import json

import numpy as np
import pytest

from crossdistill.diagnostics import diagnose, forecast_gain
from crossdistill.diagnostics.diagnosis import NUMBERS
from crossdistill.diagnostics.self_supervision import target_embedding
from crossdistill.errors import ConfigError, DataError

N, CLASSES = 400, 4


@pytest.fixture(scope="module")
def world():
    """Two views of one latent: a rich one, one of noise, and a poor target; fifteen labels of each class are known."""
    rng = np.random.default_rng(0)
    y = np.arange(N) % CLASSES
    latent = 2.5 * np.eye(CLASSES)[y] + rng.normal(size=(N, CLASSES))
    rich = np.concatenate([latent, 0.3 * rng.normal(size=(N, 4))], axis=1)
    poor = np.concatenate([0.3 * latent + rng.normal(size=(N, CLASSES)), rng.normal(size=(N, 16))], axis=1)
    few = np.where(np.arange(N) < 15 * CLASSES, y, -1)
    return {"rich": rich, "noise": rng.normal(size=(N, 8)), "poor": poor, "few": few, "label": y}


@pytest.fixture(scope="module")
def found(world):
    sources = {"noise": world["noise"], "rich": world["rich"]}
    return diagnose(sources, world["poor"], labels=world["few"], training=False)


def test_the_verdict_is_the_best_forecast(world, found):
    rows = np.flatnonzero(world["few"] >= 0)
    alone = forecast_gain(world["poor"], world["rich"], world["few"][rows], rows, proxy="ridge")
    assert [one.name for one in found.teachers] == ["rich", "noise"]
    assert found.gain.value == alone.gain.value
    assert (found.gain.low, found.gain.high) == (alone.gain.low, alone.gain.high)
    assert found.verdict == alone.verdict
    assert "'rich'" in found.sentence
    assert found.differences["rich", "noise"].value == pytest.approx(
        found.teachers[0].forecast.gain.value - found.teachers[1].forecast.gain.value
    )


def test_pairs_that_carry_nothing_are_told_and_never_called_a_help(found):
    noise = found.teachers[1]
    assert [f.check for f in noise.findings if f.severity == "stop"] == ["pairing"]
    assert noise.verdict != "help"
    assert not [f for f in found.best.findings if f.severity == "stop"]
    assert not any("pairing" in w for w in found.warnings)  # said once, as a finding


def test_everything_is_in_the_file_with_interval_and_settings(found):
    value = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert value["verdict"] == found.verdict
    assert value["gain"]["low"] < value["gain"]["value"] < value["gain"]["high"]
    assert [t["name"] for t in value["teachers"]] == ["rich", "noise"]
    names = {key.partition("/")[2] for key in value["estimates"] if key.startswith("rich/")}
    wanted = {"kernel_tv", "kernel_kl", "mi_lower_bound", "complementarity", "shared", "only_source", "only_target"}
    assert wanted | {"p_max", "p_tea", "acc_raw", "acc_tea", "r2"} <= names
    for key, estimate in value["estimates"].items():
        assert set(estimate) == {"value", "standard_error", "low", "high", "n", "level", "kind", "settings", "note"}
        assert estimate["n"] > 0, key
    assert {line["what"] for line in value["calibration_lines"]} == {"information_shared", "information_known"}
    assert value["settings"]["labels_used"] == 60
    assert value["teachers"][0]["theory"]["source"].startswith("our reconstruction")


@pytest.mark.parametrize("case", ["whole", "no labels", "one group", "one class", "flat source", "flat target"])
def test_every_number_is_given_or_withheld(world, case):
    source, target = world["rich"], world["poor"]
    labels = None if case == "no labels" else np.zeros(N, dtype=int) if case == "one class" else world["few"]
    source = np.ones((N, 3)) if case == "flat source" else source
    target = np.ones((N, 3)) if case == "flat target" else target
    groups = np.zeros(N, dtype=int) if case == "one group" else None
    found = diagnose({"rich": source}, target, labels=labels, groups=groups, training=False)
    (one,) = found.teachers
    left = [w.what for w in found.withheld if w.teacher == "rich"]
    assert len(left) == len(set(left))
    assert all(w.reason for w in found.withheld)
    named = set(left) & set(NUMBERS)
    assert named | (set(one.estimates) & set(NUMBERS)) == set(NUMBERS)
    assert not named & set(one.estimates)
    assert (one.forecast is None) == any(w.what == "gain" for w in found.withheld)


def test_what_is_not_meaningful_is_withheld_with_its_reason(world, found):
    votes = [w for w in found.withheld if w.what in ("vote_error", "certificate") and w.teacher == "rich"]
    assert [w.reason for w in votes] == ["votes need two sets of 64 labelled rows; there are 60"] * 2
    without = diagnose({"rich": world["rich"]}, world["poor"], training=False)
    assert without.gain is None
    assert without.verdict == "undecided"
    assert without.as_json()["gain"] is None
    assert ("gain", "no row has a label; give a few of each class") in {(w.what, w.reason) for w in without.withheld}
    assert "kernel_tv" in without.best.estimates
    assert "cannot be forecast" in without.sentence
    one = diagnose({"rich": world["rich"]}, world["poor"], labels=np.where(world["few"] == 0, 0, -1), training=False)
    assert [w.reason for w in one.withheld if w.what == "gain"] == [
        "a forecast needs labels of two classes or more; all 15 are 0"
    ]


def test_unknown_labels_change_nothing_and_many_are_thinned(world):
    def first(labels):
        return diagnose({"rich": world["rich"]}, world["poor"], labels=labels, training=False)

    renamed = np.where(world["few"] >= 0, 3 * world["few"] + 2, -1)
    assert first(renamed).gain.value == pytest.approx(first(world["few"]).gain.value)
    all_known = first(world["label"])
    assert all_known.labelled == N
    assert all_known.used == 20 * CLASSES
    assert all_known.best.forecast.k == 20
    assert any("80 of the 400 labelled rows" in w for w in all_known.warnings)


def test_training_adds_a_pilot_and_the_targets_own_reference(world):
    twice = [diagnose({"rich": world["rich"]}, world["poor"], labels=world["few"], pilot=True) for _ in range(2)]
    assert {"p_pilot", "acc_pilot", "acc_ssl"} <= set(twice[0].best.estimates)
    first, second = (found.as_json() for found in twice)
    assert {**first, "seconds": 0} == {**second, "seconds": 0}


def test_the_reference_learns_what_the_views_share_and_is_its_own_for_each_seed():
    rng = np.random.default_rng(0)
    y = np.arange(300) % 3
    x = 3 * rng.normal(size=(3, 20))[y] + rng.normal(size=(300, 20))
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    z = target_embedding(x, steps=40)
    assert np.allclose(np.linalg.norm(z, axis=1), 1)
    assert np.array_equal(z, target_embedding(x, steps=40))
    assert not np.array_equal(z, target_embedding(x, steps=40, seed=1))
    near = z @ z.T
    np.fill_diagonal(near, -1)
    assert (y[near.argmax(axis=1)] == y).mean() > 0.95


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"sources": {}}, ConfigError, "one source or more"),
        ({"sources": {"rich": np.ones((3, 2))}}, DataError, "source 'rich' has 3 rows and the target 400"),
        ({"sources": {"rich": np.full((N, 2), np.nan)}}, DataError, "source 'rich' has a value that is not finite"),
        ({"labels": np.arange(3)}, DataError, "labels must have one entry for each of 400 rows"),
        ({"labels": np.full(N, 0.5)}, DataError, "whole numbers from 0, and -1"),
        ({"labels": np.full(N, -2)}, DataError, "whole numbers from 0, and -1"),
        ({"groups": np.arange(7)}, DataError, "groups must have one entry"),
        ({"pilot": True}, ConfigError, "a pilot is trained"),
        ({"level": 0.5}, ConfigError, "level 0.5 of the forecast was not calibrated; take one of 0.8, 0.9"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(world, change, error, told):
    given = {"sources": {"rich": world["rich"]}, "target": world["poor"], "labels": world["few"], **change}
    sources, target = given.pop("sources"), given.pop("target")
    with pytest.raises(error, match=told):
        diagnose(sources, target, training=False, **given)


def test_what_does_not_vary_has_no_numbers(world):
    sources = {"rich": world["rich"], "flat": np.ones((N, 3))}
    found = diagnose(sources, world["poor"], labels=world["few"], training=False)
    flat = found.teachers[-1]
    assert (flat.name, flat.forecast, dict(flat.estimates)) == ("flat", None, {})
    assert ("gain", "flat", "every column of the source is constant") in {
        (w.what, w.teacher, w.reason) for w in found.withheld
    }
    assert found.best.name == "rich"
    none = diagnose(sources, np.ones((N, 3)), labels=world["few"], training=False)
    assert none.gain is None
    assert not any(one.estimates for one in none.teachers)
    assert "every column of the target is constant" in none.sentence


def test_rows_that_slipped_are_put_in_order_before_anything_is_concluded(world):
    rng = np.random.default_rng(1)
    near = world["rich"] + 0.1 * rng.normal(size=world["rich"].shape)
    order = rng.permutation(N)
    slipped = np.roll(world["rich"][order], 1, axis=0)
    found = diagnose({"rich": slipped}, near[order], labels=world["label"][order], training=False)
    assert "slip" in {finding.check for finding in found.best.findings}
    assert found.verdict == "undecided"
    assert "But first" in found.sentence
