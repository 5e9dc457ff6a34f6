"""Teachers of augmented samples, stored for each epoch: what is stored is what training would have shown them."""

import importlib
import linecache
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from worlds import Distil, Teacher

from crossdistill.data import Modality, PairedDataset
from crossdistill.data.transforms import build_transforms, transform_identity
from crossdistill.errors import ConfigError, DataError, TrainingError
from crossdistill.methods.base import freeze
from crossdistill.training import Settings, TeacherStore, fit

SETTINGS = Settings(epochs=4, batch_size=16, lr=0.01)
N = 48


def pairs(*, std=0.5, repeat=None, plain=False):
    rng = np.random.default_rng(0)
    image = rng.normal(size=(N, 6)).astype(np.float32)
    arrays = {"image": image, "audio": (image @ rng.normal(size=(6, 4))).astype(np.float32)}
    kinds = {name: Modality(name=name, kind="vector", shape=array.shape[1:]) for name, array in arrays.items()}
    data = PairedDataset(arrays, kinds)
    noise = {"image": build_transforms([{"noise": {"std": std}}], data.modality("image"))}
    return data if plain else data.augmented(noise, repeat=repeat)


def shown(data, epoch, seed=5, workers=0):
    """What training shows of the image in an epoch, in the order of positions."""
    found = torch.zeros(N, 6)
    for batch in data.loader({"image": 1, "audio": 1}, batch_size=7, seed=seed, drop_last=False, workers=workers).epoch(
        epoch
    ):
        found[batch["index"]] = batch["image"]
    return found


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epochs_store_is_what_training_shows_whichever_epoch_comes_first(workers, tmp_path):
    teacher, data = freeze(nn.Linear(6, 3)), pairs()
    found = {}
    for folder, epochs in ((tmp_path / "a", (0, 1, 2)), (tmp_path / "b", (2, 0))):
        store = TeacherStore(folder, replay=True)
        for epoch in epochs:
            kept = store.outputs(teacher, data, "image", seed=5, epoch=epoch).rows(torch.arange(N)).features
            live = teacher(shown(data, epoch, workers=workers))
            torch.testing.assert_close(kept, live, rtol=1e-6, atol=1e-6)
            assert torch.equal(found.setdefault(epoch, kept), kept)
        assert len(list(folder.iterdir())) == len(epochs)
    assert (found[0] - found[1]).abs().max() > 0.1
    other = TeacherStore(tmp_path / "a", replay=True).outputs(teacher, data, "image", seed=6, epoch=0)
    assert (other.rows(torch.arange(N)).features - found[0]).abs().max() > 0.1


def test_k_views_serve_any_number_of_epochs(tmp_path):
    teacher, data, store = freeze(nn.Linear(6, 3)), pairs(repeat=3), TeacherStore(tmp_path, replay=True)
    assert torch.equal(shown(data, 1), shown(data, 7))
    assert not torch.equal(shown(data, 1), shown(data, 2))
    assert torch.equal(shown(data, 2), shown(pairs(), 2))  # the first K epochs are as ever
    for epoch in range(8):
        kept = store.outputs(teacher, data, "image", seed=5, epoch=epoch).rows(torch.arange(N)).features
        torch.testing.assert_close(kept, teacher(shown(data, epoch)), rtol=1e-6, atol=1e-6)
    assert len(list(tmp_path.iterdir())) == 3
    with pytest.raises(DataError, match="at least 1, or None; received 0"):
        pairs(repeat=0)


@pytest.mark.parametrize("repeat", [None, 2])
def test_replayed_and_live_teachers_train_the_same_student(repeat, tmp_path):
    data = pairs(repeat=repeat)
    live = fit(Distil(), data, SETTINGS, seed=0, accelerator="cpu")
    plain = fit(Distil(), pairs(plain=True), SETTINGS, seed=0, accelerator="cpu")
    teacher = Teacher()
    for first in (True, False):
        teacher.rows = 0
        replayed = fit(
            Distil(teacher), data, SETTINGS, seed=0, accelerator="cpu", store=TeacherStore(tmp_path, replay=True)
        )
        torch.testing.assert_close(replayed.net[0].weight, live.net[0].weight, rtol=1e-4, atol=1e-5)
        assert all("stored" in seen and "image" not in seen for seen in replayed.seen)
        assert (teacher.rows >= N) == first
    assert (plain.net[0].weight - live.net[0].weight).abs().max() > 1e-3
    assert len(list(tmp_path.iterdir())) == (repeat or 4)


def test_a_replayed_run_that_was_stopped_ends_with_the_same_bits(tmp_path):
    data, how = pairs(), {"seed": 0, "accelerator": "cpu"}
    whole = fit(Distil(dropout=0.3), data, SETTINGS, store=TeacherStore(tmp_path / "a", replay=True), **how)
    with pytest.raises(Exception, match="stopped"):
        steps = iter(range(100))
        fit(
            Distil(dropout=0.3),
            data,
            SETTINGS,
            store=TeacherStore(tmp_path / "b", replay=True),
            folder=tmp_path / "run",
            stop=lambda: next(steps) == 6,
            **how,
        )
    again = fit(
        Distil(dropout=0.3),
        data,
        SETTINGS,
        store=TeacherStore(tmp_path / "b", replay=True),
        folder=tmp_path / "run",
        **how,
    )
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_hooks_see_samples_as_they_are_with_the_teacher_alive(tmp_path):
    class Looks(Distil):
        def before_stage(self, data):
            self.looked = list(data.batches())

    data = pairs()
    method = fit(
        Looks(), data, SETTINGS, seed=0, accelerator="cpu", store=TeacherStore(tmp_path, replay=True), held_out=data
    )
    assert torch.equal(torch.cat([batch["image"] for batch in method.looked]), torch.cat(list(data.samples("image"))))
    assert not any("stored" in batch for batch in method.looked)


def test_another_transform_or_seed_is_named(tmp_path):
    teacher = freeze(nn.Linear(6, 3))
    TeacherStore(tmp_path, replay=True).outputs(teacher, pairs(), "image", seed=0, epoch=1)
    only = TeacherStore(tmp_path, replay=True, compute=False)
    only.outputs(teacher, pairs(), "image", seed=0, epoch=1)
    for what, data, seed, epoch in (
        ("transform was '[^']*', is '[^']*'", pairs(std=0.4), 0, 1),
        ("seed was 0, is 1", pairs(), 1, 1),
        ("epoch was 1, is 2", pairs(), 0, 2),
    ):
        with pytest.raises(TrainingError, match=rf"in the nearest, \w+, {what}$"):
            only.outputs(teacher, data, "image", seed=seed, epoch=epoch)


def test_what_cannot_be_replayed_stays_live(tmp_path):
    @dataclass(frozen=True)
    class Hidden:
        how: object

        def __call__(self, x, draws):
            return x + self.how.size

    class How:
        size = 1.0

    data, store = pairs(), TeacherStore(tmp_path, replay=True)
    unknown = data.augmented({"image": Hidden(How())})
    for wrong, why in (
        (unknown, "parameters that nobody can read"),
        (data.augmented({"image": lambda x, draws: x}), "nobody can read"),
        (data.shuffled("image", 0), "augmented and shuffled"),
    ):
        with pytest.raises(TrainingError, match=why):
            store.outputs(freeze(nn.Linear(6, 3)), wrong, "image", epoch=0)
        method = fit(Distil(), wrong, SETTINGS, seed=0, accelerator="cpu", store=store)
        assert not any("stored" in seen for seen in method.seen)
    assert transform_identity(Hidden(3.0)) != transform_identity(Hidden(4.0)) != ""
    with pytest.raises(TrainingError, match="'image' is augmented"):
        TeacherStore(tmp_path).outputs(freeze(nn.Linear(6, 3)), data, "image", epoch=0)
    with pytest.raises(ConfigError, match="name a folder"):
        TeacherStore(replay=True)


def test_a_transform_is_another_one_when_what_it_inherits_changes(own):
    text = """
        from dataclasses import dataclass

        @dataclass(frozen=True)
        class Base:
            size: float = 1.0

            def __call__(self, x, draws):
                return x + self.size

        @dataclass(frozen=True)
        class Derived(Base):
            pass
        """
    module = importlib.import_module(own(text))
    before = transform_identity(module.Derived())
    path = Path(module.__file__)
    path.write_text(path.read_text().replace("x + self.size", "x - self.size * 2"))
    linecache.checkcache()
    assert transform_identity(importlib.reload(module).Derived()) not in {before, ""}
