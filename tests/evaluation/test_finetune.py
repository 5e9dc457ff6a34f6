import numpy as np
import pytest
import torch
from torch import nn

from crossdistill.errors import ConfigError, DataError, TrainingError
from crossdistill.evaluation import embed, fine_tune, linear_probe
from crossdistill.networks.base import as_outputs


@pytest.fixture
def parts():
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 4))
    y = torch.arange(30) % 3
    x = torch.randn(30, 6) + 2 * torch.eye(6)[y]
    return encoder, nn.Linear(4, 3), x, y


def state(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


def equal(a, b):
    return all(torch.equal(a[key], b[key]) for key in a)


def loss(encoder, head, x, y):
    return nn.functional.cross_entropy(head(as_outputs(encoder.eval()(x)).features), y).item()


def test_copies_learn_and_what_was_given_stays(parts):
    encoder, head, x, y = parts
    before, before_head, rng = state(encoder), state(head), torch.get_rng_state()
    tuned, tuned_head = fine_tune(encoder, head, x, y, steps=60, lr=1e-2, head_lr=1e-2, seed=1)
    assert equal(before, state(encoder))
    assert equal(before_head, state(head))
    assert encoder.training
    assert torch.equal(rng, torch.get_rng_state())
    assert not tuned.training
    assert loss(tuned, tuned_head, x, y) < loss(encoder, head, x, y) / 2


def test_a_seed_decides_everything(parts):
    encoder, head, x, y = parts

    def jitter(batch):
        return batch + 0.1 * torch.randn_like(batch)

    runs = [fine_tune(encoder, head, x, y, steps=5, batch_size=8, seed=s, augment=jitter) for s in (3, 3, 4)]
    assert equal(state(runs[0][0]), state(runs[1][0]))
    assert not equal(state(runs[0][0]), state(runs[2][0]))


def test_learning_rates_belong_to_their_parts(parts):
    encoder, head, x, y = parts
    tuned, tuned_head = fine_tune(encoder, head, x, y, steps=1, lr=0.0, head_lr=0.01, seed=0)
    assert equal(state(tuned), state(encoder))
    moved = (tuned_head.weight - head.weight).abs()
    assert torch.allclose(moved, torch.full_like(moved, 0.01), atol=1e-4)  # Adam's first step is its learning rate


def test_norm_statistics_are_frozen_unless_said(parts):
    encoder, head, x, y = parts
    assert torch.equal(fine_tune(encoder, head, x, y, steps=2)[0][1].running_mean, encoder[1].running_mean)
    free = fine_tune(encoder, head, x, y, steps=2, frozen_norm=False)[0]
    assert not torch.equal(free[1].running_mean, encoder[1].running_mean)
    fine_tune(encoder, head, x[:1], y[:1], steps=2)  # one sample is enough


def test_every_sample_is_seen_equally_often(parts):
    encoder, head, x, y = parts
    seen = []
    fine_tune(encoder, head, x, y, steps=15, batch_size=8, augment=lambda batch: seen.append(batch) or batch)
    first = [int((x == row).all(dim=1).nonzero()) for row in torch.cat(seen)]
    assert np.bincount(first, minlength=30).tolist() == [4] * 30


def test_a_frozen_encoder_thaws_and_starts_from_the_probe(parts):
    encoder, _, x, y = parts
    encoder.eval().requires_grad_(False)
    probe = linear_probe(embed(encoder, [x]), y.numpy())
    tuned, head = fine_tune(encoder, probe.head(), x, y.numpy(), steps=20)
    assert not equal(state(tuned), state(encoder))
    assert loss(tuned, head, x, y) < loss(encoder, probe.head(), x, y)
    assert not any(p.requires_grad for p in encoder.parameters())


def test_what_does_not_fit_is_refused(parts):
    encoder, head, x, y = parts
    with pytest.raises(DataError, match="for 30 samples"):
        fine_tune(encoder, head, x, y[:3])
    with pytest.raises(DataError, match="label 3 has no column"):
        fine_tune(encoder, head, x, y + 1)
    with pytest.raises(ConfigError, match="steps"):
        fine_tune(encoder, head, x, y, steps=0)
    with pytest.raises(TrainingError, match="at step 0"):
        fine_tune(encoder, head, x * torch.inf, y)
