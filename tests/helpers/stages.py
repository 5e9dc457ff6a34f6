"""Training a method whole, and stopped at every step and resumed: what tests of methods with phases share."""

import pytest
import torch

from crossdistill.errors import Interrupted
from crossdistill.training import Settings, fit

SHORT = Settings(epochs=2, batch_size=40, lr=0.01, checkpoint_every=1)  # 4 steps an epoch of the toy data


def train(make, data, settings=SHORT, *, seed=5, **how):
    torch.manual_seed(1)
    return fit(make(), data, settings, seed=seed, accelerator="cpu", **how)


def same(one, other):
    a, b = one.state_dict(), other.state_dict()
    tensors = [name for name in a if isinstance(a[name], torch.Tensor)]
    return a.keys() == b.keys() and len(tensors) > 1 and all(torch.equal(a[name], b[name]) for name in tensors)


def check_resumes(make, data, folder, steps=range(1, 8), **how):
    """Stopped after each of `steps` and resumed, the method ends with the same bits."""
    whole = train(make, data, **how)
    for step in steps:
        calls = []

        def stop(calls=calls, step=step):
            calls.append(None)
            return len(calls) == step

        with pytest.raises(Interrupted):
            train(make, data, folder=folder / f"{step}", stop=stop, **how)
        assert same(train(make, data, folder=folder / f"{step}", **how), whole), step
    return whole
