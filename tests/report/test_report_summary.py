import math

import numpy as np
import pytest
from scipy import stats

from crossdistill.report.inputs import Comparison, Headline, LossLine, parse_results
from crossdistill.report.summary import Column, estimate, league, learning_curves, strictest, stronger_controls


@pytest.mark.parametrize("n", [2, 3, 10])
def test_interval_is_students(n):
    values = np.random.default_rng(n).normal(0.5, 0.1, n)
    got = estimate(values.tolist())
    low, high = stats.t.interval(0.95, n - 1, loc=values.mean(), scale=stats.sem(values))
    np.testing.assert_allclose([got.mean, got.low, got.high], [values.mean(), low, high], rtol=1e-12)


def test_one_value_has_no_interval_and_equal_values_an_empty_one():
    assert (estimate([0.25]).low, estimate([0.25]).high) == (None, None)
    same = estimate([0.25, 0.25])
    assert (same.low, same.high) == (0.25, 0.25)


@pytest.mark.parametrize(
    ("metric", "value", "signed", "text"),
    [
        ("accuracy", 0.71234, False, "71.2"),
        ("accuracy", -0.0421, True, "\N{MINUS SIGN}4.2"),
        ("accuracy", 0.05, True, "+5.0"),
        ("accuracy", -0.0001, True, "+0.0"),
        ("loss", 1.23456, False, "1.23"),
        ("accuracy", None, False, "\N{EN DASH}"),
    ],
)
def test_values_are_written_for_readers(metric, value, signed, text):
    assert Column("linear", metric).show(value, signed=signed) == text


def compare(method="a", against="b", difference=0.1, evaluation="linear"):
    return Comparison(method=method, against=against, difference=difference, evaluation=evaluation, metric="accuracy")


def test_a_method_is_judged_against_the_headlines_rival_else_the_hardest():
    headline = Headline(method="a", against="b", evaluation="linear", metric="accuracy")
    all_ = [
        compare(against="c", difference=-0.2),
        compare(),
        compare("x", "c", 0.3),
        compare("x", "d", 0.2),
        compare("x", "d", -1, "knn"),
    ]
    assert strictest(all_, "a", headline).against == "b"
    assert strictest(all_, "x", headline).difference == 0.2
    assert strictest(all_, "nobody", headline) is None
    assert strictest(all_, "a", None).difference == -0.2


def row(method, value, *, seed=0, source="s", target="t", evaluation="linear"):
    return {"data": "d", "source": source, "target": target, "method": method, "seed": seed, "evaluation": evaluation,
            "metric": "accuracy", "value": value}  # fmt: skip


def test_league_keeps_one_setting_and_sorts_by_the_headline():
    results = parse_results(
        {
            "rows": [
                row("scratch", 0.5, source="", evaluation="knn"),
                row("scratch", 0.4, source=None),
                row("ours", 0.6),
                row("ours", 0.8, seed=1),
                row("ours", 0.1, target="u"),
                row("ours", 0.1, source="v"),
                row("top", 0.9, source="s", target="s"),
            ],
            "methods": {"scratch": {"role": "baseline"}, "top": {"role": "ceiling", "title": None}},
            "headline": {"method": "ours", "against": "scratch", "evaluation": "linear", "metric": "accuracy"},
        }
    )
    table = league(results)
    assert [entry.name for entry in table.entries] == ["top", "ours", "scratch"]
    assert table.columns[0] == Column("linear", "accuracy")
    assert table.entries[1].cells[table.columns[0]].values == (0.6, 0.8)
    assert table.left_out == 2
    assert (table.source, table.target) == ("s", "t")


def test_a_weak_rival_does_not_go_unnoticed():
    value = {
        "rows": [
            row("ours", 0.9),
            row("weak", 0.2),
            row("strong", 0.5),
            row("shuffled", 0.3),
            row("better", 0.99),
            row("teacher", 0.95),
        ],
        "methods": {
            "weak": {"role": "control"},
            "strong": {"role": "control"},
            "better": {"role": "baseline"},
            "shuffled": {"role": "control"},
            "teacher": {"role": "ceiling"},
        },
    }
    for against, stronger in (("weak", ["strong", "shuffled"]), ("strong", []), ("unknown", [])):
        headline = {"method": "ours", "against": against, "evaluation": "linear", "metric": "accuracy"}
        results = parse_results({**value, "headline": headline})
        assert stronger_controls(league(results), results.headline) == stronger
    assert stronger_controls(league(results), None) == []


def test_comparisons_take_seeds_as_number_or_list():
    value = {
        "method": "a",
        "against": "b",
        "evaluation": "e",
        "metric": "m",
        "difference": 0,
        "low": None,
        "high": None,
    }
    results = parse_results({"comparisons": [{**value, "seeds": 3}, {**value, "seeds": [0, 1, 2, 7]}]})
    assert [comparison.seeds for comparison in results.comparisons] == [3, 4]


def test_curves_average_steps_within_an_epoch_then_seeds():
    def line(seed, epoch, loss, held=None):
        return LossLine(method="m", stage="s", seed=seed, epoch=epoch, loss=loss, held_out=held)

    lines = [line(0, 0, 1.0), line(0, 0, 3.0), line(1, 0, 6.0), line(0, 1, 1.0, 5.0), line(1, 1, math.nan)]
    (learned,) = learning_curves(lines)
    assert (learned.train.epochs, learned.train.mean) == ([0, 1], [4.0, 1.0])
    assert (learned.train.low, learned.train.high, learned.train.seeds) == ([2.0, 1.0], [6.0, 1.0], 2)
    assert (learned.held_out.epochs, learned.held_out.mean) == ([1], [5.0])
    assert learning_curves([line(0, 0, None)]) == []
