"""The league's tables from kept runs: sets side by side, with each set's mean over its own experiments and seeds."""

import csv

import numpy as np
import pytest
from benchmarks.league import across, order, rival

from crossdistill.errors import DataError

ROWS = {  # set: experiment: row: accuracy in percent of seeds 0 and 1
    "near": {"a": {"focused": (60, 62), "l2": (50, 54), "sp": (55, 53), "scratch": (40, 40)},
             "b": {"focused": (70, 72), "l2": (74, 74), "sp": (60, 60), "scratch": (30, 50)}},
    "far": {"c": {"focused": (20, 24), "l2": (21, 21), "sp": (30, 26), "scratch": (10, 10)}},
}  # fmt: skip


@pytest.fixture
def folders(tmp_path):
    for name, experiments in ROWS.items():
        (tmp_path / name).mkdir()
        column = "linear@1" if name == "near" else "linear@3"
        with (tmp_path / name / "runs.csv").open("w", newline="") as file:
            out = csv.writer(file)
            out.writerow(["experiment", "method", "seed", "status", column])
            for experiment, rows in experiments.items():
                for row, values in rows.items():
                    out.writerows([experiment, row, seed, "done", value / 100] for seed, value in enumerate(values))
    return [tmp_path / name for name in ROWS]


def cells(table, row):
    [line] = [line for line in table.splitlines() if line.startswith(f"| {row} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_sets_count_once_whatever_their_experiments(folders):
    table = across(folders, ["linear@1", "linear@3"])
    assert cells(table, "row")[:2] == ["near", "far"]
    assert cells(table, "`focused`")[:4] == ["66.0", "22.0", "44.0", "1.5"]
    assert cells(table, "`l2`")[:4] == ["63.0", "21.0", "42.0", "2.5"]
    assert cells(table, "`l2`")[4].startswith("+2.0 [")
    assert cells(table, "`l2`")[5] == "2"
    assert cells(table, "`sp`")[:4] == ["57.0", "28.0", "42.5", "2.0"]
    assert "`scratch`" not in table


def test_hindsight_takes_the_best_of_every_experiment(folders):
    table = across(folders, ["linear@1", "linear@3"])
    assert cells(table, "the best known method of each, in hindsight")[:3] == ["64.0", "28.0", "46.0"]  # sp, l2; sp
    assert cells(table, "the best control of each, in hindsight")[:3] == ["40.0", "10.0", "25.0"]
    near, far = cells(table, "`focused` minus that method")[:2]
    assert near.startswith("+2.0<br>[")  # (61 - 54 + 71 - 74) / 2: of seed 0 (5 - 4) / 2, of seed 1 (9 - 2) / 2
    half = 12.706 * np.std([0.5, 3.5], ddof=1) / np.sqrt(2)
    assert near.endswith(f"[{2 - half:+.1f}, {2 + half:+.1f}]")
    assert far.startswith("-6.0<br>[")


def test_what_cannot_be_told_is_not_said(folders):
    table = across(folders, ["linear@1", "linear@3"], seeds=[0])
    assert cells(table, "`focused` minus what other seeds chose")[:2] == ["\N{EN DASH}"] * 2
    assert cells(table, "`focused`")[:2] == ["65.0", "20.0"]
    with pytest.raises(DataError, match="far has no kept run with linear@1"):
        across(folders, ["linear@1"])
    with pytest.raises(DataError, match="not every set has 'vid'; those that have rows in all: focused, l2, sp"):
        across(folders, ["linear@1", "linear@3"], "vid")


def test_what_ranks_prove_is_said(folders):
    said = order(folders, ["linear@1", "linear@3"])
    assert said.startswith("3 rows on 2 sets: Friedman's test (Iman and Davenport) p = 0.")
    assert f"average ranks differ from {3.3145 / np.sqrt(2) * np.sqrt(3 * 4 / 12):.1f} on" in said
    assert "0 of 3 pairs differ, for which 7 sets are needed at least" in said


def test_where_a_method_is_behind_is_named(folders):
    path = folders[0] / "runs.csv"
    assert "behind" not in rival(folders[0], "linear@1", "focused")
    path.write_text(
        path.read_text().replace("b,l2,0,done,0.74", "b,l2,0,done,0.80").replace("b,l2,1,done,0.74", "b,l2,1,done,0.82")
    )
    (told,) = [line for line in rival(folders[0], "linear@1", "focused").splitlines() if "behind" in line]
    assert told == "  behind in b: minus l2 -10.0 [-10.0, -10.0]"


def test_equal_means_share_a_rank(folders):
    path = folders[1] / "runs.csv"
    lines = path.read_text().splitlines()[:1] + [
        f"c,{row},{seed},done,{value}"
        for row, values in {
            "focused": (0.2, 0.1, 0.3),
            "l2": (0.1, 0.2, 0.3),
            "sp": (0.3, 0.1, 0.2),
            "scratch": (0.1, 0.1, 0.1),
        }.items()
        for seed, value in enumerate(values)
    ]
    path.write_text("\n".join(lines))
    ranks = {row: cells(across(folders, ["linear@1", "linear@3"]), row)[3] for row in ("`focused`", "`l2`", "`sp`")}
    assert ranks == {"`focused`": "1.5", "`l2`": "2.0", "`sp`": "2.5"}  # near 1, 2 and 3, far 2 for each


def test_without_hindsight_the_other_seeds_choose(folders):
    near, far, *_, apart, ahead = cells(
        across(folders, ["linear@1", "linear@3"]), "`focused` minus what other seeds chose"
    )
    # near, seed 0: seed 1 chose l2 on a and on b, (60 - 50 + 70 - 74) / 2; seed 1: seed 0 chose sp and l2, (9 - 2) / 2
    assert near.startswith("+3.2<br>[")
    assert far.startswith("-6.0<br>[")
    assert apart.startswith("-1.4 [")
    assert ahead == "1"
