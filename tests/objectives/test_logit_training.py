"""Every loss on logits, and FD-CMKD, in the generic method: training, resuming bit for bit, labels where due."""

import numpy as np
import pytest
import torch
from torch import nn

from crossdistill.errors import Interrupted
from crossdistill.methods import Distillation
from crossdistill.networks import MLP, Network
from crossdistill.objectives.cmkd import HardClusters, HardLabels
from crossdistill.objectives.dkd import DKD
from crossdistill.objectives.fdcmkd import FeatureDisentanglement
from crossdistill.objectives.kd import KD
from crossdistill.objectives.labels import CrossEntropy
from crossdistill.objectives.mfh import CrossmodalKD
from crossdistill.objectives.ntdh import NonTargetDivergence
from crossdistill.objectives.rlkd import RankingDistillation
from crossdistill.registry import discover
from crossdistill.training import Settings, fit

SHORT = Settings(epochs=2, batch_size=32, lr=0.01, checkpoint_every=1)  # 5 steps an epoch
CASES = {
    "cross_entropy": CrossEntropy,
    "kd": KD,
    "kd, pssm": lambda: KD(pssm=True),
    "dkd": lambda: DKD(warm_up=0.5),
    "dkd, argmax": lambda: DKD(unknown="argmax"),
    "mfh": CrossmodalKD,
    "ntdh": NonTargetDivergence,
    "rlkd": lambda: RankingDistillation(3),
    "cmkd": HardLabels,
    "cmkd_clusters": lambda: HardClusters(12),
    "fdcmkd": FeatureDisentanglement,
    "fdcmkd, pca": lambda: FeatureDisentanglement("pca", classes=4),
    "fdcmkd, random": lambda: FeatureDisentanglement("random"),
}
NEED_LABELS = {"cross_entropy", "kd, pssm", "dkd", "mfh", "ntdh", "fdcmkd, pca"}


def distillation(case):
    torch.manual_seed(2)
    head = None if case == "cmkd_clusters" else nn.Linear(6, 4)
    teacher = Network(MLP((12,), hidden=(8,), dim=6), head=head)
    student = MLP((8,), hidden=(8,), dim=5)
    return Distillation(
        student, teacher=teacher, objectives={case: CASES[case]()}, source="rich", target="poor", classes=4
    )


def train(case, data, folder=None, stop=None, labels=True):
    return fit(distillation(case), data, SHORT, seed=3, folder=folder, stop=stop, labels=labels, accelerator="cpu")


def same(one, other):
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(
        torch.equal(a[name], b[name]) if isinstance(a[name], torch.Tensor) else a[name] == b[name] for name in a
    )


def after(steps):
    calls = []
    return lambda: calls.append(None) or len(calls) == steps


@pytest.mark.parametrize("case", CASES)
def test_a_run_that_was_stopped_ends_with_the_same_bits_and_leaves_the_teacher_alone(case, toy, tmp_path):
    data = toy.split("train").keep_labels(np.arange(160) % 3 == 0)  # most rows of unknown class
    whole = train(case, data)
    fresh = distillation(case)
    assert same(whole.teacher, fresh.teacher)
    assert not same(whole.network, fresh.network)
    with pytest.raises(Interrupted):
        train(case, data, tmp_path, stop=after(7))
    assert same(train(case, data, tmp_path), whole)


@pytest.mark.parametrize("case", sorted(set(CASES) - NEED_LABELS))
def test_without_need_of_labels_they_change_nothing(case, toy):
    objective = CASES[case]()
    assert "labels" not in objective.needs
    if case == "dkd, argmax":  # it takes labels where there are some
        return
    data = toy.split("train")
    assert same(train(case, data, labels=True), train(case, data, labels=False))


@pytest.mark.parametrize("case", sorted(NEED_LABELS))
def test_need_of_labels_is_said(case):
    assert "labels" in CASES[case]().needs


@pytest.mark.parametrize("case", sorted(NEED_LABELS - {"mfh", "fdcmkd, pca"}))
def test_a_stage_without_any_label_learns_nothing_and_does_not_fail(case, toy):
    method = distillation(case)
    data = toy.split("train").keep_labels(np.zeros(160, dtype=bool))
    settings = Settings(epochs=1, batch_size=32, lr=0.01, weight_decay=0.0)
    before = {name: p.detach().clone() for name, p in method.network.named_parameters()}
    fit(method, data, settings, seed=3, labels=True, accelerator="cpu")
    assert all(torch.equal(p, before[name]) for name, p in method.network.named_parameters())


def test_they_are_found_by_name():
    known = discover("crossdistill.objectives")
    for name in ("cross_entropy", "kd", "dkd", "mfh", "ntdh", "rlkd", "cmkd", "fdcmkd"):
        assert known[name].facts.name == name
        assert known[name]() is not None  # every parameter has a default
