import copy
import gc

import pytest
import torch
from torch import nn

from crossdistill.errors import ConfigError, NetworkError
from crossdistill.networks import CNN, MLP, Network, Outputs, Tapped, TemporalCNN, ViT


class Backbone(nn.Module):
    """Tuples, mappings, an idle part and an in-place ReLU: what other people's models have."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.pair = Pair()
        self.head = nn.Linear(4, 3)
        self.idle = nn.Linear(4, 3)

    def forward(self, x):
        h = self.relu(self.norm(self.conv(x)))
        return {"logits": self.head(self.pair(h)[0]), "other": 1}


class Pair(nn.Module):
    def forward(self, x):
        return x.mean(dim=(2, 3)), "a word"


@pytest.fixture
def x():
    torch.manual_seed(3)
    return torch.randn(4, 1, 8, 8)


def hooks(module):
    return sum(len(part._forward_hooks) for part in module.modules())


def test_features_are_the_modules_output(x):
    module = Backbone()
    tapped = Tapped(module, x).eval()
    assert tapped.dim == 3
    assert torch.equal(tapped(x), module(x)["logits"])


def test_taps_give_what_flows_there(x):
    module = Backbone()
    tapped = Tapped(module, x, "conv", maps=["conv", "norm"]).eval()
    outputs = tapped(x)
    assert isinstance(outputs, Outputs)
    expected = module.conv(x)
    assert torch.equal(outputs.maps["conv"], expected)
    assert torch.allclose(outputs.features, expected.mean(dim=(2, 3)), atol=1e-6)
    assert tapped.dim == 4
    assert Tapped(module, x, "pair").dim == 4


def test_an_in_place_relu_afterwards_does_not_change_what_was_taken(x):
    module = Backbone()
    maps = Tapped(module, x, "norm", maps=["norm"]).eval()(x).maps["norm"]
    assert torch.equal(maps, module.norm(module.conv(x)))
    assert (maps < 0).any()


def test_gradients_flow_through_taps_and_stop_above(x):
    tapped = Tapped(Backbone(), x, "pair")
    tapped(x).sum().backward()
    assert tapped.net.conv.weight.grad is not None
    assert tapped.net.head.weight.grad is None


def test_no_hook_and_no_graph_stays(x):
    tapped = Tapped(Backbone(), x, "pair", maps=["conv"])
    assert hooks(tapped) == 0
    outputs = tapped(x)
    assert hooks(tapped) == 0
    del outputs
    gc.collect()
    held = [value for part in tapped.modules() for value in vars(part).values() if isinstance(value, torch.Tensor)]
    assert held == []
    with pytest.raises(RuntimeError):
        tapped(torch.randn(2, 3, 8, 8))
    assert hooks(tapped) == 0


def test_modes_are_restored_and_statistics_untouched(x):
    module = Backbone()
    module.norm.eval()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    Tapped(module, x, "pair")
    assert module.training
    assert module.conv.training
    assert not module.norm.training
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())


def test_a_copy_is_independent(x):
    tapped = Tapped(Backbone(), x, "conv", maps=["norm"]).eval()
    other = copy.deepcopy(tapped)
    with torch.no_grad():
        other.net.conv.weight.zero_()
        other.net.conv.bias.zero_()
    assert other(x).features.abs().max() == 0
    assert tapped(x).features.abs().max() > 0
    assert other(x).maps["norm"] is not tapped(x).maps["norm"]


def test_state_dict_round_trip(x):
    one, other = Tapped(Backbone(), x, "pair").eval(), Tapped(Backbone(), x, "pair").eval()
    assert set(one.state_dict()) == {f"net.{key}" for key in one.net.state_dict()}
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(x), other(x))


def test_works_inside_a_network_and_without_gradients(x):
    network = Network(Tapped(CNN((1, 8, 8), width=4), x, maps=["stages.0", "stages.1"]), head=nn.Linear(128, 2)).eval()
    with torch.inference_mode():
        outputs = network(x)
    assert outputs.read("logits").shape == (4, 2)
    assert {path: tuple(value.shape) for path, value in outputs.maps.items()} == {
        "stages.0": (4, 4, 4, 4),
        "stages.1": (4, 8, 2, 2),
    }
    assert Tapped(MLP((64,)), x).dim == 64


def test_it_can_be_built_where_no_gradient_will_ever_flow(x):
    module = Backbone()
    with torch.inference_mode():
        assert Tapped(module, x, "conv", maps=["norm"]).dim == 4


def test_a_shared_submodule_has_all_its_names():
    layer = nn.Linear(3, 3)
    assert Tapped(nn.Sequential(layer, nn.Tanh(), layer), torch.ones(1, 3), "2").dim == 3


def test_unknown_paths_name_the_nearest(x):
    with pytest.raises(NetworkError, match=r"no submodule 'conf'; did you mean 'conv'\?"):
        Tapped(Backbone(), x, "conf")
    with pytest.raises(NetworkError, match=r"no submodule 'stages.7'.*stages\.0, stages\.1, stages\.2$"):
        Tapped(CNN((1, 8, 8)), x, maps=["stages.7"])


def test_parts_that_do_not_run_are_named(x):
    with pytest.raises(NetworkError, match="idle did not run"):
        Tapped(Backbone(), x, "idle")


def test_pooling_of_three_axes_must_be_said():
    sequence, x = TemporalCNN((3, 16), channels=(5,), differences=False), torch.randn(2, 3, 16)
    with pytest.raises(NetworkError, match="pool = time"):
        Tapped(sequence, x, "blocks")
    tapped = Tapped(sequence, x, "blocks", pool="time").eval()
    assert torch.allclose(tapped(x), sequence.blocks(x).mean(dim=2), atol=1e-6)

    picture, y = ViT((1, 8, 8), width=8, depth=1), torch.randn(2, 1, 8, 8)
    tokens = Tapped(picture, y, "blocks.0", pool="tokens").eval()
    first = Tapped(picture, y, "blocks.0", pool="first").eval()
    caught = picture.blocks[0](picture.patches(y).flatten(2).transpose(1, 2) + picture.positions)
    assert torch.allclose(tokens(y), caught.mean(dim=1), atol=1e-6)
    assert torch.allclose(first(y), caught[:, 0], atol=1e-6)


def test_channels_last_maps_are_pooled_as_tokens():
    class Swin(nn.Module):
        def forward(self, x):
            return x.permute(0, 2, 3, 1)

    x = torch.randn(2, 5, 3, 4)
    assert torch.allclose(Tapped(Swin(), x, pool="tokens")(x), x.mean(dim=(2, 3)), atol=1e-6)


def test_what_cannot_be_pooled_is_refused(x):
    with pytest.raises(NetworkError, match=r"gives \(4,\)"):
        Tapped(nn.Flatten(0, 0), torch.randn(4))
    with pytest.raises(NetworkError, match="'conv' gives"):
        Tapped(Backbone(), x, "conv", pool="first")
    with pytest.raises(ConfigError, match="pool must be one of"):
        Tapped(Backbone(), x, pool="max")
