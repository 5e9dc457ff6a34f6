from __future__ import annotations

import numpy as np
import pytest
import torch

from crossdistill.data.draws import Draws, normal, permutation, uniform

INDEX = torch.arange(2000)
UNIFORM = [
    [0.9102988243103027, 0.6536736488342285, 0.8155054450035095],
    [0.5048254728317261, 0.3295642137527466, 0.6671233177185059],
    [0.4090033769607544, 0.7158291935920715, 0.6919323205947876],
]
NORMAL = [-1.7927657, 0.0579215, -0.7214172, -0.6320024, 0.5384709, 0.3854109]
ORDER = [2, 4, 5, 3, 6, 7, 0, 1]


def splitmix(x: int) -> int:
    """Finalise as Steele, Lea and Flood wrote it, in Python's own integers."""
    word = (1 << 64) - 1
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & word
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & word
    return x ^ (x >> 31)


def test_the_hash_is_splitmix64():
    from crossdistill.data.draws import _mix

    words = [0, 1, 2**63, 2**64 - 1, 0x9E3779B97F4A7C15, 12345678901234567890]
    tensor = torch.from_numpy(np.array(words, dtype=np.uint64).view(np.int64).copy())
    assert _mix(tensor).numpy().view(np.uint64).tolist() == [splitmix(w) for w in words]


def test_fixed_values():
    index = torch.tensor([0, 1, 10**12])
    assert torch.equal(uniform(0, 0, index, "a", 3), torch.tensor(UNIFORM, dtype=torch.float32))
    assert normal(0, 0, index, "a", 2).flatten().tolist() == pytest.approx(NORMAL, abs=1e-6)
    assert permutation(3, 1, 8).tolist() == ORDER


@pytest.mark.parametrize("draw", [uniform, normal])
def test_a_row_belongs_to_its_index_and_a_column_to_its_number(draw):
    whole = draw(7, 3, INDEX, "noise", 9)
    some = torch.tensor([5, 1999, 0, 5])
    assert torch.equal(draw(7, 3, some, "noise", 9), whole[some])
    assert torch.equal(draw(7, 3, INDEX, "noise", 4), whole[:, :4])


@pytest.mark.parametrize("draw", [uniform, normal])
def test_another_seed_epoch_or_stream_gives_other_numbers(draw):
    base = draw(0, 0, INDEX, "a", 4)
    for other in (draw(1, 0, INDEX, "a", 4), draw(0, 1, INDEX, "a", 4), draw(0, 0, INDEX, "b", 4)):
        assert (base == other).float().mean() < 0.01
        assert torch.corrcoef(torch.stack([base.flatten(), other.flatten()]))[0, 1].abs() < 0.04
    assert not torch.equal(draw(0, 0, INDEX, "1", 4), draw(0, 0, INDEX, 1, 4))


def test_uniforms_fill_the_interval_evenly():
    u = uniform(0, 0, INDEX, "u", 100)
    assert u.dtype == torch.float32
    assert u.min() >= 0
    assert u.max() < 1
    counts = torch.histc(u, bins=50, min=0, max=1)
    expected = u.numel() / 50
    assert ((counts - expected) ** 2 / expected).sum() < 100  # chi-square of 49 degrees: 85.4 at 0.1 %
    assert torch.corrcoef(u[:, :20].T).fill_diagonal_(0).abs().max() < 0.1
    neighbours = torch.stack([u[:-1].flatten(), u[1:].flatten()])
    assert torch.corrcoef(neighbours)[0, 1].abs() < 0.01


def test_normals_are_normal():
    z = normal(0, 0, INDEX, "z", 100).double()
    assert z.mean().abs() < 0.01
    assert z.square().mean() == pytest.approx(1, abs=0.015)
    assert z.pow(4).mean() == pytest.approx(3, abs=0.1)
    share = (z.abs() < 1.959964).double().mean()
    assert share == pytest.approx(0.95, abs=0.003)


@pytest.mark.parametrize("size", [0, 1, 2, 1000])
def test_permutations(size):
    order = permutation(0, 0, size)
    assert sorted(order) == list(range(size))
    if size == 1000:
        assert abs(np.corrcoef(order, np.arange(size))[0, 1]) < 0.1


def test_shared_draws_forget_the_modality_and_nothing_else():
    a, b = (Draws(seed=0, epoch=0, index=INDEX, modality=name) for name in ("image", "depth"))
    assert torch.equal(a.at("affine", shared=True).uniform("x"), b.at("affine", shared=True).uniform("x"))
    assert not torch.equal(a.at("affine").uniform("x"), b.at("affine").uniform("x"))
    assert not torch.equal(a.at("0").uniform("x"), a.at("1").uniform("x"))
    assert not torch.equal(a.uniform("x"), a.uniform("y"))
    second = Draws(seed=0, epoch=0, index=INDEX, modality="image", view=1)
    assert not torch.equal(a.uniform("x"), second.uniform("x"))
