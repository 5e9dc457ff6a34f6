"""Methods whose networks read several modalities, from an experiment file to its results."""

import numpy as np
import pytest
import torch
from toy_experiment import EXPERIMENT

from crossdistill.data import PairedDataset
from crossdistill.errors import ConfigError, DataError, NetworkError
from crossdistill.experiments import Bench, parse_experiment, plan, run_experiment

STUDENT = EXPERIMENT[EXPERIMENT.index("stages:") : EXPERIMENT.index("compare")]
LEAN = EXPERIMENT.replace("seeds: 2", "seeds: 1").replace("fine_tune_steps: 5", "ways: [linear]")
TAUGHT = "\n  teacher: {method: supervised, modality: rich, epochs: 2, batch_size: 32}"


def experiment(parameters, teacher=""):
    stage = f"stages:{teacher}\n  student: {{{parameters}, epochs: 2, batch_size: 32}}\n"
    return parse_experiment(LEAN.replace(STUDENT, stage).replace("compare: [l2]\n", ""))


@pytest.mark.parametrize(
    ("parameters", "teacher"),
    [
        ("method: msd, weighting: saliency, teacher_hidden: [8]", ""),
        ("method: c2kd, removal: removed", ""),
        ("method: c2kd, teacher: teacher", TAUGHT),
        ("method: mst_distill, top: 3", ""),
        ("method: mke, teacher: teacher, input_noise: {rich: 0.2, poor: 0.5}", TAUGHT),
    ],
)
def test_they_run_from_a_file(toy, tmp_path, parameters, teacher):
    results = run_experiment(experiment(parameters, teacher), tmp_path, data=toy)
    method = parameters.split(", ")[0].removeprefix("method: ")
    roles = {name: row["role"] for name, row in results["methods"].items()}
    assert roles[method] == "method"
    assert roles["shuffled_pairs"] == "control"
    assert ("random_teacher" in roles) == bool(teacher)
    bench = Bench(experiment(parameters, teacher), tmp_path, data=toy)
    trained, start = bench.product(plan(bench).arms[0], 0).state_dict(), bench.encoder("poor", 0).state_dict()
    assert trained.keys() == start.keys()
    assert any(not torch.equal(trained[key], start[key]) for key in start)
    assert any(row["method"] == method for row in results["rows"])


def test_mke_trains_its_teacher_on_the_few_labels_or_is_refused(toy, tmp_path):
    results = run_experiment(experiment("method: mke"), tmp_path, data=toy)
    assert "random_teacher" not in results["methods"]
    unlabelled = PairedDataset(
        toy.columns.arrays, toy.modalities, name="toy", label=np.where(toy.columns.split == 2, toy.label, -1),
        class_names=tuple("abcd"), split=toy.columns.split,
    )  # fmt: skip
    with pytest.raises(DataError, match=r"none of 160 samples is labelled|has no labels"):
        run_experiment(experiment("method: mke"), tmp_path / "none", data=unlabelled)


FUSED = "\n  teacher: {{method: {}, epochs: 12, batch_size: 32, lr: 0.02}}"


@pytest.mark.parametrize(
    "made_by",
    ["mla", "mind, teacher_weight: 0", "mst_distill, top: 3", "msd, teacher_hidden: [8], aux_weight: 0", "mke"],
)
def test_a_teacher_of_all_modalities_is_named_by_its_stage(made_by, toy, tmp_path):
    student = "method: msd, teacher: teacher, weighting: saliency"
    text = experiment(student, FUSED.format(made_by))
    bench = Bench(text, tmp_path, data=toy)
    arms = plan(bench).arms
    if made_by == "mla":
        results = run_experiment(text, tmp_path, data=toy)
        assert results["methods"]["random_teacher"]["role"] == "control"
        assert results["methods"]["teacher"]["role"] == "ceiling"
    arm, random = arms[0], next(arm for arm in arms if arm.name == "random_teacher")
    assert bench.key(arm, 0) != bench.key(random, 0)
    method = bench.trained(arm, 0)
    assert method.given
    assert method.teacher_share == 0
    taught, untaught = (bench.teacher(arm.stage, 0, untaught=random) for random in (False, True))
    names = [name for name, _ in taught.named_parameters()]
    assert names
    assert all(torch.equal(a, b) for a, b in zip(taught.parameters(), method.teacher.parameters(), strict=True))
    assert not any(torch.equal(p, q) for (n, p), q in zip(taught.named_parameters(), untaught.parameters(), strict=True)
                   if n.endswith("weight") and p.ndim == 2)  # fmt: skip
    x = {m: next(toy.split("test").samples(m, 50)) for m in ("rich", "poor")}
    label = torch.from_numpy(toy.split("test").label[:50])
    with torch.no_grad():
        right = (taught.eval()(x).logits.argmax(dim=1) == label).float().mean()
    assert right > 0.4  # chance is a quarter


def test_a_teacher_of_one_modality_cannot_teach_one_of_all(toy, tmp_path):
    student = "method: msd, teacher: teacher"
    told = r"stages\.student\.teacher: msd is taught by a network of all modalities, .*one of 'rich' alone"
    with pytest.raises(ConfigError, match=told):
        experiment(student, TAUGHT)
    own = '\n  teacher: {module: "mine:Net", weights: x}'
    with pytest.raises(ConfigError, match="makes one of 'rich' alone"):
        experiment(student, own)
    peers = "\n  teacher: {method: ctsl_mkt, epochs: 2, batch_size: 32}"
    with pytest.raises(NetworkError, match="ctsl_mkt trains no network of several modalities"):
        run_experiment(experiment(student, peers), tmp_path, data=toy)


@pytest.mark.parametrize("modality", ["rich", "poor"])
def test_methods_that_compare_two_views_need_them_to_differ(modality, toy, tmp_path):
    same = experiment(f"method: cmd_skeleton, augment: {{{modality}: []}}")
    with pytest.raises(
        ConfigError, match=rf"stages\.student\.augment\.{modality}: two augmented views are compared here"
    ):
        plan(Bench(same, tmp_path, data=toy))
    plan(Bench(experiment("method: ctsl_mkt, augment: {poor: []}"), tmp_path, data=toy))
