"""Channels last change how convolutions are laid out, and neither what they give nor what they learn."""

import copy

import pytest
import torch

from crossdistill.networks import CNN, SpectrogramCNN
from crossdistill.networks.blocks import Residual


@pytest.mark.parametrize("make", [lambda: CNN((3, 9, 7), width=5), lambda: SpectrogramCNN((1, 8, 12), width=3)])
def test_networks_give_and_learn_the_same_in_either_layout(make):
    torch.manual_seed(0)
    ours = make().double().eval()
    plain = copy.deepcopy(ours).to(memory_format=torch.contiguous_format)
    kernels = [p for p in ours.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert kernels
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)
    x = torch.randn(4, *ours.shape, dtype=torch.float64)
    one, other = ours(x), plain(x)
    torch.testing.assert_close(one, other)
    one.square().sum().backward()
    other.square().sum().backward()
    for p, q in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


@pytest.mark.parametrize("axes", [1, 2])
def test_the_way_around_a_block_is_a_strided_convolution(axes):
    block = Residual(3, 6, stride=2, axes=axes).eval()
    x = torch.randn(2, 3, *[7, 4][:axes])
    strided = copy.deepcopy(block.skip)
    strided.stride = (2,) * axes
    torch.testing.assert_close(block(x), torch.relu(block.body(x) + strided(x)))
