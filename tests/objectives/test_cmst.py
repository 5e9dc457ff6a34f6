"""CMST on feature maps against a loop over entries, and its adaptors."""

import pytest
import torch
from torch import nn

from crossdistill.errors import ConfigError, ObjectiveError
from crossdistill.methods import Distillation
from crossdistill.networks import CNN
from crossdistill.objectives import L2
from crossdistill.objectives.cmst import SupervisionTransfer, map_regression

DOUBLE = torch.float64


def maps(b=3, c=4, h=5, w=6, dtype=DOUBLE):
    return torch.randn(b, c, h, w, dtype=dtype)


def prepared(student, teacher, **how):
    torch.manual_seed(2)
    objective = SupervisionTransfer(**how)
    objective.prepare(student, teacher, pairs=9)
    return objective


@pytest.mark.parametrize(("dtype", "tolerance"), [(DOUBLE, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-5)])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 4, 5, 6)])
def test_equal_shapes_are_a_mean_over_entries(shape, dtype, tolerance):
    s, t = maps(*shape, dtype=dtype), maps(*shape, dtype=dtype)
    pairs = zip(s.double().flatten().tolist(), t.double().flatten().tolist(), strict=True)
    expected = sum((x - y) ** 2 for x, y in pairs) / s.numel()
    assert map_regression(s, t).item() == pytest.approx(expected, rel=tolerance)
    assert prepared([s], [t])([s], [t]).item() == pytest.approx(expected, rel=tolerance)
    assert map_regression(t, t) == 0


def test_larger_maps_are_averaged_down_to_the_smaller():
    s, t = maps(h=4, w=3), maps(h=2, w=6)
    small_s = s.unflatten(2, (2, 2)).mean(dim=3)
    small_t = t.unflatten(3, (3, 2)).mean(dim=4)
    expected = (small_s - small_t).square().mean().item()
    assert map_regression(s, t).item() == pytest.approx(expected, rel=1e-12)


def test_one_place_a_sample_is_l2_of_features():
    s, t = maps(h=1, w=1), maps(h=1, w=1)
    assert prepared([s], [t])([s], [t]).item() == pytest.approx(L2()(s.flatten(1), t.flatten(1)).item(), rel=1e-12)


def test_an_adaptor_is_a_matrix_at_each_place():
    s, t = maps(c=3), maps(c=4)
    objective = prepared([s], [t])
    (adaptor,) = objective.adaptors
    matrix = adaptor.weight.detach()[:, :, 0, 0]
    adapted = torch.einsum("oc,bchw->bohw", matrix, s) + adaptor.bias.detach()[:, None, None]
    assert objective([s], [t]).item() == pytest.approx((adapted - t).square().mean().item(), rel=1e-12)


@pytest.mark.parametrize(
    ("adaptor", "kinds"),
    [("auto", [nn.Identity, nn.Conv2d]), ("always", [nn.Conv2d, nn.Conv2d]), ("none", [nn.Identity, nn.Identity])],
)
def test_layers_are_added_and_adaptors_stand_where_they_are_asked_for(adaptor, kinds):
    student, teacher = [maps(c=4), maps(c=2)], [maps(c=4), maps(c=3)]
    objective = prepared(student, teacher, adaptor=adaptor)
    assert [type(one) for one in objective.adaptors] == kinds
    if adaptor == "none":
        with pytest.raises(ObjectiveError, match="equally many channels; received 2 of the student and 3 of the"):
            objective(student, teacher)
        return
    each = [map_regression(a(s), t).item() for a, s, t in zip(objective.adaptors, student, teacher, strict=True)]
    assert objective(student, teacher).item() == pytest.approx(sum(each), rel=1e-12)
    before = list(objective.adaptors)
    objective.prepare(student, teacher, pairs=9)
    assert all(one is other for one, other in zip(objective.adaptors, before, strict=True))


def test_gradients_equal_finite_differences_and_never_reach_the_teacher():
    s, t = maps(2, 2, 3, 2).requires_grad_(), maps(2, 3, 2, 2)
    objective = prepared([s.detach()], [t])
    assert torch.autograd.gradcheck(lambda x: objective([x], [t]), (s,))
    teacher = t.clone().requires_grad_()
    objective([s], [teacher]).backward()
    assert teacher.grad is None
    assert objective.adaptors[0].weight.grad.any()


def test_it_reads_the_maps_of_real_networks_and_its_adaptors_learn():
    torch.manual_seed(3)
    student = CNN((1, 8, 8), width=4, blocks=(1, 1), stem_stride=1, dim=6)
    teacher = CNN((3, 8, 8), width=6, blocks=(1, 1), stem_stride=1, dim=6)
    for layers in ((), [["stages.0", "stages.0"], ["stages.1", "stages.1"]]):  # lists, as a file gives them
        objective = SupervisionTransfer(layers)
        method = Distillation(student, teacher=teacher, objectives={"cmst": objective}, source="rich", target="poor")
        batch = {"rich": torch.randn(5, 3, 8, 8), "poor": torch.randn(5, 1, 8, 8), "index": torch.arange(5)}
        method.before_stage(Batches([batch]))
        assert len(objective.adaptors) == max(1, len(layers))
        learning = {id(p) for group in method.parameter_groups() for p in group["params"]}
        assert {id(p) for p in objective.parameters()} <= learning
        loss = method.training_step(batch).total
        loss.backward()
        assert loss > 0
        assert all(p.grad.any() for p in objective.parameters())


class Batches(list):
    epochs = steps_per_epoch = 1
    pairing = "natural"

    def __len__(self):
        return sum(len(batch["index"]) for batch in self)

    def batches(self):
        return iter(self)


def test_what_does_not_fit_is_refused():
    s, t = maps(), maps()
    with pytest.raises(ConfigError, match="adaptor must be 'auto', 'always' or 'none'; received 'mlp'"):
        SupervisionTransfer(adaptor="mlp")
    with pytest.raises(ConfigError, match="cmst: layers are pairs of dotted paths"):
        SupervisionTransfer([("a", "b", "c")])
    with pytest.raises(ObjectiveError, match="cmst: prepared for 0 pairs of layers; received 1 maps"):
        SupervisionTransfer()([s], [t])
    objective = prepared([s], [t])
    with pytest.raises(ObjectiveError, match=r"the teacher's maps must be \(b, channels, h, w\) .* received \(3, 4\)"):
        objective([s], [t[:, :, 0, 0]])
    with pytest.raises(ObjectiveError, match="rows must be pairs; received 3 student, 2 teacher"):
        objective([s], [t[:2]])
    with pytest.raises(ObjectiveError, match=r"cmst: the loss overflows torch.float32.* 1e\+30 of the student"):
        objective([torch.full((3, 4, 5, 6), 1e30)], [t.float()])
