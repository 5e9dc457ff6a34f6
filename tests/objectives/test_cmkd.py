"""Hard labels from a teacher's logits or from clusters of its features, and what students learn from each other."""

import math

import pytest
import torch
from torch.nn import functional as F

from crossdistill.errors import ConfigError, ObjectiveError
from crossdistill.objectives import cmkd
from crossdistill.objectives.base import Context, unit
from crossdistill.objectives.cmkd import (
    HardClusters,
    HardLabels,
    hard_label_cross_entropy,
    k_means,
    mutual_divergence,
    nearest_centre,
)

DOUBLE = torch.float64


def blobs(groups=4, each=25, d=6):
    """Points of well separated groups, in random order, and the group of each."""
    side = torch.arange(groups).repeat_interleave(each)[torch.randperm(groups * each)]
    return (10 * torch.eye(groups, d))[side] + 0.3 * torch.randn(len(side), d), side


def studied(clusters, s, t):
    objective = HardClusters(clusters)
    objective.prepare(s, t, pairs=len(s))
    objective.study([(part, Context()) for part in t.split(16)])
    return objective


def test_the_label_is_the_teachers_first_choice():
    s, t = torch.randn(6, 4, dtype=DOUBLE, requires_grad=True), torch.randn(6, 4, dtype=DOUBLE, requires_grad=True)
    loss = HardLabels()(s, t)
    torch.testing.assert_close(loss, F.cross_entropy(s, t.argmax(1)))
    loss.backward()
    assert t.grad is None
    torch.testing.assert_close(s.grad, (s.softmax(1) - F.one_hot(t.argmax(1), 4)).detach() / 6)
    assert torch.autograd.gradcheck(lambda s: hard_label_cross_entropy(s, t), (s,))


def test_only_the_order_of_the_teachers_classes_matters():
    s, t = torch.randn(6, 4), torch.randn(6, 4)
    assert HardLabels()(s, t) == HardLabels()(s, 7 * t.exp())


def test_half_precision_and_sizes():
    s, t = torch.randn(6, 4).bfloat16(), torch.randn(6, 4).bfloat16()
    assert HardLabels()(s, t) == HardLabels()(s.float(), t.float())
    for one in (torch.zeros(1, 4), torch.ones(1, 4), torch.randn(1, 4) * 1e30):
        one.requires_grad_()
        value = HardLabels()(one, torch.randn(1, 4))
        value.backward()
        assert value.isfinite()
        assert one.grad.isfinite().all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_teacher_that_fails_makes_the_loss_no_number(bad):
    s, t = torch.randn(12, 3), blobs(each=3)[0]
    objective = studied(4, s, t)
    t[5, 2] = bad
    assert objective(s, t).isnan()
    logits = torch.randn(12, 3)
    logits[5, 1] = float("nan")
    assert HardLabels()(s, logits).isnan()
    assert HardLabels()(s, logits.nan_to_num(-float("inf"))).isfinite()  # a class that is ruled out is no failure


def test_what_is_read_and_needed():
    assert (HardLabels.reads, HardLabels().needs) == ("logits", {"pairs", "teacher_logits"})
    assert (HardClusters.reads, HardClusters(5).needs) == ("features", {"pairs"})
    assert HardClusters().clusters == 100


def slow_mutual(logits):
    """KL(p_j || p_k) in plain numbers, averaged over the others and the rows."""
    p = [z.softmax(1).tolist() for z in logits]
    found = []
    for k, own in enumerate(p):
        others = [p[j] for j in range(len(p)) if j != k]
        rows = [
            sum(a * (math.log(a) - math.log(b)) for a, b in zip(x, y, strict=True))
            for other in others
            for x, y in zip(other, own, strict=True)
        ]
        found.append(sum(rows) / (len(own) * len(others)))
    return found


@pytest.mark.parametrize("students", [2, 3, 5])
def test_mutual_learning_equals_a_loop_and_each_learns_from_the_others_alone(students):
    logits = [2 * torch.randn(4, 6, dtype=DOUBLE) for _ in range(students)]
    assert mutual_divergence(logits).tolist() == pytest.approx(slow_mutual(logits), rel=1e-12)
    leaves = [z.clone().requires_grad_() for z in logits]
    mutual_divergence(leaves)[0].backward()
    assert leaves[0].grad.abs().max() > 1e-3
    assert not any(z.grad.any() for z in leaves[1:])  # the others' distributions stand still
    mean = torch.stack([z.softmax(1) for z in logits[1:]]).mean(0)
    torch.testing.assert_close(leaves[0].grad, (logits[0].softmax(1) - mean) / 4)

    def loss(z):
        return mutual_divergence([z, *logits[1:]])[0]

    assert torch.autograd.gradcheck(loss, (logits[0].clone().requires_grad_(),))


def test_mutual_learning_of_one_and_of_equals_is_nothing_and_order_changes_nothing():
    z = torch.randn(5, 4, dtype=DOUBLE, requires_grad=True)
    alone = mutual_divergence([z])
    alone.sum().backward()
    assert alone.tolist() == [0]
    assert not z.grad.any()
    assert mutual_divergence([z, z.detach(), z.detach() + 3]).abs().max() < 1e-15
    logits = [torch.randn(5, 4, dtype=DOUBLE) for _ in range(3)]
    found = mutual_divergence(logits)
    torch.testing.assert_close(mutual_divergence([logits[k] for k in (2, 0, 1)]), found[[2, 0, 1]])
    half = [z.bfloat16() for z in logits]
    assert torch.equal(mutual_divergence(half), mutual_divergence([z.float() for z in half]))


def test_k_means_finds_well_separated_groups():
    points, group = blobs()
    side = nearest_centre(points, k_means(points, 4))
    assert len({(a, b) for a, b in zip(side.tolist(), group.tolist(), strict=True)}) == 4


def test_centres_are_means_and_points_are_with_the_nearest():
    points = torch.randn(300, 5, dtype=DOUBLE)
    centres = k_means(points, 7)
    side = nearest_centre(points, centres)
    torch.testing.assert_close(centres, torch.stack([points[side == k].mean(0) for k in range(7)]))
    assert torch.equal(side, torch.cdist(points, centres).argmin(1))


def test_k_means_is_a_function_of_the_seed_and_the_points(monkeypatch):
    points = torch.randn(200, 5)

    def seeded(seed):
        torch.manual_seed(seed)
        return k_means(points, 9)

    assert torch.equal(seeded(3), seeded(3))
    assert not torch.equal(seeded(3), seeded(4))
    whole = seeded(3)
    monkeypatch.setattr(cmkd, "ROWS_AT_ONCE", 64)
    torch.testing.assert_close(seeded(3), whole)


def test_k_means_starts_from_points_far_apart():
    points = torch.cat([torch.zeros(10000, 2) + 0.001 * torch.randn(10000, 2), torch.tensor([[50.0, 0], [0, 50]])])
    found = k_means(points, 3, steps=0)  # even draws would take the two of 10002 almost never
    assert {tuple(row.round().int().tolist()) for row in found} == {(0, 0), (50, 0), (0, 50)}


def test_fewer_points_than_clusters_are_borne():
    centres = k_means(torch.ones(3, 2), 5)
    assert centres.tolist() == [[1, 1]] * 5
    assert nearest_centre(torch.ones(3, 2), centres).tolist() == [0, 0, 0]


def test_the_loss_with_clusters_is_cross_entropy_with_the_nearest():
    t, _ = blobs()
    s = torch.randn(100, 3)
    objective = studied(4, s, t)
    side = torch.cdist(unit(t), objective.centres).argmin(1)
    assert len(side.unique()) == 4
    parts = objective.terms(s, t, Context())
    torch.testing.assert_close(parts["cmkd_clusters"], F.cross_entropy(objective.head(s), side))
    torch.testing.assert_close(objective(s, 9 * t), objective(s, t))  # clusters are of directions
    exact = objective(s.double(), t.double())
    torch.testing.assert_close(exact.float(), objective(s, t))
    assert exact.dtype == DOUBLE
    assert objective.head.weight.dtype == torch.float32


def test_the_length_of_the_teachers_features_does_not_matter_to_the_clusters():
    t, _ = blobs()
    s, found = torch.randn(100, 3), []
    for scale in (torch.ones(100, 1), torch.rand(100, 1) * 50 + 0.1):
        torch.manual_seed(3)
        found.append(studied(4, s, t * scale).centres)
    torch.testing.assert_close(*found)


def test_the_gradient_with_clusters_is_the_students_and_the_heads():
    t, _ = blobs(each=3)
    s = torch.randn(12, 3, requires_grad=True)
    objective = studied(4, s.detach(), t)
    objective(s, t.requires_grad_()).backward()
    assert t.grad is None
    assert s.grad.any()
    assert objective.head.weight.grad.any()
    objective.double()
    assert torch.autograd.gradcheck(lambda s: objective(s, t.double()), (s.detach().double().requires_grad_(),))


def test_preparing_again_keeps_head_and_centres_and_both_are_checkpointed():
    t, _ = blobs(each=3)
    s = torch.randn(12, 3)
    objective = studied(4, s, t)
    head, centres = objective.head, objective.centres.clone()
    objective.prepare(s * 2, t * 2, pairs=12)
    assert objective.head is head
    assert torch.equal(objective.centres, centres)
    assert set(objective.state_dict()) == {"centres", "head.weight", "head.bias"}


def test_what_does_not_fit_is_refused():
    s, t = torch.randn(6, 4), torch.randn(6, 5)
    for clusters in (0, 1, -3):
        with pytest.raises(ConfigError, match=f"clusters must be at least 2, about 10 a class; received {clusters}"):
            HardClusters(clusters)
    with pytest.raises(ObjectiveError, match="cmkd: student and teacher must give logits over the same classes"):
        HardLabels()(s, t)
    with pytest.raises(ObjectiveError, match="call prepare, and study with the teacher's features, before the loss"):
        HardClusters(3)(s, t)
    with pytest.raises(ObjectiveError, match="not all finite numbers, and cannot be clustered"):
        studied(3, s, t * float("nan"))
    with pytest.raises(ObjectiveError, match="needs the logits of at least one student"):
        mutual_divergence([])
    with pytest.raises(ObjectiveError, match="logits over the same classes for the same rows"):
        mutual_divergence([s, t])
