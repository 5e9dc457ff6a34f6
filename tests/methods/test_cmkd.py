"""CMKD with several students: the sum of their losses against its equation, and training from labels that are none."""

import pytest
import torch
from stages import SHORT, check_resumes, same, train
from torch import nn
from torch.nn import functional as F

from crossdistill.errors import ConfigError, DataError, NetworkError
from crossdistill.methods.cmkd import CMKD, CMKDClusters
from crossdistill.networks import MLP, Network
from crossdistill.objectives.base import unit
from crossdistill.objectives.cmkd import HardLabels
from crossdistill.registry import discover
from crossdistill.training import load_product


class Batches(list):
    """What a method is told of its data."""

    epochs = steps_per_epoch = 1
    pairing = "natural"

    def batches(self):
        return iter(self)


def some(rows=12):
    return {"rich": torch.randn(rows, 12), "poor": torch.randn(rows, 8), "index": torch.arange(rows)}


def built(cls=CMKD, **how):
    torch.manual_seed(3)
    head = nn.Linear(6, 4) if cls is CMKD else None
    teacher = Network(MLP((12,), hidden=(8,), dim=6), head=head)
    return cls(MLP((8,), hidden=(8,), dim=5), teacher=teacher, source="rich", target="poor", **how)


def begun(batch, cls=CMKD, **how):
    method = built(cls, **how).eval()
    method.before_stage(Batches([batch]))
    return method


def said(method, batch):
    return [network(batch["poor"]).logits for network in method.networks]


@pytest.mark.parametrize("students", [1, 2, 3])
def test_the_loss_is_the_sum_of_the_students_losses(students):
    batch = some()
    method = begun(batch, students=students, mutual_weight=0.7)
    label = method.teacher(batch["rich"]).logits.argmax(1)
    logits, expected = said(method, batch), 0.0
    for k, own in enumerate(logits):
        expected = expected + F.cross_entropy(own, label)
        for j, other in enumerate(logits):
            if j != k:
                kl = F.kl_div(own.log_softmax(1), other.detach().softmax(1), reduction="batchmean")
                expected = expected + 0.7 * kl / (students - 1)
    losses = method.training_step(batch)
    assert losses.total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert set(losses.terms) == ({"labels"} if students == 1 else {"labels", "mutual"})
    wanted = torch.autograd.grad(expected, list(method.networks.parameters()), retain_graph=True)
    losses.total.backward()
    for parameter, gradient in zip(method.networks.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    assert all(p.grad is None for p in method.teacher.parameters())


def test_one_student_is_the_objective_and_equal_students_teach_each_other_nothing():
    batch = some()
    one = begun(batch, students=1)
    expected = HardLabels()(said(one, batch)[0], one.teacher(batch["rich"]).logits)
    assert one.training_step(batch).total.item() == pytest.approx(expected.item())
    two = begun(batch)
    assert not torch.equal(*said(two, batch))  # they start apart
    two.networks[1].load_state_dict(two.networks[0].state_dict())
    assert two.training_step(batch).terms["mutual"].abs() < 1e-6


def test_the_order_of_the_students_changes_nothing():
    batch = some()
    method = begun(batch, students=3)
    before = method.training_step(batch).total.item()
    method.networks = nn.ModuleList([method.networks[k] for k in (2, 0, 1)])
    assert method.training_step(batch).total.item() == pytest.approx(before, rel=1e-6)


def test_the_ensemble_is_the_mean_of_their_probabilities():
    batch = some()
    method = begun(batch, students=3)
    mean = torch.stack([z.softmax(1) for z in said(method, batch)]).mean(0)
    torch.testing.assert_close(method.ensemble()(batch["poor"]).logits.softmax(1), mean)
    scores = method.held_out_step(batch)
    label = method.teacher(batch["rich"]).logits.argmax(1)
    assert scores["agreement"] == (mean.argmax(1) == label).float().mean()
    assert scores["agreement_of_one"] == (said(method, batch)[0].argmax(1) == label).float().mean()
    assert torch.equal(scores["loss"], method.training_step(batch).total)
    assert method.student("poor") is method.as_teacher("poor").encoder


def test_clusters_stand_for_the_classes_of_a_teacher_without_logits():
    batch = some(40)
    method = begun(batch, CMKDClusters, clusters=7)
    features = unit(method.teacher(batch["rich"]).features)
    label = torch.cdist(features, method.centres).argmin(1)
    assert len(label.unique()) == 7
    expected = sum(F.cross_entropy(z, label) for z in said(method, batch))
    assert method.training_step(batch).terms["labels"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert said(method, batch)[0].shape == (40, 7)


@pytest.mark.parametrize("cls", [CMKD, CMKDClusters])
def test_it_learns_what_the_teacher_says_and_resumes_with_the_same_bits(cls, toy, tmp_path):
    data = toy.split("train")
    how = {} if cls is CMKD else {"clusters": 8}
    method = check_resumes(lambda: built(cls, **how), data, tmp_path, steps=(1, 5), held_out=toy.split("validation"))
    teacher = built(cls, **how).teacher.state_dict()
    assert all(torch.equal(value, teacher[name]) for name, value in method.teacher.state_dict().items())
    longer = train(lambda: built(cls, **how), data, SHORT.__class__(epochs=30, batch_size=40, lr=0.01)).eval()
    batch = {name: torch.cat(list(data.samples(name))) for name in ("rich", "poor")}
    with torch.no_grad():
        scores, start = longer.held_out_step(batch), begun(batch, cls, **how).held_out_step(batch)
    assert scores["labels"] < 0.7 * start["labels"]
    assert scores["agreement"] > start["agreement"] + 0.2


@pytest.mark.parametrize("cls", [CMKD, CMKDClusters])
def test_a_finished_stage_is_loaded_with_its_heads(cls, toy, tmp_path):
    how = {} if cls is CMKD else {"clusters": 8}
    whole = train(lambda: built(cls, **how), toy.split("train"), folder=tmp_path)
    alone = built(cls, **how)
    alone.load_state_dict(whole.state_dict())
    x = torch.randn(5, 8)
    for other in (train(lambda: built(cls, **how), toy.split("train"), folder=tmp_path), alone):
        assert same(other, whole)
        assert torch.equal(other.eval().as_teacher("poor")(x).logits, whole.eval().as_teacher("poor")(x).logits)
    assert same(load_product(built(cls, **how), tmp_path), whole)


@pytest.mark.parametrize(("cls", "how"), [(CMKD, {}), (CMKDClusters, {"clusters": 3})])
def test_a_teacher_that_fails_makes_the_loss_no_number(cls, how):
    batch = some()
    method = begun(batch, cls, **how)
    batch["rich"][4] = torch.nan
    assert method.training_step(batch).terms["labels"].isnan()


def test_a_stage_without_pairs_is_refused():
    with pytest.raises(DataError, match="no row has both 'rich' and 'poor'"):
        begun({**some(), "present": {"rich": torch.zeros(12, dtype=torch.bool)}})


def test_the_facts_say_what_each_needs():
    known = discover("crossdistill.methods")
    assert known["cmkd"].facts.needs == {"pairs", "teacher_logits"}
    assert known["cmkd_clusters"].facts.needs == {"pairs"}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"students": 0}, "cmkd needs students >= 1 and a mutual_weight >= 0; received 0 and 1.0"),
        ({"mutual_weight": float("nan")}, "mutual_weight >= 0"),
    ],
)
def test_wrong_parameters_are_refused(how, message):
    with pytest.raises(ConfigError, match=message):
        built(**how)


def test_what_cannot_be_done_is_told():
    with pytest.raises(ConfigError, match="source and target are both 'rich'"):
        CMKD(MLP((8,)), teacher=MLP((8,)), source="rich", target="rich")
    with pytest.raises(ConfigError, match="clusters must be at least 2"):
        built(CMKDClusters, clusters=1)
    method = built()
    with pytest.raises(NetworkError, match="trains students of 'poor', none of 'rich'"):
        method.student("rich")
    with pytest.raises(NetworkError, match="heads are not made yet; call before_stage first"):
        method.training_step(some())
