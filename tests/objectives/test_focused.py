"""The loss on smoothed targets: it is CMD on the coordinates of the batch's pairs, whatever they come in."""

import pytest
import torch
from stages import check_resumes
from toy_experiment import EXPERIMENT

from crossdistill.data import build_transforms
from crossdistill.errors import ConfigError, ObjectiveError
from crossdistill.experiments import Bench, parse_experiment, plan
from crossdistill.methods import Distillation
from crossdistill.networks import MLP
from crossdistill.objectives import Context, similarity_distillation, unit
from crossdistill.objectives.cmcd import similarities
from crossdistill.objectives.focused import Focused
from crossdistill.objectives.smoothed import SmoothedTarget
from crossdistill.training import Settings, fit

DOUBLE = torch.float64


def draw(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


Z, H = draw(90, 6), draw(90, 5, 1)


def batches(z=Z, h=H, size=32, group=None, order=None):
    """The pairs once, in batches; `order` says at which position each row stands."""
    order = torch.arange(len(z)) if order is None else order
    for start in range(0, len(z), size):
        part = slice(start, start + size)
        yield z[part], Context(index=order[part], inputs=h[part], group=None if group is None else group[part])


def studied(how=None, **what):
    objective = Focused(**(how or {}))
    objective.prepare(Z[:2], Z[:2], pairs=len(Z))
    objective.study(list(batches(**what)))
    return objective


def test_its_value_is_cmd_on_the_coordinates_of_the_batch():
    objective, index, student = studied({"tau": 0.3}), torch.tensor([3, 80, 17, 5, 44]), draw(5, 4, 2)
    coordinates = SmoothedTarget().fit(Z, H).coordinates
    expected = similarity_distillation(student, coordinates[index], tau_student=0.3, tau_teacher=0.3)
    assert torch.equal(objective(student, Z[index], index=index), expected)
    assert torch.equal(objective(student, draw(5, 6, 9), index=index), expected)  # the teacher was asked before


def test_rows_may_come_in_any_order_and_batch():
    order = torch.randperm(90)
    objective = studied(z=Z[order], h=H[order], order=order, size=13)
    expected = unit(SmoothedTarget().fit(Z, H).coordinates)
    found = unit(objective.coordinates)
    torch.testing.assert_close(found @ found.T, expected @ expected.T, rtol=0, atol=1e-9)


def test_a_student_equal_to_the_target_up_to_rotation_and_scale_pays_its_entropy_alone():
    objective, index = studied(), torch.arange(20)
    turn = torch.linalg.qr(draw(objective.coordinates.shape[1], objective.coordinates.shape[1], 4)).Q
    student = (5 * objective.coordinates[index] @ turn).requires_grad_()
    loss = objective(student, Z[index], index=index)
    log_p = similarities(objective.coordinates[index], tau=0.2).log_softmax(dim=1)
    assert loss.item() == pytest.approx(-(log_p.exp() * log_p).sum(dim=1).mean().item(), abs=1e-12)
    (gradient,) = torch.autograd.grad(loss, student)
    assert gradient.abs().max() < 1e-12
    (elsewhere,) = torch.autograd.grad(objective(student + draw(20, 89, 3), Z[index], index=index), student)
    assert elsewhere.abs().max() > 1e-3


def test_gradients_equal_finite_differences_and_none_reach_the_teacher_or_the_inputs():
    z, h = Z.clone().requires_grad_(), H.clone().requires_grad_()
    objective, index = studied(z=z, h=h), torch.arange(6)
    student = draw(6, 3, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: objective(s, z[index], index=index), (student,))
    objective(student, z[index], index=index).backward()
    assert student.grad.any()
    assert z.grad is None
    assert h.grad is None
    assert not objective.coordinates.requires_grad


def test_held_out_rows_are_placed_by_their_neighbours():
    objective = studied().eval()
    new_z, new_h, student = draw(7, 6, 5), draw(7, 5, 6), draw(7, 4, 2)
    placed = SmoothedTarget().fit(Z, H).extend(new_z, new_h)
    expected = similarity_distillation(student, placed, tau_student=0.2, tau_teacher=0.2)
    index = torch.arange(7)  # the same numbers, of other rows
    assert torch.equal(objective(student, new_z, index=index, inputs=new_h), expected)
    assert objective(student, new_z, index=index).isfinite()  # by the teacher's graph alone


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
def test_everything_is_finite_for_any_finite_student(scale):
    objective, index = studied(z=Z.float(), h=H.float()), torch.arange(5)
    for student in (torch.ones(5, 4), draw(5, 4).float(), draw(5, 4).bfloat16(), torch.zeros(5, 4)):
        student = (student * scale).requires_grad_()
        value = objective(student, Z[index].float(), index=index)
        value.backward()
        assert value.isfinite()
        assert student.grad.isfinite().all()


def test_neighbours_are_at_most_a_quarter_of_the_pairs():
    small = Focused()
    small.study(list(batches(Z[:20], H[:20])))
    assert torch.equal(small.coordinates, SmoothedTarget(5).fit(Z[:20], H[:20]).coordinates)
    small.study(list(batches()))  # and all of them where there are more afterwards
    assert torch.equal(small.coordinates, SmoothedTarget().fit(Z, H).coordinates)
    with pytest.raises(ObjectiveError, match="at least 4 pairs; received 3"):
        small.study(list(batches(Z[:3], H[:3])))


def test_groups_are_kept_apart_where_it_is_asked_for():
    group = torch.arange(90) // 3
    objective = studied({"mask_groups": True}, group=group)
    assert torch.equal(objective.coordinates, SmoothedTarget().fit(Z, H, group).coordinates)
    assert objective.needs == {"pairs", "index", "group"}
    with pytest.raises(ObjectiveError, match="mask_groups needs a group for each pair, and the data have none"):
        studied({"mask_groups": True})


def test_what_is_missing_is_told():
    objective, student, index = Focused(), draw(4, 3), torch.arange(4)
    with pytest.raises(ObjectiveError, match="call study with all pairs before the loss"):
        objective(student, Z[:4], index=index)
    with pytest.raises(ObjectiveError, match=r"needs the target's inputs.*or set target_share to 0"):
        objective.study([(Z, Context())])
    Focused(target_share=0).study([(Z, Context())])  # positions are then the order they come in
    objective = studied(z=Z[:60], h=H[:60])
    with pytest.raises(ObjectiveError, match="pairs that study has not seen"):
        objective(student, Z[:4], index=index + 58)
    with pytest.raises(ObjectiveError, match="focused needs the positions of the samples"):
        objective(student, Z[:4])
    with pytest.raises(ObjectiveError, match="those of the 90 pairs that it was prepared for; received 87 to 90"):
        objective(student, Z[:4], index=index + 87)
    with pytest.raises(ConfigError, match="tau must be a temperature"):
        Focused(tau=0.0)
    with pytest.raises(ConfigError, match="target_share"):
        Focused(target_share=-0.1)


def distillation(**how):
    torch.manual_seed(1)
    student, teacher = MLP((8,), hidden=(16,), dim=8), MLP((12,), hidden=(16,), dim=6)
    return Distillation(student, teacher=teacher, objectives={"focused": Focused(**how)}, source="rich", target="poor")


def test_stopped_and_resumed_it_ends_with_the_same_bits(toy, tmp_path):
    held_out = toy.split("validation")
    whole = check_resumes(distillation, toy.split("train"), tmp_path, steps=(1, 5), held_out=held_out)
    assert whole.objectives["focused"].coordinates.shape == (160, 128)


def test_the_method_hands_over_the_plain_inputs_of_the_target(toy):
    method, data = distillation(), toy.split("train")
    noisy = data.augmented({"poor": build_transforms([{"noise": {"std": 5.0}}], data.modality("poor"))})
    fit(method, noisy, Settings(epochs=1, batch_size=40), seed=0, accelerator="cpu")
    x = {name: torch.cat(list(data.samples(name))) for name in ("rich", "poor")}
    with torch.no_grad():
        z = method.teacher(x["rich"])
    expected = SmoothedTarget().fit(getattr(z, "features", z), x["poor"]).coordinates
    torch.testing.assert_close(unit(method.objectives["focused"].coordinates), unit(expected), rtol=0, atol=1e-4)


def test_broken_pairs_have_other_coordinates(toy):
    data = toy.split("train")
    straight, broken = distillation(target_share=0), distillation(target_share=0)
    for method, rows in ((straight, data), (broken, data.shuffled("rich", 3))):
        fit(method, rows, Settings(epochs=1, batch_size=40), seed=0, accelerator="cpu")
    partner = torch.from_numpy(data.shuffled("rich", 3).partners("rich"))
    one, other = (unit(m.objectives["focused"].coordinates) for m in (straight, broken))
    torch.testing.assert_close((one @ one.T)[partner][:, partner], other @ other.T, rtol=0, atol=1e-3)


def test_an_experiment_file_takes_it_and_checks_it_before_training(toy, tmp_path):
    text = EXPERIMENT.replace("{similarity: 1.0}", "{focused: {walk: auto, target_share: 0.5, n_classes_hint: 4}}")
    bench = Bench(parse_experiment(text), tmp_path, data=toy)
    arms = {arm.name: arm for arm in plan(bench).arms}
    assert {"focused", "target_graph", "random_teacher", "shuffled_pairs"} <= set(arms)
    objective = bench.method(arms["focused"], 0).objectives["focused"]
    assert (objective.target.target_share, objective.target.n_classes_hint) == (0.5, 4)
    with pytest.raises(ConfigError, match="n_classes_hint must be at least 2"):
        parse_experiment(EXPERIMENT.replace("{similarity: 1.0}", "{focused: {n_classes_hint: 1}}"))
