"""Running a suite: shared teachers, kept runs, failures that stay alone, and kills that change nothing."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml
from sklearn.linear_model import LogisticRegression

from crossdistill.errors import ConfigError, DataError
from crossdistill.experiments import read_results
from crossdistill.experiments.repeat import read_kept
from crossdistill.experiments.standings import write_standings
from crossdistill.experiments.suite_run import run_suite
from crossdistill.experiments.suites import Shelf, expand
from crossdistill.experiments.yaml_lines import Document
from crossdistill.files import only_one

BUDGET = {"steps": 6, "teacher_steps": 6, "batch_size": 32}


def described(path, **changes):
    return {
        "methods": ["similarity", "l2"],
        "budget": BUDGET,
        "base": {"evaluate": {"ways": ["linear", "knn"]}},
        "experiments": {"toy": {"data": {"name": str(path)}, "between": ["rich", "poor"]}},
        "labels_per_class": [1, None],
        "seeds": 1,
        **changes,
    }


def go(values, folder, **how):
    shelf, news = Shelf(), []
    suite = expand(Document("suite", values, {}), shelf)
    results = run_suite(suite, folder, shelf=shelf, listen=lambda word, facts: news.append((word, facts)), **how)
    return results, [facts["job"] for word, facts in news if word == "run"], news


def trained(news):
    return [(f["row"], f["seed"]) for word, f in news if word == "started"]


@pytest.fixture(scope="module")
def finished(toy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("suite")
    np.savez(folder / "toy.npz", **toy.columns.arrays, label=toy.label, split=toy.columns.split)
    return folder, *go(described(folder / "toy.npz"), folder / "out")


def test_every_row_is_there_once_for_each_number_of_labels(finished):
    _, results, _, _ = finished
    assert results["complete"]
    assert results["missing"] == 0
    seen = [
        (r["experiment"], r["method"], r["seed"], r["labels_per_class"], r["evaluation"], r["metric"])
        for r in results["rows"]
    ]
    assert len(seen) == len(set(seen))
    methods = {"similarity", "l2", *(m for m, facts in results["methods"].items() if facts["role"] != "baseline")}
    assert {s[:2] for s in seen} == {(e, m) for e in results["experiments"] for m in methods}
    assert {s[3] for s in seen} == {1, None}


def test_a_teacher_is_trained_once_and_nothing_that_is_done_is_done_again(finished):
    folder, results, _, news = finished
    assert len([n for n in trained(news) if n[0] == "teacher"]) == 2  # one of each modality
    again, jobs, news = go(described(folder / "toy.npz"), folder / "out")
    assert not jobs
    assert not trained(news)
    assert again["rows"] == results["rows"]


def test_damaged_records_and_predictions_are_named_and_their_runs_done_again(finished, tmp_path, caplog):
    folder, results, _, _ = finished
    out = tmp_path / "out"
    shutil.copytree(folder / "out", out)
    records, kept = sorted(out.glob("runs/*/*.json")), sorted(out.glob("predictions/*/*.npz"))
    number = re.search(r'"value": 0\.\d', records[0].read_text())
    text = records[0].read_text()
    at = number.end() - 1
    records[0].write_text(text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :])  # valid JSON, another accuracy
    records[1].write_text(records[1].read_text()[:-40])
    content = bytearray(kept[2].read_bytes())
    content[len(content) // 2] ^= 16
    kept[2].write_bytes(content)
    again, jobs, news = go(described(folder / "toy.npz"), out)
    assert len(jobs) == 3
    assert not trained(news)  # their networks are there
    assert again["rows"] == results["rows"]
    damaged = (records[0], records[1], kept[2])
    assert [any(f"{path} is damaged" in line for line in caplog.messages) for path in damaged] == [True] * 3
    assert len(caplog.messages) == 3


def test_a_result_that_was_changed_on_the_disk_is_refused(finished, tmp_path):
    path = tmp_path / "results.json"
    path.write_bytes((finished[0] / "out" / "results.json").read_bytes())
    assert read_results(tmp_path)["rows"] == finished[1]["rows"]
    text = path.read_text()
    at = re.search(r'"value": 0\.\d', text).end() - 1
    path.write_text(text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :])
    for read in (read_results, write_standings, read_kept):
        with pytest.raises(DataError, match=r"results\.json is damaged: its checksum is another"):
            read(tmp_path)


def test_more_seeds_and_methods_add_their_own_runs_alone(finished, tmp_path):
    folder, results, _, _ = finished
    more, jobs, _ = go(described(folder / "toy.npz", seeds=2), folder / "out")
    assert {job.seed for job in jobs} == {1}
    assert [r for r in more["rows"] if r["seed"] == 0] == results["rows"]
    wider = described(folder / "toy.npz", methods=["similarity", "l2", "cosine"])
    _, jobs, _ = go(wider, folder / "out")
    assert {job.row for job in jobs} == {"cosine"}


def test_raw_features_are_what_scikit_learn_gives(finished):
    folder, results, _, _ = finished
    shelf = Shelf()
    data = shelf.get(str(folder / "toy.npz"), {})
    train, test = data.split("train"), data.split("test")
    x, z = (np.concatenate([b.numpy() for b in part.samples("poor")]) for part in (train, test))
    expected = LogisticRegression(C=10.0, max_iter=2000).fit(x, train.label).score(z, test.label)
    row = next(
        r["value"]
        for r in results["rows"]
        if r["experiment"] == "toy-rich-poor"
        and (r["method"], r["labels_per_class"], r["evaluation"], r["metric"])
        == ("raw_features", None, "linear", "accuracy")
    )
    assert abs(row - expected) <= 0.02


def test_predictions_give_the_accuracies(finished):
    folder, results, _, _ = finished
    for row in results["rows"]:
        if row["metric"] != "accuracy":
            continue
        path = folder / "out" / "predictions" / row["experiment"] / f"{row['method']}-{row['seed']}.npz"
        with np.load(path, allow_pickle=False) as arrays:
            k = "all" if row["labels_per_class"] is None else row["labels_per_class"]
            assert np.mean(arrays[f"{row['evaluation']}@{k}"] == arrays["label"]) == pytest.approx(
                row["value"], abs=1e-12
            )


def test_processes_give_the_same_rows(finished, tmp_path):
    folder, results, _, _ = finished
    shared, jobs, _ = go(described(folder / "toy.npz"), tmp_path / "out", jobs=2)
    assert len(jobs) == len(results["runs"]) + 2  # and the two teachers
    assert shared["rows"] == results["rows"]


def test_one_run_that_fails_is_recorded_and_the_others_go_on(toy_npz, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "bad_loss.py").write_text(
        "from crossdistill.objectives import Facts, Objective\n"
        "class Bad(Objective):\n"
        "    facts = Facts(name='bad', title='fails', paper='ours')\n"
        "    def parts(self, student, teacher, context):\n"
        "        raise ValueError('a mistake of mine')\n"
    )
    values = described(
        toy_npz,
        methods=["similarity", {"mine": {"bad_loss:Bad": 1.0}}],
        experiments={"toy": {"data": {"name": str(toy_npz), "source": "rich", "target": "poor"}}},
    )
    results, _, _ = go(values, tmp_path / "out")
    lost = [run for run in results["runs"] if run["status"] == "failed"]
    assert [run["method"] for run in lost] == ["mine"]
    assert "a mistake of mine" in lost[0]["reason"]
    assert results["complete"]
    assert {r["method"] for r in results["rows"]} >= {"similarity", "scratch", "target_ssl"}
    assert "a mistake of mine" in (tmp_path / "out" / "runs.csv").read_text()


def test_a_failed_teacher_fails_its_students_at_once_with_its_reason(toy_npz, tmp_path):
    values = described(
        toy_npz,
        experiments={
            "toy": {
                "data": {"name": str(toy_npz), "source": "rich", "target": "poor"},
                "stages": {"teacher": {"lr": 1e30}},
            }
        },
    )
    results, _, _ = go(values, tmp_path / "out")
    status = {run["method"]: run for run in results["runs"]}
    for name in ("similarity", "l2", "shuffled_pairs"):
        assert status[name]["status"] == "failed"
        assert "its teacher failed: " in status[name]["reason"]
    assert status["scratch"]["status"] == "done"
    assert status["raw_features"]["status"] == "done"


def test_labels_are_read_by_nobody_in_the_label_free_track(toy_npz, tmp_path):
    values = described(
        toy_npz,
        methods=["similarity", "mla", "kd", "cross_entropy"],
        experiments={"toy": {"data": {"name": str(toy_npz), "source": "rich", "target": "poor"}}},
    )
    results, jobs, _ = go(values, tmp_path / "out")
    reasons = {s["method"]: s["reason"] for s in results["skipped"]}
    assert "labelled track" in reasons["mla"]
    assert "labelled track" in reasons["cross_entropy"]
    assert "logits" in reasons["kd"]
    assert {job.row for job in jobs if not job.teaching}.isdisjoint(reasons)


def test_fewer_pairs_change_the_student_but_not_the_teacher_or_the_labels(toy_npz, tmp_path):
    values = described(
        toy_npz,
        experiments={"toy": {"data": {"name": str(toy_npz), "source": "rich", "target": "poor"}, "pairs": [None, 40]}},
    )
    results, _, news = go(values, tmp_path / "out")
    assert [n[0] for n in trained(news)].count("teacher") == 1
    assert {e: facts["pairs"] for e, facts in results["experiments"].items()} == {"toy": 160, "toy-40": 40}
    raw = {
        r["experiment"]: r["value"]
        for r in results["rows"]
        if (r["method"], r["labels_per_class"], r["evaluation"], r["metric"])
        == ("raw_features", 1, "linear", "accuracy")
    }
    assert raw["toy"] == raw["toy-40"]
    assert all(run["status"] == "done" for run in results["runs"])


def test_the_tuned_column_is_chosen_on_validation_with_as_many_trials_for_every_row(toy, tmp_path):
    values = {"methods": ["similarity", "l2"], "tune": 3, "labels_per_class": [1]}
    label, seen = toy.label, []
    for number, spoilt in enumerate((False, True)):  # other labels in the test change what is measured, not the choice
        y = np.where(toy.columns.split == 2, (label + 1) % 4, label) if spoilt else label
        path = tmp_path / f"toy{number}.npz"
        np.savez(path, **toy.columns.arrays, label=y, split=toy.columns.split)
        place = {"toy": {"data": {"name": str(path), "source": "rich", "target": "poor"}}}
        results, jobs, _ = go(described(path, experiments=place, **values), tmp_path / f"out{number}")
        trials = results["tuning"]
        assert {(t["method"], t["trial"]) for t in trials} == {
            (row, n) for row in ("similarity", "l2", "scratch", "target_ssl", "target_graph") for n in range(3)
        }
        best = {
            row: max((t for t in trials if t["method"] == row), key=lambda t: (t["value"], -t["trial"]))["changes"]
            for row in ("similarity", "l2", "scratch", "target_ssl", "target_graph")
        }
        for row, changes in best.items():
            (job,) = [job for job in jobs if job.row == f"{row}@tuned"]
            assert {".".join(path): value for path, value in job.changes} == changes
        assert results["methods"]["l2@tuned"]["tuned"]
        assert {r["method"] for r in results["rows"]} >= {"similarity@tuned", "similarity"}
        seen.append([(t["method"], t["changes"], t["value"]) for t in trials])
    assert seen[0] == seen[1]


def test_two_processes_cannot_run_a_suite_in_one_folder(toy_npz, tmp_path):
    with only_one(tmp_path / "out"), pytest.raises(ConfigError, match=r"another process works in '.*out': process"):
        go(described(toy_npz), tmp_path / "out")


SCRIPT = """
import sys, yaml
from crossdistill.experiments.suite_run import run_suite
from crossdistill.experiments.suites import Shelf, expand
from crossdistill.experiments.yaml_lines import Document
if __name__ == "__main__":
    shelf = Shelf()
    values = yaml.safe_load(open(sys.argv[1]))
    run_suite(expand(Document("suite", values, {}), shelf), sys.argv[2], shelf=shelf, jobs=int(sys.argv[3]))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("jobs", [2])  # one process is the same code with less around it
def test_killed_at_any_moment_it_goes_on_and_no_row_changes(finished, tmp_path, jobs):
    folder, results, _, _ = finished
    (tmp_path / "go.py").write_text(SCRIPT)
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(described(folder / "toy.npz")))
    command = [sys.executable, "go.py", "suite.yaml", "out", str(jobs)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    rng, seen = np.random.default_rng(jobs), -1
    for _ in range(2):  # each time a moment after one more run than before is there
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True)
        while process.poll() is None and len(list((tmp_path / "out").glob("runs/*/*.json"))) <= seen + 1:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.5))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        records = list((tmp_path / "out").glob("runs/*/*.json"))
        assert all(json.loads(path.read_text())["status"] == "done" for path in records)
        assert len(records) > seen
        seen = len(records)
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    final = json.loads((tmp_path / "out" / "results.json").read_text())
    assert final["complete"]
    assert final["rows"] == results["rows"]
