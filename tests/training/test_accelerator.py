"""What training does on a GPU; skipped where there is none."""

import numpy as np
import pytest
import torch

from crossdistill.data import Modality, PairedDataset, loader
from crossdistill.data.moving import fetched
from crossdistill.data.transforms import build_transforms
from crossdistill.methods import Distillation
from crossdistill.networks import CNN
from crossdistill.objectives import CrossModalContrastive, SimilarityDistillation
from crossdistill.training import Settings, TeacherStore, fit

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

CHAIN = ["affine", "crop", "flip", "erase", "jitter", "noise"]


@pytest.fixture
def pictures():
    rng = np.random.default_rng(0)
    shapes = {"image": (3, 16, 16), "depth": (1, 16, 16)}
    arrays = {name: rng.normal(size=(256, *shape)).astype(np.float32) for name, shape in shapes.items()}
    modalities = {name: Modality(name=name, kind="image", shape=shape, mean=(0.1,)) for name, shape in shapes.items()}
    data = PairedDataset(arrays, modalities, name="drawn", split=np.zeros(256, dtype=np.uint8))
    return data.augmented({"depth": build_transforms(CHAIN, data.modality("depth"))})


class Watched(Distillation):
    """Refuses between the second step and the last whatever would wait for the device."""

    steps = 0

    def after_step(self) -> None:
        super().after_step()
        self.steps += 1
        torch.cuda.set_sync_debug_mode("error" if 2 <= self.steps < 7 else "default")


def distillation(kind: type[Distillation] = Distillation) -> Distillation:
    torch.manual_seed(0)
    terms = {"similarity": SimilarityDistillation(), "contrastive": CrossModalContrastive()}
    return kind(CNN((1, 16, 16)), teacher=CNN((3, 16, 16)), objectives=terms, source="image", target="depth")


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("stored", [True, False])
def test_no_step_waits_for_the_device(pictures, tmp_path, monkeypatch, stored, held):
    if not held:
        monkeypatch.setattr(loader, "HELD", 0)
    method = distillation(Watched)
    try:
        fit(
            method,
            pictures,
            Settings(epochs=1, batch_size=32),
            seed=0,
            store=TeacherStore(tmp_path) if stored else None,
        )
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert method.steps == 8


@pytest.mark.parametrize("held", [True, False])
def test_batches_are_those_of_the_cpu(pictures, monkeypatch, held):
    if not held:
        monkeypatch.setattr(loader, "HELD", 0)
    shuffled = pictures.shuffled("depth", seed=3)
    views = {"image": 1, "depth": 2}
    here, there = (shuffled.loader(views, batch_size=100, seed=0, drop_last=False) for _ in range(2))
    there.to(torch.device("cuda"))
    for ours, theirs in zip(here.epoch(1), there.epoch(1), strict=True):
        for name in ("image", "depth", "depth#1"):
            torch.testing.assert_close(theirs[name].cpu(), ours[name], rtol=1e-4, atol=1e-4)
            assert theirs[name].is_cuda
    assert bool(there._hold()) == held


def test_it_learns_what_the_cpu_learns(pictures, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    students = {}
    for device in ("cpu", "cuda"):
        method = distillation()
        start = torch.cat([p.detach().reshape(-1).clone() for p in method.student("depth").parameters()])
        fit(method, pictures, Settings(epochs=1, batch_size=64, optimizer="sgd", lr=0.01), seed=0, accelerator=device)
        students[device] = torch.cat([p.detach().cpu().reshape(-1) for p in method.student("depth").parameters()])
    way = (students["cpu"] - start).norm()
    assert way > 0
    assert (students["cuda"] - students["cpu"]).norm() < 0.01 * way


def test_what_is_fetched_is_what_was_there():
    x = torch.randn(64, 3, 8, 8, device="cuda").to(memory_format=torch.channels_last)
    nested = {
        "state": {0: {"step": x.sum(), "moment": x}},
        "groups": [{"lr": 0.1, "params": [0]}],
        "here": torch.ones(2),
    }
    found = fetched(nested)
    torch.testing.assert_close(found["state"][0]["moment"], x.cpu(), rtol=0, atol=0)
    assert found["state"][0]["step"].device == torch.device("cpu")
    assert found["groups"] == nested["groups"]
    assert found["here"] is nested["here"]
