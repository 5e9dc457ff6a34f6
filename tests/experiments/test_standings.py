import copy
import json

import numpy as np
import pytest
from bench_folder import METHODS, experiment, make_bench
from scipy import stats

from crossdistill.errors import DataError
from crossdistill.evaluation import (
    average_ranks,
    bootstrap_difference,
    holm,
    minimum_detectable_difference,
    paired_difference,
    paired_p_value,
)
from crossdistill.experiments.standings import standings, write_standings


def many(count, *, data=None, **facts):
    return {f"e{i}": experiment(f"e{i}", data=data or f"d{i}", **facts) for i in range(count)}


def cell(found, experiment, labels_per_class, evaluation):
    wanted = (experiment, labels_per_class, evaluation)
    return next(c for c in found["cells"] if (c["experiment"], c["labels_per_class"], c["evaluation"]) == wanted)


def row(table, method):
    return next(r for r in table["rows"] if r["method"] == method)


def league(found, k=None, evaluation="linear", tuned=False, track="label-free"):
    wanted = (track, tuned, evaluation, k)
    names = ("track", "tuned", "evaluation", "labels_per_class")
    return next(x for x in found["leagues"] if tuple(x[name] for name in names) == wanted)


def values(results, name, method, k=None, evaluation="linear", metric="accuracy"):
    wanted = (name, method, k, evaluation, metric)
    names = ("experiment", "method", "labels_per_class", "evaluation", "metric")
    return [r["value"] for r in results["rows"] if tuple(r[n] for n in names) == wanted]


def right(folder, name, method, seeds, key):
    stack = []
    for s in range(seeds):
        with np.load(folder / "predictions" / name / f"{method}-{s}.npz") as arrays:
            stack.append(arrays[key] == arrays["label"])
    return np.mean(stack, axis=0)


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    folder = tmp_path_factory.mktemp("suite")
    results = make_bench(folder, experiments=many(12), seeds=4)
    return folder, results, standings(results, folder)


def test_a_cell_is_what_slow_statistics_say(suite):
    folder, results, found = suite
    for name, k, way in (("e0", 5, "linear"), ("e7", None, "knn")):
        here = cell(found, name, k, way)
        means = {m: np.mean(values(results, name, m, k, way)) for m in METHODS}
        best = max(("raw_features", "scratch"), key=means.get)
        assert here["best_control"]["default"] == best
        distilled = ("similarity", "contrastive", "rkd")
        p_values = [
            paired_p_value(values(results, name, m, k, way), values(results, name, best, k, way)) for m in distilled
        ]
        for m, adjusted in zip(distilled, holm(p_values), strict=True):
            mine = row(here, m)
            assert mine["mean"] == pytest.approx(means[m])
            interval = stats.t.interval(0.95, 3, means[m], stats.sem(values(results, name, m, k, way)))
            assert (mine["low"], mine["high"]) == pytest.approx(interval)
            assert mine["macro_f1"] == pytest.approx(np.mean(values(results, name, m, k, way, "macro_f1")))
            other = max((o for o in distilled if o != m), key=means.get)
            for key, against in (("against_control", best), ("against_other", other)):
                c = mine[key]
                a, b = values(results, name, m, k, way), values(results, name, against, k, way)
                assert (c["against"], c["seeds"]) == (against, 4)
                over = paired_difference(a, b)
                assert [c["difference"], *c["over_seeds"]] == pytest.approx([over.value, over.low, over.high])
                word = f"{way}@{'all' if k is None else k}"
                items = bootstrap_difference(right(folder, name, m, 4, word), right(folder, name, against, 4, word))
                assert c["over_items"] == pytest.approx([items.low, items.high])
                assert (c["items"], c["drawn"]) == (200, "items")
                assert c["low"] == min(c["over_seeds"][0], c["over_items"][0])
                assert c["high"] == max(c["over_seeds"][1], c["over_items"][1])
                spread = np.std(np.subtract(a, b), ddof=1)
                assert c["detectable"] == pytest.approx(minimum_detectable_difference(spread, 4))
                assert c["p"] == pytest.approx(paired_p_value(a, b))
            assert mine["against_control"]["p_holm"] == pytest.approx(adjusted)
        assert row(here, "scratch")["against_control"] is None
        assert row(here, "teacher")["against_other"] is None


def test_a_planted_order_is_found(suite):
    _, results, found = suite
    table = league(found)
    ranks = {r["method"]: r["average_rank"] for r in table["rows"]}
    assert sorted(m for m in METHODS if m != "teacher") == sorted(m for m, rank in ranks.items() if rank is not None)
    order = sorted((m for m in ranks if ranks[m] is not None), key=ranks.get)
    assert order == ["similarity", "contrastive", "rkd", "scratch", "raw_features"]
    scores = [[np.mean(values(results, e, m)) for m in order] for e in table["experiments"]]
    assert [ranks[m] for m in order] == pytest.approx(list(average_ranks(scores)))
    assert table["needed"] == 9
    assert table["friedman"]["f_p"] < 1e-6
    assert ["similarity", "raw_features"] in [sorted(pair, key=order.index) for pair in table["different"]]
    assert all(not {"similarity", "raw_features"} <= set(group) for group in table["cliques"])
    gain = row(table, "similarity")["gain"]
    gains = [
        row(cell(found, e, None, "linear"), "similarity")["against_control"]["difference"] for e in table["experiments"]
    ]
    assert (gain["low"], gain["high"]) == pytest.approx(stats.t.interval(0.95, 11, np.mean(gains), stats.sem(gains)))
    assert gain["low"] > 0
    wins = row(table, "similarity")
    assert wins["helped"] + wins["undecided"] + wins["hurt"] == 12
    assert wins["helped"] > 6


def test_names_and_their_order_change_nothing(suite, tmp_path):
    folder, results, found = suite
    swap = {"similarity": "rkd", "rkd": "contrastive", "contrastive": "similarity"}
    other = json.loads(json.dumps(results))
    for r in (*other["rows"], *other["runs"]):
        r["method"] = swap.get(r["method"], r["method"])
    other["methods"] = {swap.get(m, m): other["methods"][m] for m in reversed(other["methods"])}
    np.random.default_rng(0).shuffle(other["rows"])
    for path in (folder / "predictions").rglob("*.npz"):
        method, _, seed = path.stem.rpartition("-")
        target = tmp_path / path.relative_to(folder).with_name(f"{swap.get(method, method)}-{seed}.npz")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    again = standings(other, tmp_path)
    for k in (5, None):
        for way in ("linear", "knn"):
            one, two = league(found, k, way), league(again, k, way)
            assert one["friedman"] == pytest.approx(two["friedman"])
            assert [[swap.get(m, m) for m in group] for group in one["cliques"]] == two["cliques"]
            for mine in one["rows"]:
                its = row(two, swap.get(mine["method"], mine["method"]))
                assert {**mine, "method": ""} == {**its, "method": ""}


def test_a_null_world_is_found_about_one_time_in_twenty(tmp_path):
    null = {"m": ("method", 0.1), "c": ("control", 0.1)}
    results = make_bench(tmp_path, null, many(300), seeds=5, labels=(None,), evaluations=("linear",), items=60)
    found = standings(results, tmp_path)
    c = [row(x, "m")["against_control"] for x in found["cells"]]
    tested = [x["p"] for x in c if x["p"] is not None]
    assert abs(np.mean(np.array(tested) < 0.05) - 0.05) < 4 * np.sqrt(0.05 * 0.95 / len(tested))
    assert np.mean([x["low"] > 0 or x["high"] < 0 for x in c]) <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / 300)
    table = league(found)
    assert table["friedman"]["p"] > 0.001
    assert table["cliques"] == [["m", "c"]] or table["cliques"] == [["c", "m"]]


def test_too_few_experiments_have_no_groups_and_say_why(tmp_path):
    found = standings(make_bench(tmp_path, experiments=many(5), seeds=2), tmp_path)
    table = league(found)
    assert table["cliques"] is None
    assert "fewer than 9 experiments" in table["undecided"]
    assert "this league has 5" in table["undecided"]
    assert table["critical_difference"] > 0
    single = league(standings(make_bench(tmp_path, seeds=2), tmp_path))
    assert single["friedman"] is None
    assert row(single, "similarity")["gain"]["over"] == "seeds and test items"
    assert row(single, "similarity")["low"] is not None


def test_one_seed_has_an_interval_over_items_and_decides_nothing(tmp_path):
    found = standings(make_bench(tmp_path, seeds=1), tmp_path)
    mine = row(found["cells"][0], "similarity")
    c = mine["against_control"]
    assert (mine["low"], c["over_seeds"], c["p"], c["p_holm"], c["detectable"]) == (None,) * 5
    assert c["over_items"][0] > 0
    assert (c["low"], c["high"]) == (None, None)
    told = row(league(found), "similarity")
    assert (told["helped"], told["undecided"], told["hurt"], told["gain"]["low"]) == (0, 1, 0, None)


def test_a_share_has_bounds_within_0_to_1_and_none_where_all_seeds_agree(tmp_path):
    results = make_bench(tmp_path, seeds=2)
    for r in results["rows"]:
        r["value"] = {"similarity": 0.9 + 0.09 * r["seed"], "scratch": 0.01 + 0.09 * r["seed"]}.get(r["method"], 0.5)
    table = standings(results, tmp_path)["cells"][0]
    assert 0 < row(table, "similarity")["low"] < row(table, "similarity")["high"] == 1
    assert 0 == row(table, "scratch")["low"] < row(table, "scratch")["high"] < 1
    assert (row(table, "rkd")["low"], row(table, "rkd")["high"]) == (None, None)


def test_seeds_that_do_not_differ_prove_nothing(tmp_path):
    results = make_bench(tmp_path, seeds=3)
    for r in results["rows"]:
        r["value"] = {"similarity": 0.61, "scratch": 0.6}.get(r["method"], 0.5)
    for path in tmp_path.rglob("*.npz"):
        path.unlink()
    found = standings(results, tmp_path)
    c = row(found["cells"][0], "similarity")["against_control"]
    assert c["difference"] == pytest.approx(0.01)
    assert (c["over_seeds"], c["p"], c["low"], c["high"]) == (None,) * 4
    assert row(league(found), "similarity")["undecided"] == 1
    assert "predictions cannot be used" in found["notes"][0]


def test_groups_are_drawn_whole_where_there_are_enough(tmp_path):
    for groups, drawn, count in ((25, "groups", 25), (9, "items", 200)):
        found = standings(make_bench(tmp_path, seeds=2, groups=groups), tmp_path)
        c = row(found["cells"][0], "similarity")["against_control"]
        assert (c["drawn"], c["items"]) == (drawn, count)


def test_predictions_of_another_run_are_not_used(tmp_path):
    results = make_bench(tmp_path, seeds=2)
    make_bench(tmp_path, seeds=2, seed=1)
    found = standings(results, tmp_path)
    assert all(row(c, "similarity")["against_control"]["over_items"] is None for c in found["cells"])
    assert "do not give their scores" in found["notes"][0]


def test_tuned_methods_have_a_league_of_their_own(tmp_path):
    methods = {**METHODS, "similarity (tuned)": ("method", 0.5), "rkd (tuned)": ("baseline", 0.3)}
    results = make_bench(tmp_path, methods, many(3), seeds=2, tuned=("similarity (tuned)", "rkd (tuned)"))
    found = standings(results, tmp_path)
    plain, tuned = league(found), league(found, tuned=True)
    ranked = [{r["method"] for r in x["rows"] if r["average_rank"]} for x in (plain, tuned)]
    assert ranked == [set(METHODS) - {"teacher"}, {"similarity (tuned)", "rkd (tuned)"}]
    here = cell(found, "e0", None, "linear")
    assert row(here, "similarity")["against_other"]["against"] in METHODS
    assert row(here, "similarity (tuned)")["against_other"]["against"] == "rkd (tuned)"
    assert row(here, "similarity (tuned)")["against_control"]["against"] == here["best_control"]["tuned"]
    assert found["headline"]["method"] == "similarity"


def test_a_tuned_control_is_no_bar_for_defaults(tmp_path):
    methods = {**METHODS, "scratch (tuned)": ("control", 0.3), "rkd (tuned)": ("baseline", 0.3)}
    found = standings(make_bench(tmp_path, methods, seeds=2, tuned=("scratch (tuned)", "rkd (tuned)")), tmp_path)
    here = cell(found, "toy-a-b", None, "linear")
    assert here["best_control"] == {"default": "scratch", "tuned": "scratch (tuned)"}


def test_tracks_and_limited_experiments_stay_apart(tmp_path):
    experiments = {
        **many(2),
        "labelled": experiment("labelled", track="labelled"),
        "e0-100": experiment("e0", pairs=100, limit=100),
        "e0-300": experiment("e0", pairs=300, limit=300),
    }
    found = standings(make_bench(tmp_path, experiments=experiments, seeds=2), tmp_path)
    assert league(found)["experiments"] == ["e0", "e1"]
    assert league(found, track="labelled")["experiments"] == ["labelled"]
    line = next(x for x in found["pair_curves"] if (x["method"], x["labels_per_class"]) == ("rkd", None))
    assert [point["pairs"] for point in line["points"]] == [100, 300, 800]
    at = row(cell(found, "e0-100", None, line["evaluation"]), "rkd")["against_control"]
    assert (line["points"][0]["gain"], line["points"][0]["low"]) == (at["difference"], at["low"])
    assert {x["family"] for x in found["pair_curves"]} == {"e0"}


def test_label_curves_average_over_the_experiments_that_have_every_number(tmp_path):
    results = make_bench(tmp_path, experiments=many(3), seeds=2, labels=(1, 5, None))
    results["rows"] = [r for r in results["rows"] if (r["experiment"], r["labels_per_class"]) != ("e2", 1)]
    found = standings(results, tmp_path)
    line = next(x for x in found["label_curves"] if (x["method"], x["evaluation"]) == ("rkd", "linear"))
    assert line["experiments"] == 2
    assert [p["labels_per_class"] for p in line["points"]] == [1, 5, None]
    gains = [row(cell(found, e, 5, "linear"), "rkd")["against_control"]["difference"] for e in ("e0", "e1")]
    assert line["points"][1]["gain"] == pytest.approx(np.mean(gains))


def test_methods_missing_somewhere_are_left_out_of_the_ranks(tmp_path):
    results = make_bench(tmp_path, experiments=many(4), seeds=2)
    lost = copy.deepcopy(results)
    lost["rows"] = [r for r in lost["rows"] if (r["experiment"], r["method"]) != ("e1", "rkd")]
    lost["rows"] = [r for r in lost["rows"] if r["experiment"] != "e3" or r["method"] == "scratch"]
    found = standings(lost, tmp_path)
    table = league(found)
    assert table["sparse_experiments"] == ["e3"]
    assert table["left_out"] == {"rkd": ["e1"]}
    assert row(table, "rkd")["average_rank"] is None
    assert row(table, "rkd")["experiments"] == 2
    kept = [m for m in METHODS if m not in ("rkd", "teacher")]
    scores = [[np.mean(values(results, e, m)) for m in kept] for e in ("e0", "e1", "e2")]
    assert [row(table, m)["average_rank"] for m in kept] == pytest.approx(list(average_ranks(scores)))


def test_experiments_that_share_data_have_an_interval_over_data_sets_too(tmp_path):
    experiments = {f"{d}{i}": experiment(f"{d}{i}", data=d) for d in "abc" for i in range(3)}
    found = standings(make_bench(tmp_path, experiments=experiments, seeds=2), tmp_path)
    table = league(found)
    assert (len(table["experiments"]), table["data_sets"]) == (9, 3)
    gains = {e: row(cell(found, e, None, "linear"), "rkd")["against_control"]["difference"] for e in experiments}
    means = [np.mean([gains[f"{d}{i}"] for i in range(3)]) for d in "abc"]
    gain = row(table, "rkd")["gain"]
    assert gain["over_data"] == pytest.approx(stats.t.interval(0.95, 2, np.mean(means), stats.sem(means)))


def test_class_gains_add_up_to_the_gain(suite):
    _, _, found = suite
    for entry in found["class_gains"]:
        assert (entry["method"], entry["evaluation"]) == ("similarity", "linear")
        here = row(cell(found, entry["experiment"], entry["labels_per_class"], "linear"), "similarity")
        items = [c["items"] for c in entry["classes"]]
        total = np.average([c["gain"] for c in entry["classes"]], weights=items)
        assert total == pytest.approx(here["against_control"]["difference"])
        assert sum(items) == 200
        assert [c["class"] for c in entry["classes"]] == ["ant", "bee", "cat", "dog"]
    assert len(found["class_gains"]) == 24


def test_costs_failures_and_skips_are_told(tmp_path):
    results = make_bench(tmp_path, seeds=3)
    for run in results["runs"]:
        if run["method"] == "rkd" and run["seed"] > 0:
            run.update(status="failed", reason="loss is not finite")
    results["rows"] = [r for r in results["rows"] if r["method"] != "rkd" or r["seed"] == 0]
    results["skipped"] = [{"experiment": "toy-a-b", "method": "mfh", "reason": "needs logits"}]
    results.update(complete=False, missing=3)
    found = standings(results, tmp_path)
    assert found["failed"] == [
        {"experiment": "toy-a-b", "method": "rkd", "reason": "loss is not finite", "seeds": [1, 2]}
    ]
    assert found["skipped"] == results["skipped"]
    assert (found["complete"], found["missing"]) == (False, 3)
    runs = [r for r in results["runs"] if r["method"] == "similarity"]
    assert row(found["cells"][0], "similarity")["cpu_seconds"] == pytest.approx(
        np.mean([r["cpu_seconds"] for r in runs])
    )
    assert row(league(found), "rkd")["seeds"] == [1, 1]
    assert row(found["cells"][0], "rkd")["against_control"]["seeds"] == 1


def test_the_file_is_what_the_function_gives(suite):
    folder, _, found = suite
    bench, written = write_standings(folder)
    assert json.loads((folder / "standings.json").read_text(encoding="utf-8")) == json.loads(json.dumps(found))
    assert written == found
    assert bench.title == "toy suite"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda r: r.pop("methods"), "methods"),
        (lambda r: r.update(kind="run"), "kind"),
        (lambda r: r["rows"][0].update(value=float("nan")), "rows.0.value"),
        (lambda r: r["rows"][0].update(method="nobody"), "'nobody'"),
        (lambda r: r["rows"][0].update(experiment="nowhere"), "'nowhere'"),
        (lambda r: r["rows"].append(r["rows"][0]), "two rows"),
        (lambda r: r["experiments"]["toy-a-b"].update(track="other"), "'other'"),
        (lambda r: r.update(evaluations=[]), "evaluations"),
    ],
)
def test_results_that_do_not_fit_are_refused(tmp_path, change, says):
    results = make_bench(tmp_path, seeds=1, labels=(None,), evaluations=("linear",), items=20)
    change(results)
    with pytest.raises(DataError, match=says):
        standings(results, tmp_path)


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        write_standings(tmp_path)
