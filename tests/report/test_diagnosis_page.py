import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from diagnosis_file import EVIL, STOP, estimate, file, teacher, whole
from hypothesis import given
from hypothesis import strategies as st

from crossdistill.diagnostics.diagnosis import diagnose
from crossdistill.errors import DataError
from crossdistill.report import write_diagnosis
from crossdistill.report.diagnosis_figures import VERDICT_COLOURS, circles
from crossdistill.report.diagnosis_inputs import parse_diagnosis
from crossdistill.report.diagnosis_words import DASH, MINUS, bounds, number, title_of

SECTIONS = ["verdict", "forecast", "ranking", "pairs", "venn", "numbers", "bound", "calibration", "withheld", "assumed",
            "reading"]  # fmt: skip
VOID = {"meta", "wbr", "img", "br", "input"}


class Page(HTMLParser):
    """Every tag with its attributes, and the text by section."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text, self.section = [], [], {}, ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if tag == "section":
            self.section = attrs["id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text[self.section] = self.text.get(self.section, "") + data

    def all(self, name):
        return [attrs for tag, attrs in self.tags if tag == name]

    @property
    def sections(self):
        return [attrs["id"] for attrs in self.all("section")]


def read(path):
    return Page(path.read_text(encoding="utf-8"))


def write(folder, value):
    (folder / "diagnosis.json").write_text(json.dumps(value), encoding="utf-8")
    return write_diagnosis(folder)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return write(tmp_path_factory.mktemp("whole"), whole())


def world(labelled):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 200)
    latent = 3 * np.eye(3)[y] + rng.normal(size=(200, 3))
    target = np.concatenate([0.3 * latent + rng.normal(size=(200, 3)), rng.normal(size=(200, 5))], axis=1)
    sources = {"photo": np.hstack([latent, rng.normal(size=(200, 3))]), "noise": rng.normal(size=(200, 6))}
    return diagnose(sources, target, labels=np.where(np.arange(200) < labelled, y, -1), training=False)


def test_page_has_all_sections_in_order(full):
    page = read(full)
    assert page.sections == SECTIONS
    links = [attrs["href"][1:] for attrs in page.all("a")]
    assert [link for link in links if link in SECTIONS[1:]][: len(SECTIONS) - 1] == SECTIONS[1:]
    assert "Not shown" not in "".join(page.text.values())
    assert "20 labels are few" in page.text["assumed"].replace("\n", "")
    for word in ("1,700", "one, two", "the/file.npy", "3.2 s"):
        assert word in page.text["assumed"]


def test_page_loads_nothing_and_ids_are_whole(full):
    text = full.read_text(encoding="utf-8")
    page = Page(text)
    assert not page.all("link")
    assert [attrs for attrs in page.all("script") if attrs] == []
    for tag, attrs in page.tags:
        for key in ("src", "href", "xlink:href", "srcset", "data", "action"):
            assert attrs.get(key) is None or attrs[key].startswith("#"), (tag, key)
        for value in attrs.values():
            assert not re.search(r"https?:|url\((?!#)", value or ""), tag
    assert "@import" not in text
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    used = {m for _, attrs in page.tags for v in attrs.values() if v for m in re.findall(r"url\(#([^)]+)\)", v)}
    used |= {attrs["href"][1:] for _, attrs in page.tags if attrs.get("href", "").startswith("#")}
    assert used <= set(ids)


def test_names_are_text_and_nothing_else(full):
    page = read(full)
    assert len(page.all("script")) == 1
    assert not [attrs for _, attrs in page.tags if "onclick" in attrs]
    for section in ("forecast", "ranking", "pairs", "venn", "numbers", "bound", "calibration", "assumed"):
        assert EVIL in page.text[section], section
    assert "an error needs <two> sets" in page.text["withheld"]
    for attrs in page.all("svg"):
        assert attrs.get("aria-label") or attrs.get("aria-hidden")


def test_the_page_is_a_function_of_the_folder(full, tmp_path):
    assert write(tmp_path, whole()).read_bytes() == full.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["diagnosis.html", "diagnosis.json"]


@pytest.mark.parametrize("labelled", [30, 0])
def test_what_diagnose_gives_can_be_drawn(tmp_path, labelled):
    found = world(labelled)
    page = read(write(tmp_path, found.as_json()))
    assert page.sections == [s for s in SECTIONS if labelled or s not in ("venn", "calibration")]
    assert found.sentence.split(" But first")[0] in page.text["verdict"]
    for one in found.teachers:
        for finding in one.findings:
            assert finding.what in page.text["pairs"]
        for name in one.estimates:
            assert title_of(name) in page.text["numbers"], name
    for one in found.withheld:
        assert one.reason in page.text["withheld"]
    if labelled:
        (difference,) = found.differences.values()
        assert f"({bounds(difference.low, difference.high, 'points')})" in page.text["ranking"]
        assert "Our reconstruction" in page.text["bound"]
    else:
        for section in ("forecast", "ranking"):
            assert "Not shown: no row has a label" in page.text[section]


def test_the_forecast_stands_at_its_reference_plus_the_gain(full):
    labels = [attrs["aria-label"] for attrs in read(full).all("svg") if "aria-label" in attrs]
    mine = [label for label in labels if label.startswith("Forecast among its references, teacher good.")]
    assert len(mine) == 2  # for a desk and for a phone
    for label in mine:
        assert "Student, forecast: 66.0 %, 90 % interval 58.0 to 74.0" in label
        assert "Target-only self-supervision: 50.0 %" in label
        assert label.endswith("chance 25.0 %")
    bad = next(label for label in labels if label.startswith("Forecast among its references, teacher bad."))
    assert "Student, forecast: 30.0 %, 90 % interval 20.0 to 40.0" in bad
    page = read(full)
    assert "reference to beat is target-only self-supervision, though the other one's dot" in page.text["forecast"]


def test_no_accuracy_is_forecast_beyond_all_or_nothing(tmp_path):
    path = write(tmp_path, file([teacher("good", (0.5, -0.7, 0.9), "undecided")]))
    label = next(a["aria-label"] for a in read(path).all("svg") if a.get("aria-label", "").startswith("Forecast"))
    assert "Student, forecast: 100.0 %, 90 % interval 0.0 to 100.0" in label


def test_who_is_better_is_said_for_every_two(full):
    text = " ".join(read(full).text["ranking"].split())
    assert f"It cannot be told from {EVIL}, bad." in text
    assert f"good, {EVIL}cannot tell+10.0 ({MINUS}2.0 to +20.0)" in text
    assert f"{EVIL}, badbetter+10.0 (+2.0 to +20.0)" in text


def test_colours_are_those_of_verdicts_not_of_signs(tmp_path):
    """Pairs that are none leave a forecast of help undecided, which must not look green."""
    value = file([teacher("lone", (0.09, 0.01, 0.17), "undecided", findings=[STOP]), teacher("b", None, "undecided")])
    value["sentence"] = f"It may or may not help. But first: {STOP['what']}; {STOP['do']}."
    path = write(tmp_path, value)
    assert VERDICT_COLOURS["help"] not in path.read_text(encoding="utf-8").split("</style>")[1]
    text = read(path).text["verdict"]
    assert "Undecided" in text
    assert "the verdict is not, as the pairs look like none" in text
    assert text.count(STOP["what"]) == 1
    assert "But first" not in text
    assert "rows 3, 5" in text


def test_sections_are_left_out_or_say_why(tmp_path):
    alone = file([teacher("good", (0.09, 0.01, 0.17), "help")])
    page = read(write(tmp_path, alone))
    assert page.sections == [s for s in SECTIONS if s not in ("ranking", "venn", "calibration")]
    why = {"teacher": "good", "reason": "ten labels are too few"}
    alone["withheld"] = [{"what": "venn", **why}, {"what": "complementarity", **why}]
    page = read(write(tmp_path, alone))
    assert page.sections == [s for s in SECTIONS if s != "ranking"]
    for section in ("venn", "calibration"):
        assert "Not shown: ten labels are too few" in page.text[section]
    assert "Venn diagram" in page.text["withheld"]


def test_one_label_of_a_class_has_its_caveat(tmp_path):
    value = file([teacher("good", (0.09, -0.1, 0.3), "undecided")])
    value["estimates"]["good/e"] = estimate(0.05)
    text = read(write(tmp_path, value)).text
    assert "compare them with one another only" in text["forecast"]
    assert "“cannot tell”" in text["verdict"]


def test_the_venn_diagram_says_its_numbers_and_caveats(full):
    page = read(full)
    labels = [a["aria-label"] for a in page.all("svg") if a.get("aria-label", "").startswith("Venn diagram")]
    assert len(labels) == 6
    for label in labels:
        assert "In both: 0.50 (0.30 to 0.70) nats" in label
        assert f"In the target alone: {MINUS}0.04 ({MINUS}0.20 to 0.10) nats" in label
    assert "An estimate below zero is drawn as zero" in page.text["venn"]
    assert page.text["venn"].count("Rough below 100 labels.") == 1


@given(st.floats(0.01, 5), st.floats(0.01, 5), st.floats(0, 1))
def test_areas_of_circles_and_overlap_are_to_scale(only_source, only_target, share):
    shared = share * 2
    a, b, d = circles(only_source + shared, only_target + shared, shared)
    assert np.pi * a**2 == pytest.approx(only_source + shared)
    assert np.pi * b**2 == pytest.approx(only_target + shared)
    x = np.linspace(max(-a, d - b), min(a, d + b), 20001)  # the overlap by its height at every x
    heights = np.minimum(np.sqrt(np.maximum(a**2 - x**2, 0)), np.sqrt(np.maximum(b**2 - (x - d) ** 2, 0)))
    assert np.trapezoid(2 * heights, x) == pytest.approx(shared, abs=1e-4)


def test_a_circle_lies_within_the_other_where_nothing_is_its_own():
    a, b, d = circles(1.0, 4.0, 1.0)
    assert d + a <= b + 1e-12
    assert circles(0.0, 0.0, 0.0) == (0.0, 0.0, 0.0)


def test_nothing_known_at_all_still_has_a_picture(tmp_path):
    value = file([teacher("good", (0.09, 0.01, 0.17), "help")])
    for what in ("shared", "only_source", "only_target"):
        value["estimates"][f"good/{what}"] = estimate(-0.1)
    assert "In both" in read(write(tmp_path, value)).all("svg")[-1]["aria-label"]


def test_the_bound_is_marked_and_claims_nothing_it_cannot_know(full):
    text = read(full).text["bound"]
    assert "Our reconstruction" in text
    assert "not the paper's statement" in text
    assert "no bound is claimed" in text


def test_numbers_are_written_for_readers():
    assert number(-0.0004, "points") == "+0.0 points"
    assert number(-0.174, "points") == f"{MINUS}17.4 points"
    assert number(0.0027, "nats") == "0.0027 nats"
    assert number(-0.00001, "nats") == "0.00 nats"
    assert number(2.346, "nats", bare=True) == "2.35"
    assert number(None, "share") == DASH
    assert bounds(None, 0.3, "share") == "no interval"
    assert title_of("something_new") == "something new"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"verdict": "perhaps"}, "at 'verdict'"),
        ({"teachers": []}, "at 'teachers'"),
        ({"estimates": {"good/tv": {"value": float("nan")}}}, "at 'estimates.good/tv.value'"),
        ({"estimates": {"else/tv": {"value": 0.1}}}, "an estimate is of 'else'"),
        ({"withheld": [{"what": "tv", "teacher": "else"}]}, "something withheld is of 'else'"),
        ({"calibration_lines": [{"what": "x", "points": []}]}, "at 'calibration_lines.0.points'"),
        ({"settings": {}}, "at 'settings.pairs'"),
    ],
)
def test_a_file_that_is_none_is_refused(change, message):
    with pytest.raises(DataError, match=re.escape(message)):
        parse_diagnosis({**file([teacher("good", (0.09, 0.01, 0.17), "help")]), **change})


def test_two_of_one_name_are_refused():
    with pytest.raises(DataError, match="one name"):
        parse_diagnosis(file([teacher("good", None, "undecided"), teacher("good", None, "undecided")]))


def test_without_a_proper_file_no_page_is_left(tmp_path):
    with pytest.raises(DataError, match="does not exist; write the file again with 'crossdistill diagnose'"):
        write_diagnosis(tmp_path)
    (tmp_path / "diagnosis.json").write_text("[]", encoding="utf-8")
    with pytest.raises(DataError, match="must hold one JSON object"):
        write_diagnosis(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["diagnosis.json"]
