"""Batches in which one row alone has a modality, or of one row: what a batch norm in training cannot learn from."""

import pytest
import torch
from torch import nn

from crossdistill.errors import DataError
from crossdistill.experiments.signatures import parameters_of
from crossdistill.networks import CNN, MLP, Network
from crossdistill.objectives.regression import Cosine
from crossdistill.registry import discover

SEVERAL = {name: cls for name, cls in discover("crossdistill.methods").items() if "encoders" in parameters_of(cls)}


class Data(list):
    epochs, steps_per_epoch = 10, 1
    pairing = "natural"

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


def build(cls, encoder):
    """Make a method of two modalities of small networks."""
    torch.manual_seed(0)
    networks = {"rich": encoder(5), "poor": encoder(3)}
    taught = Network(MLP((5,), hidden=(6,), dim=4), head=nn.Linear(4, 2))
    roles = {
        "encoders": networks, "encoder": networks["poor"], "student": networks["poor"], "modality": "poor",
        "classes": 2, "source": "rich", "target": "poor", "objectives": {"cosine": Cosine()},
    }  # fmt: skip
    wanted = parameters_of(cls)
    if wanted.get("teacher", (None, None))[1] is ...:
        roles["teacher"] = taught
    return cls(**{role: value for role, value in roles.items() if role in wanted})


@pytest.mark.parametrize("name", discover("crossdistill.methods"))
@pytest.mark.parametrize("norm", [True, False])
def test_a_batch_of_one_row_is_refused_in_our_words_or_has_a_finite_loss(name, norm):
    cls = discover("crossdistill.methods")[name]
    method = build(cls, lambda n: MLP((n,), hidden=(6,), dim=4, norm=norm))
    rows = {m: torch.randn(8, n) for m, n in (("rich", 5), ("poor", 3))}
    rows |= {f"{m}#1": torch.randn(8, n) for m, n in (("rich", 5), ("poor", 3))}
    batch = {**rows, "label": torch.arange(8) % 2, "index": torch.arange(8)}
    method.eval().before_stage(Data([batch]))
    one = {key: value[:1] for key, value in batch.items()}
    for training in (False, True):
        method.train(training)
        refused = False
        try:
            losses = [losses for losses in method.training_steps(one) if losses.terms]
        except DataError as error:
            refused = True
            assert "one row" in str(error) or "two rows" in str(error)
        else:
            assert all(torch.isfinite(each.total) for each in losses)
        assert not refused or training
        own_norms = name in ("c2kd", "discomkd")  # of their proxies and projectors
        if training and name != "discomkd":  # which leaves such a batch out
            assert refused == (norm or own_norms)


def test_one_picture_is_enough_for_batch_norms_of_maps():
    torch.manual_seed(0)
    network = Network(CNN((1, 8, 8), width=4, blocks=(1,), dim=4, norm=False))
    assert torch.isfinite(network(torch.randn(1, 1, 8, 8)).features).all()
    with pytest.raises(DataError, match="a batch of one row is too little for a batch norm"):
        Network(CNN((1, 2, 2), width=4, blocks=(1, 1), dim=4))(torch.randn(1, 1, 2, 2))


def test_what_a_network_of_ones_own_raises_is_left_as_it_is():
    class Odd(nn.Module):
        dim = 3

        def forward(self, x):
            raise ValueError("of my own")

    for rows in (1, 2):
        with pytest.raises(ValueError, match="of my own"):
            Network(Odd())(torch.randn(rows, 3))
