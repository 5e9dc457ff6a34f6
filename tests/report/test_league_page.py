import itertools
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from bench_folder import METHODS, experiment, make_bench
from PIL import Image

from crossdistill.errors import DataError
from crossdistill.report import is_bench, league, league_markdown, write_league
from crossdistill.report.league_figures import apart, file_name, interval, points

SECTIONS = ["verdict", "league", "gains", "ranks", "experiments", "labels", "pairs", "compute", "classes", "left-out",
            "run", "reading"]  # fmt: skip
EVIL = "<b onclick='x()'>&amp; \"friends\"</b>"
VOID = {"meta", "wbr", "img", "br", "input"}


class Page(HTMLParser):
    """Every tag with its attributes, the text by section, and the rows of each table."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text, self.section, self.rows = [], [], {}, "", {}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if tag == "section":
            self.section = attrs["id"]
        if tag == "tr":
            self.rows.setdefault(self.section, []).append("")
        if tag in ("td", "th") and self.rows:
            self.rows[self.section][-1] += "|"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("style", "script"):
            return
        self.text[self.section] = self.text.get(self.section, "") + data
        if "tr" in self.open:
            self.rows[self.section][-1] += data.replace("\n", "")

    def all(self, name):
        return [attrs for tag, attrs in self.tags if tag == name]


def read(path):
    return Page(path.read_text(encoding="utf-8"))


def suite(folder, **options):
    """Two data sets and directions of one, one of them also with fewer pairs, and a name that is no HTML."""
    names = ["ant", "<script>alert(1)</script>", "cat", "dog"]
    experiments = {
        "a-x-y": experiment("a-x-y", data="a", class_names=names),
        "a-y-x": experiment("a-y-x", data="a", pairing="class"),
        "b-x-y": experiment("b-x-y", data="b"),
        "a-x-y-100": experiment("a-x-y", data="a", pairs=100, limit=100),
    }
    methods = {**METHODS, EVIL: ("baseline", 0.02)}
    settings = {"seeds": 3, "evaluations": ("linear", "knn"), "labels": (5, None), **options}
    results = make_bench(folder, methods, experiments, **settings)
    results["skipped"] = [{"experiment": "a-x-y", "method": "mfh", "reason": "needs teacher logits & <more>"}]
    results["runs"].append(
        {"experiment": "b-x-y", "method": "crd", "seed": 0, "status": "failed", "reason": "loss is not finite"}
    )
    results["methods"]["crd"] = {"role": "baseline", "title": "crd", "tuned": False}
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return results


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    folder = tmp_path_factory.mktemp("suite")
    results = suite(folder)
    return write_league(folder), results


def standings_of(path):
    return json.loads((path.parent / "standings.json").read_text(encoding="utf-8"))


def test_page_has_all_sections_in_order(full):
    page = read(full[0])
    assert [attrs["id"] for attrs in page.all("section")] == SECTIONS
    assert "Not shown" not in "".join(page.text.values())
    for word in ("crossdistill bench toy.yaml", "0, 1, 2", "natural", "class"):
        assert word in page.text["run"]


def test_page_loads_nothing_and_ids_are_whole(full):
    text = full[0].read_text(encoding="utf-8")
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
    values = [value for _, attrs in page.tags for value in attrs.values() if value]
    used = {m for value in values for m in re.findall(r"url\(#([^)]+)\)", value)}
    used |= {attrs["href"][1:] for _, attrs in page.tags if attrs.get("href", "").startswith("#")}
    assert used <= set(ids)


def test_names_are_text_and_nothing_else(full):
    page = read(full[0])
    assert len(page.all("script")) == 1
    assert not [attrs for _, attrs in page.tags if "onclick" in attrs]
    assert EVIL in page.text["league"]
    assert "<script>alert(1)</script>" in page.text["classes"]
    assert "needs teacher logits & <more>" in page.text["left-out"]
    assert "loss is not finite" in page.text["left-out"]
    for attrs in page.all("svg"):
        assert attrs.get("aria-label")


def test_the_league_says_what_the_standings_say(full):
    path, _ = full
    page, found = read(path), standings_of(path)
    table = found["leagues"][0]
    lines = page.rows["league"][1 : 1 + len(table["rows"])]
    ranks = {row["method"]: row["average_rank"] for row in table["rows"]}
    starts = [line[1:] for line in lines]
    order = [next(m for m in ranks if line.startswith(m)) for line in starts]
    ranked = [m for m in order if ranks[m] is not None]
    assert sorted(order) == sorted(ranks)
    assert [ranks[m] for m in ranked] == sorted(ranks[m] for m in ranked)
    assert order[-1] == "teacher"
    for row in table["rows"]:
        line = lines[order.index(row["method"])]
        assert f"{100 * row['mean']:.1f}" in line
        if row["gain"]:
            assert points(row["gain"]["value"]) in line
            assert interval(row["gain"]["low"], row["gain"]["high"]) in line
            assert interval(*row["gain"]["over_data"]) in line
    gain = next(row for row in table["rows"] if row["method"] == "similarity")["gain"]
    assert f"{points(gain['value'])} points over the best control" in page.text["verdict"]
    assert "come from 2 data sets" in page.text["league"]
    assert table["undecided"] in page.text["ranks"]


def test_both_intervals_of_each_experiment_are_shown_apart(full):
    path, _ = full
    page, found = read(path), standings_of(path)
    for cell in found["cells"]:
        if cell["experiment"].endswith("100"):
            continue
        c = next(row for row in cell["rows"] if row["method"] == "similarity")["against_control"]
        assert f"seeds {interval(*c['over_seeds'])}" in page.text["experiments"]
        assert f"items {interval(*c['over_items'])}" in page.text["experiments"]


def test_every_choice_has_its_views_and_buttons_are_reachable(full):
    page = read(full[0])
    inputs = [attrs for attrs in page.all("input") if attrs["type"] == "radio"]
    by_name = {name: [a["value"] for a in group] for name, group in itertools.groupby(inputs, key=lambda a: a["name"])}
    assert by_name == {"view0": ["0"], "view1": ["0"], "view2": ["0", "1"], "view3": ["0", "1"]}
    keys = [attrs["data-view"] for attrs in page.all("div") if "data-view" in attrs]
    for choice in itertools.product(*by_name.values()):
        fits = [key for key in keys if all(part in ("*", c) for part, c in zip(key.split(), choice, strict=True))]
        # league, gains, ranks, experiments, labels, pairs, compute, classes
        assert len(fits) == 8
    assert sum("checked" in attrs for attrs in inputs) == 4
    headings = [attrs for attrs in page.all("th") if attrs.get("aria-sort")]
    assert len(headings) == 4
    assert all(attrs["type"] == "button" for attrs in page.all("button"))


def test_pictures_are_files_too(full):
    folder = full[0].parent / "pictures"
    names = {path.stem for path in folder.glob("*.svg")}
    assert names == {path.stem for path in folder.glob("*.png")}
    kinds = {name.split("-")[0] for name in names}
    assert kinds == {"gains", "ranks", "compute", "labels", "pairs", "classes"}
    for path in folder.glob("*.svg"):
        root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        with Image.open(path.with_suffix(".png")) as image:
            assert image.size == (2 * round(float(root.get("width"))), 2 * round(float(root.get("height"))))
            assert np.asarray(image.convert("L")).min() < 128


def test_the_page_is_a_function_of_the_folder(full, tmp_path):
    suite(tmp_path)
    assert write_league(tmp_path).read_bytes() == full[0].read_bytes()


def test_groups_are_drawn_where_there_are_enough_experiments(tmp_path):
    methods = {"good": ("method", 0.3), "fair": ("baseline", 0.29), "bad": ("control", 0.0)}
    experiments = {f"e{i}": experiment(f"e{i}", data=f"d{i}") for i in range(8)}
    make_bench(tmp_path, methods, experiments, seeds=2, labels=(None,), evaluations=("linear",), items=100)
    path = write_league(tmp_path)
    found, page = standings_of(path)["leagues"][0], read(path)
    assert [sorted(group) for group in found["cliques"]] == [["fair", "good"]]
    assert "2 pairs differ" in page.text["ranks"]
    assert "No groups" not in page.text["ranks"]
    picture = (tmp_path / "pictures" / "ranks-linear-all.svg").read_text(encoding="utf-8")
    assert len(re.findall(r"<title>not told apart: ", picture)) == 1
    assert f"critical difference {found['critical_difference']:.2f}" in picture


def test_an_unfinished_and_an_empty_suite_have_a_page(tmp_path):
    results = make_bench(tmp_path, seeds=1, labels=(None,), evaluations=("linear",), items=40)
    results.update(complete=False, missing=7)
    (tmp_path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    text = "".join(read(write_league(tmp_path)).text.values())
    assert "7 planned runs are missing" in text
    assert "fewer than two have two methods in common" in text
    results.update(rows=[], runs=[])
    (tmp_path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    page = read(write_league(tmp_path))
    assert [attrs["id"] for attrs in page.all("section")] == SECTIONS
    assert "No verdict yet" in page.text["verdict"]


def test_the_leader_is_named_beside_the_method_that_the_verdict_is_on(tmp_path):
    methods = {**METHODS, "rkd": ("baseline", 0.4)}
    facts = {"toy-a-b": {**experiment(), "test_rows": 203}}
    results = make_bench(tmp_path, methods, facts, seeds=3, labels=(None,), evaluations=("linear",))
    (tmp_path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    page = read(write_league(tmp_path))
    best = next(
        r for r in json.loads((tmp_path / "standings.json").read_text())["leagues"][0]["rows"] if r["method"] == "rkd"
    )
    assert f"rkd leads by average rank, 1.00 of 5: {points(best['gain']['value'])} points" in page.text["verdict"]
    assert "200of 203; the others lack the target or a label" in page.text["run"]


def test_one_seed_has_no_verdict_and_no_sign(tmp_path):
    results = make_bench(tmp_path, seeds=1, labels=(None,), evaluations=("linear",))
    (tmp_path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    page = read(write_league(tmp_path))
    assert "Undecided" in page.text["verdict"]
    assert "without an interval, so nothing is decided" in page.text["verdict"]
    assert "In 0 of 1 it helped, in 0 it hurt, in 1 the run cannot tell" in page.text["verdict"]


def test_several_experiments_of_one_seed_have_an_interval_over_these(tmp_path):
    facts = {f"e{i}": experiment(f"e{i}", data=f"d{i}") for i in range(3)}
    results = make_bench(tmp_path, experiments=facts, seeds=1, labels=(None,), evaluations=("linear",))
    (tmp_path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    text = read(write_league(tmp_path)).text["verdict"]
    assert "intervals over experiments" in text
    assert "In 0 of 3 it helped, in 0 it hurt, in 3 the run cannot tell" in text


def test_tuned_and_labelled_views_have_words(tmp_path):
    methods = {**METHODS, "rkd (tuned)": ("baseline", 0.2)}
    experiments = {"a": experiment("a"), "b": experiment("b", track="labelled")}
    settings = {"seeds": 2, "labels": (None,), "evaluations": ("linear",), "items": 60}
    make_bench(tmp_path, methods, experiments, tuned=("rkd (tuned)",), **settings)
    page = read(write_league(tmp_path))
    keys = {attrs["data-view"] for attrs in page.all("div") if "data-view" in attrs}
    assert {"0 0 0 0", "0 1 0 0", "1 0 0 0", "1 1 0 0"} <= keys
    assert "labelled, linear accuracy, all labels, tuned settings" in page.text["league"]
    assert "All methods here are tuned" in page.text["league"]
    assert (tmp_path / "pictures" / "gains-labelled-linear-all-tuned.png").is_file()
    markdown = league_markdown(tmp_path)
    assert markdown.count("| method |") == 4
    assert "**labelled, tuned settings**" in markdown


def test_markdown_is_the_league_in_short(full):
    path, _ = full
    lines = league_markdown(path.parent, evaluation="knn", labels_per_class=None).splitlines()
    table = next(x for x in standings_of(path)["leagues"] if (x["evaluation"], x["labels_per_class"]) == ("knn", None))
    assert lines[0].startswith("| method | mean accuracy, knn, all labels |")
    assert len(lines) == 2 + len(table["rows"])
    row = next(row for row in table["rows"] if row["method"] == "rkd")
    wanted = f"| {points(row['gain']['value'])} ({interval(row['gain']['low'], row['gain']['high'])}) "
    assert any(
        line.startswith("| rkd |") and wanted in line and f"| {row['average_rank']:.2f} |" in line for line in lines
    )
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 6 for line in lines)
    assert not any("<b" in line.replace("\\<", "") for line in lines)
    for wrong in ({"labels_per_class": 3}, {"evaluation": "lineer"}):
        with pytest.raises(
            DataError, match=r"no league of that kind; there are: 'linear' with .*'knn' with all labels"
        ):
            league_markdown(path.parent, **wrong)


def test_markdown_takes_the_first_league_that_there_is(tmp_path):
    make_bench(tmp_path, seeds=2, items=60)
    path = tmp_path / "results.json"
    results = json.loads(path.read_text())
    methods = ("similarity", "contrastive", "rkd")
    results["rows"] = [
        row for row in results["rows"] if not (row["labels_per_class"] == 5 and row["method"] in methods)
    ]
    path.write_text(json.dumps(results))
    assert "| method | mean accuracy, linear, all labels |" in league_markdown(tmp_path)
    assert "| method | mean accuracy, knn, all labels |" in league_markdown(tmp_path, evaluation="knn")


def test_a_folder_is_told_by_its_kind(full, tmp_path):
    assert is_bench(full[0].parent)
    assert not is_bench(tmp_path)
    (tmp_path / "results.json").write_text('{"rows": []}', encoding="utf-8")
    assert not is_bench(tmp_path)
    (tmp_path / "results.json").write_text("no json", encoding="utf-8")
    assert not is_bench(tmp_path)
    with pytest.raises(DataError, match="is not JSON"):
        write_league(tmp_path)


def test_labels_are_moved_apart_and_no_further():
    assert apart([1.0, 5.0], 2.0) == [1.0, 5.0]
    assert apart([1.0, 1.0], 2.0) == [0.0, 2.0]
    rng = np.random.default_rng(0)
    for _ in range(50):
        wanted = np.sort(rng.random(6) * 5)
        moved = np.array(apart(list(wanted), 1.0))
        assert (np.diff(moved) > 1 - 1e-9).all()
        assert moved.mean() == pytest.approx(wanted.mean())


def test_experiments_whose_names_differ_in_signs_alone_have_pictures_of_their_own(tmp_path):
    experiments = {"a b": experiment("a b"), "a-b": experiment("a-b")}
    make_bench(tmp_path, experiments=experiments, seeds=2, labels=(None,), evaluations=("linear",), items=40)
    ids = [attrs["id"] for _, attrs in read(write_league(tmp_path)).tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert len(list((tmp_path / "pictures").glob("classes-*.svg"))) == 2


def test_file_names_are_plain():
    assert file_name("gains", "../e vil/<x>", "fine_tune") == "gains-e-vil-x-fine-tune"
    assert file_name("classes", "ß") == "classes-x"


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("target_graph", "target_graph"),
        ("_bold_", "\\_bold\\_"),
        ("a__b", "a\\_\\_b"),
        ("a_ b", "a\\_ b"),
        ("[x](y)|<b>*`\\", "\\[x\\](y)\\|\\<b\\>\\*\\`\\\\"),
    ],
)
def test_names_are_no_markdown_and_readable_in_a_terminal(name, written):
    assert league._plain(name) == written
