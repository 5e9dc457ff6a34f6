import json
import re
from xml.etree import ElementTree

import pytest

from crossdistill.errors import DataError
from crossdistill.report import league_chart_svg
from crossdistill.report.figures import NARROW, WIDE, bars, curves, forest, shorten
from crossdistill.report.inputs import Comparison, parse_results
from crossdistill.report.summary import Curve, Learning, league

SVG = "{http://www.w3.org/2000/svg}"


def test_league_chart_is_a_picture_of_its_own(results_json, make_run, tmp_path):
    results = results_json(3)
    folder = make_run(tmp_path, results=results, without=("evidence.npz",))
    drawn = league_chart_svg(results)
    assert drawn == league_chart_svg(folder) == league_chart_svg(str(folder / "results.json"))
    root = ElementTree.fromstring(drawn)
    assert root.tag == f"{SVG}svg"
    assert root.attrib["viewBox"].split()[2:] == [root.attrib["width"], root.attrib["height"]]
    words = [element.text for element in root.iter(f"{SVG}text")]
    assert {"cmcd", "teacher", "ceiling"} <= set(words)
    assert re.findall(r"https?://[^\s\"]+", drawn) == ["http://www.w3.org/2000/svg"]
    assert not list(root.iter(f"{SVG}metadata"))


def test_league_chart_needs_results(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        league_chart_svg(tmp_path)
    with pytest.raises(DataError, match="no rows"):
        league_chart_svg({"rows": []})
    (tmp_path / "results.json").write_text(json.dumps({"rows": [{}]}), encoding="utf-8")
    with pytest.raises(DataError, match=re.escape("rows.0.method")):
        league_chart_svg(tmp_path)


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_bars_tell_every_method_in_words(width, results_json):
    table = league(parse_results(results_json(3)))
    root = ElementTree.fromstring(bars(table, "b", width=width, classes=10))
    titles = [element.text for element in root.iter("title")]
    assert len(titles) == len(table.entries)
    assert titles[0].startswith("teacher (ceiling): ")
    assert all(title in root.attrib["aria-label"] for title in titles)
    assert float(root.attrib["viewBox"].split()[2]) == pytest.approx(width)


def ticks(drawn):
    """Give the numbers on the axis."""
    words = [element.text.replace("\N{MINUS SIGN}", "-") for element in ElementTree.fromstring(drawn).iter("text")]
    return [float(word) for word in words if re.fullmatch(r"-?[0-9]+", word)]


def two_seeds(low, high):
    row = {"data": "d", "source": "a", "target": "b", "evaluation": "linear", "metric": "accuracy"}
    rows = [{**row, "method": "m", "seed": seed, "value": value} for seed, value in enumerate((low, high))]
    return league(parse_results({"rows": rows}))


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_the_axis_of_shares_ends_at_100(width):
    table = two_seeds(0.6, 1.0)
    assert table.entries[0].cells[table.columns[0]].high > 3  # Student's, with one degree of freedom
    drawn = bars(table, "b", width=width)
    assert min(ticks(drawn)) == 0
    assert max(ticks(drawn)) == 100
    root = ElementTree.fromstring(drawn)
    assert "interval \N{MINUS SIGN}174.1 to 334.1" in root.attrib["aria-label"]  # the numbers are as they are
    (number,) = [element for element in root.iter("text") if element.text == "80.0"]
    assert float(number.attrib["x"]) < width - 30  # and the mean has room beyond the axis


def test_a_short_axis_stays_as_it_is():
    assert max(ticks(bars(two_seeds(0.30, 0.31), "b", width=WIDE))) < 60


def compare(low, high, difference=0.02, seeds=3):
    facts = {"method": "a", "against": "b", "evaluation": "e", "metric": "accuracy"}
    return Comparison(**facts, difference=difference, low=low, high=high, seeds=seeds)


@pytest.mark.parametrize(
    ("comparison", "colour"),
    [
        (compare(0.01, 0.03), "#137a3c"),
        (compare(-0.03, -0.01, -0.02), "#b42318"),
        (compare(-0.01, 0.05), None),
        (compare(None, None), None),
        (compare(None, None, 0.0), None),
        (compare(0.01, 0.03, seeds=1), None),
    ],
)
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_forest_colours_only_what_is_sure(comparison, colour, width):
    drawn = forest([comparison], "f", width=width)
    assert {c for c in ("#137a3c", "#b42318") if c in drawn} == ({colour} if colour else set())
    assert ("no interval" in drawn) == (comparison.low is None)


def test_differences_of_shares_end_at_100_points():
    assert -100 <= min(ticks(forest([compare(-2.5, 2.6)], "f", width=WIDE))) < 0
    assert 0 < max(ticks(forest([compare(-2.5, 2.6)], "f", width=WIDE))) <= 100


def test_figures_with_other_names_share_no_ids(results_json):
    table = league(parse_results(results_json(2)))
    first, second = (set(re.findall(r' id="([^"]+)"', bars(table, name, width=WIDE))) for name in ("one", "two"))
    assert first
    assert not first & second


def test_curves_of_a_single_epoch_and_of_none():
    curve = Curve(epochs=[1.0], mean=[0.5], low=[0.4], high=[0.6], seeds=2)
    drawn = curves(Learning(method="m", stage="s", train=curve, held_out=None), "c")
    assert "training loss from 0.5 to 0.5" in drawn
    assert "held-out" not in drawn


def test_shorten():
    assert [shorten("abcdef", n) for n in (6, 5)] == ["abcdef", "abcd…"]
