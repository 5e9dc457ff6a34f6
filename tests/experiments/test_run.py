"""Running an experiment: what it writes, that file and data decide it, and that no arm has an advantage."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from toy_experiment import EXPERIMENT

from crossdistill.data import PairedDataset
from crossdistill.errors import ConfigError, DataError, Interrupted
from crossdistill.experiments import Bench, parse_experiment, plan, read_results, run_experiment
from crossdistill.experiments.arms import list_arms
from crossdistill.experiments.specs import CONTROLS
from crossdistill.files import only_one

SMALL = EXPERIMENT.replace("seeds: 2", "seeds: 1")
LEAN = SMALL.replace("compare: [l2]", "compare: []").replace("fine_tune_steps: 5", "ways: [linear]")


def changed(text, *pairs):
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new, 1)
    return text


def run(text, folder, toy, **how):
    news = []
    results = run_experiment(
        parse_experiment(text), folder, data=toy, listen=lambda word, facts: news.append((word, dict(facts))), **how
    )
    return results, news


def started(news):
    return [(facts["row"], facts["seed"]) for word, facts in news if word == "started"]


@pytest.fixture(scope="module")
def done(toy, tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("done")
    results, news = run(EXPERIMENT, folder, toy)
    return results, folder, news


ROWS = ["data", "source", "target", "method", "seed", "evaluation", "metric", "value"]
COMPARISON = {"method", "against", "evaluation", "metric", "difference", "low", "high", "seeds", "over"}


def test_results_have_exactly_the_promised_fields(done):
    results, folder, _ = done
    written = json.loads((folder / "results.json").read_text())
    assert len(written.pop("sha256")) == 64
    assert read_results(folder) == results == written
    assert set(results) == {
        *("verdict", "sentence", "headline", "methods", "skipped", "rows", "comparisons", "data", "environment"),
    }
    assert all(list(row) == ROWS for row in results["rows"])
    assert all(set(row) == COMPARISON for row in results["comparisons"])
    assert {(r["data"], r["source"], r["target"]) for r in results["rows"]} == {("toy", "rich", "poor")}
    assert all(0 <= row["value"] <= 1 for row in results["rows"])
    assert results["skipped"] == []
    environment = results["environment"]
    assert {
        "crossdistill",
        "code",
        "python",
        "torch",
        "numpy",
        "platform",
        "command",
        "started",
        "seconds",
        "jobs",
    } <= set(environment)
    assert environment["command"] == ""  # this one is no command of ours, whatever started Python
    assert results["data"]["counts"] == {"train": 160, "validation": 40, "test": 100}


def test_every_row_is_there_for_every_seed_and_way(done):
    results, _, _ = done
    assert set(results["methods"]) == {"similarity", "l2", *CONTROLS}
    roles = {name: facts["role"] for name, facts in results["methods"].items()}
    assert roles["similarity"] == "method"
    assert roles["l2"] == "baseline"
    assert roles["teacher"] == "ceiling"
    assert all(roles[name] == "control" for name in CONTROLS if name != "teacher")
    seen = {(r["method"], r["seed"], r["evaluation"], r["metric"]) for r in results["rows"]}
    assert len(seen) == len(results["rows"])
    unfit = {("raw_features", "fine_tune"), ("teacher", "fine_tune")}  # no network; not a student
    assert seen == {
        (name, seed, way, metric)
        for name in results["methods"]
        for seed in (0, 1)
        for way in ("linear", "knn", "fine_tune")
        for metric in ("accuracy", "macro_f1")
        if (name, way) not in unfit
    }


def test_the_verdict_is_that_of_the_interval_against_the_best_control(done):
    results, _, _ = done
    head = results["headline"]

    def accuracy(name):
        wanted = (name, "linear", "accuracy")
        return [r["value"] for r in results["rows"] if (r["method"], r["evaluation"], r["metric"]) == wanted]

    controls = [name for name, facts in results["methods"].items() if facts["role"] == "control"]
    assert (head["method"], head["evaluation"], head["metric"]) == ("similarity", "linear", "accuracy")
    assert np.mean(accuracy(head["against"])) == max(np.mean(accuracy(name)) for name in controls)
    decisive = [c for c in results["comparisons"] if {k: c[k] for k in head} == head]
    assert len(decisive) == 1
    low, high = decisive[0]["low"], decisive[0]["high"]
    assert decisive[0]["difference"] == pytest.approx(
        np.mean(accuracy("similarity")) - np.mean(accuracy(head["against"]))
    )
    assert results["verdict"] == ("helped" if low > 0 else "hurt" if high < 0 else "undecided")
    assert decisive[0]["over"] == "seeds and test items"
    assert decisive[0]["seeds"] == 2


def test_predictions_are_kept_and_give_the_rows(done, toy):
    results, folder, _ = done
    for row in results["rows"]:
        if row["metric"] != "accuracy":
            continue
        with np.load(folder / "predictions" / f"{row['method']}-{row['seed']}.npz", allow_pickle=False) as kept:
            assert np.array_equal(kept["label"], toy.split("test").label)
            assert (kept[row["evaluation"]] == kept["label"]).mean() == pytest.approx(row["value"])


def test_a_second_run_in_the_same_folder_trains_nothing(done, toy):
    results, folder, news = done
    assert ("teacher", 0) in started(news)

    def stamps():
        return {p: p.stat().st_mtime_ns for part in ("stages", "store") for p in (folder / part).rglob("*")}

    before = stamps()
    again, silent = run(EXPERIMENT, folder, toy)
    assert started(silent) == []
    assert stamps() == before
    assert (again["rows"], again["comparisons"]) == (results["rows"], results["comparisons"])


def test_damaged_verdicts_are_judged_again(done, toy, tmp_path):
    results, folder, _ = done
    shutil.copytree(folder, tmp_path / "out")
    damaged = sorted((tmp_path / "out" / "predictions").iterdir())
    damaged[0].write_bytes(damaged[0].read_bytes()[:-30])
    content = bytearray(damaged[1].read_bytes())
    content[len(content) // 3] ^= 16
    damaged[1].write_bytes(content)
    for number, path in enumerate(sorted((tmp_path / "out" / "evaluations").iterdir())):
        path.write_text("[" if number % 2 else path.read_text().replace('"value": 0.', '"value": 0.9'))
    again, news = run(EXPERIMENT, tmp_path / "out", toy)
    assert again["rows"] == results["rows"]
    assert not [facts for word, facts in news if word == "stepped"]
    for kept in ("predictions", "evaluations"):
        assert len(list((tmp_path / "out" / kept).iterdir())) == len(list((folder / kept).iterdir()))


def test_a_seed_that_is_added_is_the_only_one_computed(done, toy, tmp_path):
    results, _, _ = done
    first, _ = run(SMALL, tmp_path, toy)
    assert first["rows"] == [row for row in results["rows"] if row["seed"] == 0]
    both, news = run(EXPERIMENT, tmp_path, toy)
    assert {seed for _, seed in started(news)} == {1}
    assert both["rows"] == results["rows"]
    student = (tmp_path / "student" / "model.safetensors").read_bytes()
    assert student == (done[1] / "student" / "model.safetensors").read_bytes()


def test_an_objective_that_is_added_is_the_only_one_computed(toy, tmp_path):
    run(LEAN, tmp_path, toy)
    results, news = run(changed(LEAN, ("compare: []", "compare: [cosine]")), tmp_path, toy)
    assert started(news) == [("cosine", 0)]
    assert "cosine" in results["methods"]


def test_settings_changed_and_changed_back_give_the_first_results_again(toy, tmp_path):
    other = changed(LEAN, ("    epochs: 2\n", "    epochs: 9\n    lr: 0.03\n"))
    first, _ = run(LEAN, tmp_path, toy)
    between, news = run(other, tmp_path, toy)
    assert ("teacher", 0) not in started(news)
    assert between["rows"] != first["rows"]
    again, news = run(LEAN, tmp_path, toy)
    assert started(news) == []
    assert again["rows"] == first["rows"]
    assert again["comparisons"] == first["comparisons"]  # made of the predictions of these settings


ENDED = {"results.json", "report.html", "metrics.jsonl", "evidence.npz", "student"}


def cut_short(text, folder, toy):
    """Start a run and stop it before it does anything."""

    def stop(word, facts):
        raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        run_experiment(parse_experiment(text), folder, data=toy, listen=stop)
    return ENDED & {path.name for path in folder.iterdir()}


def test_another_experiment_in_the_folder_leaves_no_results_of_the_first_beside_its_own_file(toy, tmp_path):
    first, _ = run(LEAN, tmp_path, toy)
    (tmp_path / "report.html").write_text("of the first")
    (tmp_path / "student" / "note.txt").write_text("the user's own")
    kept = {p: p.read_bytes() for name in ("stages", "evaluations") for p in (tmp_path / name).rglob("*.*")}
    assert kept
    assert cut_short(LEAN, tmp_path, toy) == ENDED  # the same one keeps them
    assert cut_short(changed(LEAN, ("compare: []", "compare: [cosine]")), tmp_path, toy) == {"student"}
    assert [path.name for path in (tmp_path / "student").iterdir()] == ["note.txt"]
    assert "cosine" in (tmp_path / "experiment.yaml").read_text()
    assert {path: path.read_bytes() for path in kept} == kept
    again, news = run(LEAN, tmp_path, toy)
    assert started(news) == []
    assert again["rows"] == first["rows"]


def test_two_processes_cannot_run_in_one_folder(toy, tmp_path):
    with only_one(tmp_path / "out"), pytest.raises(ConfigError, match=r"another process works in '.*out': process"):
        run(EXPERIMENT, tmp_path / "out", toy)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]


def test_a_folder_called_student_that_is_none_of_ours_stays(toy, tmp_path):
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "README.md").write_text("the user's own")
    (tmp_path / "experiment.yaml").write_text("seeds: 1\n")
    assert cut_short(LEAN, tmp_path, toy) == {"student"}
    assert (tmp_path / "student" / "README.md").read_text() == "the user's own"


def test_a_single_seed_has_its_interval_over_test_items(toy, tmp_path):
    results, _ = run(LEAN, tmp_path, toy)
    assert {c["over"] for c in results["comparisons"]} == {"test items"}
    assert all(c["seeds"] == 1 and c["low"] <= c["difference"] <= c["high"] for c in results["comparisons"])
    assert "test items, one seed" in results["sentence"]
    assert results["verdict"] == "undecided"
    assert results["sentence"].startswith("Undecided: one seed cannot tell")


def test_logs_of_all_arms_are_in_one_file(done):
    _, folder, _ = done
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {(line["method"], line["seed"]) for line in lines} >= {("teacher", 0), ("similarity", 1), ("scratch", 0)}
    mine = [line for line in lines if (line["method"], line["seed"]) == ("similarity", 0)]
    assert [line["epoch"] for line in mine] == [1, 2]
    assert {"loss", "held_out/loss", "held_out/kl"} <= set(mine[0])


def test_the_resolved_file_is_kept_and_runs_to_the_same(done, toy, tmp_path):
    results, folder, _ = done
    again, _ = run((folder / "experiment.yaml").read_text(), tmp_path, toy)
    assert again["rows"] == results["rows"]


class Watched(PairedDataset):
    """Notes who asks for labels, and refuses test samples to anybody but the judge."""

    asked: list

    def loader(self, views, **how):
        self.asked.append((dict(views), self.rows, how))
        return super().loader(views, **how)

    def raw(self, modality, positions):
        rows = self.rows[positions]
        if (self.columns.split[rows] == 2).any():
            frame, callers = sys._getframe(), set()
            while frame := frame.f_back:
                callers.add(frame.f_globals["__name__"])
            assert callers & {"crossdistill.experiments.judge", "crossdistill.experiments.evidence"}, callers
            assert not any(name.startswith("crossdistill.training") for name in callers)
        return super().raw(modality, positions)

    @property
    def label(self):
        frame = sys._getframe(1)
        assert not frame.f_globals["__name__"].startswith(("crossdistill.training", "crossdistill.methods"))
        return super().label


def test_labels_reach_the_labelled_arm_alone_and_test_samples_the_judge_alone(toy, tmp_path):
    watched = Watched(toy.columns.arrays, toy.modalities, name="toy", label=toy.columns.label, split=toy.columns.split)
    watched.asked = []
    run(LEAN, tmp_path, watched)
    few = Bench(parse_experiment(LEAN), tmp_path, data=toy).label_rows(0).rows
    training = [(views, rows, how) for views, rows, how in watched.asked if how.get("shuffle")]
    assert len(training) == 7  # teacher, similarity, three controls of the target alone, random teacher, shuffled
    labelled = [rows for _, rows, how in training if how.get("labels")]
    assert len(labelled) == 1
    assert np.array_equal(labelled[0], few)
    split = toy.columns.split
    assert all((split[rows] == 0).all() for _, rows, _ in training)
    in_order = [(rows, how) for _, rows, how in watched.asked if how.get("shuffle") is False]
    assert not any((split[rows] == 2).any() for rows, _ in in_order)
    held_out = [how for rows, how in in_order if (split[rows] == 1).any()]  # the others rehearse a step
    assert held_out
    assert not any(how.get("labels") for how in held_out)


def test_every_arm_has_the_same_labels_and_the_controls_no_fewer_steps(toy, tmp_path):
    bench = Bench(parse_experiment(EXPERIMENT), tmp_path, data=toy)
    tasks = plan(bench)
    for seed in (0, 1):
        steps = {t.arm.name: tasks.steps[t] for t in tasks.tasks if t.seed == seed and not t.teaching}
        assert steps["similarity"] == steps["l2"] == steps["random_teacher"] == steps["shuffled_pairs"] == 10
        assert min(steps["scratch"], steps["target_ssl"], steps["target_graph"]) >= 10
        teaching = [tasks.steps[t] for t in tasks.tasks if t.seed == seed and t.teaching]
        assert teaching == [10]
    assert tasks.total_steps == 2 * (10 + 5 * 10 + steps["scratch"] + steps["target_ssl"])
    labels = bench.label_rows(0)
    assert np.bincount(labels.label).tolist() == [3, 3, 3, 3]
    assert np.array_equal(labels.rows, bench.label_rows(0).rows)
    assert not np.array_equal(labels.rows, bench.label_rows(1).rows)


def test_planned_steps_are_those_that_the_loop_takes(toy, tmp_path):
    text = changed(
        LEAN, ("    epochs: 2\n    batch_size: 32\n", "    epochs: 2\n    batch_size: 32\n    accumulate: 2\n")
    )
    _, news = run(text, tmp_path, toy)
    planned = next(facts["steps"] for word, facts in news if word == "planned")
    assert planned == sum(facts["total"] for word, facts in news if word == "started")


def test_all_networks_start_alike_and_the_controls_break_what_they_say(toy, tmp_path):
    text = changed(LEAN, ("    epochs: 2\n", "    epochs: 6\n    lr: 0.02\n"))
    bench = Bench(parse_experiment(text), tmp_path, data=toy)
    arms = {arm.name: arm for arm in list_arms(bench.experiment)}
    main, shuffled = arms["similarity"], arms["shuffled_pairs"]
    start = [bench.method(arms[n], 0).student("poor").state_dict() for n in ("similarity", "scratch", "target_ssl")]
    assert all(torch.equal(state[name], start[0][name]) for state in start for name in state)

    data = bench.stage_data(shuffled, 0)
    partners = data.partners("rich")
    assert sorted(partners) == list(range(160))
    assert not (partners == np.arange(160)).any()
    assert np.array_equal(data.partners("poor"), np.arange(160))
    assert np.array_equal(bench.stage_data(main, 0).partners("rich"), np.arange(160))

    taught, untaught = bench.teacher(main.stage, 0), bench.teacher(main.stage, 0, untaught=True)
    pairs = list(zip(taught.parameters(), untaught.parameters(), strict=True))
    assert all(a.shape == b.shape for a, b in pairs)
    assert not any(torch.equal(a, b) for a, b in pairs if a.ndim > 1)
    norm = next(m for m in untaught.modules() if isinstance(m, torch.nn.BatchNorm1d))
    assert norm.running_mean.abs().max() > 0  # settled on the source, as a trained one's are
    assert not untaught.training

    x = torch.cat(list(bench.test.samples("poor")))
    features = {n: bench.product(arms[n], 0)(x).detach() for n in ("similarity", "shuffled_pairs", "random_teacher")}
    assert (features["similarity"] - features["shuffled_pairs"]).abs().max() > 0.01
    assert (features["similarity"] - features["random_teacher"]).abs().max() > 0.01


def test_a_stage_may_be_called_like_a_row(toy, tmp_path):
    text = LEAN.replace("  teacher: {method", "  scratch: {method").replace("teacher: teacher", "teacher: scratch")
    one, _ = run(text, tmp_path / "named", toy)
    two, _ = run(LEAN, tmp_path / "plain", toy)
    assert one["rows"] == two["rows"]


def test_two_processes_give_the_rows_of_one(toy_npz, tmp_path):
    torch.set_num_threads(2)  # whatever this process has
    text = changed(LEAN, ("name: toy", f"name: {toy_npz}"))
    here = run_experiment(parse_experiment(text), tmp_path / "one", jobs=1)
    news = []
    there = run_experiment(
        parse_experiment(text), tmp_path / "two", jobs=2, listen=lambda word, facts: news.append(word)
    )
    assert there["rows"] == here["rows"]
    assert torch.get_num_threads() == 2
    assert [results["environment"]["jobs"] for results in (here, there)] == [1, 2]
    assert [results["environment"]["threads"] for results in (here, there)] == [1, 1]
    assert {"planned", "started", "judged", "finished", "closing"} <= set(news)
    students = [(tmp_path / name / "student" / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert students[0] == students[1]


def test_stopped_between_two_steps_and_started_again_it_ends_the_same(toy, tmp_path):
    whole, _ = run(LEAN, tmp_path / "whole", toy)
    bench = Bench(parse_experiment(LEAN), tmp_path / "cut", data=toy)
    arm = list_arms(bench.experiment)[0]
    calls = iter(range(100))
    with pytest.raises(Interrupted, match="step 3 of 10"):
        bench.trained(arm, 0, stop=lambda: next(calls) == 2)
    assert list((tmp_path / "cut" / "stages").rglob("checkpoint.pt"))
    again, news = run(LEAN, tmp_path / "cut", toy)
    resumed = [facts for word, facts in news if word == "started" and facts["row"] == "similarity"]
    assert [facts["step"] for facts in resumed] == [3]
    assert again["rows"] == whole["rows"]
    for name in ("model.safetensors", "config.json"):
        files = [(tmp_path / run / "student" / name).read_bytes() for run in ("whole", "cut")]
        assert files[0] == files[1]
    assert not list((tmp_path / "cut").rglob("checkpoint.pt"))


UNFIT = {
    "batch": (("batch_size: 32\ncompare", "batch_size: 161\ncompare"), DataError, ["a batch of 161", "160 training"]),
    "labels": (("labels_per_class: 3", "labels_per_class: 500"), DataError, ["500"]),
    "network": (("poor: {hidden: [16]", "poor: {hiden: [16]"), ConfigError, ["networks.poor", "'hidden'?"]),
    "augment": (
        ("teacher: teacher", "teacher: teacher\n    augment: {poor: [rotate]}"),
        ConfigError,
        ["stages.student.augment.poor", "rotate"],
    ),
    "two equal views": (("modality: rich,", "modality: rich, augment: {rich: []},"), ConfigError, ["two augmented"]),
    "control": (("seeds: 1", "seeds: 1\ncontrols: {scratch: {lr: -1}}"), ConfigError, ["controls.scratch", "lr"]),
}


@pytest.mark.parametrize("case", UNFIT)
def test_what_does_not_fit_the_data_is_refused_before_anything_is_trained(case, toy, tmp_path):
    change, kind, words = UNFIT[case]
    with pytest.raises(kind) as caught:
        run(changed(SMALL, change), tmp_path / "out", toy)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert not (tmp_path / "out").exists()


def test_test_rows_without_label_are_left_out_with_a_warning(toy, tmp_path):
    columns = toy.columns
    tested = np.flatnonzero(columns.split == 2)
    label = columns.label.copy()
    label[tested[:3]] = -1
    data = PairedDataset(columns.arrays, toy.modalities, name="mine", label=label, split=columns.split)
    bench = Bench(parse_experiment(SMALL, name="file"), tmp_path, data=data)
    assert bench.test.rows.tolist() == tested[3:].tolist()
    assert f"evaluation leaves out 3 of {len(tested)} test rows, which have no label" in bench.data.warnings
    label[tested] = -1
    data = PairedDataset(columns.arrays, toy.modalities, name="mine", label=label, split=columns.split)
    with pytest.raises(DataError, match="0 labelled test rows"):
        run(SMALL, tmp_path / "out", data)


def test_data_without_labels_or_a_test_split_cannot_be_judged(toy, tmp_path):
    unlabelled = PairedDataset(toy.columns.arrays, toy.modalities, name="mine", split=toy.columns.split)
    with pytest.raises(DataError, match="'mine' has no labels to evaluate with"):
        run(SMALL, tmp_path, unlabelled)
    with pytest.raises(DataError, match="no test rows"):
        run(SMALL, tmp_path, toy.split("train"))
