"""Ensembles into a multi-head student: the losses' identities, absent modalities, given and own teachers."""

import copy
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from stages import check_resumes, learn, same
from stages import labelled_batch as batch
from torch import nn
from torch.nn import functional as F

from crossdistill.errors import ConfigError, DataError, NetworkError, ObjectiveError
from crossdistill.methods._rows import label_loss
from crossdistill.methods.mind import DIVERGENCES, MIND, bce, kl, mse
from crossdistill.methods.multihead import MultiHeadFusion, TeacherEnsemble
from crossdistill.networks import MLP, Network
from crossdistill.training import Settings, TeacherStore

SETTINGS = Settings(epochs=3, batch_size=40, lr=0.01, checkpoint_every=1)  # 4 steps an epoch, 12 in all
train = partial(learn, settings=SETTINGS, labels=True)
WIDTHS = {"rich": 12, "poor": 8}
PLAIN = {"teacher_weight": 0.0}


def encoders(dropout=0.0):
    torch.manual_seed(1)
    return {m: MLP((w,), hidden=(10,), dim=5 + (m == "poor"), dropout=dropout) for m, w in WIDTHS.items()}


def method_of(*, dropout=0.0, **how):
    networks = encoders(dropout)
    return MIND(networks, **{"classes": 4, **how})


def teachers(outputs=4):
    torch.manual_seed(9)
    made = {m: [MLP((w,), hidden=(k,), dim=outputs, dropout=0.5) for k in (8, 16)] for m, w in WIDTHS.items()}
    made["poor"].append(Network(MLP((8,), dim=7), head=nn.Linear(7, outputs)))
    return made


# Losses ---------------------------------------------------------------------------------------------------------------


def softmax(z):
    e = [math.exp(v - max(z)) for v in z]
    return [v / sum(e) for v in e]


def sigmoid(v):
    return 1 / (1 + math.exp(-v))


@pytest.mark.parametrize(("n", "c"), [(1, 1), (3, 2), (5, 4)])
@pytest.mark.parametrize("temperature", [0.7, 2.0])
def test_divergences_are_their_equations(n, c, temperature):
    s, t = 2 * torch.randn(n, c, dtype=torch.float64), 2 * torch.randn(n, c, dtype=torch.float64)
    slow = dict.fromkeys(DIVERGENCES, 0.0)
    for a, b in zip(s.tolist(), t.tolist(), strict=True):
        a, b = [v / temperature for v in a], [v / temperature for v in b]
        slow["kl"] += sum(q * math.log(q / p) for p, q in zip(softmax(a), softmax(b), strict=True)) / n
        for x, y in zip(a, b, strict=True):
            p, q = sigmoid(x), sigmoid(y)
            cross, least = (-q * math.log(r) - (1 - q) * math.log(1 - r) for r in (p, q))
            slow["bce"] += (cross - least) / n / c
            slow["mse"] += (x - y) ** 2 / n / c
    for name, loss in DIVERGENCES.items():
        value = loss(s, t, temperature)
        assert value.item() == pytest.approx(slow[name] * temperature**2, rel=1e-9, abs=1e-12)
        torch.testing.assert_close(loss(s.float(), t.float(), temperature), value.float(), rtol=1e-4, atol=1e-5)
        half = s.bfloat16(), t.bfloat16()
        assert torch.equal(loss(*half, temperature), loss(*(z.float() for z in half), temperature))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_divergences_are_least_at_the_teacher(name):
    loss, t = DIVERGENCES[name], torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    s = t.detach().clone().requires_grad_()
    value = loss(s, t, 2.0)
    value.backward()
    assert abs(value) < 1e-15
    assert s.grad.abs().max() < 1e-15
    assert t.grad is None
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert loss(x, t, 2.0) > 0
    assert torch.autograd.gradcheck(lambda z: loss(z, t.detach(), 2.0), x)
    shifted = loss(x + 5, t - 2, 2.0)
    assert torch.isclose(shifted, loss(x, t, 2.0)) == (name == "kl")
    for scale in (0.0, 1e4):
        z = (scale * torch.randn(4, 3)).requires_grad_()
        value = loss(z, scale * torch.randn(4, 3), 2.0)
        value.backward()
        assert value.isfinite()
        assert z.grad.isfinite().all()


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_teachers_of_other_classes_are_refused(divergence):
    method = method_of(teachers=teachers(outputs=5), divergence=divergence).eval()
    with pytest.raises(ObjectiveError, match=r"over the same classes .* received \(9, 4\) and \(9, 5\)"):
        method.training_step(batch())


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_without_labels_the_teachers_alone_are_learnt_from(task):
    method = method_of(teachers=teachers(), task=task).eval()
    rows = {m: x for m, x in batch().items() if m in WIDTHS}
    terms = method.training_step(rows).terms
    assert all((value != 0) == name.endswith("/teacher") for name, value in terms.items())
    assert method.held_out_step(rows)["loss"] == 0
    own = method_of(task=task).eval()
    own.clock.length = 10
    assert own.training_step(rows).total == 0


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (torch.tensor([0, 3, 4]), "must be classes 0 to 3, or -1 .* received 0 to 4"),
        (torch.tensor([0, -2, 1]), "received -2 to 1"),
        (torch.tensor([0.0, 1, 2]), r"integers \(3,\), one a row; received \(3,\) torch.float32"),
        (torch.tensor([0, 1]), r"received \(2,\) torch.int64"),
    ],
)
def test_labels_that_are_no_classes_are_refused(label, message):
    with pytest.raises(DataError, match=message):
        label_loss(torch.randn(3, 4), label)


def test_one_label_is_two_classes():
    s = torch.randn(6, 1, dtype=torch.float64, requires_grad=True)
    t = torch.randn(6, 1, dtype=torch.float64)

    def two(z):
        return torch.cat([torch.zeros_like(z), z], dim=1)

    a, b = bce(s, t, 3.0), kl(two(s), two(t), 3.0)
    torch.testing.assert_close(a, b)
    torch.testing.assert_close(*(torch.autograd.grad(v, s)[0] for v in (a, b)))


def test_at_high_temperature_kl_is_a_squared_distance():
    s, t = (z - z.mean(dim=1, keepdim=True) for z in torch.randn(2, 5, 4, dtype=torch.float64))
    expected = (s - t).square().sum(dim=1).mean() / 8
    torch.testing.assert_close(kl(s, t, 1e4), expected, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(mse(s, t), (s - t).square().mean())


def test_losses_on_labels():
    z, label = torch.randn(4, 3), torch.tensor([0, 2, -1, 1])
    torch.testing.assert_close(label_loss(z, label, "multiclass"), F.cross_entropy(z[[0, 1, 3]], label[[0, 1, 3]]))
    many = torch.tensor([[1, 0, -1], [0, 0, 1], [-1, -1, -1], [1, 1, 1]])
    known = many >= 0
    expected = F.binary_cross_entropy_with_logits(z[known], many[known].float())
    torch.testing.assert_close(label_loss(z, many, "multilabel"), expected)
    one = torch.tensor([0, 1, 1, 0])
    expected = F.binary_cross_entropy_with_logits(z[:, 0], one.float())
    torch.testing.assert_close(label_loss(z[:, :1], one, "multilabel"), expected)
    for task, unknown in (("multiclass", torch.full((4,), -1)), ("multilabel", torch.full((4, 3), -1))):
        x = z.clone().requires_grad_()
        label_loss(x, unknown, task).backward()
        assert not x.grad.any()


# Networks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduce", ["logits", "probs"])
@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_ensembles(reduce, task):
    a, b = (nn.Linear(3, 4) for _ in range(2))
    x = torch.randn(5, 3)

    def give(*members):
        return TeacherEnsemble(members, reduce=reduce, task=task)(x).logits

    squash = torch.sigmoid if task == "multilabel" else lambda z: z.softmax(dim=1)
    mean = (squash(a(x)) + squash(b(x))) / 2
    expected = squash((a(x) + b(x)) / 2) if reduce == "logits" else mean
    torch.testing.assert_close(squash(give(a, b)), expected)
    torch.testing.assert_close(squash(give(a)), squash(a(x)))
    torch.testing.assert_close(give(a, b, a, b), give(a, b))
    torch.testing.assert_close(give(b, a), give(a, b))
    with pytest.raises(ConfigError, match="needs a member"):
        TeacherEnsemble([])


@pytest.mark.parametrize("hidden", [0, 7])
def test_the_head_is_chosen_by_what_a_row_has(hidden):
    torch.manual_seed(0)
    networks = {m: MLP((3,), hidden=(4,), dim=d) for m, d in (("a", 2), ("b", 3), ("c", 4))}
    fusion = MultiHeadFusion(networks, 5, hidden=hidden).eval()
    x = {m: torch.randn(4, 3) for m in networks}
    features = {m: networks[m](x[m]) for m in networks}
    single = {m: fusion.heads[m](z) for m, z in features.items()}
    fused = fusion.fusion(torch.cat(list(features.values()), dim=1))
    torch.testing.assert_close(fusion.predict(x), fused)
    has = {"a": torch.tensor([1, 1, 1, 0]).bool(), "b": torch.tensor([1, 0, 1, 1]).bool()}
    holed = {m: torch.where(has[m][:, None], x[m], torch.nan) if m in has else x[m] for m in x}
    found = fusion.predict({**holed, "present": has})
    torch.testing.assert_close(found[[0, 2]], fused[[0, 2]])
    torch.testing.assert_close(found[1], (single["a"] + single["c"])[1] / 2)
    torch.testing.assert_close(found[3], (single["b"] + single["c"])[3] / 2)
    with torch.no_grad():
        for p in networks["b"].parameters():
            p.fill_(torch.nan)
    torch.testing.assert_close(fusion.predict({"a": x["a"]}), single["a"])  # another's NaN does not matter
    with pytest.raises(DataError, match="row 1 of the batch has no modality"):
        fusion.predict({"a": x["a"], "present": {"a": torch.tensor([1, 0, 1, 1]).bool()}})
    with pytest.raises(DataError, match="no modality of a, b, c"):
        fusion.predict({"d": x["a"]})


# The method's terms --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("divergence", ["kl", "bce", "mse"])
def test_terms_are_the_weighted_pieces(divergence):
    how = {"unimodal_weight": {"rich": 0.5, "poor": 2.0}, "teacher_weight": {"rich": 0.3, "poor": 0.9}}
    method = method_of(
        teachers=teachers(), fused_weight=1.5, fused_teacher_weight=0.4, divergence=divergence, temperature=3.0, **how
    ).eval()
    rows = batch()
    z = {m: e(rows[m]) for m, e in method.network.encoders.items()}
    t = {m: method.ensembles[m](rows[m]).logits for m in z}
    fused = method.network.fusion(torch.cat(list(z.values()), dim=1))
    loss = DIVERGENCES[divergence]
    expected = {
        "fused/label": 1.5 * F.cross_entropy(fused, rows["label"]),
        "fused/teacher": 0.4 * loss(fused, t["rich"] + t["poor"], 3.0),
    }
    for m, (w, a) in {"rich": (0.5, 0.3), "poor": (2.0, 0.9)}.items():
        s = method.network.heads[m](z[m])
        expected |= {f"{m}/label": w * F.cross_entropy(s, rows["label"]), f"{m}/teacher": a * loss(s, t[m], 3.0)}
    terms = method.training_step(rows).terms
    assert set(terms) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value)


def test_weights_of_zero_leave_plain_fusion():
    assert set(method_of(**PLAIN).training_step(batch()).terms) == {"rich/label", "poor/label", "fused/label"}
    joint = method_of(**PLAIN, unimodal_weight=0.0)
    assert set(joint.training_step(batch()).terms) == {"fused/label"}
    assert not len(joint.ensembles)
    one = method_of(teachers=teachers(), teacher_weight={"rich": 0.0, "poor": 1.0})
    assert list(one.ensembles) == ["poor"]
    assert list(one.teachers()) == ["poor"]


def test_one_modality_is_ordinary_distillation():
    networks = {"poor": encoders()["poor"]}
    method = MIND(networks, classes=4, teachers=teachers(), fused_weight=0.0).eval()
    terms, rows = method.training_step(batch()).terms, batch()
    s, t = method.as_teacher("poor")(rows["poor"]).logits, method.ensembles["poor"](rows["poor"]).logits
    assert set(terms) == {"poor/label", "poor/teacher"}
    torch.testing.assert_close(terms["poor/teacher"], kl(s, t, 2.0))


def test_an_absent_modality_costs_and_moves_nothing():
    method, rows = method_of(teachers=teachers(), fused_teacher_weight=1.0).eval(), batch()
    for absent in (
        {**rows, "poor": torch.full((9, 8), torch.nan), "present": {"poor": torch.zeros(9).bool()}},
        {"rich": rows["rich"], "label": rows["label"]},
    ):
        losses = method.training_step(absent)
        assert set(losses.terms) == {"rich/label", "rich/teacher"}
        method.zero_grad()
        losses.total.backward()
        silent = [*method.network.encoders["poor"].parameters(), *method.network.fusion.parameters()]
        assert all(p.grad is None for p in silent)
    nothing = {**rows, "present": {m: torch.zeros(9).bool() for m in WIDTHS}}
    assert not method.training_step(nothing).terms
    assert not method.held_out_step(nothing)


def test_rows_that_lack_a_modality_are_as_if_they_were_not_there():
    method, rows = method_of(teachers=teachers(), fused_teacher_weight=1.0).eval(), batch(8)
    has = {"rich": torch.tensor([1, 1, 1, 1, 1, 1, 0, 0]).bool(), "poor": torch.tensor([0, 1, 1, 1, 1, 1, 1, 1]).bool()}
    holed = {**rows, **{m: torch.where(has[m][:, None], rows[m], torch.nan) for m in has}, "present": has}
    terms = method.training_step(holed).terms
    part = {m: method.training_step({k: v[has[m]] for k, v in rows.items()}).terms for m in has}
    full = method.training_step({k: v[1:6] for k, v in rows.items()}).terms
    for name, value in terms.items():
        m = name.partition("/")[0]
        torch.testing.assert_close(value, (full if m == "fused" else part[m])[name])
    stored = {**holed, "stored": {m: method.ensembles[m](rows[m]) for m in has}}
    for name, value in method.training_step(stored).terms.items():
        torch.testing.assert_close(value, terms[name])


# Training -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", [None, TeacherStore()])
def test_given_teachers_stay_as_they_are(store, toy):
    given = teachers()
    before = copy.deepcopy(given)
    method = train(method_of(teachers=given, fused_teacher_weight=0.5), toy.split("train"), store=store)
    for m, members in given.items():
        for now, then in zip(members, before[m], strict=True):
            assert same(now, then)
            assert not now.training
            assert not any(p.requires_grad for p in now.parameters())
    assert not same(method.network, method_of(teachers=before).network)


def test_given_teachers_are_not_saved(toy, tmp_path):
    from safetensors import safe_open

    train(method_of(teachers=teachers()), toy.split("train"), folder=tmp_path)
    with safe_open(tmp_path / "product.safetensors", framework="pt") as file:
        assert not [name for name in file.keys() if name.startswith("ensembles")]  # noqa: SIM118 - not a dict


def test_own_teachers_learn_alone_then_stand_still(toy):
    method, seen = method_of(widths=(1, 1, 2)), []
    start = copy.deepcopy(method)
    assert method.teachers() == {}
    members = method.ensembles["poor"].members
    assert not torch.equal(members[0].encoder.layers[1].weight, members[1].encoder.layers[1].weight)

    def look():
        seen.append((method.alone, method.ensembles.training, copy.deepcopy(method)))
        return False

    train(method, toy.split("train"), stop=look)
    assert [alone for alone, _, _ in seen] == [True] * 5 + [False] * 7
    assert not any(training for alone, training, _ in seen if not alone)
    assert same(seen[5][2].network, start.network)
    assert not same(seen[5][2].ensembles, start.ensembles)
    assert same(method.ensembles, seen[5][2].ensembles)
    assert not same(method.network, start.network)


@pytest.mark.parametrize("own", [True, False])
def test_stopped_at_any_step_and_resumed_ends_with_the_same_bits(own, toy, tmp_path):
    def make():
        return method_of(dropout=0.3, widths=(1, 2), teachers=None if own else teachers())

    run = {"settings": SETTINGS, "labels": True, "held_out": toy.split("validation")}
    check_resumes(make, toy.split("train"), tmp_path, (1, 4, 5, 6, 7, 8, 11) if own else (4, 7), **run)


def test_own_teachers_are_as_wide_as_is_said():
    for widths in ((1, 1, 1), (2, 4, 8)):
        method = method_of() if widths == (1, 1, 1) else method_of(widths=widths)  # what stands in the signature
        for m, dim in (("rich", 5), ("poor", 6)):
            members = method.ensembles[m].members
            assert [(k.dim, k.encoder.hidden) for k in members] == [(w * dim, (10 * w,)) for w in widths]
            assert all(member.head.in_features == w * dim for member, w in zip(members, widths, strict=True))


def test_what_is_compressed_is_counted():
    method = method_of(widths=(2,))
    student = 12 * 10 + 20 + 10 * 5 + 5 + 8 * 10 + 20 + 10 * 6 + 6 + 4 * (5 + 1 + 6 + 1 + 11 + 1)
    rich, poor = (n * 20 + 40 + 20 * 2 * d + 2 * d + 4 * (2 * d + 1) for n, d in ((12, 5), (8, 6)))
    assert method.sizes() == {"student": student, "rich": rich, "poor": poor}


def test_encoders_that_cannot_grow_have_twins_alone():
    class Own(nn.Sequential):
        dim = 5

    networks = {"rich": Own(nn.Linear(12, 5))}
    with pytest.raises(NetworkError, match=r"mind: Own cannot be made 2 times as wide.*set widths to ones"):
        MIND(networks, classes=4, widths=(1, 2))
    assert [member.dim for member in MIND(networks, classes=4).ensembles["rich"].members] == [5, 5, 5]


def test_every_head_learns(toy):
    method = train(method_of(), toy.split("train"), settings=Settings(epochs=60, batch_size=40, lr=0.02))
    rows = next(iter(toy.split("test").loader({"rich": 1, "poor": 1}, batch_size=100, seed=0, labels=True).epoch(0)))
    for modalities in (("rich", "poor"), ("rich",), ("poor",)):
        right = method.network.predict({m: rows[m] for m in modalities}).argmax(dim=1) == rows["label"]
        assert right.float().mean() > 0.6


@pytest.mark.parametrize("labels", [1, 3])
def test_many_labels(labels):
    method = method_of(classes=labels, task="multilabel", teachers=teachers(labels), fused_teacher_weight=1.0)
    rows = {**batch(), "label": torch.randint(0, 2, (9, labels) if labels > 1 else (9,))}
    optimizer = torch.optim.Adam(method.network.parameters(), lr=0.01)
    losses = []
    for _ in range(20):
        total = method.train().training_step(rows).total
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(float(total.detach()))
    assert losses[-1] < losses[0]
    assert method.divergence is bce


@pytest.mark.parametrize("own", [True, False])
def test_half_precision_trains(own, toy):
    method = method_of(widths=(2,), teachers=None if own else teachers(), fused_teacher_weight=1.0)
    train(method, toy.split("train"), settings=replace(SETTINGS, precision="bf16-mixed"))
    assert all(p.isfinite().all() for p in method.parameters())
    rows = {**batch(), "present": {"rich": torch.arange(9) > 4}}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = method.training_step(rows).terms
        assert method.network.predict(rows).isfinite().all()
    assert all(value.isfinite() and value.dtype == torch.float32 for value in terms.values())


def test_students():
    method = method_of(**PLAIN)
    assert method.student("poor") is method.network.encoders["poor"]
    with pytest.raises(NetworkError, match="none of 'sound'"):
        method.student("sound")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"classes": 1}, "classes >= 2"),
        ({"widths": ()}, "widths >= 1"),
        ({"widths": (2, 0)}, r"received 4, \[2, 0\]"),
        ({"fusion_hidden": -3}, "fusion_hidden must be a width, or 0"),
        ({"alone_share": 1.0}, "alone_share above 0"),
        ({"unimodal_weight": -1.0}, "unimodal_weight must be a number of at least 0, or one for each of rich, poor"),
        ({"teacher_weight": {"rich": 1.0}}, "teacher_weight must be"),
        ({"fused_weight": -1.0}, "fused_weight must be a number of at least 0; received"),
        ({"temperature": 0.0}, "temperature must be"),
        ({"divergence": "l1"}, "divergence is 'l1'"),
        ({"task": "multilabel", "divergence": "kl"}, "kl is over classes that exclude"),
        ({"teachers": {"rich": [nn.Linear(12, 4)]}}, "poor has no teacher"),
        ({"fused_weight": 0.0, "unimodal_weight": 0.0, "teacher_weight": 0.0}, "nothing to learn"),
    ],
)
def test_wrong_parameters_are_refused(how, message):
    with pytest.raises(ConfigError, match=message):
        method_of(**how)
