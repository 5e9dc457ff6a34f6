import pytest
import torch
from torch import nn

from crossdistill.errors import ConfigError, NetworkError
from crossdistill.networks import CNN, MLP, Network, Projector, SpectrogramCNN, TemporalCNN, ViT
from crossdistill.networks.base import Encoder
from crossdistill.registry import discover

CASES = [
    (MLP, (64,), {}),
    (MLP, (1, 5, 4), {"hidden": (), "dim": 3}),
    (MLP, (7,), {"norm": False, "dropout": 0.5}),
    (CNN, (1, 28, 28), {}),
    (CNN, (3, 64, 50), {"width": 4, "blocks": (1, 2), "dim": 7}),
    (CNN, (2, 1, 1), {"width": 4}),
    (TemporalCNN, (3, 64), {}),
    (TemporalCNN, (1, 1), {"channels": (4, 4), "kernel": 3, "differences": False, "dropout": 0.2}),
    (TemporalCNN, (3, 13), {"channels": (4, 6), "pool": "flatten", "norm": False}),
    (CNN, (1, 13, 9), {"width": 4, "pool": "flatten", "stem_stride": 4}),
    (SpectrogramCNN, (1, 64, 64), {}),
    (SpectrogramCNN, (1, 13, 9), {"width": 4, "depth": 2, "dim": 5}),
    (ViT, (1, 28, 28), {"depth": 2, "width": 32}),
    (ViT, (3, 16, 24), {"patch": 8, "width": 8, "heads": 2, "depth": 1, "dim": 6}),
]
CONVOLUTIONAL = [
    (CNN, (1, 28, 28), (1, 40, 17)),
    (TemporalCNN, (3, 64), (3, 9)),
    (SpectrogramCNN, (1, 32, 20), (1, 32, 7)),
]


def build(case, seed=0):
    cls, shape, parameters = case
    torch.manual_seed(seed)
    return cls(shape, **parameters)


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_moves_the_features(case):
    encoder = build(case)
    assert isinstance(encoder, Encoder)
    features = encoder(torch.randn(6, *case[1]))
    assert features.shape == (6, encoder.dim)
    (features * torch.randn_like(features)).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    reached = [p.grad.abs().max() > 0 for p in encoder.parameters()]
    assert (
        sum(map(bool, reached)) >= len(reached) - 1
    )  # a picture of one pixel cannot reach the last norm's every scale


@pytest.mark.parametrize("case", CASES)
def test_eval_treats_each_sample_alone(case):
    encoder = build(case).eval()
    x = torch.randn(5, *case[1])
    together = encoder(x)
    assert torch.allclose(together[2:3], encoder(x[2:3]), atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_a_seed_decides_the_weights(case):
    one, same, other = build(case), build(case), build(case, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), same.state_dict().values(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("case", [c for c in CASES if 1 not in c[1][1:]])
def test_features_start_at_a_sensible_scale(case):
    encoder = build(case)
    spread = encoder(torch.randn(64, *case[1])).std(dim=0).mean()
    assert 0.03 < spread < 3


@pytest.mark.parametrize("case", CASES)
def test_a_wider_one_differs_in_its_widths_alone(case):
    encoder = build(case).eval()
    wide = encoder.widened(3).eval()
    x = torch.randn(2, *case[1])
    assert wide.dim == 3 * encoder.dim
    assert wide(x).shape == (2, wide.dim)
    assert [type(part) for part in wide.modules()] == [type(part) for part in encoder.modules()]
    for one, other in zip(encoder.modules(), wide.modules(), strict=True):
        for option in ("p", "kernel_size", "stride", "heads"):
            assert getattr(one, option, None) == getattr(other, option, None)
    for name, tensor in encoder.state_dict().items():
        ratios = [b / a for a, b in zip(tensor.shape, wide.state_dict()[name].shape, strict=True)]
        assert set(ratios) <= {1.0, 3.0}, name
    assert sum(p.numel() for p in wide.parameters()) > 2 * sum(p.numel() for p in encoder.parameters())


@pytest.mark.parametrize(("cls", "built", "given"), CONVOLUTIONAL)
def test_other_sizes_work_where_space_or_time_is_pooled(cls, built, given):
    encoder = cls(built)
    assert encoder(torch.randn(2, *given)).shape == (2, encoder.dim)


def test_mlp_is_the_network_of_the_synthetic_experiment():
    layers = [type(part).__name__ for part in MLP((64,)).layers]
    assert layers == ["Flatten", "Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Linear"]
    linear = [part for part in MLP((64,)).layers if isinstance(part, nn.Linear)]
    assert [(part.in_features, part.out_features) for part in linear] == [(64, 128), (128, 128), (128, 64)]


def test_linear_mlp_is_linear():
    encoder = MLP((4,), hidden=(), dim=3).double()
    x, y = torch.randn(2, 5, 4, dtype=torch.float64)
    zero = encoder(torch.zeros_like(x))
    assert torch.allclose(encoder(x + y), encoder(x) + encoder(y) - zero)


def test_spectrogram_cnn_tells_frequencies_apart_but_pools_time():
    torch.manual_seed(0)
    encoder = SpectrogramCNN((1, 32, 32), depth=2).eval()
    low, high = torch.zeros(2, 1, 1, 32, 32)
    low[..., 4:8, :] = 1
    high[..., 20:24, :] = 1
    assert not torch.allclose(encoder(low), encoder(high), atol=1e-2)
    long = torch.cat([high] * 4, dim=-1)
    edge = (encoder(long) - encoder(high)).norm()  # borders differ, the sound does not
    assert edge < (encoder(low) - encoder(high)).norm() / 2


def test_vit_knows_positions():
    torch.manual_seed(0)
    encoder = ViT((1, 8, 8), width=16, depth=1).eval()
    with torch.no_grad():
        encoder.positions.mul_(50)
    x = torch.randn(1, 1, 8, 8)
    assert not torch.allclose(encoder(x), encoder(x.roll(4, dims=3)), atol=1e-3)
    with torch.no_grad():
        encoder.positions.zero_()
    assert torch.allclose(encoder(x), encoder(x.roll(4, dims=3)), atol=1e-5)


@pytest.mark.parametrize(
    ("cls", "shape"),
    [
        (MLP, ()),
        (MLP, (0,)),
        (CNN, (28, 28)),
        (CNN, (1, 28, 28.0)),
        (TemporalCNN, (64,)),
        (SpectrogramCNN, (32, 32)),
        (ViT, (1, 28, -4)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(cls, shape):
    with pytest.raises(NetworkError, match="received"):
        cls(shape)


@pytest.mark.parametrize(
    ("cls", "shape", "parameters", "word"),
    [
        (MLP, (4,), {"dim": 0}, "dim must be a whole number >= 1"),
        (MLP, (4,), {"hidden": (8, 0)}, "hidden"),
        (MLP, (4,), {"dropout": 1.0}, "dropout"),
        (CNN, (1, 8, 8), {"width": True}, "width"),
        (CNN, (1, 8, 8), {"blocks": ()}, "blocks"),
        (CNN, (1, 8, 8), {"stem_stride": 3}, "stem_stride"),
        (TemporalCNN, (1, 8), {"channels": ()}, "channels"),
        (TemporalCNN, (1, 8), {"kernel": 4}, "kernel must be odd"),
        (TemporalCNN, (1, 8), {"pool": "max"}, "pool must be one of"),
        (CNN, (1, 8, 8), {"pool": "max"}, "pool must be one of"),
        (SpectrogramCNN, (1, 8, 8), {"width": -1}, "width"),
        (ViT, (1, 8, 8), {"width": 10, "heads": 4}, "multiple of heads"),
    ],
)
def test_parameters_out_of_range_are_refused_by_name(cls, shape, parameters, word):
    with pytest.raises(ConfigError, match=word):
        cls(shape, **parameters)


def test_vit_says_which_patches_fit():
    with pytest.raises(NetworkError, match="These fit: 2, 4, 7, 14, 28"):
        ViT((1, 28, 28), patch=5)
    with pytest.raises(NetworkError, match="Resize"):
        ViT((1, 7, 5), patch=2)


@pytest.mark.parametrize(
    ("encoder", "shape"),
    [
        (CNN((3, 16, 16), width=4), (2, 1, 16, 16)),
        (TemporalCNN((3, 16), channels=(4,)), (2, 3)),
        (TemporalCNN((3, 16), channels=(4,), pool="flatten"), (2, 3, 18)),
        (CNN((1, 8, 8), width=4, pool="flatten"), (2, 1, 8, 10)),
        (SpectrogramCNN((1, 16, 16), width=4), (2, 1, 12, 16)),
        (ViT((1, 8, 8), width=8, depth=1), (2, 1, 8, 12)),
    ],
)
def test_batches_that_do_not_fit_are_refused(encoder, shape):
    with pytest.raises(NetworkError, match=r"was built for|pool flatten reads"):
        encoder(torch.randn(shape))


def test_networks_are_found_by_name():
    found = discover("crossdistill.networks")
    assert dict(found) == {
        "mlp": MLP,
        "cnn": CNN,
        "temporal_cnn": TemporalCNN,
        "spectrogram_cnn": SpectrogramCNN,
        "vit": ViT,
    }


def test_projector_is_simclr_head():
    projector = Projector(10)
    linear = [part for part in projector.layers if isinstance(part, nn.Linear)]
    assert [(part.in_features, part.out_features) for part in linear] == [(10, 10), (10, 64)]
    assert [type(part) for part in projector.layers] == [nn.Linear, nn.ReLU, nn.Linear]
    assert Projector(10, layers=1, out=3)(torch.randn(1, 10)).shape == (1, 3)


def test_projector_norms():
    projector = Projector(6, hidden=12, out=5, layers=3, norm=True, last_norm=True)
    embedding = projector(torch.randn(400, 6))
    assert torch.allclose(embedding.mean(dim=0), torch.zeros(5), atol=1e-5)
    assert torch.allclose(embedding.var(dim=0, unbiased=False), torch.ones(5), atol=1e-2)
    with pytest.raises(ConfigError, match="layers"):
        Projector(6, layers=0)


def test_network_hands_features_to_projector_and_head():
    encoder = MLP((4,), dim=6)
    outputs = Network(encoder, projector=Projector(6, out=3), head=nn.Linear(6, 2)).eval()(torch.randn(5, 4))
    assert outputs.features.shape == (5, 6)
    assert outputs.read("embedding").shape == (5, 3)
    assert outputs.read("logits").shape == (5, 2)
    assert outputs.maps is None
