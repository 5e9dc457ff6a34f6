"""The forecast as a whole: what it does not depend on, what it warns of, what it refuses, and how it ranks."""

import dataclasses
import doctest
import pickle

import numpy as np
import pytest

from crossdistill.diagnostics import forecast as module
from crossdistill.diagnostics.calibration import default_calibration
from crossdistill.diagnostics.estimate import Estimate
from crossdistill.diagnostics.forecast import forecast_gain, rank_sources
from crossdistill.diagnostics.ridge import standardised
from crossdistill.errors import ConfigError, DataError, NotMeaningful

CLASSES, K = 5, 12


def world(n=400, k=K, seed=0):
    """A target of which a part is a noisy view of the teacher's latent."""
    rng = np.random.default_rng(seed)
    truth = rng.permutation(np.arange(n) % CLASSES)
    teacher = 2 * rng.normal(size=(CLASSES, 6))[truth] + rng.normal(size=(n, 6))
    target = np.concatenate([teacher @ rng.normal(size=(6, 10)), 8 * rng.normal(size=(n, 15))], axis=1)
    target += 2 * rng.normal(size=target.shape)
    index = np.concatenate([np.flatnonzero(truth == c)[:k] for c in range(CLASSES)])
    return {"target": target, "teacher": teacher, "labels": truth[index], "index": index}


def ranked(sources, **given):
    known = {name: value for name, value in world().items() if name != "teacher"}
    return rank_sources(sources, **known, **given)


def test_doctest():
    assert doctest.testmod(module).attempted > 0
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("proxy", ["ridge", "pilot"])
def test_a_rotated_scaled_teacher_changes_nothing(proxy):
    known = world()
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0]
    first = forecast_gain(**known, proxy=proxy)
    second = forecast_gain(**{**known, "teacher": 3 * known["teacher"] @ rotation}, proxy=proxy)
    assert second.gain.value == pytest.approx(first.gain.value, abs=1e-9)
    assert second.values() == pytest.approx(first.values(), abs=1e-9)
    assert (second.verdict, second.reference, second.warnings) == (first.verdict, first.reference, first.warnings)


def test_the_same_seed_gives_the_same_numbers_in_any_order_of_labels_and_unit_of_the_target():
    known = world()
    first, second = forecast_gain(**known, seed=2), forecast_gain(**known, seed=2)
    assert first.values() == second.values()
    assert first.gain == second.gain
    assert forecast_gain(**known, seed=3, proxy="ridge").parts["p_max"] != first.parts["p_max"]
    other = np.random.default_rng(0).permutation(len(known["index"]))
    mixed = {**known, "index": known["index"][other], "labels": np.array(list("abcde"))[known["labels"][other]]}
    third = forecast_gain(**{**mixed, "target": 7 * known["target"] + 3}, seed=2, proxy="ridge")
    assert third.values() == pytest.approx({name: first.values()[name] for name in third.parts})


def test_the_forecast_is_the_calibration_of_its_parts():
    found = forecast_gain(**world())
    leading, head = found.parts["p_pilot"], found.parts["p_tea"]
    assert isinstance(leading, Estimate)
    expected = 0.02 + 0.61 * leading.value + 0.2 * np.clip(head.value, -0.3, 0.05)
    assert found.gain.value == pytest.approx(expected)
    assert (found.gain.high - found.gain.low) / 2 == pytest.approx(1.4 * np.hypot(leading.standard_error, 0.04))
    assert found.gain.standard_error == leading.standard_error
    assert pickle.loads(pickle.dumps(found)) == found
    assert (found.n_labels, found.k, found.calibration) == (60, 12, default_calibration("pilot"))
    assert {"acc_raw", "acc_tea", "acc_ridge", "acc_pilot", "p_max", "r2", "retrieval", "tv"} <= set(found.parts)
    assert str(found).endswith(
        f"% interval {100 * found.gain.low:+.0f} to {100 * found.gain.high:+.0f}, {found.verdict}"
    )


def test_no_training_leaves_the_pilot_out():
    found = forecast_gain(**world(), proxy="ridge")
    assert "p_pilot" not in found.parts
    assert found.gain.settings["proxy"] == "ridge"
    assert forecast_gain(**world(), proxy="ridge", loss="contrastive").gain.value != found.gain.value


def test_verdicts_are_where_the_interval_lies():
    known = world()
    good = forecast_gain(**known, proxy="ridge")
    assert good.verdict == "help"  # the latent is well hidden, and the teacher has it
    assert good.gain.low > 0
    shuffled = np.random.default_rng(0).permutation(known["teacher"])
    bad = forecast_gain(**{**known, "teacher": shuffled, "target": known["teacher"]}, proxy="ridge")
    assert bad.verdict == "no help"  # the target knows it all, and learns noise
    assert bad.gain.high < 0
    assert any("pairing carries nothing" in warning for warning in bad.warnings)
    wide = dataclasses.replace(default_calibration("ridge"), quantiles=((0.9, 99.0),))
    assert forecast_gain(**known, proxy="ridge", calibration=wide).verdict == "undecided"


def test_a_reference_that_is_the_raw_features_again_changes_nothing():
    known = world()
    raw = standardised(known["target"])
    found = forecast_gain(**known, ssl=raw, proxy="ridge")
    assert found.parts["acc_ssl"] == found.parts["acc_raw"]
    assert found.reference == "raw"
    better = forecast_gain(**known, ssl=known["teacher"], proxy="ridge")
    assert better.reference == "ssl"
    assert better.gain.value < found.gain.value
    assert not any("self-supervised" in warning for warning in better.warnings)


@pytest.mark.parametrize("k", [1, K])
def test_a_constant_teacher_gives_finite_numbers_and_no_help(k):
    known = world(k=k)
    found = forecast_gain(**{**known, "teacher": np.ones((400, 3))})
    assert all(np.isfinite(value) for value in found.values().values())
    assert found.verdict != "help"
    assert found.parts["r2"] == 0


def test_one_label_a_class_goes_by_episodes_or_by_labels_of_the_source():
    known = world(k=1)
    found = forecast_gain(**known)
    assert (found.calibration.proxy, found.k, found.gain.standard_error) == ("episodes", 1, 0)
    e, t = found.parts["e"], found.parts["t"]
    assert e == pytest.approx(found.parts["acc_ridge"] - found.parts["acc_raw"])
    expected = 0.10 + 1.05 * 0.2 * np.tanh(e / 0.2) + 0.37 * 0.1 * np.tanh(t / 0.1)
    assert found.gain.value == pytest.approx(expected)
    assert found.gain.value == forecast_gain(**known, proxy="ridge").gain.value  # nothing is trained
    whole = world(k=40)
    source = whole["teacher"][whole["index"]], whole["labels"]
    by_source = forecast_gain(**known, source_labelled=source)
    assert by_source.calibration.proxy == "source"
    assert by_source.parts["a_source"] > by_source.parts["a_reference"] + 0.1
    # with more labels those of the source are not needed
    assert forecast_gain(**world(), source_labelled=source, proxy="ridge").calibration.proxy == "ridge"


def test_a_single_class_with_one_label_is_told():
    known = world()
    few = {**known, "labels": known["labels"][11:], "index": known["index"][11:]}
    found = forecast_gain(**few)
    assert found.calibration.proxy == "episodes"
    assert any("a class has a single label" in warning for warning in found.warnings)


def test_warnings_name_what_makes_a_forecast_weak():
    said = " ".join(forecast_gain(**world(k=3), proxy="ridge").warnings)
    assert "15 labels are few" in said
    assert "over raw features alone" in said
    known = world()
    pixels = np.clip(np.round(known["target"] @ np.random.default_rng(0).normal(size=(25, 80)) + 128), 0, 255)
    groups = np.arange(400) // 20
    groups[known["index"]] = 0
    found = forecast_gain(**{**known, "target": pixels}, groups=groups, proxy="ridge")
    assert any("looks like pixels" in warning for warning in found.warnings)
    assert any("labels sit in 1 of 20 groups" in warning for warning in found.warnings)
    assert len(forecast_gain(**known, ssl=known["teacher"], groups=np.arange(400), proxy="ridge").warnings) == 0


def test_more_labels_are_advised_only_where_their_noise_leads():
    assert forecast_gain(**world(k=2), proxy="ridge").more_labels
    assert not forecast_gain(**world(n=1000, k=40), proxy="ridge").more_labels


def test_sources_are_ranked_by_paired_differences():
    known, rng = world(), np.random.default_rng(1)
    latent = known["teacher"]
    sources = {
        "noise": rng.normal(size=latent.shape),
        "latent": latent,
        "again": 5 * latent[:, ::-1],  # the same up to a rotation
    }
    found = ranked(sources, proxy="ridge")
    assert found.names[-1] == "noise"
    assert list(found.forecasts) == list(found.names)
    assert found.compare("latent", "noise") == "better"
    assert found.compare("noise", "latent") == "worse"
    assert found.compare("latent", "again") == found.compare("again", "latent") == "cannot tell"
    pair = next(pair for pair in found.differences if "noise" not in pair)
    assert found.differences[pair].value == pytest.approx(0, abs=1e-9)
    assert found.differences[pair].standard_error == pytest.approx(0, abs=1e-9)
    alone = forecast_gain(**known, proxy="ridge")
    assert found.forecasts["latent"].gain == alone.gain
    with pytest.raises(ConfigError, match="compare takes two of"):
        found.compare("latent", "latent")


def test_ranking_with_one_label_a_class_knows_no_noise_but_the_floor():
    known = world(k=1)
    teacher = known.pop("teacher")
    found = rank_sources({"a": teacher, "b": np.random.default_rng(0).normal(size=teacher.shape)}, **known)
    difference = found.differences[found.names]
    assert difference.high - difference.low == pytest.approx(2 * 4.3 * 0.04)


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"index": lambda w: w["index"] + 400}, DataError, "distinct rows 0 to 399"),
        ({"index": lambda w: -w["index"]}, DataError, "distinct rows"),
        ({"index": lambda w: w["index"] * 0}, DataError, "distinct rows"),
        ({"index": lambda w: w["index"] / 2}, DataError, "whole numbers"),
        ({"labels": lambda w: w["labels"][1:]}, DataError, "labels must have one entry"),
        ({"labels": lambda w: w["labels"] - 1}, DataError, "is -1, no class"),
        ({"labels": lambda w: w["labels"] * 0}, NotMeaningful, "two classes"),
        ({"teacher": lambda w: w["teacher"][:-1]}, DataError, "row for each of the 400 pairs"),
        ({"target": lambda w: np.where(np.arange(400)[:, None] == 7, np.nan, w["target"])}, DataError, "row 7"),
        ({"teacher": lambda w: np.where(np.arange(400)[:, None] == 7, np.inf, w["teacher"])}, DataError, "row 7"),
        ({"ssl": lambda w: w["target"][:5]}, DataError, "ssl must have a row"),
        ({"groups": lambda w: np.arange(3)}, DataError, "groups"),
        ({"level": lambda w: 1.5}, ConfigError, "level"),
        ({"level": lambda w: 0.5}, ConfigError, "not calibrated"),
        ({"proxy": lambda w: "both"}, ConfigError, "proxy must be"),
        ({"loss": lambda w: "kd"}, ConfigError, "none of the proxies and losses"),
        ({"calibration": lambda w: default_calibration("ridge")}, ConfigError, "calibration is of ridge"),
    ],
)
def test_wrong_input_is_refused_with_what_and_where(changes, error, says):
    known = world()
    given = known | {name: change(known) for name, change in changes.items()}
    with pytest.raises(error, match=says):
        forecast_gain(**given)


def test_too_few_pairs_and_sources_that_do_not_fit_are_refused():
    known = world(n=49, k=4)
    with pytest.raises(NotMeaningful, match="50 pairs or more; received 49"):
        forecast_gain(**known)
    one = world(k=1)
    teacher, labels = one["teacher"], np.arange(400) % 4
    for source, error in (
        ((teacher, labels), DataError),  # a class without a label there
        ((teacher[:, :3], labels), DataError),
        ((teacher[:5], np.arange(5)), NotMeaningful),
    ):
        with pytest.raises(error):
            forecast_gain(**one, source_labelled=source)
    with pytest.raises(ConfigError, match="one teacher embedding"):
        ranked({})
