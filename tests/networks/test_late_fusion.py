import pytest
import torch
from torch import nn

from crossdistill.errors import ConfigError, DataError, NetworkError
from crossdistill.networks import MLP
from crossdistill.networks.base import redrawn
from crossdistill.networks.late_fusion import Alone, LateFusion, Raw, logits_of


def fusion(**how):
    return LateFusion({"a": MLP((3,), hidden=(5,), dim=4), "b": MLP((2,), hidden=(5,), dim=6)}, 3, **how)


def batch(n=7):
    return {"a": torch.randn(n, 3), "b": torch.randn(n, 2)}


def test_features_stand_side_by_side_under_one_classifier():
    net, x = fusion(hidden=(8,)).eval(), batch()
    out = net(x)
    expected = torch.cat([net.encoders["a"](x["a"]), net.encoders["b"](x["b"])], dim=1)
    assert torch.equal(out.features, expected)
    assert torch.equal(out.logits, net.classifier(expected))
    assert net.dim == 10


@pytest.mark.parametrize("blank", ["zero", "token"])
def test_a_missing_modality_is_a_constant_and_its_rows_are_not_run(blank):
    net, x = fusion(blank=blank), batch()
    if blank == "token":
        for token in net.tokens.values():
            nn.init.normal_(token)
    here = torch.tensor([True, False, True, True, False, True, True])
    junk = x["b"].clone()
    junk[~here] = float("nan")
    net.train()
    features = net.encode({"a": x["a"], "b": junk}, {"b": here})
    assert torch.isfinite(net.encoders["b"].layers[2].running_mean).all()  # no absent row in the statistics
    assert torch.equal(net.encoders["b"].layers[2].num_batches_tracked, torch.tensor(1))
    fused = net.fuse(features, {"b": here})
    constant = net.tokens["b"] if blank == "token" else torch.zeros(6)
    assert torch.equal(fused[~here][:, 4:], constant.expand(2, 6))
    net.eval()
    whole, alone = net(x, {"b": here}), net({"a": x["a"]})
    assert torch.equal(whole.logits[~here], alone.logits[~here])
    assert torch.equal(alone.features[:, 4:], constant.expand(7, 6))
    assert torch.equal(Alone(net, "a")(x["a"]).logits, alone.logits)
    assert torch.equal(net({"a": x["a"]}, {"b": torch.zeros(7, dtype=torch.bool)}).logits, alone.logits)
    none = {"b": torch.zeros(7, dtype=torch.bool)}
    assert torch.equal(net({"a": x["a"], "b": junk * torch.nan}, none).logits, alone.logits)


def test_the_mean_sample_stands_for_what_is_absent():
    net, x = fusion(blank="mean"), batch()
    with pytest.raises(
        DataError, match="the mean of 'b' stands for it where it is absent, and no sample of it ever came"
    ):
        net({"a": x["a"]})
    net.train()(x)
    net.eval()
    mean = net({"a": x["a"], "b": torch.zeros(7, 2)})
    assert torch.equal(net({"a": x["a"]}).logits, mean.logits)
    assert torch.equal(Alone(net, "a")(x["a"]).logits, mean.logits)
    here = torch.arange(7) % 2 == 0
    junk = torch.where(here[:, None], x["b"], torch.nan)
    mixed, whole = net({"a": x["a"], "b": junk}, {"b": here}), net(x)
    torch.testing.assert_close(mixed.logits[~here], mean.logits[~here])
    torch.testing.assert_close(mixed.logits[here], whole.logits[here])
    other = fusion(blank="mean").eval()
    other.load_state_dict(net.state_dict())  # shapes come with the weights
    assert torch.equal(other({"a": x["a"]}).logits, mean.logits)


def test_a_blank_learns_and_leaves_batch_norms_alone():
    net, x = fusion(blank="mean").train(), batch()
    net(x)
    before = {name: value.clone() for name, value in net.named_buffers()}
    features = net.encode(x)
    modes = [part.training for part in net.modules()]
    (alone,) = logits_of(net, x, [("a",)])
    logits = net.classify(net.fuse(features, keep=("a",)))
    torch.testing.assert_close(alone, logits)
    assert [part.training for part in net.modules()] == modes
    logits.square().sum().backward()
    assert net.encoders["b"].layers[1].weight.grad is None or not net.encoders["b"].layers[1].weight.grad.any()
    assert net.encoders["b"].layers[-1].weight.grad.any()  # the mean sample goes through its encoder
    tracked = {name: int(value) for name, value in net.named_buffers() if name.endswith("tracked")}
    assert tracked == {name: int(before[name]) + 2 for name in tracked}  # one for each `encode`, none for blanks


def test_blanking_twice_is_blanking_once_and_leaves_the_rest_alone():
    net, x = fusion().eval(), batch()
    full, a, b = logits_of(net, x, [("a", "b"), ("a",), ("b",)])
    assert torch.equal(full, net(x).logits)
    assert torch.equal(logits_of(net, {"a": x["a"]}, [("a",)])[0], a)
    assert torch.equal(logits_of(net, {"b": x["b"] + 0}, [("b",)])[0], b)
    assert not torch.equal(a, b)


def test_any_other_network_is_given_the_mean_where_nothing_is_seen():
    class Sum(nn.Module):
        def forward(self, inputs):
            return torch.stack([inputs["a"].sum(1), inputs["b"].sum(1)], dim=1)

    x = batch()
    here = torch.arange(7) % 2 == 0
    full, a = logits_of(Sum(), x, [("a", "b"), ("a",)], {"b": here})
    assert torch.equal(full[:, 1], torch.where(here, x["b"].sum(1), 0.0))
    assert torch.equal(a[:, 0], x["a"].sum(1))
    assert not a[:, 1].any()
    with pytest.raises(NetworkError, match="logits"):
        logits_of(lambda seen: seen, x, [("a",)])


def test_a_twin_starts_from_weights_of_its_own_and_the_first_is_left_alone():
    net = fusion()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    twin = redrawn(net)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not torch.equal(twin.encoders["a"].layers[1].weight, net.encoders["a"].layers[1].weight)


def test_raw_is_the_sample_itself():
    x = torch.randn(4, 2, 3)
    assert torch.equal(Raw(6)(x), x.flatten(1))


@pytest.mark.parametrize(
    "how", [{"dropout": 1.0}, {"hidden": (0,)}, {"dropout": -0.1}], ids=["dropout", "hidden", "negative"]
)
def test_what_is_out_of_range_is_refused(how):
    with pytest.raises(ConfigError, match="late fusion needs"):
        fusion(**how)


def test_a_batch_without_any_modality_is_refused():
    with pytest.raises(DataError, match="none of a, b"):
        fusion()({})
    with pytest.raises(NetworkError, match="dim"):
        LateFusion({"a": nn.Linear(2, 2)}, 3)
