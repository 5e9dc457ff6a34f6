"""RKD against loops over pairs and triples, and what must leave it alone."""

import math

import pytest
import torch

from crossdistill.errors import ConfigError, ObjectiveError
from crossdistill.objectives import Context
from crossdistill.objectives.rkd import RelationalDistillation, relational_angles, relational_distances

DOUBLE = torch.float64


def rotation(d):
    return torch.linalg.qr(torch.randn(d, d, dtype=DOUBLE)).Q


def smooth(x):
    return x * x / 2 if abs(x) < 1 else abs(x) - 0.5


def away(x, i, j):
    return [p - q for p, q in zip(x[i], x[j], strict=True)]


def cosine(x, i, j, k):
    a, c = away(x, i, j), away(x, k, j)
    length = math.hypot(*a) * math.hypot(*c)
    return sum(p * q for p, q in zip(a, c, strict=True)) / length if length else 0.0


def slow_distances(s, t):
    pairs = [(i, j) for i in range(len(s)) for j in range(len(s)) if i != j]
    ratios = []
    for x in (s.double().tolist(), t.double().tolist()):
        all_of_them = [math.hypot(*away(x, i, j)) for i, j in pairs]
        mean = sum(all_of_them) / len(pairs)
        ratios.append([d / mean if mean else 0.0 for d in all_of_them])
    return sum(smooth(a - c) for a, c in zip(*ratios, strict=True)) / len(pairs)


def slow_angles(s, t, corners=None):
    s, t = s.double().tolist(), t.double().tolist()
    b = range(len(s))
    triples = [(i, j, k) for j in (corners or b) for i in b for k in b if len({i, j, k}) == 3]
    return sum(smooth(cosine(s, *at) - cosine(t, *at)) for at in triples) / len(triples)


@pytest.mark.parametrize(("dtype", "tolerance"), [(DOUBLE, 1e-12), (torch.float32, 1e-4), (torch.bfloat16, 1e-4)])
@pytest.mark.parametrize(("b", "d_s", "d_t"), [(3, 2, 3), (6, 4, 9), (9, 8, 2)])
def test_they_equal_loops_written_from_the_equations(b, d_s, d_t, dtype, tolerance):
    s, t = torch.randn(b, d_s, dtype=dtype), 5 * torch.randn(b, d_t, dtype=dtype)
    distances, angles = slow_distances(s, t), slow_angles(s, t)
    assert relational_distances(s, t, over="different").item() == pytest.approx(distances, rel=tolerance)
    assert relational_angles(s, t, over="different").item() == pytest.approx(angles, rel=tolerance)
    parts = RelationalDistillation().terms(s, t, Context())  # as released: a sample with itself counts, as 0
    assert parts["distance"].item() == pytest.approx(25 * distances * (b - 1) / b, rel=tolerance)
    assert parts["angle"].item() == pytest.approx(50 * angles * (b - 1) * (b - 2) / b**2, rel=tolerance)
    assert torch.equal(parts["distance"], 25 * relational_distances(s, t))  # the functions' default is the class's
    assert torch.equal(parts["angle"], 50 * relational_angles(s, t))
    total = RelationalDistillation(2.0, angle=3.0, over="different")(s, t).item()
    assert total == pytest.approx(2 * distances + 3 * angles, rel=tolerance)


@pytest.mark.parametrize(("vertices", "corners"), [(1, [0]), (2, [0, 8]), (3, [0, 4, 8]), (9, None), (50, None)])
def test_a_few_corners_are_a_mean_over_their_triples(vertices, corners):
    s, t = torch.randn(9, 4, dtype=DOUBLE), torch.randn(9, 5, dtype=DOUBLE)
    expected = slow_angles(s, t, corners)
    assert relational_angles(s, t, vertices=vertices, over="different").item() == pytest.approx(expected, rel=1e-12)
    objective = RelationalDistillation(0.0, angle=1.0, vertices=vertices, over="different")
    assert objective(s, t).item() == pytest.approx(expected, rel=1e-12)


def test_turning_scaling_and_shifting_change_nothing():
    s, t = torch.randn(8, 5, dtype=DOUBLE), torch.randn(8, 6, dtype=DOUBLE)
    for loss in (relational_distances, relational_angles):
        value = loss(s, t).item()
        assert value > 0.01
        for other in ((3 * s @ rotation(5) + 7, t), (s, 1e-3 * t @ rotation(6) - 1)):
            assert loss(*other).item() == pytest.approx(value, rel=1e-10)
        assert loss(0.3 * t @ rotation(6) + 2, t).item() == pytest.approx(0, abs=1e-24)


def test_without_pairs_or_triples_there_is_nothing_to_learn():
    for b, loss in ((1, relational_distances), (1, relational_angles), (2, relational_angles)):
        s = torch.randn(b, 3, requires_grad=True)
        value = loss(s, torch.randn(b, 3))
        value.backward()
        assert value == 0
        assert not s.grad.any()
    two = torch.randn(2, 3), torch.randn(2, 4)
    assert relational_distances(*two).item() == pytest.approx(0, abs=1e-12)  # the one distance is its own mean


def test_samples_that_coincide_have_no_direction_and_no_distance():
    s, t = torch.randn(5, 3, dtype=DOUBLE), torch.randn(5, 3, dtype=DOUBLE)
    s[3] = s[1]
    s.requires_grad_()
    apart = {"over": "different"}
    assert relational_distances(s, t, **apart).item() == pytest.approx(slow_distances(s.detach(), t), rel=1e-12)
    assert relational_angles(s, t, **apart).item() == pytest.approx(slow_angles(s.detach(), t), rel=1e-12)
    (relational_distances(s, t) + relational_angles(s, t)).backward()
    assert s.grad.isfinite().all()
    constant = torch.ones(5, 3, dtype=DOUBLE, requires_grad=True)
    value = relational_distances(constant, t, over="different")
    value.backward()
    assert value.item() == pytest.approx(slow_distances(constant.detach(), t), rel=1e-12)
    assert not constant.grad.any()


def test_near_neighbours_far_from_the_origin_are_told_apart():
    near = torch.randn(6, 3, dtype=DOUBLE)
    s = (near * 1e-2 + 1).float()  # squares cancel to a relative error of 1e-3; differences do not
    t = torch.randn(6, 3)
    assert relational_distances(s, t).item() == pytest.approx(5 / 6 * slow_distances(s, t), rel=1e-5)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"distance": -1.0}, "distance must be a weight, finite and at least 0; received -1"),
        ({"angle": float("inf")}, "angle must be a weight"),
        ({"distance": 0.0, "angle": 0.0}, "both 0: nothing is to be learnt"),
        ({"vertices": 0}, "vertices must be at least 1"),
        ({"over": "most"}, "over must be 'all' or 'different'; received 'most'"),
    ],
)
def test_wrong_parameters_are_refused(how, message):
    with pytest.raises(ConfigError, match=message):
        RelationalDistillation(**how)


def test_parts_of_weight_nothing_are_left_out():
    s, t = torch.randn(4, 3), torch.randn(4, 3)
    assert set(RelationalDistillation(angle=0.0).terms(s, t, Context())) == {"distance"}
    assert set(RelationalDistillation(0.0).terms(s, t, Context())) == {"angle"}
    with pytest.raises(ConfigError, match="vertices must be at least 1"):
        relational_angles(s, t, vertices=-1)
    with pytest.raises(ObjectiveError, match="rkd: rows must be pairs"):
        RelationalDistillation()(s, t[:3])
