import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from crossdistill.errors import DataError
from crossdistill.report import write_report
from crossdistill.report.page import INPUTS, duration

SECTIONS = ["verdict", "league", "table", "differences", "curves", "maps", "retrieval", "run", "skipped", "reading"]
VOID = {"meta", "wbr", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """What a page holds: every tag with its attributes, the visible text, and whether tags close what they open."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text += data

    def all(self, name):
        return [attrs for tag, attrs in self.tags if tag == name]


def read(path):
    return Page(path.read_text(encoding="utf-8"))


def small(evidence_arrays, **options):
    return evidence_arrays(points=40, queries=2, depth=3, **options)


@pytest.fixture(scope="module")
def full(tmp_path_factory, make_run, evidence_arrays):
    folder = make_run(tmp_path_factory.mktemp("full"), evidence=small(evidence_arrays))
    return write_report(folder)


def test_page_has_all_sections_in_order(full):
    page = read(full)
    assert full.name == "report.html"
    assert [attrs["id"] for attrs in page.all("section")] == SECTIONS
    assert "Not shown" not in page.text
    assert page.all("html")[0]["lang"] == "en"


def test_page_loads_nothing(full):
    text = full.read_text(encoding="utf-8")
    page = Page(text)
    assert not page.all("link")
    assert [attrs for attrs in page.all("script") if attrs] == []
    for tag, attrs in page.tags:
        for key in ("src", "href", "xlink:href", "srcset", "data", "action"):
            if attrs.get(key) is not None:
                assert attrs[key].startswith(("data:image/png", "#")), (tag, key)
        for value in attrs.values():
            assert not re.search(r"https?:|url\((?!#)", value or ""), tag
    assert "@import" not in text
    assert "@font-face" not in text
    assert "default-src 'none'" in text


def test_ids_are_unique_and_every_reference_has_its_target(full):
    page = read(full)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    values = [value for _, attrs in page.tags for value in attrs.values() if value]
    used = {m for value in values for m in re.findall(r"url\(#([^)]+)\)", value)}
    used |= {attrs["href"][1:] for _, attrs in page.tags if attrs.get("href", "").startswith("#")}
    assert used
    assert used <= set(ids)


def test_every_picture_has_words(full):
    page = read(full)
    assert all("alt" in attrs for attrs in page.all("img"))
    for attrs in page.all("svg"):
        assert attrs.get("aria-label") or attrs.get("aria-hidden") == "true"
        assert "viewbox" in attrs  # HTMLParser lowers names; browsers restore this one


def test_same_folder_gives_same_page(full, make_run, evidence_arrays, tmp_path):
    again = write_report(make_run(tmp_path / "again", evidence=small(evidence_arrays)))
    assert again.read_bytes() == full.read_bytes()


def test_headline_difference_is_in_points(full, results_json):
    wanted = next(
        c
        for c in results_json()["comparisons"]
        if (c["method"], c["against"], c["evaluation"]) == ("cmcd", "scratch", "linear")
    )
    text = read(full).text
    assert f"{wanted['difference'] * 100:+.1f} points" in text
    assert f"{wanted['low'] * 100:+.1f} to {wanted['high'] * 100:+.1f} over 5 paired seeds" in text


@pytest.mark.parametrize(
    "without",
    [c for n in range(1, len(INPUTS)) for c in itertools.combinations(INPUTS, n)],
    ids=lambda names: "+".join(names),
)
def test_missing_inputs_are_named_and_the_rest_is_shown(without, make_run, evidence_arrays, tmp_path):
    evidence = {
        key: value for key, value in small(evidence_arrays).items() if key not in ("map_teacher", "map_control")
    }
    page = read(write_report(make_run(tmp_path, evidence=evidence, without=without)))
    assert [attrs["id"] for attrs in page.all("section")] == SECTIONS
    for name in INPUTS:
        assert (f"holds no {name}" in page.text) == (name in without)
    assert ("No verdict yet" in page.text) == ("results.json" in without)


def test_folder_without_anything_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"none of results\.json"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "one JSON object"),
        ('{"rows": [{"method": "a"}]}', r"rows\.0\."),
        ('{"verdict": "yes"}', "verdict"),
    ],
)
def test_wrong_results_are_refused_and_an_old_page_stays(content, message, tmp_path):
    (tmp_path / "results.json").write_text(content, encoding="utf-8")
    (tmp_path / "report.html").write_text("old", encoding="utf-8")
    with pytest.raises(DataError, match=message):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == "old"


def test_names_cannot_become_markup(make_run, results_json, evidence_arrays, tmp_path):
    evil = "</title></script><script>alert(1)</script><img src=x onerror=\"a()\" alt='$b_{$'>"
    results = results_json(2, {"cmcd": evil, "scratch": f"'{evil}"})
    results["sentence"] = results["data"]["name"] = evil
    results["data"]["warnings"] = results["data"]["counts"] = None
    results["data"] |= {"warnings": [evil], "counts": {evil: evil}}
    results["environment"] |= {"command": evil, evil: evil}
    results["skipped"] = [{"method": evil, "reason": evil}]
    evidence = small(evidence_arrays)
    evidence["class_names"] = np.array([evil] * 10)
    evidence["map_control_name"] = np.array(evil)
    evidence["modalities"] = np.array(json.dumps({r: {"name": evil, "kind": "vector"} for r in ("source", "target")}))
    history = json.dumps({"method": evil, "stage": evil, "seed": 0, "epoch": 1, "loss": 1.0})
    folder = make_run(tmp_path, results=results, evidence=evidence, history=history)
    (folder / "experiment.yaml").write_text(evil + "{{ 7 * 7 }}", encoding="utf-8")
    page = read(write_report(folder))
    assert len(page.all("script")) == 1
    assert not any(key.startswith("on") for _, attrs in page.tags for key in attrs)
    assert evil in page.text
    assert "{{ 7 * 7 }}" in page.text


def test_one_seed_has_no_interval(make_run, results_json, tmp_path):
    page = read(write_report(make_run(tmp_path, results=results_json(1), without=("evidence.npz", "metrics.jsonl"))))
    assert "one seed: no interval" in page.text
    assert "one seed only" in page.text
    assert "None" not in page.text.replace("None:", "")
    assert "nan" not in page.text.lower().split()


@pytest.mark.parametrize(("verdict", "sign"), [("helped", "▲"), ("hurt", "▼"), ("undecided", "●")])
def test_badge_follows_the_verdict(verdict, sign, make_run, results_json, tmp_path):
    results = results_json(2) | {"verdict": verdict, "comparisons": []}
    page = read(write_report(make_run(tmp_path, results=results, without=INPUTS[1:])))
    assert page.all("section")[0]["class"] == f"verdict {verdict}"
    assert f"{sign} {verdict.capitalize()}" in page.text
    assert "no paired comparison" in page.text


def test_rows_of_another_direction_are_not_mixed_in(make_run, results_json, tmp_path):
    results = results_json(2)
    stray = {**results["rows"][0], "target": "other", "value": 0.0}
    results["rows"].append(stray)
    page = read(write_report(make_run(tmp_path, results=results, without=INPUTS[1:])))
    assert "1 rows of results.json belong to another" in page.text


@pytest.mark.parametrize(
    ("pairing", "word"),
    [("natural", "come from one event"), ("class", "carries label information"), ("", "does not say")],
)
def test_pairing_is_explained(pairing, word, make_run, results_json, tmp_path):
    results = results_json(2)
    results["data"]["pairing"] = pairing
    assert word in read(write_report(make_run(tmp_path, results=results, without=INPUTS[1:]))).text


def test_large_run_stays_small_on_disk(make_run, evidence_arrays, tmp_path):
    rng = np.random.default_rng(0)
    evidence = evidence_arrays(points=200, classes=30)
    evidence |= {
        "query_target": rng.random((20, 3, 224, 224)).astype(np.float32),
        "retrieved_source": rng.random((20, 8, 3, 160, 160)).astype(np.float32),
        "retrieved_target": rng.random((20, 8, 3, 64, 64)).astype(np.float32),
        "query_label": rng.integers(10, size=20),
        "retrieved_label": rng.integers(10, size=(20, 8)),
        "modalities": np.array(json.dumps({r: {"name": r, "kind": "image"} for r in ("source", "target")})),
    }
    path = write_report(make_run(tmp_path, evidence=evidence))
    assert path.stat().st_size < 3_000_000
    page = read(path)
    assert "The 12 most frequent of 30 classes" in page.text
    assert "the first 8 are shown" in page.text


def test_items_without_label_are_shown_and_not_counted(make_run, evidence_arrays, tmp_path):
    evidence = small(evidence_arrays)
    asked = evidence["query_label"][:, None]
    evidence["retrieved_label"] = np.where([[1, 0, 1], [0, 1, 0]], -1, asked)
    evidence["retrieved_label"][1, 2] = (asked[1, 0] + 1) % 10
    page = read(write_report(make_run(tmp_path / "some", evidence=evidence, without=INPUTS[1:3])))
    assert "2 of 3 labelled items found (67\xa0%) are of their query's class (3 more have no label" in page.text
    assert "a grey frame: an item without label" in page.text
    states = [tag["class"].split()[1] for tag in page.all("li") if "sample" in tag.get("class", "")]
    assert states == ["unlabelled", "right", "unlabelled", "right", "unlabelled", "wrong"]
    assert [tag["alt"] for tag in page.all("img")].count("picture: no label") == 3
    assert (page.text.count("✓ "), page.text.count("✗ ")) == (2 + 1, 1 + 1)  # once each in the explanation
    evidence["retrieved_label"][:] = -1
    page = read(write_report(make_run(tmp_path / "none", evidence=evidence, without=INPUTS[1:3])))
    assert "0 of 0 labelled items found are of their query's class (6 more have no label" in page.text


def test_results_alone_of_the_smallest_kind(tmp_path: Path):
    (tmp_path / "results.json").write_text("{}", encoding="utf-8")
    page = read(write_report(tmp_path))
    assert "holds no verdict" in page.text
    assert "there are no scores" in page.text


def test_a_stronger_rival_is_told_beside_the_verdict(make_run, results_json, tmp_path):
    results = results_json(3)
    results["headline"]["against"] = "target_ssl"
    page = read(write_report(make_run(tmp_path, results=results, without=INPUTS[1:])))
    assert "scratch has a higher mean than target_ssl" in page.text


def test_duration():
    assert [duration(s) for s in (0.5, 59.96, 60, 3599.6, 11220)] == [
        "0.5 s",
        "60.0 s",
        "1 min 0 s",
        "1 h 0 min",
        "3 h 7 min",
    ]
