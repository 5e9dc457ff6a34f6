"""Factor transfer: the distance against a loop; the paraphraser that learns from the teacher alone and then stays."""

import math

import pytest
import torch
from picture_worlds import pictures, train

from crossdistill.errors import ConfigError, ObjectiveError
from crossdistill.objectives.ft import FactorTransfer, factor_distance

DOUBLE = torch.float64


def maps(b=3, c=4, h=3, w=2, dtype=DOUBLE):
    return torch.randn(b, c, h, w, dtype=dtype)


def slow(s, t, p, form="factors"):
    found = []
    for one, other in zip(s.double(), t.double(), strict=True):
        x, y = one.flatten().tolist(), other.flatten().tolist()
        if form == "places":
            x, y = ([sum(v * v for v in at) / len(at) for at in z.flatten(1).T.tolist()] for z in (one, other))
        n_x, n_y = (math.sqrt(sum(v * v for v in values)) for values in (x, y))
        found += [abs(a / n_x - b / n_y) ** p for a, b in zip(x, y, strict=True)]
    return sum(found) / len(found)


@pytest.mark.parametrize(("dtype", "tolerance"), [(DOUBLE, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-5)])
@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 3, 1, 1), (3, 4, 3, 2)])
def test_the_distance_equals_a_loop_written_from_the_equation(shape, p, dtype, tolerance):
    s, t = maps(*shape, dtype=dtype), maps(*shape, dtype=dtype)
    assert factor_distance(s, t, p=p).item() == pytest.approx(slow(s, t, p), rel=tolerance, abs=tolerance)
    if shape[2:] != (1, 1):
        expected = slow(s, t, p, "places")
        assert factor_distance(s, t, p=p, form="places").item() == pytest.approx(expected, rel=tolerance, abs=tolerance)


def test_places_forget_which_factor_says_it():
    s, t = maps(), maps()
    value = factor_distance(s, t, form="places")
    torch.testing.assert_close(factor_distance(-s[:, [2, 0, 3, 1]], t, form="places"), value)
    assert abs(factor_distance(s.flip(1), t) - factor_distance(s, t)) > 1e-4
    with pytest.raises(ObjectiveError, match="ft compares places, and only 1 x 1 are left"):
        factor_distance(maps(h=1, w=1), t, form="places")


def test_the_networks_are_those_that_were_released():
    objective = prepared()
    kinds = [type(layer).__name__ for layer in objective.paraphrasers[0]]
    assert kinds == ["Conv2d", "LeakyReLU"] * 3
    assert [type(layer).__name__ for layer in objective.translators[0]] == kinds
    widths = [(layer.in_channels, layer.out_channels) for layer in objective.translators[0][::2]]
    assert widths == [(5, 5), (5, 3), (3, 3)]
    assert all(layer.negative_slope == 0.1 for layer in objective.paraphrasers[0][1::2])


def test_each_samples_scale_does_not_count():
    t = maps()
    scales = torch.tensor([1e-3, 1.0, 500.0], dtype=DOUBLE)[:, None, None, None]
    assert factor_distance(scales * t, t).item() < 1e-15
    assert factor_distance(-t, t, p=2).item() == pytest.approx(4 / 24)  # ||2 u||^2 over 24 entries
    assert factor_distance(t, t.flip(1)) == factor_distance(t, t.flip(1), p=1)


def correlated(rows, seed=0):
    """Maps of six channels that follow from two: three factors are enough."""
    generator = torch.Generator().manual_seed(seed)
    few = torch.randn(rows, 2, 4, 4, generator=generator)
    return torch.einsum("oi,bihw->bohw", torch.linspace(-1, 1, 12).view(6, 2), few)


def batches(n=8):
    return [([correlated(16, seed)], None) for seed in range(n)]


def prepared(student=None, teacher=None, **how):
    torch.manual_seed(0)
    objective = FactorTransfer(**how)
    objective.prepare([torch.randn(2, 5, 4, 4) if student is None else student], [teacher or correlated(2)], pairs=128)
    return objective


def test_study_learns_to_reproduce_the_teacher_and_freezes_what_it_learnt():
    objective = prepared(study_epochs=60)
    before = [p.clone() for p in objective.translators.parameters()]
    seen = batches()
    objective.study(seen)
    assert objective.unexplained.item() < 0.2  # nothing would leave 1
    rms = torch.cat([maps[0] for maps, _ in seen]).square().mean().sqrt().item()
    assert objective.scale.item() == pytest.approx(rms, rel=1e-5)
    for module in (objective.paraphrasers, objective.decoders):
        assert not any(p.requires_grad for p in module.parameters())
        assert all(p.grad is None for p in module.parameters())
    assert all(torch.equal(p, q) for p, q in zip(objective.translators.parameters(), before, strict=True))
    assert all(p.requires_grad for p in objective.translators.parameters())
    x = correlated(16, 99) / objective.scale
    with torch.no_grad():
        again = objective.decoders[0](objective.paraphrasers[0](x))
    assert (again - x).square().mean() < 0.25 * x.square().mean()


def test_study_is_a_function_of_the_generator_and_the_data():
    one, other = prepared(), prepared()
    one.study(batches())
    torch.manual_seed(99)
    other.study(batches())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    other = prepared()
    other.study(batches(3))
    assert not torch.equal(one.paraphrasers[0][0].weight, other.paraphrasers[0][0].weight)


def test_more_epochs_and_a_larger_rate_explain_more():
    found = {}
    for name, how in {"1": {"study_epochs": 1}, "20": {"study_epochs": 20}, "slow": {"study_lr": 1e-6}}.items():
        objective = prepared(**how)
        objective.study(batches())
        found[name] = objective.unexplained.item()
    assert found["20"] < found["1"] < found["slow"]
    assert prepared(rate=0.5).paraphrasers[0][-2].out_channels == 3
    assert prepared(rate=1.0).paraphrasers[0][-2].out_channels == 6
    assert prepared(rate=0.01).paraphrasers[0][-2].out_channels == 1


def test_the_loss_is_the_distance_of_translated_to_paraphrased_maps():
    for p, form in ((1, "factors"), (2, "factors"), (1, "places")):
        objective = prepared(p=p, form=form)
        objective.study(batches())
        s, t = torch.randn(3, 5, 4, 4), correlated(3, 7)
        paraphrased = objective.paraphrasers[0](t / objective.scale)
        expected = factor_distance(objective.translators[0](s), paraphrased, p=p, form=form)
        assert torch.equal(objective([s], [t]), expected)
        objective([s], [t]).backward()
        assert all(q.grad.abs().sum() > 0 for q in objective.translators.parameters())
        assert all(q.grad is None for q in objective.paraphrasers.parameters())


def test_gradients_through_the_translator_equal_finite_differences():
    s, t = maps(b=2).requires_grad_(), maps(b=2)
    objective = FactorTransfer(p=2)
    objective.prepare([s], [t], pairs=2)
    objective.study([([t], None)])
    assert objective.scale.dtype == DOUBLE
    assert torch.autograd.gradcheck(lambda x: objective([x], [t]), (s,))


def test_maps_of_zeros_are_studied_too():
    objective = prepared()
    objective.study([([torch.zeros(4, 6, 4, 4)], None)])
    assert objective.scale.item() == 1
    assert objective([torch.randn(2, 5, 4, 4)], [torch.zeros(2, 6, 4, 4)]).isfinite()


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_the_scale_of_the_teacher_does_not_count(size):
    found = []
    for scale in (1.0, size):
        objective = prepared()
        objective.study([([scale * x[0]], None) for x, _ in batches()])
        found.append((objective.scale.item() / scale, objective.unexplained.item()))
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_the_paraphraser_does_not_move_in_training():
    seen = {}

    class Watched(dict):
        pass

    objective = FactorTransfer(study_epochs=2)
    study = objective.study

    def watched(teacher):
        study(teacher)
        seen.update({name: p.clone() for name, p in objective.named_parameters()})

    objective.study = watched
    train(pictures({"ft": objective}))
    moved = {name for name, p in objective.named_parameters() if not torch.equal(p, seen[name])}
    assert moved == {name for name in seen if name.startswith("translators")}
    assert objective.unexplained.isfinite().all()


def test_what_was_not_prepared_or_studied_is_told():
    s, t = torch.randn(2, 5, 4, 4), correlated(2)
    objective = FactorTransfer()
    for call in (lambda: objective([s], [t]), lambda: objective.study(batches())):
        with pytest.raises(ObjectiveError, match=r"ft was prepared for 0 layers .* call prepare"):
            call()
    objective.prepare([s], [t], pairs=9)
    with pytest.raises(ObjectiveError, match="ft has not studied the teacher: call study"):
        objective([s], [t])
    with pytest.raises(ObjectiveError, match="no pair to study"):
        objective.study([])
    objective.study(batches(1))
    with pytest.raises(ObjectiveError, match="prepared for 1 layers and is to work on 2"):
        objective([s, s], [t, t])
    with pytest.raises(ObjectiveError, match=r"prepared for \(5, 6\) channels .* received 4 and 6"):
        objective([s[:, :4]], [t])
    with pytest.raises(ObjectiveError, match="equally many factors; received 5 and 6"):
        factor_distance(s, t)


def test_what_cannot_be_studied_is_told():
    objective = prepared()
    with pytest.raises(ObjectiveError, match="several times: give a list of its maps, no iterator"):
        objective.study(iter(batches()))
    with pytest.raises(ObjectiveError, match="prepared for 1 layers and is to work on 2"):
        objective.study([([correlated(4), correlated(4)], None)])
    with pytest.raises(ObjectiveError, match="prepared for 6 channels of the teacher; received 5 in study"):
        objective.study([([correlated(4)[:, :5]], None)])
    with pytest.raises(ObjectiveError, match="not all finite numbers"):
        objective.study([([correlated(4) * float("nan")], None)])
    with pytest.raises(ObjectiveError, match=r"study diverges at study_lr 1e\+30; lower it"):
        prepared(study_lr=1e30).study(batches())


def test_prepare_keeps_what_was_learnt_for_these_channels():
    objective = prepared()
    objective.study(batches())
    weight, scale = objective.paraphrasers[0][0].weight, objective.scale
    objective.prepare([torch.randn(1, 5, 8, 8)], [torch.randn(1, 6, 2, 2)], pairs=1)
    assert objective.paraphrasers[0][0].weight is weight
    assert objective.scale is scale
    objective.prepare([torch.randn(1, 5, 8, 8)], [torch.randn(1, 7, 2, 2)], pairs=1)
    assert objective.paraphrasers[0][0].weight.shape[1] == 7
    assert objective.scale.isnan().all()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"rate": 0.0}, "rate must be above 0 and at most 1; received 0"),
        ({"rate": 1.5}, "rate must be above 0 and at most 1; received 1.5"),
        ({"rate": float("nan")}, "rate must be"),
        ({"p": 3}, "p must be 1 or 2; received 3"),
        ({"form": "all"}, "form must be factors or places; received 'all'"),
        ({"study_epochs": 0}, "study_epochs must be >= 1"),
        ({"study_lr": 0.0}, "study_lr above 0"),
        ({"study_lr": float("inf")}, "study_lr above 0"),
    ],
)
def test_parameters_out_of_range_are_refused(how, message):
    with pytest.raises(ConfigError, match=message):
        FactorTransfer(**how)
