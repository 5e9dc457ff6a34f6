import copy

import pytest
import torch
from stages import check_resumes, train
from torch import nn
from torch.nn import functional as F

from crossdistill.errors import ConfigError, DataError, NetworkError
from crossdistill.methods.c2kd import C2KD, bidirectional, gated_mean
from crossdistill.networks import MLP, Network
from crossdistill.objectives.c2kd import kendall_tau

SIZES = {"rich": 12, "poor": 8}


def encoders():
    return {m: MLP((n,), hidden=(8,), dim=4) for m, n in SIZES.items()}


def make(**how):
    return lambda: C2KD(encoders(), source="rich", target="poor", classes=4, **how)


def given():
    torch.manual_seed(9)
    return Network(MLP((12,), hidden=(8,), dim=6), head=nn.Linear(6, 4))


def batch(toy, n=24):
    rows = toy.split("train")
    return {m: next(rows.samples(m, n)) for m in SIZES} | {"label": torch.from_numpy(rows.label[:n])}


@pytest.mark.parametrize("how", [{"warm": 0.5}, {"removal": "removed", "average": "kept"}], ids=["warm", "removed"])
def test_stopped_anywhere_and_resumed_it_ends_with_the_same_bits(toy, tmp_path, how):
    check_resumes(make(**how), toy.split("train"), tmp_path / "own", [3, 4, 6], labels=True)
    check_resumes(lambda: make(teacher=given(), **how)(), toy.split("train"), tmp_path / "given", [4], labels=True)


def kl(p, q):
    """KL(p || q) of two lists of logits, by the sum."""
    p, q = torch.tensor(p).double().softmax(0), torch.tensor(q).double().softmax(0)
    return sum(a * (a / b).log() for a, b in zip(p, q, strict=True)).item()


@pytest.mark.parametrize("removal", ["published", "removed"])
@pytest.mark.parametrize("average", ["all", "kept"])
def test_the_terms_are_those_of_the_equation(toy, removal, average):
    method, data = make(removal=removal, average=average, kappa=0.1)().eval(), batch(toy)
    found = {name: value.item() for name, value in method.training_step(data).terms.items()}
    t, s = (method.as_teacher(m)(data[m]) for m in SIZES)
    pt, ps = method.proxies["rich"](t.features), method.proxies["poor"](s.features)
    y, rows = data["label"].tolist(), range(24)
    for name, out, proxy in (("rich", t, pt), ("poor", s, ps)):
        z, p = out.logits.tolist(), proxy.tolist()
        assert found[f"ce/{name}"] == pytest.approx(F.cross_entropy(out.logits, data["label"]).item())
        both = sum(kl(z[i], p[i]) + kl(p[i], z[i]) for i in rows) / 24
        assert found[f"proxy/{name}"] == pytest.approx(both, rel=1e-4)
    kept = [i for i in rows if kendall_tau(ps[i : i + 1], pt[i : i + 1]).item() > 0.1]
    assert 0 < len(kept) < 24

    def left(z, c):
        return [v for k, v in enumerate(z) if k != c] if removal == "removed" else [
            0.0 if k == c else v for k, v in enumerate(z)
        ]  # fmt: skip

    count = len(kept) if average == "kept" else 24
    for name, u, v in (("poor", ps, pt), ("rich", pt, ps)):
        u, v = u.tolist(), v.tolist()
        wanted = sum(kl(left(v[i], y[i]), left(u[i], y[i])) for i in kept) / count
        assert found[f"nontarget/{name}"] == pytest.approx(wanted, rel=1e-4, abs=1e-7)


def test_both_networks_and_both_proxies_learn_and_a_given_teacher_is_left_alone(toy):
    teacher = given()
    before = copy.deepcopy(teacher.state_dict())
    method = train(make(teacher=teacher), toy.split("train"), labels=True)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    theirs = dict(method.networks["rich"].named_parameters())
    assert all(not torch.equal(p, teacher.get_parameter(name)) for name, p in theirs.items())
    assert method.teachers() == {}
    losses = method.train().training_step(batch(toy))
    losses.total.backward()
    assert all(p.grad is not None and p.grad.any() for p in method.proxies.parameters() if p.ndim > 1)


def test_each_network_is_pulled_to_its_proxy_and_the_other_way_round():
    z, q = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    assert bidirectional(z, z.clone()).abs() < 1e-12
    a, b = z.clone().requires_grad_(), q.clone().requires_grad_()
    bidirectional(a, b).backward()
    torch.testing.assert_close(a.grad, (z.softmax(1) - q.softmax(1)) / 5)
    torch.testing.assert_close(b.grad, (q.softmax(1) - z.softmax(1)) / 5)
    assert torch.equal(
        bidirectional(z.bfloat16(), q.bfloat16()), bidirectional(z.bfloat16().float(), q.bfloat16().float())
    )


def test_a_gate_that_is_shut_leaves_nothing_of_the_partner(toy):
    method = make(kappa=1.0)().eval()
    found = method.training_step(batch(toy))
    assert found.terms["nontarget/rich"].item() == found.terms["nontarget/poor"].item() == 0
    rows = torch.tensor([1.0, 2.0, 3.0])
    kept = torch.tensor([True, False, True])
    assert gated_mean(rows, kept).item() == pytest.approx(4 / 3)
    assert gated_mean(rows, kept, average="kept").item() == 2
    assert gated_mean(rows, ~kept & kept, average="kept").item() == 0


def test_the_partner_is_no_target_that_moves_towards_the_learner(toy):
    method, data = make(proxy_weight=0.0, kappa=-1.0)().eval(), batch(toy)
    losses = method.training_step(data).terms
    (gradient,) = torch.autograd.grad(
        losses["nontarget/poor"], method.proxies["rich"].layers[0].weight, allow_unused=True
    )
    assert gradient is None


def test_in_the_warm_up_both_learn_from_labels_alone(toy):
    method = make(warm=0.5)().train()
    method.clock.length = 8
    assert method.training_step(batch(toy)).terms.keys() == {"ce/rich", "ce/poor"}
    method.clock.done = 4
    assert "nontarget/poor" in method.training_step(batch(toy)).terms


def test_rows_that_lack_a_modality_are_masked(toy):
    method, data = make(kappa=-1.0)().eval(), batch(toy)
    here = torch.arange(24) % 3 > 0
    junk = {**data, "poor": torch.where(here[:, None], data["poor"], torch.nan), "present": {"poor": here}}
    found = method.training_step(junk).terms
    part = method.training_step({name: value[here] for name, value in data.items()}).terms
    whole = method.training_step(data).terms
    for name in found:
        wanted = whole if name.endswith("/rich") and not name.startswith("nontarget") else part
        assert found[name].item() == pytest.approx(wanted[name].item(), rel=1e-5), name
    none = method.training_step({**data, "present": {"poor": here & ~here}}).terms
    assert none.keys() == {"ce/rich", "proxy/rich"}


def test_what_is_deployed_and_what_is_measured(toy):
    method = make()().eval()
    assert method.student("poor") is method.networks["poor"].encoder
    assert method.student("rich").dim == 4
    with pytest.raises(NetworkError, match="none of 'depth'"):
        method.student("depth")
    scores = method.held_out_step(batch(toy))
    assert scores["loss"] == scores["ce/poor"]
    assert 0 <= scores["accuracy/poor"] <= 1


@pytest.mark.parametrize(
    ("how", "message"),
    [({"kappa": 2.0}, "kappa in"), ({"warm": 1.0}, "leave some"), ({"average": "some"}, "average is 'some'")],
)
def test_what_is_out_of_range_is_refused(how, message):
    with pytest.raises(ConfigError, match=message):
        make(**how)()


def test_one_row_is_refused_in_training(toy):
    with pytest.raises(DataError, match="two rows"):
        make()().train().training_step({name: value[:1] for name, value in batch(toy).items()})
    with pytest.raises(ConfigError, match="two of rich, poor"):
        C2KD(encoders(), source="rich", target="rich", classes=4)
    with pytest.raises(NetworkError, match="`dim`"):
        make(teacher=nn.Linear(12, 4))()
