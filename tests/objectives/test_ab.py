"""Activation boundaries against a loop over neurons; the connector."""

import pytest
import torch
from torch.nn import functional as F

from crossdistill.errors import ConfigError, ObjectiveError
from crossdistill.objectives.ab import ActivationBoundaries, boundary_distance

DOUBLE = torch.float64


def maps(b=3, c=4, h=3, w=2, dtype=DOUBLE):
    return torch.randn(b, c, h, w, dtype=dtype)


def slow(s, t, margin=1.0, average="samples"):
    found = []
    for value, wanted in zip(s.double().flatten().tolist(), t.double().flatten().tolist(), strict=True):
        short = margin - value if wanted > 0 else margin + value
        found.append(max(0.0, short) ** 2)
    return sum(found) / len(found) if average == "neurons" else 0.003 * sum(found) / len(s)


@pytest.mark.parametrize(("dtype", "tolerance"), [(DOUBLE, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-5)])
@pytest.mark.parametrize("margin", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 4, 3, 2)])
def test_the_loss_equals_a_loop_written_from_the_equation(shape, margin, dtype, tolerance):
    s, t = maps(*shape, dtype=dtype), maps(*shape, dtype=dtype)
    for average in ("samples", "neurons"):
        value = boundary_distance(s, t, margin=margin, average=average).item()
        assert value == pytest.approx(slow(s, t, margin, average), rel=tolerance, abs=tolerance)


def test_defaults_are_the_released_ones():
    s, t = maps(b=5), maps(b=5)
    assert boundary_distance(s, t) == boundary_distance(s, t, margin=1.0, average="samples")
    beyond = torch.where(s > -1, s + 1, 0) ** 2 * (t <= 0) + torch.where(s <= 1, s - 1, 0) ** 2 * (t > 0)
    assert boundary_distance(s, t).item() == pytest.approx(3 / 1000 * beyond.sum().item() / 5)


def test_only_the_side_of_zero_counts():
    s, t = maps(), maps()
    assert torch.equal(boundary_distance(s, t), boundary_distance(s, 1e-3 * t))
    assert torch.equal(boundary_distance(s, t), boundary_distance(s, t.relu()))  # behind a ReLU it is the same
    beyond = 1.001 * t.sign()
    assert boundary_distance(beyond, t) == 0
    assert boundary_distance(-t.sign(), t).item() == pytest.approx(0.003 * 4 * 24)  # of 24 neurons
    for other in (t, torch.zeros_like(t)):  # 0 is off
        assert boundary_distance(torch.zeros_like(t), other, average="neurons").item() == pytest.approx(1)


def test_a_teacher_that_is_no_number_makes_the_loss_none():
    s, t = maps(h=2, w=2), maps(h=6, w=4)
    t[1, 2, 3, 1] = torch.nan
    for average in ("samples", "neurons"):
        assert boundary_distance(s, t, average=average).isnan()
    assert boundary_distance(s, t.nan_to_num(torch.inf)).isfinite()


def test_a_student_value_is_held_against_each_teachers_value_that_it_stands_for():
    s, t = maps(h=2, w=2), maps(h=6, w=4)
    spread = s.repeat_interleave(3, dim=2).repeat_interleave(2, dim=3)
    assert boundary_distance(s, t).item() == pytest.approx(slow(spread, t) / 6, rel=1e-12)
    expected = slow(spread, t, average="neurons")
    assert boundary_distance(s, t, average="neurons").item() == pytest.approx(expected, rel=1e-12)
    large, small = maps(h=6, w=4), maps(h=3, w=2)
    assert boundary_distance(large, small).item() == pytest.approx(slow(F.avg_pool2d(large, 2), small), rel=1e-12)


def test_the_class_is_its_function_behind_a_connector():
    s, t = maps(c=5), maps(c=7)
    objective = ActivationBoundaries(margin=0.6)
    objective.prepare([s], [t], pairs=10)
    convolution, norm = objective.connectors[0]
    assert convolution.weight.shape == (7, 5, 1, 1)
    mixed = torch.einsum("oi,bihw->bohw", convolution.weight[:, :, 0, 0], s)
    spread, centre = torch.var_mean(mixed, dim=(0, 2, 3), correction=0, keepdim=True)
    expected = slow(((mixed - centre) / (spread + norm.eps).sqrt()).detach(), t, 0.6)
    assert objective([s], [t]).item() == pytest.approx(expected, rel=1e-9)
    objective.eval()
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    assert objective([s], [t]).isfinite()
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())


def test_where_channels_agree_there_is_no_connector_unless_it_is_asked_for():
    s, t = maps(), maps()
    objective = ActivationBoundaries()
    objective.prepare([s], [t], pairs=10)
    assert not list(objective.parameters())
    assert torch.equal(objective([s], [t]), boundary_distance(s, t))
    objective = ActivationBoundaries(connector="always", average="neurons")
    objective.prepare([s], [t], pairs=10)
    expected = boundary_distance(objective.connectors[0](s), t, average="neurons")
    assert torch.equal(objective([s], [t]), expected)
    assert objective.connectors[0][0].weight.std() > 0.3  # sqrt(2 / 4), as released; torch's own would be 0.29


def test_layers_weigh_more_the_deeper_they_are():
    s, t = [maps(), maps(), maps()], [maps(), maps(), maps()]
    objective = ActivationBoundaries()
    objective.prepare(s, t, pairs=10)
    parts = objective.terms(s, t, None)
    for k, weight in enumerate((0.25, 0.5, 1.0)):
        assert parts[f"ab{k}"].item() == pytest.approx(weight * slow(s[k], t[k]), rel=1e-12)


def test_gradients_through_the_connector_equal_finite_differences():
    s, t = maps(b=2).requires_grad_(), maps(b=2)
    objective = ActivationBoundaries(connector="always")
    objective.prepare([s], [t], pairs=2)
    assert torch.autograd.gradcheck(lambda x: objective([x], [t]), (s,))
    objective([s], [t]).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in objective.parameters())
    assert objective.connectors[0][0].weight.grad.abs().sum() > 0


def test_prepare_keeps_what_it_made_for_these_channels():
    s, t = maps(c=5), maps(c=7)
    objective = ActivationBoundaries()
    with pytest.raises(ObjectiveError, match=r"prepared for \[\] channels .* received \[\(5, 7\)\]. Call prepare"):
        objective([s], [t])
    objective.prepare([s], [t], pairs=10)
    weight = objective.connectors[0][0].weight
    objective.prepare([maps(b=1, c=5)], [maps(b=1, c=7, h=1)], pairs=99)
    assert objective.connectors[0][0].weight is weight
    objective.prepare([maps(c=6)], [t], pairs=10)
    assert objective.connectors[0][0].weight.shape[1] == 6
    with pytest.raises(ObjectiveError, match=r"prepared for \[\(6, 7\)\] channels"):
        objective([s], [t])


def test_what_a_norm_cannot_do_is_refused():
    s, t = maps(b=1, h=1, w=1), maps(b=1)
    objective = ActivationBoundaries(connector="always")
    objective.prepare([s], [t], pairs=1)
    with pytest.raises(ObjectiveError, match="batch norm needs more than one row or place"):
        objective([s], [t])
    assert objective.eval()([s], [t]).isfinite()
    large = torch.full((2, 4, 3, 2), 1e30)
    large[0] = -large[0]
    objective = ActivationBoundaries(connector="always")
    objective.prepare([large], [large], pairs=2)
    with pytest.raises(ObjectiveError, match=r"ab overflows torch.float32; .*1e.30 of the student"):
        objective([large], [large])


def test_parameters_out_of_range_and_unequal_channels_are_refused():
    for margin in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=f"margin must be finite and above 0; received {margin}"):
            ActivationBoundaries(margin=margin)
    with pytest.raises(ConfigError, match="average must be samples or neurons; received 'all'"):
        ActivationBoundaries(average="all")
    with pytest.raises(ConfigError, match="connector must be auto or always; received 'never'"):
        ActivationBoundaries(connector="never")
    with pytest.raises(ObjectiveError, match="equally many channels; received 4 and 5"):
        boundary_distance(maps(), maps(c=5))
