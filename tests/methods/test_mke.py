import copy

import numpy as np
import pytest
import torch
from stages import SHORT, check_resumes, same, train
from torch.nn import functional as F

from crossdistill.errors import ConfigError, DataError, NetworkError
from crossdistill.methods.mke import MKE, corrections, prediction, pseudo_label_loss
from crossdistill.networks import MLP, Network
from crossdistill.training import TeacherStore, fit

SIZES = {"rich": 12, "poor": 8}


def encoders():
    return {m: MLP((n,), hidden=(8,), dim=4) for m, n in SIZES.items()}


def given(seed=9):
    torch.manual_seed(seed)
    return Network(MLP((12,), hidden=(8,), dim=4), head=torch.nn.Linear(4, 4))


def make(**how):
    return lambda: MKE(encoders(), source="rich", classes=4, **how)


def few(toy, n=60):
    """Of whose rows some labels are known."""
    data = toy.split("train")
    return data.keep_labels(np.arange(n))


@pytest.mark.parametrize("how", [{}, {"labels": "soft", "consistency": 0.5, "threshold": 0.3}], ids=["hard", "soft"])
def test_stopped_anywhere_and_resumed_it_ends_with_the_same_bits(toy, tmp_path, how):
    method = make(teacher_share=0.4, start_from_teacher=True, **how)
    check_resumes(method, few(toy), tmp_path / "own", [2, 3, 4, 6], labels=True)
    whole = check_resumes(make(teacher=given(), **how), few(toy), tmp_path / "given", [1, 5])
    assert same(train(make(teacher=given(), **how), few(toy), store=TeacherStore()), whole)


def test_a_finished_stage_is_loaded(toy, tmp_path):
    first = train(make(), few(toy), folder=tmp_path, labels=True)
    assert same(train(make(), few(toy), folder=tmp_path, labels=True), first)
    assert first.pseudo.shape == (160, 4)


@pytest.mark.parametrize("shape", [(1, 2), (5, 4), (8, 10)])
def test_the_loss_is_the_loop(shape):
    z, p = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64).softmax(1)
    for soft in (False, True):
        rows = []
        for i in range(len(z)):
            log = [v - torch.logsumexp(z[i], 0) for v in z[i]]
            c = int(p[i].argmax())
            each = [p[i, j] * (p[i, j].log() - log[j]) for j in range(shape[1])]
            rows.append(sum(each) if soft else -log[c])
        torch.testing.assert_close(pseudo_label_loss(z, p, soft=soft), torch.stack(rows))
        x = z.clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda x, soft=soft: pseudo_label_loss(x, p, soft=soft), x)
        half = pseudo_label_loss(z.bfloat16(), p.float(), soft=soft)
        torch.testing.assert_close(half, pseudo_label_loss(z.bfloat16().float(), p.float(), soft=soft))


@pytest.mark.parametrize("shape", [(1, 1), (5, 4)])
def test_the_losses_of_many_labels_and_of_numbers_are_the_loops(shape):
    z, said = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    rows = {"hard": [], "soft": [], "numbers": []}
    for i in range(shape[0]):
        found = dict.fromkeys(rows, 0.0)
        for j in range(shape[1]):
            q, p = torch.sigmoid(z[i, j]), torch.sigmoid(said[i, j])
            found["hard"] -= (q if p > 0.5 else 1 - q).log() / shape[1]
            found["soft"] += (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()) / shape[1]
            found["numbers"] += (z[i, j] - said[i, j]) ** 2 / shape[1]
        for name, value in found.items():
            rows[name].append(value)
    how = {"hard": ("multilabel", False), "soft": ("multilabel", True), "numbers": ("regression", False)}
    for name, (task, soft) in how.items():
        told = prediction(said, task)
        torch.testing.assert_close(pseudo_label_loss(z, told, soft=soft, task=task), torch.stack(rows[name]))
        x = z.clone().requires_grad_()
        assert torch.autograd.gradcheck(
            lambda x, k=(told, soft, task): pseudo_label_loss(x, k[0], soft=k[1], task=k[2]), x
        )
        half = pseudo_label_loss(z.bfloat16(), told.float(), soft=soft, task=task)
        torch.testing.assert_close(half, pseudo_label_loss(z.bfloat16().float(), told.float(), soft=soft, task=task))
    copying = pseudo_label_loss(said, prediction(said, "multilabel"), soft=True, task="multilabel")
    assert copying.abs().max() < 1e-12


@pytest.mark.parametrize("task", ["multilabel", "regression"])
@pytest.mark.parametrize("own", [True, False], ids=["taught here", "given"])
def test_many_labels_and_numbers_are_expanded_too(task, own, tmp_path):
    """Three targets of which few are known; the student of both modalities comes nearer to them all."""
    g = torch.Generator().manual_seed(3)
    latent = torch.randn(240, 5, generator=g)
    x = {m: latent @ torch.randn(5, n, generator=g) for m, n in SIZES.items()}
    target = latent[:, :3] if task == "regression" else (latent[:, :3] > 0).long()
    told = target.clone()
    told[60:] = float("nan") if task == "regression" else -1
    batches = [
        {**{m: v[k : k + 40] for m, v in x.items()}, "label": told[k : k + 40], "index": torch.arange(k, k + 40)}
        for k in range(0, 240, 40)
    ]
    torch.manual_seed(9)
    teacher = None if own else Network(MLP((12,), hidden=(8,), dim=4), head=torch.nn.Linear(4, 3))
    settings = type(SHORT)(epochs=30, batch_size=40, lr=0.02, checkpoint_every=1)
    how = {"task": task, "teacher": teacher, "teacher_share": 0.5, "input_noise": 0.1, "consistency": 0.1}

    def build():
        return MKE(encoders(), source="rich", classes=3, **how)

    method = train(build, _user(batches), settings, labels=own, folder=tmp_path)
    assert method.soft == (task == "multilabel")
    assert method.pseudo.shape == (240, 3)
    everything = {**x, "label": target, "index": torch.arange(240)}
    word = "error" if task == "regression" else "accuracy"
    with torch.no_grad():
        scores = method.held_out_step(everything)
        start = build().eval().held_out_step(everything)
    assert (task == "regression") == ("agreement" not in scores)
    assert scores["loss"] < 0.3 * start["loss"]
    if own:  # a random teacher's targets are not ours
        assert scores[word] < 0.6 if task == "regression" else scores[word] > 0.8
        assert scores[f"teacher_{word}"] < 0.6 if task == "regression" else scores[f"teacher_{word}"] > 0.8
    assert same(train(build, _user(batches), settings, labels=own, folder=tmp_path), method)  # finished: loaded


def test_rows_without_the_source_have_no_numbers_to_learn_from(toy):
    teacher = given()
    how = {"input_noise": 0.0, "dropout": 0.0, "task": "regression"}
    method, data = make(teacher=teacher, **how)().eval(), batch(toy)
    here = torch.arange(24) % 2 == 0
    masked = method.training_step({**data, "present": {"rich": here}}).terms["pseudo"]
    said = teacher(data["rich"]).logits
    logits = method.fused({m: data[m] for m in SIZES}, {"rich": here}).logits
    assert masked.item() == pytest.approx((logits - said)[here].square().mean().item(), rel=1e-5)
    gone = {name: value for name, value in data.items() if name != "rich"}
    assert method.training_step(gone).terms["pseudo"].item() == 0


def test_soft_labels_that_are_certain_are_hard_and_only_the_entropy_is_between_kl_and_cross_entropy():
    z = torch.randn(6, 3, requires_grad=True)
    certain = F.one_hot(torch.arange(6) % 3, 3).float()
    torch.testing.assert_close(pseudo_label_loss(z, certain, soft=True), pseudo_label_loss(z, certain))
    p = torch.randn(6, 3).softmax(1)
    (kl,) = torch.autograd.grad(pseudo_label_loss(z, p, soft=True).sum(), z)
    (ce,) = torch.autograd.grad(F.cross_entropy(z, p, reduction="sum"), z)
    torch.testing.assert_close(kl, ce, rtol=1e-6, atol=1e-6)
    copying = 1e4 * p.log()
    assert pseudo_label_loss(copying, p).max() < 1e-3  # a student that copies the teacher has nothing to learn


def batch(toy, n=24):
    rows = toy.split("train")
    return {m: next(rows.samples(m, n)) for m in SIZES} | {"index": torch.arange(n)}


def test_without_perturbation_it_is_cross_entropy_on_the_teachers_labels(toy):
    method = make(teacher=given(), input_noise=0.0, dropout=0.0, consistency=2.0)().eval()
    data = batch(toy)
    losses = method.training_step(data)
    wanted = F.cross_entropy(method.fused(data).logits, method.teacher(data["rich"]).logits.argmax(1))
    assert losses.terms["pseudo"].item() == pytest.approx(wanted.item())
    assert losses.terms["consistency"].item() == 0
    assert losses.logged["flips"].item() == 0
    (a,) = torch.autograd.grad(losses.total, method.fused.classifier[-1].weight)
    (b,) = torch.autograd.grad(wanted, method.fused.classifier[-1].weight)
    torch.testing.assert_close(a, b)


def test_noise_is_drawn_anew_and_each_modality_has_its_own():
    method = make(teacher=given(), input_noise={"rich": 0.0, "poor": 3.0}, dropout=0.0)().eval()
    x = {"rich": torch.randn(9, 12), "poor": torch.randn(9, 8)}
    seen = []
    encode = method.fused.encode
    method.fused.encode = lambda inputs, present: seen.append(inputs) or encode(inputs, present)
    for _ in range(2):
        method._student(x, perturbed=True)
    assert all(torch.equal(inputs["rich"], x["rich"]) for inputs in seen)
    assert 2 < (seen[0]["poor"] - x["poor"]).std() < 4
    assert not torch.equal(seen[0]["poor"], seen[1]["poor"])


def test_no_true_label_reaches_the_student_of_a_given_teacher(toy):
    data = toy.split("train")
    first = train(make(teacher=given()), data)
    noise = np.random.default_rng(0).integers(0, 4, len(toy))
    other = type(toy)(toy.columns.arrays, toy.modalities, label=noise, split=toy.columns.split).split("train")
    assert same(train(make(teacher=given()), other, labels=True), first)


def test_unknown_labels_and_those_of_the_second_phase_are_not_read(toy):
    known = few(toy)
    hidden = toy.columns.label.copy()
    hidden[60:] = 3 - hidden[60:]
    other = type(toy)(toy.columns.arrays, toy.modalities, label=hidden, split=toy.columns.split)
    assert same(train(make(), few(other), labels=True), train(make(), known, labels=True))


def test_labels_are_given_once_on_clean_samples(toy):
    from crossdistill.data import build_transforms

    noisy = few(toy).augmented({"rich": build_transforms([{"noise": {"std": 3.0}}], toy.modality("rich"))})
    teacher = given()
    method = train(make(teacher=teacher), noisy)
    with torch.no_grad():
        clean = teacher(next(few(toy).samples("rich"))).logits.softmax(1)
    torch.testing.assert_close(method.pseudo, clean)
    again = train(make(teacher=teacher), noisy, settings=type(SHORT)(epochs=1, batch_size=16), seed=8)
    torch.testing.assert_close(again.pseudo, clean)


def test_shuffled_pairs_keep_each_source_samples_own_label(toy):
    teacher, data = given(), few(toy)
    for broken in ("rich", "poor"):
        method = train(make(teacher=teacher), data.shuffled(broken, 3))
        with torch.no_grad():
            clean = teacher(next(data.samples("rich"))).logits.softmax(1)
        torch.testing.assert_close(method.pseudo, clean)


def test_the_teacher_is_frozen_in_the_second_phase(toy):
    states = []

    class Watched(MKE):
        def after_step(self):
            super().after_step()
            states.append(copy.deepcopy(self.teacher.state_dict()))

    train(lambda: Watched(encoders(), source="rich", classes=4, teacher_share=0.5), few(toy), labels=True)
    same_as_last = [all(torch.equal(state[k], states[-1][k]) for k in state) for state in states]
    assert same_as_last == [False] * 3 + [True] * 5
    teacher = given()
    before = copy.deepcopy(teacher.state_dict())
    train(make(teacher=teacher), few(toy))
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_the_branch_may_start_from_the_teacher():
    method = make(teacher=given(), start_from_teacher=True)()
    theirs = method.teacher.encoder.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in method.student("rich").state_dict().items())
    assert method.student("rich") is not method.teacher.encoder
    with pytest.raises(NetworkError, match="it has another"):
        make(teacher=_other(), start_from_teacher=True)()


def _other():
    return Network(MLP((12,), hidden=(9,), dim=4), head=torch.nn.Linear(4, 4))


def test_rows_of_which_the_teacher_is_unsure_or_sees_nothing_do_not_count(toy):
    data, teacher = batch(toy), given()
    top = teacher.eval()(data["rich"]).logits.softmax(1).amax(1)
    limit = top.median().item()
    how = {"input_noise": 0.0, "dropout": 0.0}
    method = make(teacher=teacher, threshold=limit, **how)().eval()
    found = method.training_step(data)
    kept = {name: value[top >= limit] for name, value in data.items()}
    free = make(teacher=teacher, **how)().eval()
    free.load_state_dict(method.state_dict())
    assert found.terms["pseudo"].item() == pytest.approx(free.training_step(kept).terms["pseudo"].item(), rel=1e-5)
    here = torch.arange(24) % 2 == 0
    masked = free.training_step({**data, "present": {"rich": here}}).terms["pseudo"]
    whole = free.training_step({name: value[here] for name, value in data.items()}).terms["pseudo"]
    assert masked.item() == pytest.approx(whole.item(), rel=1e-5)
    nothing = free.training_step({**data, "present": {"rich": torch.zeros(24, dtype=torch.bool)}})
    assert nothing.total.item() == 0
    nothing.total.backward()


def test_what_is_deployed(toy):
    method = make(teacher=given())().eval()
    data = batch(toy)
    assert method.student("poor") is method.fused.encoders["poor"]
    alone = method.alone("poor")(data["poor"])
    assert torch.equal(alone.logits, method.fused({"poor": data["poor"]}).logits)
    with pytest.raises(NetworkError, match="none of 'depth'"):
        method.alone("depth")
    scores = method.held_out_step({**data, "label": torch.zeros(24, dtype=torch.int64)})
    assert scores.keys() == {"loss", "agreement", "accuracy", "teacher_accuracy"}


def test_corrections_are_counted():
    teacher, student = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([0, 1, 1, 0, 0])
    found = corrections(teacher, student, torch.tensor([0, 1, 0, 1, -1]))
    assert found == {"both_right": 1, "both_wrong": 1, "rectified": 1, "spoilt": 1}


def test_a_stage_that_cannot_have_a_teacher_is_refused(toy):
    with pytest.raises(DataError, match="no label is known"):
        train(make(), toy.split("train"))
    with pytest.raises(DataError, match="no label is known"):
        train(make(), few(toy, 0), labels=True)
    torch.manual_seed(0)
    with pytest.raises(ConfigError, match=r"training\.fit"):
        make(teacher=given())().train().training_step(batch(toy))
    rows = [{m: torch.randn(8, n) for m, n in SIZES.items()}] * 2
    with pytest.raises(DataError, match="give batches an `index`"):
        fit(make(teacher=given())(), _user(rows), SHORT, seed=0, accelerator="cpu")


def test_a_teacher_that_fails_or_has_other_classes_is_refused(toy):
    broken = given()
    with torch.no_grad():
        broken.head.bias[2] = float("nan")
    with pytest.raises(NetworkError, match="teacher of 'rich' says what is no finite number"):
        train(make(teacher=broken), few(toy))
    with pytest.raises(NetworkError, match="teacher of 'rich' gives 6 outputs, the student 4"):
        train(make(teacher=Network(MLP((12,), dim=4), head=torch.nn.Linear(4, 6))), few(toy))


def test_targets_of_another_width_are_refused():
    method = make(task="regression")().train()
    method.clock.length = 10
    rows = {m: torch.randn(6, n) for m, n in SIZES.items()} | {"label": torch.randn(6, 3)}
    with pytest.raises(DataError, match=r"targets must be \(6, 4\) as the outputs; received \(6, 3\)"):
        method.training_step(rows)


def _user(rows):
    from crossdistill.training import UserData

    return UserData(rows)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"threshold": 1.5}, "threshold in"),
        ({"threshold": 0.5, "task": "regression"}, r"threshold in \[0, 0\] \(regression\)"),
        ({"task": "segmentation"}, "task is 'segmentation'; .*known: multiclass, multilabel, regression"),
        ({"input_noise": {"depth": 1.0}}, "name modalities among rich, poor"),
        ({"input_noise": -1.0}, "input_noise >= 0"),
        ({"teacher_share": 1.0}, "leave some"),
    ],
)
def test_what_is_out_of_range_is_refused(how, message):
    with pytest.raises(ConfigError, match=message):
        make(**how)()


def test_a_second_stage_begins_anew(toy):
    method = train(make(teacher=given()), few(toy))
    other = toy.split("test")  # of other length and content
    fit(method, other, SHORT, seed=0, accelerator="cpu")
    expected = method.teacher(torch.cat(list(other.samples("rich")))).logits.softmax(1)
    torch.testing.assert_close(method.pseudo, expected, rtol=1e-4, atol=1e-5)


def test_words_are_checked():
    with pytest.raises(ConfigError, match="labels is 'Soft'; did you mean 'soft'"):
        make(labels="Soft")()
