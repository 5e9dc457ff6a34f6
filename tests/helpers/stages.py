"""Training methods whole, and stopped at every step and resumed: what tests of methods of several networks share."""

import itertools

import pytest
import torch

from crossdistill.errors import Interrupted
from crossdistill.training import Settings, fit

SHORT = Settings(epochs=2, batch_size=40, lr=0.01, checkpoint_every=1)  # 4 steps an epoch of the toy data


def learn(method, data, settings=SHORT, *, seed=5, **how):
    return fit(method, data, settings, seed=seed, accelerator="cpu", **how)


def train(make, data, settings=SHORT, **how):
    torch.manual_seed(1)
    return learn(make(), data, settings, **how)


def labelled_batch(n=9, seed=0):
    """Random rows of the shapes of the toy data."""
    g = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 4, (n,), generator=g)
    return {"rich": torch.randn(n, 12, generator=g), "poor": torch.randn(n, 8, generator=g), "label": label}


def same(one, other):
    a, b = one.state_dict(), other.state_dict()
    equal = [torch.equal(v, b[k]) if torch.is_tensor(v) else v == b[k] for k, v in a.items() if k in b]
    return a.keys() == b.keys() and len(equal) > 1 and all(equal)


def after(steps):
    """Stop after so many steps."""
    calls = itertools.count(1)
    return lambda: next(calls) == steps


def check_resumes(make, data, folder, steps=range(1, 8), **how):
    """Stopped after each of `steps` and resumed, the method ends with the same bits."""
    whole = train(make, data, **how)
    for step in steps:
        with pytest.raises(Interrupted):
            train(make, data, folder=folder / f"{step}", stop=after(step), **how)
        assert same(train(make, data, folder=folder / f"{step}", **how), whole), step
    return whole
