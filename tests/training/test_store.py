import hashlib
import json

import numpy as np
import pytest
import torch
from torch import nn
from worlds import Distil, Pairs, Regression, Teacher

from crossdistill.errors import ConfigError, TrainingError
from crossdistill.methods.base import freeze
from crossdistill.networks.base import Outputs
from crossdistill.networks.tapped import Tapped
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
    about = json.loads((folder / "store.json").read_text())["arrays"]["features"]
    assert features.dtype == np.float32
    largest = float(np.abs(features).max())
    assert about.pop("sha256") == hashlib.sha256((folder / "features.npy").read_bytes()).hexdigest()
    assert about == {"shape": [600, 6], "stored_as": "float32", "largest": largest, "error": 0.0}


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


class Maps(Teacher):
    def forward(self, x):
        outputs = super().forward(x)
        return Outputs(outputs.features, logits=outputs.logits, maps={"body.0": x[:, :, None, None], "": -x[..., None]})


@pytest.mark.parametrize("kept", [True, False])
def test_feature_maps_are_stored_while_there_is_room(kept, tmp_path):
    data, teacher, folder = Pairs(), freeze(Maps()), tmp_path if kept else None
    room = 48 * 2 * 6 * 4 / 2**30  # 48 rows of two maps of 6 numbers
    method = train(Distil(teacher), data, store=TeacherStore(folder, maps_gib=0.99 * room))
    assert not any("stored" in seen for seen in method.seen)
    assert not list(tmp_path.iterdir())
    rows, image = torch.tensor([47, 3, 3]), data.arrays["image"]
    maps = TeacherStore(folder, maps_gib=1.01 * room).outputs(teacher, data, "image").rows(rows).maps
    assert set(maps) == {"body.0", ""}
    assert torch.equal(maps["body.0"], image[rows][:, :, None, None])
    assert torch.equal(maps[""], -image[rows][..., None])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_the_error_of_a_dtype_is_stored_and_is_what_it_is(dtype, tmp_path):
    teacher, data = freeze(Teacher()), Pairs(600)
    live = torch.cat([teacher(x).features for x in data.samples("image")])
    for store in (TeacherStore(dtype=dtype), TeacherStore(tmp_path, dtype=dtype), TeacherStore(tmp_path, dtype=dtype)):
        kept = store.outputs(teacher, data, "image")
        features = kept.rows(torch.arange(600)).features
        assert torch.equal(features, live.to(getattr(torch, dtype)).to(features.dtype))
        assert features.dtype == (torch.float64 if dtype == "float64" else torch.float32)
        assert kept.facts["features"] == (float(live.abs().max()), float((live.double() - features).abs().max()))
    size = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}[dtype]
    (path,) = tmp_path.glob("*/features.npy")
    assert path.stat().st_size == 128 + 600 * 6 * size


class Scaled(nn.Module):
    """A head of 40 classes on the input, times a factor, as features and as logits."""

    def __init__(self, factor=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.head, self.factor = nn.Linear(6, 40), factor

    def forward(self, x):
        return Outputs(x, logits=self.factor * self.head(x))


def test_a_number_beyond_the_dtype_is_refused_and_so_is_nan(tmp_path):
    with pytest.raises(TrainingError, match=r"logits of the teacher of 'image' are too large for float16; .*float32"):
        TeacherStore(tmp_path, dtype="float16").outputs(freeze(Scaled(1e6)), Pairs(), "image")
    with pytest.raises(TrainingError, match="hold NaN"):
        TeacherStore(tmp_path).outputs(freeze(Scaled(float("nan"))), Pairs(), "image")
    assert not list(tmp_path.iterdir())
    kept = TeacherStore(tmp_path, dtype="float16").outputs(freeze(Scaled(-float("inf"))), Pairs(8), "image")
    assert kept.rows(torch.arange(8)).logits.isinf().all()  # a masked class is no number too large


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_largest_logits_and_the_mass_of_the_rest_are_kept(dtype, tmp_path):
    teacher, data = freeze(Scaled()), Pairs(600)
    for _ in range(2):  # computed, and then opened and compared
        kept = TeacherStore(tmp_path, dtype=dtype, top_k=5).outputs(teacher, data, "image")
    found, live = kept.rows(torch.arange(600)).logits, teacher(data.arrays["image"]).logits
    top = live.topk(5).indices
    assert found.shape == live.shape
    assert torch.equal(found.topk(5).indices.sort().values, top.sort().values) or dtype == "float16"
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == "float32" else {"rtol": 2e-3, "atol": 1e-3}
    torch.testing.assert_close(found.gather(1, top), live.gather(1, top), **tolerance)
    torch.testing.assert_close(found.softmax(1).gather(1, top), live.softmax(1).gather(1, top), **tolerance)
    rest = found.scatter(1, top, -torch.inf)
    torch.testing.assert_close(rest.logsumexp(1), live.scatter(1, top, -torch.inf).logsumexp(1), **tolerance)
    assert ((rest.max(1).values - rest.masked_fill(rest.isinf(), torch.inf).min(1).values) < 1e-6).all()
    assert {name: array.shape for name, array in kept.arrays.items()} == {
        "features": (600, 6),
        "logits.values": (600, 5),
        "logits.classes": (600, 5),
        "logits.rest": (600,),
    }
    assert TeacherStore(top_k=40).outputs(teacher, data, "image").arrays["logits"].shape == (600, 40)


def test_a_store_of_the_largest_logits_that_is_not_the_teachers_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("crossdistill.rowfiles._CHECKED", 0)  # as of files too large for a checksum
    teacher, data = freeze(Scaled()), Pairs(8)
    TeacherStore(tmp_path, top_k=3).outputs(teacher, data, "image")
    for name, change in (("rest", lambda a: a + 1), ("classes", lambda a: (a + 1) % 40)):
        (path,) = tmp_path.glob(f"*/logits.{name}.npy")
        array = np.load(path)
        np.save(path, change(array))
        with pytest.raises(TrainingError, match="stored logits"):
            TeacherStore(tmp_path, top_k=3).outputs(teacher, data, "image")
        np.save(path, array)
    TeacherStore(tmp_path, top_k=3).outputs(teacher, data, "image")


@pytest.mark.parametrize("how", [{"dtype": "float8"}, {"top_k": 0}, {"maps_gib": -1}, {"verify": -1}])
def test_what_makes_no_sense_is_refused(how):
    (name,) = how
    with pytest.raises(ConfigError, match=name):
        TeacherStore(**how)


@pytest.mark.parametrize("count", [0, 3])
def test_so_many_rows_are_verified(count, tmp_path):
    teacher, data = freeze(Teacher()), Pairs()
    TeacherStore(tmp_path).outputs(teacher, data, "image")
    teacher.rows = 0
    TeacherStore(tmp_path, verify=count).outputs(teacher, data, "image")
    assert teacher.rows == count


def change_weight(teacher, data):
    teacher.body[0].weight[0, 0] += 1e-6


def change_statistic(teacher, data):
    teacher.body[1].running_var[0] += 1e-6


def change_structure(teacher, data):
    teacher.body[2] = torch.nn.Tanh().eval()


def change_data(teacher, data):
    data.fingerprint = "others"


CHANGES = {change_weight: "weights", change_statistic: "weights", change_structure: "structure", change_data: "data"}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_not_the_same_is_named_and_refused_where_nothing_may_be_computed(change, tmp_path):
    teacher, data = freeze(Teacher()), Pairs()
    with pytest.raises(TrainingError, match="holds no outputs of a teacher of 'image', and compute is False"):
        TeacherStore(tmp_path, compute=False).outputs(teacher, data, "image")
    TeacherStore(tmp_path).outputs(teacher, data, "image")
    TeacherStore(tmp_path).outputs(teacher, Pairs(20), "image")
    teacher.rows = 0
    TeacherStore(tmp_path, compute=False).outputs(teacher, data, "image")
    assert teacher.rows == 8
    with torch.no_grad():
        change(teacher, data)
    with pytest.raises(TrainingError, match=f"{CHANGES[change]} was '[^']*', is '[^']*'$"):
        TeacherStore(tmp_path, compute=False).outputs(teacher, data, "image")


def test_another_tap_dtype_or_version_is_another_store_and_named(tmp_path, monkeypatch):
    data, net = Pairs(), nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 5)).eval().requires_grad_(False)

    def outputs(tap, **how):
        return TeacherStore(tmp_path, **how).outputs(Tapped(net, torch.zeros(2, 6), tap).eval(), data, "image")

    first, second = (outputs(tap).arrays["features"] for tap in ("0", "1"))
    assert not np.array_equal(first, second)
    only = {"compute": False}
    with pytest.raises(TrainingError, match=r"taps.all was 'tap=[01] .*', is 'tap=None .*'$"):
        outputs(None, **only)
    with pytest.raises(TrainingError, match=r"in the nearest, \w+, dtype was 'float32', is 'float16'$"):
        outputs("0", dtype="float16", **only)
    monkeypatch.setattr("crossdistill.training.store.__version__", "99")
    with pytest.raises(TrainingError, match=r"in the nearest, \w+, version was '.*', is '99'$"):
        outputs("0", **only)


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_not_the_same_is_computed_anew(change, tmp_path):
    teacher, data = freeze(Teacher()), Pairs()
    TeacherStore(tmp_path).outputs(teacher, data, "image")
    with torch.no_grad():
        change(teacher, data)
    teacher.rows = 0
    TeacherStore(tmp_path).outputs(teacher, data, "image")
    assert teacher.rows == len(data)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_store_that_is_not_the_teachers_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("crossdistill.rowfiles._CHECKED", 0)  # as of files too large for a checksum
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
    first = TeacherStore(tmp_path).outputs(teacher, data, "image").arrays["features"].copy()
    (folder,) = tmp_path.iterdir()
    if damage == "cut":
        content = (folder / "logits.npy").read_bytes()
        (folder / "logits.npy").write_bytes(content[:-8])
    elif damage == "gone":
        (folder / "embedding.npy").unlink()
    else:
        (folder / "store.json").write_text("{")
    again = TeacherStore(tmp_path).outputs(teacher, data, "image")
    assert np.array_equal(again.arrays["features"], first)
    assert set(again.arrays) == {"features", "embedding", "logits"}


def test_a_store_that_does_not_say_what_it_holds_is_refused(tmp_path):
    teacher, data = freeze(Teacher()), Pairs()
    TeacherStore(tmp_path).outputs(teacher, data, "image")
    (about,) = tmp_path.glob("*/store.json")
    known = json.loads(about.read_text())
    del known["arrays"]["features"]["largest"]
    about.write_text(json.dumps(known))
    with pytest.raises(TrainingError, match=r"is not a store of .* rows of features; delete it"):
        TeacherStore(tmp_path).outputs(teacher, data, "image")


def test_a_learning_teacher_is_refused():
    with pytest.raises(TrainingError, match="training mode"):
        TeacherStore().outputs(Teacher(), Pairs(), "image")
    with pytest.raises(TrainingError, match="asks for a gradient"):
        TeacherStore().outputs(Teacher().eval(), Pairs(), "image")


def test_too_few_samples_are_noticed(tmp_path):
    class Short(Pairs):
        def samples(self, modality, batch_size=512):
            return iter([self.arrays[modality][:-1]])

    for folder in (None, tmp_path):
        with pytest.raises(TrainingError, match="48 pairs, but give 47"):
            TeacherStore(folder).outputs(freeze(Teacher()), Short(), "image")


def test_a_method_without_teachers_needs_no_store(tmp_path):
    train(Regression(), Pairs(), store=TeacherStore(tmp_path))
    assert not list(tmp_path.iterdir())


def test_what_neither_weights_nor_classes_tell_makes_another_store(tmp_path):
    def stored(limit):
        teacher = nn.Hardtanh(-limit, limit)  # no weight, and `limit` is a plain attribute
        store = TeacherStore(tmp_path, made_of=f"limit {limit}")
        return store.outputs(freeze(teacher), Pairs(), "image").arrays["features"]

    assert np.abs(stored(0.5)).max() == 0.5
    assert np.abs(stored(1.0)).max() == 1.0


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
