"""A suite on a Ray cluster of two nodes: the rows of local processes, also when a node is lost."""

import os
import time

import numpy as np
import pytest

from crossdistill.experiments.ray_workers import RayWorkers
from crossdistill.experiments.suite_run import run_suite
from crossdistill.experiments.suites import Shelf, expand
from crossdistill.experiments.yaml_lines import Document

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def cluster():
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    lost = made.add_node(num_cpus=1)
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    yield made, lost
    ray.shutdown()
    made.shutdown()


def values(path):
    return {
        "methods": ["similarity", "l2"],
        "budget": {"steps": 6, "teacher_steps": 6, "batch_size": 32},
        "base": {"evaluate": {"ways": ["linear"]}},
        "experiments": {"toy": {"data": {"name": str(path), "source": "rich", "target": "poor"}}},
        "labels_per_class": [1],
        "seeds": 2,
    }


def go(path, folder, on="", listen=None):
    shelf = Shelf()
    return run_suite(expand(Document("suite", values(path), {}), shelf), folder, shelf=shelf, on=on, listen=listen)


@pytest.mark.timeout(300)
def test_two_nodes_give_the_rows_of_one_process_and_a_lost_node_costs_none(toy, tmp_path, cluster):
    path = tmp_path / "toy.npz"
    np.savez(path, **toy.columns.arrays, label=toy.label, split=toy.columns.split)
    made, node = cluster
    gone = []

    def lose_a_node(word, facts):
        if word == "run" and not gone:
            gone.append(made.remove_node(node))

    expected = go(path, tmp_path / "here")
    results = go(path, tmp_path / "there", on="ray", listen=lose_a_node)
    assert gone
    assert results["environment"]["on"] == "ray"
    assert results["complete"]
    assert not [run for run in results["runs"] if run["status"] == "failed"]
    assert results["rows"] == expected["rows"]


@pytest.mark.timeout(300)
def test_no_more_runs_at_once_than_jobs_say_and_workers_know_the_folders(tmp_path, cluster, monkeypatch):
    monkeypatch.setenv("CROSSDISTILL_CACHE", str(tmp_path / "cache"))

    def make(folder, tell, stop):  # local, so that workers get it by value
        def work(task):
            sign = folder / f"{task}.on"
            sign.touch()
            time.sleep(0.3)
            count = len(list(folder.glob("*.on")))
            sign.unlink()
            return count, os.environ["CROSSDISTILL_CACHE"]

        return work

    with RayWorkers(make, (tmp_path,), jobs=1, threads=1, listen=lambda word, facts: None) as crew:
        for task in range(4):
            crew.submit(task)
        found = {task: future.result() for task, future in crew.finished()}
    assert found == dict.fromkeys(range(4), (1, str(tmp_path / "cache")))
