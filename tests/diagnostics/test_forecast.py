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
    first, second = (forecast_gain(**known, seed=2, proxy="pilot") for _ in range(2))
    assert first.values() == second.values()
    assert first.gain == second.gain
    plain = forecast_gain(**known, seed=2, proxy="ridge")
    assert forecast_gain(**known, seed=3, proxy="ridge").parts["p_max"] != plain.parts["p_max"]
    other = np.random.default_rng(0).permutation(len(known["index"]))
    mixed = {**known, "index": known["index"][other], "labels": np.array(list("abcde"))[known["labels"][other]]}
    third = forecast_gain(**{**mixed, "target": 7 * known["target"] + 3}, seed=2, proxy="ridge")
    assert third.values() == pytest.approx(plain.values())


def test_the_forecast_is_the_calibration_of_its_parts():
    found = forecast_gain(**world(), proxy="pilot")
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
    assert bad.parts["retrieval"] < 2 * bad.parts["retrieval_chance"] < good.parts["retrieval"]
    assert not any("pairing" in warning for warning in bad.warnings)  # that question is check_pairs'
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
    assert (found.calibration.proxy, found.k, found.gain.standard_error) == ("episodes", 1, None)
    assert found.gain.high - found.gain.low == pytest.approx(2 * 4.3 * 0.04)
    assert found.more_labels
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


def test_classes_with_a_single_label_are_left_out_where_two_others_have_more():
    known = world()
    few = {**known, "labels": known["labels"][11:], "index": known["index"][11:]}  # one of class 0 is left
    found = forecast_gain(**few, proxy="pilot")
    assert (found.calibration.proxy, found.k, found.n_labels) == ("pilot", 12, 48)
    assert "1 of 5 classes had a single label: the forecast is of the other 4" in found.warnings
    # unlabelled rows are of class 0, too, unlike the labelled ones: they correct nothing
    assert found.parts["p_pilot"].settings["n_unlabelled"] == 0
    without = forecast_gain(**{**known, "labels": known["labels"][12:], "index": known["index"][12:]}, proxy="pilot")
    assert found.parts["acc_raw"].value == without.parts["acc_raw"].value
    # of two classes one would be left
    pair = np.r_[0, 12:24]
    told = forecast_gain(**{**known, "labels": known["labels"][pair], "index": known["index"][pair]})
    assert (told.calibration.proxy, told.k, told.n_labels) == ("episodes", 1, 13)
    assert any("a class has a single label" in warning for warning in told.warnings)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"n": 140}, "140 pairs"),
        ({"n": 1000, "k": 30}, "30 labels per class"),
        ({"n": 5100}, "5100 pairs"),
    ],
)
def test_what_lies_outside_the_first_study_is_told(changes, says):
    told = [one for one in forecast_gain(**world(**changes), proxy="ridge").warnings if "default calibration" in one]
    assert len(told) == 1
    assert told[0].endswith(f"outside lie {says}")


def test_two_classes_lie_outside_the_first_study_but_not_outside_ones_own():
    known = world()
    two = {**known, "labels": known["labels"] % 2}
    assert any("outside lie 2 classes" in warning for warning in forecast_gain(**two, proxy="ridge").warnings)
    own = dataclasses.replace(default_calibration("ridge"), data_sets=("mine",))
    found = forecast_gain(**two, proxy="ridge", calibration=own)
    assert not any("outside" in warning for warning in found.warnings)
    assert not any("outside" in warning for warning in forecast_gain(**known, proxy="ridge").warnings)


def test_a_level_is_refused_before_the_data_are_looked_at():
    nothing = {"target": None, "labels": None, "index": None, "level": 0.95}
    with pytest.raises(ConfigError, match=r"level 0\.95 of the forecast was not calibrated"):
        forecast_gain(teacher=None, **nothing)
    with pytest.raises(ConfigError, match=r"level 0\.95 of the forecast was not calibrated"):
        rank_sources({"a": None}, **nothing)


def test_a_teacher_twice_differs_by_nothing():
    for k in (1, K):
        known = world(k=k)
        teacher = known.pop("teacher")
        found = rank_sources({"a": teacher, "b": teacher.copy()}, **known, proxy="ridge")
        (difference,) = found.differences.values()
        assert (difference.value, difference.standard_error, difference.low, difference.high) == (0, 0, 0, 0)
        assert difference.kind == "the same embedding twice"
        assert found.compare("a", "b") == "cannot tell"


def test_warnings_name_what_makes_a_forecast_weak():
    said = " ".join(forecast_gain(**world(k=3), proxy="ridge").warnings)
    assert "15 labels are few" in said
    assert "over raw features alone" in said
    known = world()
    pixels = np.clip(np.round(known["target"] @ np.random.default_rng(0).normal(size=(25, 80)) + 128), 0, 255)
    groups = np.arange(400) // 20
    groups[known["index"]] = 0
    with pytest.raises(NotMeaningful, match="labels in 5 of them or more; all 60 are in 1"):
        forecast_gain(**known, groups=groups, proxy="ridge")
    one = world(k=1)
    groups[one["index"]] = 0
    found = forecast_gain(**{**one, "target": pixels}, groups=groups)
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
    assert difference.standard_error is None


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
        ({"calibration": lambda w: default_calibration("pilot")}, ConfigError, "calibration is of pilot"),
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
