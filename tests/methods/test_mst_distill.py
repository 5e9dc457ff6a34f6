import copy
import itertools
import math

import pytest
import torch
from stages import check_resumes, same, train
from torch import nn
from torch.nn import functional as F

from crossdistill.errors import ConfigError, NetworkError
from crossdistill.methods.mst_distill import MaskNetwork, MSTDistill, balance, masked, routed, soft_kl
from crossdistill.networks import MLP
from crossdistill.training import load_product

SIZES = {"rich": 12, "poor": 8}


def encoders():
    return {m: MLP((n,), hidden=(8,), dim=6) for m, n in SIZES.items()}


def make(cls=MSTDistill, **how):
    return lambda: cls(encoders(), source="rich", target="poor", classes=4, hidden=(8,), mask_share=0.25, **how)


def batch(toy, n=24):
    rows = toy.split("train")
    return {m: next(rows.samples(m, n)) for m in SIZES} | {"label": torch.from_numpy(rows.label[:n])}


class Stage:
    epochs, steps_per_epoch = 2, 4
    pairing = "natural"

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows["label"])

    def batches(self):
        return iter([self.rows])


def begun(toy, phase, **how):
    method = make(**how)().eval()
    method.before_stage(Stage(batch(toy)))
    method.clock.done = {1: 0, 2: 2, 3: 4}[phase]
    return method


def test_stopped_anywhere_and_resumed_it_ends_with_the_same_bits(toy, tmp_path):
    whole = check_resumes(make(), toy.split("train"), tmp_path, [1, 2, 3, 4, 5], labels=True)
    again = train(make(), toy.split("train"), folder=tmp_path / "2", labels=True)  # finished already: loaded
    alone = make()()
    alone.load_state_dict(whole.state_dict())
    rows = {m: next(toy.split("test").samples(m, 30)) for m in SIZES} | {"label": torch.zeros(30, dtype=torch.int64)}
    for other in (again, load_product(make()(), tmp_path / "2"), alone):
        assert same(other, whole)  # masks too, which only a stage could make
        experts = zip(other.eval()._experts(rows), whole.eval()._experts(rows), strict=True)
        assert all(torch.equal(one[0], two[0]) for one, two in experts)


def test_every_phase_changes_what_it_trains_and_nothing_else(toy):
    states = []

    class Watched(MSTDistill):
        def after_step(self):
            super().after_step()
            parts = {**self.networks, "masks": self.masks, "router": self.router}
            states.append({name: copy.deepcopy(part.state_dict()) for name, part in parts.items()})

    method = train(make(Watched), toy.split("train"), labels=True)
    moved = [
        {n for n in a if any(not torch.equal(a[n][k], b[n][k]) for k in a[n])} for a, b in itertools.pairwise(states)
    ]
    assert moved == [{"multimodal", "cross", "student"}] + 2 * [{"masks"}] + 4 * [{"student", "router"}]
    assert all(p.requires_grad for p in method.parameters())
    assert len(method.masks) == 3


def test_the_terms_of_all_three_phases_are_those_of_the_equations(toy):
    data = batch(toy)
    method = begun(toy, 1, tau=3.0)
    z = {name: net(data).logits for name, net in method.networks.items()}
    found = method.training_step(data).terms
    assert len(found) == 9
    for a, b in itertools.permutations(z, 2):
        wanted = 9 * F.kl_div((z[a] / 3).log_softmax(1), (z[b] / 3).softmax(1), reduction="batchmean")
        assert found[f"kd/{a}/{b}"].item() == pytest.approx(wanted.item(), rel=1e-4, abs=1e-7)
    method.clock.done = 2
    masks = method.training_step(data).terms
    fused = method.networks["multimodal"]
    features = {m: fused.encoders[m](data[m]) for m in SIZES}
    features["poor"] = method.masks[1](features["poor"])  # the mask of the first expert is gone
    expert = fused.classify(fused.fuse(features))
    assert masks["mask/1"].item() == pytest.approx(soft_kl(expert, z["student"], tau=3.0).mean().item(), rel=1e-5)
    method.clock.done = 4
    found = method.training_step(data)
    gate = method.router(z["student"]).softmax(1)
    experts = torch.stack([soft_kl(z["student"], e[0], tau=3.0) for e in method._experts(data)], dim=1)
    assert found.terms["kd"].item() == pytest.approx(routed(gate, experts, top=2).mean().item(), rel=1e-5)
    assert found.terms["balance"].item() == pytest.approx(balance(gate).item(), rel=1e-4, abs=1e-7)


def test_the_router_learns_from_the_loss_unless_it_is_as_released(toy):
    for released in (False, True):
        method = begun(toy, 3, as_released=released)
        terms = method.training_step(batch(toy)).terms
        gradient = torch.autograd.grad(terms["kd"], method.router[0].weight, allow_unused=True)[0]
        assert (gradient is None or not gradient.any()) == released


def test_routing_is_the_loop_and_prefers_the_better_expert():
    logits = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    losses = torch.rand(7, 5, dtype=torch.float64)
    for top in (1, 2, 5):
        found = routed(logits.softmax(1), losses, top=top)
        for i in range(7):
            gate = logits[i].softmax(0).tolist()
            best = sorted(range(5), key=lambda k: -gate[k])[:top]
            wanted = sum(gate[k] * losses[i, k].item() for k in best) / sum(gate[k] for k in best)
            assert found[i].item() == pytest.approx(wanted)
    pair = torch.zeros(1, 2, requires_grad=True)
    routed(pair.softmax(1), torch.tensor([[1.0, 3.0]]), top=2).sum().backward()
    assert pair.grad[0, 0] < 0 < pair.grad[0, 1]
    assert torch.autograd.gradcheck(lambda x: routed(x.softmax(1), losses, top=2), logits)


def test_balance_is_nothing_for_even_use_and_the_logarithm_for_one_expert():
    assert balance(torch.full((6, 4), 0.25)).item() == pytest.approx(0.0, abs=1e-6)
    assert balance(torch.eye(4)).item() == pytest.approx(0.0, abs=1e-6)
    one = F.one_hot(torch.zeros(6, dtype=torch.int64), 4).float()
    assert balance(one).item() == pytest.approx(math.log(4))


def test_soft_kl_flows_into_both_and_has_no_gradient_at_equality():
    s, t = (torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda a, b: soft_kl(a, b, tau=2.0), (s, t))
    assert soft_kl(s, s, tau=2.0).abs().max() < 1e-12
    half = soft_kl(s.bfloat16(), t.bfloat16(), tau=2.0)
    assert torch.equal(half, soft_kl(s.bfloat16().float(), t.bfloat16().float(), tau=2.0))


def test_a_mask_weighs_channels_and_is_gone_afterwards():
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    x = torch.randn(5, 2, 6, 6)
    before, mask = net(x), MaskNetwork(4)
    with masked(net, "0", mask):
        within = net(x)
    assert not torch.equal(before, within)
    assert torch.equal(net(x), before)
    maps = torch.randn(5, 4, 3, 3)
    share = mask(maps) / maps
    assert torch.allclose(share, share[:, :, :1, :1].expand_as(share), atol=1e-4)
    assert ((share > 0) & (share < 1)).all()


def test_layers_may_be_chosen(toy):
    layers = ("multimodal.classifier.0", "cross.encoders.rich.layers.1", "cross.encoders.rich")
    method = train(make(layers=layers, top=3), toy.split("train"), labels=True)
    assert [mask.layers[0].in_features for mask in method.masks] == [8, 8, 6]
    with pytest.raises(NetworkError, match="has no submodule"):
        make(layers=("cross.nothing",), top=1)()
    with pytest.raises(ConfigError, match="layers begin with"):
        make(layers=("student.encoders.poor",), top=1)()


@pytest.mark.parametrize("phase", [1, 2, 3])
def test_rows_that_lack_a_modality_are_masked(toy, phase):
    method, data = begun(toy, phase, balance_weight=0.0), batch(toy)
    here = torch.arange(24) % 3 > 0
    junk = torch.where(here[:, None], data["poor"], torch.nan)
    found = method.training_step({**data, "poor": junk, "present": {"poor": here}}).terms
    part = method.training_step({name: value[here] for name, value in data.items()}).terms
    for name, value in found.items():
        if "student" in name or phase > 1:
            assert value.item() == pytest.approx(part[name].item(), rel=1e-4, abs=1e-6), name
    without = {name: value for name, value in data.items() if name != "poor"}
    assert not any("student" in name for name in method.training_step(without).terms)
    assert bool(method.training_step(without).terms) == (phase == 1)


def test_what_is_deployed(toy):
    method = begun(toy, 3)
    assert method.student("poor") is method.networks["student"].encoders["poor"]
    assert method.student("rich") is method.networks["cross"].encoders["rich"]
    assert method.as_teacher("rich")(batch(toy)["rich"]).logits.shape == (24, 4)
    with pytest.raises(NetworkError, match="none of 'depth'"):
        method.student("depth")
    scores = method.held_out_step(batch(toy))
    assert scores.keys() == {"loss", "accuracy/multimodal", "accuracy/cross", "accuracy/student"}


@pytest.mark.parametrize(
    ("how", "message"), [({"top": 4}, r"top in 1\.\.3"), ({"joint_share": 0.8}, "leave some"), ({"tau": 0.0}, "tau")]
)
def test_what_is_out_of_range_is_refused(how, message):
    with pytest.raises(ConfigError, match=message):
        make(**how)()
