import json

import numpy as np
import pytest
import torch
from torch import nn
from worlds import Distil, Pairs, Regression, Teacher

from crossdistill.errors import TrainingError
from crossdistill.methods.base import freeze
from crossdistill.networks.base import Outputs
from crossdistill.training import Settings, TeacherStore, fit

SETTINGS = Settings(epochs=3, batch_size=16, lr=0.01)


def train(method, data, **how):
    return fit(method, data, SETTINGS, seed=0, accelerator="cpu", **how)


@pytest.mark.parametrize("kept", [True, False])
def test_a_row_is_what_the_teacher_gives(kept, tmp_path):
    teacher, data = freeze(Teacher()), Pairs(600)
    outputs = TeacherStore(tmp_path if kept else None).outputs(teacher, data, "image")
    rows = torch.tensor([599, 0, 17, 17])
    live = teacher(data.arrays["image"])
    for name in ("features", "embedding", "logits"):
        expected = getattr(live, name)[rows]
        torch.testing.assert_close(getattr(outputs.rows(rows), name), expected, rtol=1e-5, atol=1e-6)
    assert len(outputs) == 600


def test_the_files_are_plain_arrays_with_their_facts(tmp_path):
    TeacherStore(tmp_path).outputs(freeze(Teacher()), Pairs(600), "image")
    (folder,) = tmp_path.iterdir()
    assert {p.name for p in folder.iterdir()} == {"features.npy", "embedding.npy", "logits.npy", "store.json"}
    features = np.load(folder / "features.npy", allow_pickle=False)
    about = json.loads((folder / "store.json").read_text())["outputs"]["features"]
    assert features.dtype == np.float32
    assert about == {"shape": [600, 6], "largest": float(np.abs(features).max())}


def test_several_students_cost_one_pass(tmp_path):
    data, teacher = Pairs(), Teacher()
    for store in (TeacherStore(tmp_path), TeacherStore(tmp_path), TeacherStore()):
        teacher.rows = 0
        for seed in range(3):
            train(Distil(teacher, seed=seed), data, store=store)
        opened_before = store.folder is not None and teacher.rows < len(data)
        assert teacher.rows == (8 if opened_before else len(data))  # eight rows compare what is kept with the living


def test_stored_and_live_teachers_train_the_same_student(tmp_path):
    live = train(Distil(dropout=0.3), Pairs(), held_out=Pairs(20, seed=1))
    for store in (TeacherStore(), TeacherStore(tmp_path), TeacherStore(tmp_path)):
        stored = train(Distil(dropout=0.3), Pairs(), store=store, held_out=Pairs(20, seed=1))
        for one, other in zip(stored.parameters(), live.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_stored_modality_is_not_even_read():
    data = Pairs()
    method = train(Distil(), data, store=TeacherStore())
    assert all("image" not in seen and "stored" in seen for seen in method.seen)
    assert data.read == ["image", "audio"]  # once for the store, and then never again


def test_a_modality_that_a_student_reads_is_kept():
    class Both(Distil):
        def student(self, modality):
            return self.net

    method = train(Both(), Pairs(), store=TeacherStore())
    assert all({"image", "stored"} <= seen for seen in method.seen)


def test_shuffled_pairs_stay_shuffled_when_their_source_is_not_read():
    data = Pairs(cycle=True)
    live = train(Distil(), data)
    stored = train(Distil(), data, store=TeacherStore())
    true = train(Distil(), Pairs(), store=TeacherStore())
    torch.testing.assert_close(stored.net[0].weight, live.net[0].weight, rtol=1e-4, atol=1e-5)
    assert (true.net[0].weight - live.net[0].weight).abs().max() > 1e-3


def test_hooks_see_shuffled_pairs_as_training_does():
    seen = []

    class Looks(Distil):
        def before_stage(self, data):
            seen.append(list(data.batches()))

    data = Pairs(20, cycle=True)
    train(Looks(), data)
    train(Looks(), data, store=TeacherStore())
    live, stored = seen
    partner = torch.roll(torch.arange(20), -1)
    assert torch.equal(torch.cat([batch["image"] for batch in live]), data.arrays["image"][partner])
    for one, other in zip(live, stored, strict=True):
        assert torch.equal(one["index"]["image"], other["index"]["image"])
        assert torch.equal(other["index"]["audio"], one["index"]["audio"])


def test_an_augmented_teacher_stays_live():
    class Noisy(Pairs):
        def __init__(self):
            super().__init__()
            self.augmented_modalities = frozenset({"image"})

    method = train(Distil(), Noisy(), store=TeacherStore())
    assert not any("stored" in seen for seen in method.seen)
    with pytest.raises(TrainingError, match="'image' is augmented"):
        TeacherStore().outputs(freeze(Teacher()), Noisy(), "image")


def test_a_teacher_of_feature_maps_stays_live(tmp_path):
    class Maps(Teacher):
        def forward(self, x):
            outputs = super().forward(x)
            return Outputs(outputs.features, maps={"body": x[:, :, None, None]})

    method = train(Distil(Maps()), Pairs(), store=TeacherStore(tmp_path))
    assert not any("stored" in seen for seen in method.seen)
    assert not list(tmp_path.iterdir())


def change_weight(teacher, data):
    teacher.body[0].weight[0, 0] += 1e-6


def change_statistic(teacher, data):
    teacher.body[1].running_var[0] += 1e-6


def change_structure(teacher, data):
    teacher.body[2] = torch.nn.Tanh().eval()


def change_data(teacher, data):
    data.fingerprint = "others"


@pytest.mark.parametrize("change", [change_weight, change_statistic, change_structure, change_data])
def test_what_is_not_the_same_is_computed_anew(change, tmp_path):
    teacher, data = freeze(Teacher()), Pairs()
    TeacherStore(tmp_path).outputs(teacher, data, "image")
    with torch.no_grad():
        change(teacher, data)
    teacher.rows = 0
    TeacherStore(tmp_path).outputs(teacher, data, "image")
    assert teacher.rows == len(data)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_store_that_is_not_the_teachers_is_refused(tmp_path):
    teacher, data = freeze(Teacher()), Pairs(8)
    TeacherStore(tmp_path).outputs(teacher, data, "image")
    (path,) = tmp_path.glob("*/features.npy")
    array = np.load(path)
    array[3, 2] += 0.01
    np.save(path, array)
    with pytest.raises(TrainingError, match=r"stored features .*'image' differ .* sample 3 by 0.01 .*Delete"):
        TeacherStore(tmp_path).outputs(teacher, data, "image")
    array[3, 2] = np.nan
    np.save(path, array)
    with pytest.raises(TrainingError, match="sample 3"):
        TeacherStore(tmp_path).outputs(teacher, data, "image")


@pytest.mark.parametrize("damage", ["cut", "gone", "json"])
def test_a_damaged_store_is_computed_anew(damage, tmp_path):
    teacher, data = freeze(Teacher()), Pairs()
    first = TeacherStore(tmp_path).outputs(teacher, data, "image").arrays["features"].clone()
    (folder,) = tmp_path.iterdir()
    if damage == "cut":
        content = (folder / "logits.npy").read_bytes()
        (folder / "logits.npy").write_bytes(content[:-8])
    elif damage == "gone":
        (folder / "embedding.npy").unlink()
    else:
        (folder / "store.json").write_text("{")
    again = TeacherStore(tmp_path).outputs(teacher, data, "image")
    assert torch.equal(again.arrays["features"], first)
    assert set(again.arrays) == {"features", "embedding", "logits"}


def test_a_learning_teacher_is_refused():
    with pytest.raises(TrainingError, match="training mode"):
        TeacherStore().outputs(Teacher(), Pairs(), "image")
    with pytest.raises(TrainingError, match="asks for a gradient"):
        TeacherStore().outputs(Teacher().eval(), Pairs(), "image")


def test_too_few_samples_are_noticed():
    class Short(Pairs):
        def samples(self, modality, batch_size=512):
            return iter([self.arrays[modality][:-1]])

    with pytest.raises(TrainingError, match="48 pairs, but give 47"):
        TeacherStore().outputs(freeze(Teacher()), Short(), "image")


def test_a_method_without_teachers_needs_no_store(tmp_path):
    train(Regression(), Pairs(), store=TeacherStore(tmp_path))
    assert not list(tmp_path.iterdir())


def test_what_neither_weights_nor_classes_tell_makes_another_store(tmp_path):
    def stored(limit):
        teacher = nn.Hardtanh(-limit, limit)  # no weight, and `limit` is a plain attribute
        store = TeacherStore(tmp_path, made_of=f"limit {limit}")
        return store.outputs(freeze(teacher), Pairs(), "image").arrays["features"]

    assert stored(0.5).abs().max() == 0.5
    assert stored(1.0).abs().max() == 1.0


def test_two_teachers_of_one_modality_are_stored_under_their_names():
    data = Pairs()

    class Both(Distil):
        def __init__(self):
            super().__init__()
            self.large = freeze(nn.Linear(6, 3))

        def teachers(self):
            return {**super().teachers(), "image#large": self.large}

        def training_step(self, batch):
            large = self.teacher_outputs(batch, "image#large").features
            torch.testing.assert_close(large, self.large(data.arrays["image"][batch["index"]]))
            assert set(batch["stored"]) == {"image", "image#large"}
            assert "image" not in batch
            return super().training_step(batch)

    method = Both()
    weight = method.large.weight.clone()
    assert torch.equal(train(method, data, store=TeacherStore()).large.weight, weight)
