"""SimCLR and supervised training: what each learns from, and what it leaves to be deployed or to teach."""

import math

import pytest
import torch
from torch.nn import functional as F

from crossdistill.data import build_transforms
from crossdistill.errors import ConfigError, NetworkError
from crossdistill.methods import SimCLR, Supervised
from crossdistill.networks import MLP
from crossdistill.training import Settings, fit

SETTINGS = Settings(epochs=6, batch_size=32, lr=0.01)


def encoder():
    torch.manual_seed(0)
    return MLP((8,), hidden=(16,), dim=8)


def noisy(rows):
    return rows.augmented({"poor": build_transforms([{"noise": {"std": 0.3}}], rows.modality("poor"))})


def test_simclr_lets_two_views_find_each_other():
    method = SimCLR(encoder(), modality="poor", tau=0.5, embedding=5).eval()
    x, y = torch.randn(6, 8), torch.randn(6, 8)
    z = F.normalize(torch.cat([method.network(x).embedding, method.network(y).embedding]))
    loss = 0.0
    for i in range(12):  # NT-Xent, equation 1 of Chen et al. 2020, a row at a time
        others = [j for j in range(12) if j != i]
        logits = z[others] @ z[i] / 0.5
        loss -= (logits[others.index((i + 6) % 12)] - logits.logsumexp(0)).item() / 12
    assert method.training_step({"poor": x, "poor#1": y}).total.item() == pytest.approx(loss, rel=1e-5)


def test_simclr_learns_without_a_label(toy):
    rows = noisy(toy.split("train"))
    method = SimCLR(encoder(), modality="poor")
    batch = next(rows.loader({"poor": 2}, batch_size=160, seed=9).epoch(0))
    before = method.eval().training_step(batch).total.item()
    fit(method, rows, SETTINGS, seed=0, accelerator="cpu")
    assert method.training_step(batch).total.item() < before


def test_simclr_deploys_the_encoder_and_teaches_with_its_embedding():
    method = SimCLR(encoder(), modality="poor", embedding=5)
    assert dict(method.inputs()) == {"poor": 2}
    assert method.student("poor") is method.network.encoder
    outputs = method.as_teacher("poor").eval()(torch.zeros(3, 8))
    assert (outputs.features.shape, outputs.embedding.shape, outputs.logits) == ((3, 8), (3, 5), None)


def test_supervised_learns_its_labels_and_logs_the_accuracy(toy):
    rows = toy.split("train")
    method = Supervised(encoder(), modality="poor", classes=4)
    fit(method, rows, SETTINGS, seed=0, labels=True, accelerator="cpu")
    batch = next(rows.loader({"poor": 1}, batch_size=160, seed=0, labels=True).epoch(0))
    losses = method.training_step(batch)
    logits = method.network(batch["poor"]).logits
    assert torch.allclose(losses.total, F.cross_entropy(logits, batch["label"]))
    assert losses.logged["accuracy"] == (logits.argmax(1) == batch["label"]).float().mean()
    assert losses.logged["accuracy"] > 0.5  # chance is a quarter


def test_label_smoothing_spreads_probability():
    batch = {"poor": torch.randn(5, 8), "label": torch.tensor([0, 1, 2, 3, 0])}
    method = Supervised(encoder(), modality="poor", classes=4, label_smoothing=0.2).eval()
    log_p = method.network(batch["poor"]).logits.log_softmax(1)
    target = torch.full((5, 4), 0.05).scatter(1, batch["label"][:, None], 0.85)
    assert torch.allclose(method.training_step(batch).total, -(target * log_p).sum(1).mean(), atol=1e-6)


def test_supervised_teaches_with_its_logits():
    method = Supervised(encoder(), modality="poor", classes=4)
    assert method.student("poor") is method.network.encoder
    assert method.as_teacher("poor").eval()(torch.zeros(3, 8)).logits.shape == (3, 4)


@pytest.mark.parametrize(
    "method", [SimCLR(encoder(), modality="poor"), Supervised(encoder(), modality="poor", classes=2)]
)
def test_no_encoder_of_another_modality(method):
    for ask in (method.student, method.as_teacher):
        with pytest.raises(NetworkError, match="trains an encoder of 'poor', none of 'rich'"):
            ask("rich")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SimCLR(encoder(), modality="a", tau=0.0), "tau must be a temperature"),
        (lambda: SimCLR(encoder(), modality="a", tau=math.nan), "tau must be a temperature"),
        (lambda: SimCLR(encoder(), modality="a", embedding=0), "embedding >= 1"),
        (lambda: Supervised(encoder(), modality="a", classes=1), "classes >= 2"),
        (lambda: Supervised(encoder(), modality="a", classes=2, label_smoothing=1.0), "received 2, 1.0"),
    ],
)
def test_parameters_out_of_range_are_refused(build, message):
    with pytest.raises(ConfigError, match=message):
        build()
