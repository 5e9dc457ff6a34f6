"""Batches in which one row alone has a modality: it cannot fill a batch norm, and its terms are left out."""

import pytest
import torch
from torch import nn

from crossdistill.experiments.signatures import parameters_of
from crossdistill.networks import MLP
from crossdistill.registry import discover

SEVERAL = {name: cls for name, cls in discover("crossdistill.methods").items() if "encoders" in parameters_of(cls)}


class Data(list):
    epochs, steps_per_epoch = 10, 1

    def __len__(self):
        return 8

    def batches(self):
        return iter(self)


@pytest.mark.parametrize("name", SEVERAL)
def test_one_row_of_a_modality_is_left_out(name):
    torch.manual_seed(0)
    cls, sizes = SEVERAL[name], {"rich": 5, "poor": 3}
    encoders = {m: MLP((n,), hidden=(6,), dim=4) for m, n in sizes.items()}
    assert any(isinstance(part, nn.BatchNorm1d) for part in encoders["poor"].modules())
    roles = {"encoders": encoders, "classes": 2, "source": "rich", "target": "poor"}
    method = cls(**{role: value for role, value in roles.items() if role in parameters_of(cls)})
    x = {m: torch.randn(8, n) for m, n in sizes.items()}
    x |= {f"{m}#1": torch.randn(8, n) for m, n in sizes.items()}
    batch = {**x, "label": torch.arange(8) % 2, "index": torch.arange(8)}
    method.eval().before_stage(Data([batch]))
    here = torch.arange(8) == 3
    for losses in method.train().training_steps({**batch, "present": {"poor": here, "rich": torch.ones_like(here)}}):
        if losses.terms:
            assert torch.isfinite(losses.total)
            losses.total.backward()
