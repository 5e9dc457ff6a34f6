import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset
from worlds import Distil, Pairs, Regression

from crossdistill.errors import DataError, Interrupted, TrainingError
from crossdistill.training import Settings, TeacherStore, UserData, fit

SETTINGS = Settings(epochs=3, lr=0.01, checkpoint_every=1)
NAMES = ("image", "audio", "label")


def tensors():
    data = Pairs()
    return data.arrays["image"], data.arrays["audio"], torch.from_numpy(data.label)


class Noisy(Dataset):
    """Draws its augmentation from torch's own generator, as most data sets do."""

    def __len__(self):
        return 48

    def __getitem__(self, k):
        image, audio, label = tensors()
        return {"image": image[k], "audio": audio[k] + torch.randn(4), "label": label[k]}


class Endless:
    def __iter__(self):
        return iter([{"image": torch.zeros(4, 6), "audio": torch.zeros(4, 4)}] * 9)


def train(data, folder=None, **how):
    return fit(Regression(dropout=0.3), data, SETTINGS, **{"seed": 0, **how}, folder=folder, accelerator="cpu")


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shuffled_augmented_loader_repeats_and_resumes(workers, tmp_path):
    def data():
        return UserData(DataLoader(Noisy(), batch_size=12, shuffle=True, drop_last=True, num_workers=workers))

    whole = train(data())
    torch.randn(5)
    assert same(train(data()), whole)
    assert not same(train(data(), seed=1), whole)
    calls = []
    with pytest.raises(Interrupted):
        train(data(), tmp_path, stop=lambda: calls.append(None) or len(calls) == 6)
    assert same(train(data(), tmp_path), whole)


def test_epochs_differ_and_tuples_get_names():
    loader = UserData(DataLoader(TensorDataset(*tensors()), batch_size=48, shuffle=True), NAMES).loader(
        {"audio": 1}, batch_size=1, seed=0
    )
    first, second = (next(iter(loader.epoch(e))) for e in (0, 1))
    assert set(first) == {"audio"}
    assert not torch.equal(first["audio"], second["audio"])
    assert torch.equal(first["audio"].sort(0).values, second["audio"].sort(0).values)


def test_labels_come_only_where_asked():
    data = UserData(DataLoader(TensorDataset(*tensors()), batch_size=8), NAMES)
    assert "label" not in next(iter(data.loader({"image": 1}, batch_size=1, seed=0).epoch(0)))
    assert "label" in next(iter(data.loader({"image": 1}, batch_size=1, seed=0, labels=True).epoch(0)))
    assert len(data) == 48
    assert torch.equal(torch.cat(list(data.samples("audio"))), tensors()[1])


def test_a_sampler_is_told_the_epoch():
    class Sampler(torch.utils.data.Sampler):
        def __init__(self):
            self.told = []

        def set_epoch(self, epoch):
            self.told.append(epoch)

        def __iter__(self):
            return iter(range(48))

        def __len__(self):
            return 48

    sampler = Sampler()
    train(UserData(DataLoader(TensorDataset(*tensors()), batch_size=12, sampler=sampler), NAMES))
    assert sampler.told == [0, 1, 2]


def test_a_list_of_batches_will_do_and_teachers_stay_live():
    image, audio, _ = tensors()
    batches = [{"image": image[k : k + 12], "audio": audio[k : k + 12]} for k in range(0, 48, 12)]
    method = Distil()
    hooks = []
    method.before_stage = lambda data: hooks.append((len(data), [len(b["audio"]) for b in data.batches()]))
    fit(method, UserData(batches), SETTINGS, seed=0, accelerator="cpu", store=TeacherStore())
    assert not any("stored" in seen for seen in method.seen)
    assert hooks == [(48, [12] * 4)]


def first_batch(**changes):
    image, audio, _ = tensors()
    return UserData([{**{"image": image[:9], "audio": audio[:9]}, **changes}])


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (lambda: UserData(iter([])), "read only once"),
        (lambda: UserData(Endless()), "batches=n"),
        (lambda: UserData([3]), "must be a dict or a tuple"),
        (lambda: UserData([(torch.zeros(2), torch.zeros(2))]), "tuple of 2, and UserData was given no names"),
        (lambda: UserData([(torch.zeros(2),)], ("image", "audio")), "tuple of 1, .* names image, audio"),
        (
            lambda: UserData([{"image": torch.zeros(2, 6), "audi": torch.zeros(2, 4)}]),
            "lacks 'audio'; did you mean 'audi'",
        ),
        (lambda: first_batch(audio=np.zeros((9, 4))), "'audio' of the first batch is a ndarray"),
        (lambda: first_batch(audio=torch.zeros(8, 4)), "different lengths: image 9, audio 8"),
        (
            lambda: first_batch(audio=torch.tensor([[0.0] * 4] * 5 + [[float("nan")] * 4] * 4)),
            "not finite, first in row 5",
        ),
        (lambda: UserData(first_batch()._loader, batches=2), "said 2 batches an epoch, but gave 1"),
    ],
)
def test_a_wrong_loader_is_told_what_is_wrong(data, told):
    with pytest.raises(DataError, match=told):
        train(data())


def test_a_target_that_is_not_known_is_nan():
    target = torch.tensor([0.5, float("nan"), 2.0])
    data = UserData([{"image": torch.zeros(3, 6), "label": target}])
    (given,) = data.loader({"image": 1}, batch_size=3, seed=0, labels=True).epoch(0)
    assert given["label"] is target
    infinite = UserData([{"image": torch.zeros(3, 6), "label": torch.tensor([0.5, 1.0, float("inf")])}])
    with pytest.raises(DataError, match="'label' of the first batch is not finite, first in row 2"):
        next(infinite.loader({"image": 1}, batch_size=3, seed=0, labels=True).epoch(0))


def test_a_loader_without_a_length_is_told_how_many_batches_to_take():
    data = UserData(Endless(), batches=3)
    assert len(list(data.loader({"audio": 1}, batch_size=1, seed=0).epoch(0, skip=1))) == 2
    assert len(data) == 12


def loaded(seed=0, **how):
    """A DataLoader over noisy pairs, or over those of another seed."""
    arrays = Pairs(seed=seed).arrays
    return DataLoader(TensorDataset(arrays["image"], arrays["audio"]), batch_size=12, **how)


def test_a_fingerprint_is_of_the_first_batch_and_of_how_many_there_are():
    def mark(*args, **how):
        return UserData(loaded(*args, **how), NAMES[:2]).fingerprint

    assert mark() == mark()
    assert mark(shuffle=True) == mark(shuffle=True)
    assert len({mark(), mark(1), mark(shuffle=True), UserData(loaded(), NAMES[:2], batches=2).fingerprint}) == 4
    assert UserData(loaded(), NAMES[:2]).fingerprint_of("audio") == ""
    labels = [UserData([{"audio": torch.zeros(2), "label": torch.tensor(label)}]) for label in ([0, 1], [1, 1])]
    assert labels[0].fingerprint != labels[1].fingerprint


class Drawn(Noisy):
    """Augments from numpy's and Python's global generators."""

    def __getitem__(self, k):
        item = super().__getitem__(k)
        item["image"] = item["image"] + np.random.rand() + random.random()  # noqa: NPY002
        return item


@pytest.mark.parametrize("workers", [0, 2])
def test_a_fingerprint_leaves_all_generators_alone_and_does_not_hang_on_them(workers):
    own = torch.Generator().manual_seed(3)
    loader = DataLoader(Drawn(), batch_size=12, shuffle=True, num_workers=workers)
    given = DataLoader(Drawn(), batch_size=12, shuffle=True, generator=own)
    states = torch.get_rng_state(), own.get_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    first = UserData(loader).fingerprint
    assert first
    assert UserData(given).fingerprint == ""  # its order does not repeat
    assert torch.equal(torch.get_rng_state(), states[0])
    assert torch.equal(own.get_state(), states[1])
    assert np.array_equal(np.random.get_state()[1], states[2])  # noqa: NPY002
    assert random.getstate() == states[3]
    torch.randn(2), np.random.rand(2), random.random()  # noqa: NPY002
    assert UserData(loader).fingerprint == first


def test_a_loader_that_never_repeats_or_holds_nothing_has_no_fingerprint():
    class Counts:
        rounds = 0

        def __iter__(self):
            self.rounds += 1
            return iter([{"audio": torch.tensor([self.rounds])}])

    assert UserData(Counts(), batches=1).fingerprint == ""
    assert UserData([]).fingerprint == ""


def test_a_run_goes_on_only_with_the_data_it_began_with(tmp_path):
    def data(seed=0):
        return UserData(loaded(seed, shuffle=True), NAMES[:2])

    with pytest.raises(Interrupted):
        train(data(), tmp_path, stop=lambda: True)
    with pytest.raises(TrainingError, match=r"checkpoint.pt is of another run: data was"):
        train(data(1), tmp_path)
    trained = train(data(), tmp_path)
    assert same(train(data(), tmp_path), trained)
    with pytest.raises(TrainingError, match=r"the finished stage in .* data was"):
        train(data(1), tmp_path)
    assert same(train(data()), trained)  # a folder has no influence


# Samples that lack a modality, and streams that are not paired -------------------------------------------------------


def present(**rows):
    return {name: torch.isin(torch.arange(9), torch.tensor(there)) for name, there in rows.items()}


def served(data, views=("image", "audio"), labels=False):
    return next(data.loader(dict.fromkeys(views, 1), batch_size=1, seed=0, labels=labels).epoch(0))


def test_absent_samples_are_zeros_from_the_border_on():
    image, audio, _ = tensors()
    here = present(audio=[1, 2, 8], image=list(range(9)))
    holes = torch.where(here["audio"][:, None], audio[:9], torch.nan)
    data = first_batch(audio=holes, present=here)
    batch = served(data)
    assert torch.equal(batch["audio"], torch.where(here["audio"][:, None], audio[:9], 0.0))
    assert torch.equal(batch["image"], image[:9])
    assert batch["present"].keys() == {"image", "audio"}
    assert torch.equal(batch["present"]["audio"], here["audio"])
    assert served(data, ["image"])["present"].keys() == {"image"}
    assert holes.isnan().any()  # the user's own tensor is left alone
    assert data.fingerprint != first_batch(audio=holes, present=present(audio=[1, 2], image=list(range(9)))).fingerprint


def test_streams_may_be_of_different_lengths_if_what_names_their_rows_is_by_modality():
    image, audio, label = tensors()
    batch = {"image": image[:9], "audio": audio[:5], "index": {"image": torch.arange(9), "audio": torch.arange(5)}}
    batch |= {"label": {"image": label[:9], "audio": label[:5]}, "group": {"audio": torch.arange(5)}}
    given = served(UserData([batch]), labels=True)
    for key in ("label", "index", "group"):
        assert given[key].keys() == batch[key].keys()
        assert all(torch.equal(given[key][name], batch[key][name]) for name in batch[key])
    assert served(UserData([batch]), ["audio"], labels=True)["label"].keys() == {"audio"}
    assert "label" not in served(UserData([batch]))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"present": torch.ones(9, dtype=torch.bool)},
            "'present' of the first batch is a Tensor; a dict from modality",
        ),
        (
            {"present": present(audoi=[1])},
            "'present' of the first batch is of 'audoi', no modality; did you mean 'audio'",
        ),
        (
            {"present": {"audio": torch.ones(9)}},
            r"'present of audio' in the first batch is torch.float32 \(9,\); a tensor",
        ),
        ({"present": {"audio": torch.ones(8).bool()}}, "different lengths: image 9, audio 9, present of audio 8"),
        (
            {"label": torch.zeros(9, 1, 1)},
            r"'label' in the first batch is torch.float32 \(9, 1, 1\); a tensor int64 \(b,\)",
        ),
        ({"label": torch.zeros(9, dtype=torch.int32)}, "'label' in the first batch is torch.int32"),
        ({"label": {"audio": [0] * 9}}, "'label of audio' in the first batch is a list; a tensor int64"),
        ({"label": {"audio": torch.zeros(5).long()}}, "different lengths: audio 9, label of audio 5"),
        ({"label": {"sound": torch.zeros(9).long()}}, "'label' of the first batch is of 'sound', no modality"),
        ({"label": torch.zeros(8).long()}, "different lengths: image 9, audio 9, label 8"),
        ({"group": ["a"] * 9}, "'group' in the first batch is a list; a tensor int64"),
        ({"index": {"audio": torch.arange(9)}}, "'index' of the first batch is by modality, and lacks 'image'"),
        ({"index": torch.arange(9)[:, None]}, r"'index' in the first batch is torch.int64 \(9, 1\)"),
    ],
)
def test_what_a_batch_says_of_its_rows_is_checked(changes, told):
    with pytest.raises(DataError, match=told):
        served(first_batch(**{"label": torch.zeros(9).long(), **changes}), labels=True)


def test_later_batches_are_checked_too():
    image, audio, _ = tensors()
    whole = {"image": image[:9], "audio": audio[:9]}
    data = UserData([whole, {**whole, "present": {"audio": torch.ones(8).bool()}}])
    batches = data.loader({"image": 1, "audio": 1}, batch_size=1, seed=0).epoch(0)
    assert "present" not in next(batches)
    with pytest.raises(DataError, match="but batch 2 has different lengths"):
        next(batches)


def test_a_label_that_is_asked_for_must_be_there():
    with pytest.raises(DataError, match="the first batch lacks 'label'"):
        served(first_batch(), labels=True)


def test_pairs_that_were_matched_by_label_are_other_data():
    batches = [{"rich": torch.ones(4, 3), "poor": torch.zeros(4, 2)}]
    assert UserData(batches).fingerprint == UserData(batches, pairing="natural").fingerprint
    assert UserData(batches).fingerprint != UserData(batches, pairing="class").fingerprint
    with pytest.raises(DataError, match="did you mean 'class'"):
        UserData(batches, pairing="klass")
