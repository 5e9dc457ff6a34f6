"""Flow between layers against a loop over channels and places."""

import pytest
import torch
from picture_worlds import pictures, train
from torch.nn import functional as F

from crossdistill.errors import ConfigError, ObjectiveError
from crossdistill.objectives.fsp import Flow, flow_distance, flow_matrix

DOUBLE = torch.float64
TWO = (("a", "a"), ("b", "b"))


def maps(b=3, c=4, h=3, w=2, dtype=DOUBLE):
    return torch.randn(b, c, h, w, dtype=dtype)


def slow_matrix(first, second):
    (c1, h, w), c2 = first.shape, len(second)
    places = [(y, x) for y in range(h) for x in range(w)]
    return [
        [sum(float(first[i, y, x]) * float(second[j, y, x]) for y, x in places) / (h * w) for j in range(c2)]
        for i in range(c1)
    ]


def slow(s1, s2, t1, t2):
    found = []
    for rows in zip(s1, s2, t1, t2, strict=True):
        g_s, g_t = slow_matrix(*rows[:2]), slow_matrix(*rows[2:])
        found += [(a - b) ** 2 for one, other in zip(g_s, g_t, strict=True) for a, b in zip(one, other, strict=True)]
    return sum(found) / len(found)


@pytest.mark.parametrize(("dtype", "tolerance"), [(DOUBLE, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-5)])
@pytest.mark.parametrize(("b", "c1", "c2", "size", "theirs"), [(1, 1, 1, (1, 1), (2, 2)), (3, 4, 6, (3, 2), (5, 4))])
def test_the_loss_equals_a_loop_written_from_the_equation(b, c1, c2, size, theirs, dtype, tolerance):
    s1, s2, t1, t2 = (maps(b, c, *hw, dtype) for hw in (size, theirs) for c in (c1, c2))
    expected = slow(s1, s2, t1, t2)
    assert flow_distance(s1, s2, t1, t2).item() == pytest.approx(expected, rel=tolerance, abs=tolerance)
    assert torch.equal(Flow(TWO)([s1, s2], [t1, t2]), flow_distance(s1, s2, t1, t2))
    assert flow_matrix(s1, s2).shape == (b, c1, c2)


def test_every_two_neighbours_are_compared():
    s, t = [maps(), maps(), maps()], [maps(), maps(), maps()]
    objective = Flow((*TWO, ("c", "c")))
    parts = objective.terms(s, t, None)
    assert torch.equal(parts["fsp0"], flow_distance(s[0], s[1], t[0], t[1]))
    assert torch.equal(parts["fsp1"], flow_distance(s[1], s[2], t[1], t[2]))


def test_places_are_averaged_away_and_channels_are_not():
    t1, t2 = maps(), maps()
    assert flow_distance(t1, t2, t1, t2) == 0
    order = torch.randperm(6)
    moved = [x.flatten(2)[..., order].view_as(x) for x in (t1, t2)]
    assert flow_distance(*moved, t1, t2).item() < 1e-30
    assert flow_distance(t1[:, [1, 0, 2, 3]], t2, t1, t2) > 1e-3
    assert flow_distance(2 * t1, t2 / 2, t1, t2) == 0
    assert flow_distance(-t1, -t2, t1, t2) == 0


def test_the_teacher_gets_no_gradient_and_both_layers_of_the_student_do():
    s1, s2, t1, t2 = (maps().requires_grad_() for _ in range(4))
    assert torch.autograd.gradcheck(lambda a, b: flow_distance(a, b, t1.detach(), t2.detach()), (s1, s2))
    flow_distance(s1, s2, t1, t2).backward()
    assert t1.grad is None
    assert t2.grad is None
    assert s1.grad.abs().sum() > 0
    assert s2.grad.abs().sum() > 0


def test_of_layers_of_two_sizes_the_larger_is_averaged_down():
    first, second = maps(h=6, w=4), maps(h=3, w=2)
    expected = flow_matrix(F.avg_pool2d(first, 2), second)
    torch.testing.assert_close(flow_matrix(first, second), expected)
    torch.testing.assert_close(flow_matrix(second, first), expected.mT)
    t1, t2 = maps(h=8, w=8), maps(h=4, w=4)
    value = flow_distance(first, second, t1, t2).item()
    assert value == pytest.approx(slow(F.avg_pool2d(first, 2), second, F.avg_pool2d(t1, 2), t2), rel=1e-12)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ObjectiveError, match=r"equally many channels; received 4 and 5. Use networks of equal widths"):
        flow_distance(maps(), maps(), maps(), maps(c=5))
    with pytest.raises(ObjectiveError, match="received 3 first layer, 2 second layer rows"):
        flow_matrix(maps(), maps(b=2))


def test_two_layers_are_asked_for():
    with pytest.raises(ConfigError, match=r"two or more consecutive layers: name them in layers, .* received one"):
        Flow((("a", "a"),))
    for call in (Flow(), lambda s, t: Flow(TWO).prepare(s, t, pairs=3)):
        with pytest.raises(ObjectiveError, match=r"needs two or more: name them in layers, .* received one map"):
            call([maps()], [maps()])
    with pytest.raises(ObjectiveError, match="needs two or more"):  # the deepest maps of both
        train(pictures({"fsp": Flow()}))


def test_products_that_overflow_are_told():
    large = maps(dtype=torch.float32).sign() * 1e30
    with pytest.raises(ObjectiveError, match=r"fsp overflows torch.float32; the largest entries are 1e.30"):
        flow_distance(large, large, -large, large)
