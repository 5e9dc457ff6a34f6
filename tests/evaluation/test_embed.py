import numpy as np
import pytest
import torch
from torch import nn

from crossdistill.errors import ConfigError, DataError, NetworkError
from crossdistill.evaluation import embed, few_labels
from crossdistill.networks.base import Network


class Encoder(nn.Module):
    dim = 3

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(self.drop(self.norm(x)))


def test_features_are_those_of_eval_mode_in_order():
    encoder, x = Encoder(), torch.randn(7, 4)
    encoder.drop.eval()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    features = embed(encoder, x.split(3))
    assert features.shape == (7, 3)
    assert features.dtype == np.float32
    assert encoder.training
    assert encoder.norm.training
    assert not encoder.drop.training
    assert all(torch.equal(before[key], value) for key, value in encoder.state_dict().items())
    expected = encoder.eval()(x).detach().numpy()
    assert np.allclose(features, expected, atol=1e-6)


def test_outputs_and_maps_are_understood():
    x = torch.randn(5, 4)
    encoder = Encoder()
    assert np.array_equal(embed(Network(encoder, head=nn.Linear(3, 2)), [x]), embed(encoder, [x]))
    maps = torch.randn(2, 3, 4, 4)
    assert np.allclose(embed(nn.Identity(), [maps]), maps.mean(dim=(2, 3)).numpy(), atol=1e-6)


def test_half_precision_becomes_float32():
    assert embed(nn.Identity(), [torch.ones(2, 3, dtype=torch.bfloat16)]).dtype == np.float32


def test_modes_are_restored_after_an_error():
    encoder = Encoder()
    with pytest.raises(DataError, match="sample 4 is not finite"):
        embed(encoder, [torch.zeros(3, 4), torch.tensor([[0.0] * 4, [0.0, torch.nan, 0.0, 0.0]])])
    with pytest.raises(RuntimeError):
        embed(encoder, [torch.zeros(3, 5)])
    assert encoder.training
    with pytest.raises(DataError, match="nothing to encode"):
        embed(encoder, [])
    with pytest.raises(NetworkError):
        embed(nn.Flatten(0), [torch.zeros(3, 4)])


@pytest.fixture
def label():
    return np.random.default_rng(0).permutation(np.repeat(["a", "b", "c"], [5, 9, 6]))


@pytest.mark.parametrize("seed", range(5))
def test_few_labels_are_stratified_and_nested(label, seed):
    chosen = {k: few_labels(label, k, seed) for k in range(1, 6)}
    for k, positions in chosen.items():
        assert len(set(positions.tolist())) == 3 * k
        assert (np.diff(positions) > 0).all()
        assert np.unique(label[positions], return_counts=True)[1].tolist() == [k] * 3
    for k in range(1, 5):
        assert set(chosen[k]) < set(chosen[k + 1])
    assert np.array_equal(chosen[3], few_labels(label.tolist(), 3, seed))


def test_few_labels_are_drawn_evenly(label):
    counts = np.zeros(len(label))
    for seed in range(600):
        counts[few_labels(label, 1, seed)] += 1
    for name, size in (("a", 5), ("b", 9), ("c", 6)):
        share = counts[label == name] / 600
        assert np.abs(share - 1 / size).max() < 4.5 * np.sqrt((1 / size) * (1 - 1 / size) / 600)


def test_few_labels_borders(label):
    assert np.array_equal(few_labels(label, None, 0), np.arange(20))
    with pytest.raises(DataError, match="class a has 5 labelled samples, 6 were asked for"):
        few_labels(label, 6, 0)
    for k, seed in ((0, 0), (1, -1)):
        with pytest.raises(ConfigError, match="k >= 1"):
            few_labels(label, k, seed)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.float64])
def test_few_labels_pass_over_rows_without_one(seed, dtype):
    full = np.random.default_rng(1).permutation(np.repeat([0, 1, 2], [5, 9, 6])).astype(dtype)
    known = np.sort(np.random.default_rng(2).permutation(60)[:20])
    column = np.full(60, -1, dtype=dtype)
    column[known] = full
    for k in (1, 2, 5, None):
        assert np.array_equal(few_labels(column, k, seed), known[few_labels(full, k, seed)])
    assert set(few_labels(column, 2, seed)) < set(few_labels(column, 5, seed)) < set(few_labels(column, None, seed))


def test_few_labels_name_the_poor_class():
    column = np.array([0, 0, 0, 0, 0, 1, -1, 1, -1, 1, 2, 2, 2, 2, 2])
    with pytest.raises(DataError, match=r"class 'cat' \(1\) has 3 labelled samples, 5 were asked for"):
        few_labels(column, 5, 0, names=("owl", "cat", "dog"))
    with pytest.raises(DataError, match="class 1 has 3 labelled samples"):
        few_labels(column, 5, 0, names=("owl",))
    for k in (1, None):
        with pytest.raises(DataError, match="none of 4 samples is labelled"):
            few_labels(np.full(4, -1), k, 0)
