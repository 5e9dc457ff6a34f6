from __future__ import annotations

import multiprocessing

import numpy as np
import pytest
import torch

from crossdistill.data import Modality, PairedDataset, build_transforms
from crossdistill.data.loader import Loader
from crossdistill.errors import DataError


@pytest.fixture
def data() -> PairedDataset:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (60, 1, 8, 8), dtype=np.uint8)
    pen = rng.normal(size=(60, 3, 10)).astype(np.float32)
    split = np.repeat([0, 1, 2], [40, 8, 12])
    modalities = {
        "image": Modality(name="image", kind="image", shape=(1, 8, 8), dtype="uint8", scale=1 / 255),
        "pen": Modality(name="pen", kind="sequence", shape=(3, 10), channels=("x", "y", "pen")),
    }
    modalities = {k: m.fitted({"image": image, "pen": pen}[k], np.arange(40)) for k, m in modalities.items()}
    return PairedDataset(
        {"image": image, "pen": pen},
        modalities,
        name="toy",
        label=np.arange(60) % 5,
        group=np.arange(60) // 4,
        split=split,
    )


def augmented(data: PairedDataset) -> PairedDataset:
    return data.augmented(
        {
            "image": build_transforms(["affine", "noise", "erase", "jitter"], data.modality("image")),
            "pen": build_transforms(["affine", "time_warp", "noise"], data.modality("pen")),
        }
    )


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_views_share_the_arrays(data):
    train = data.split("train")
    assert len(train) == 40
    assert len(train.subset(np.arange(5))) == 5
    assert train.subset(np.arange(5)).columns.arrays["image"] is data.columns.arrays["image"]
    assert train.splits == ("train",)
    assert train.label.tolist() == (np.arange(40) % 5).tolist()
    with pytest.raises(DataError, match="did you mean 'train'"):
        data.split("trian")
    with pytest.raises(DataError, match="no test rows here; it has train"):
        train.split("test")


def test_a_view_of_a_view_counts_positions_of_the_view(data):
    test = data.split("test")
    mask = test.label == 2
    assert np.array_equal(test.subset(mask).rows, test.rows[np.flatnonzero(mask)])
    for wrong in (np.array([12]), np.array([-1]), np.array([0.5]), np.zeros(3, dtype=bool)):
        with pytest.raises(DataError, match=r"positions in 0\.\.11"):
            test.subset(wrong)


def test_shuffled_is_a_derangement_within_the_view_and_moves_nothing_else(data):
    train = data.split("train")
    mixed = train.shuffled("image", seed=3)
    partners = mixed.partners("image")
    assert sorted(partners) == list(range(40))
    assert not (partners == np.arange(40)).any()
    assert np.array_equal(mixed.partners("pen"), np.arange(40))
    assert np.array_equal(mixed.label, train.label)
    assert not np.array_equal(partners, train.shuffled("image", seed=4).partners("image"))
    assert sorted(mixed.subset(np.arange(7)).partners("image")) == list(range(7))


@pytest.mark.parametrize("size", [2, 3, 5])
def test_even_the_smallest_shuffle_leaves_no_pair(data, size):
    for seed in range(20):
        partners = data.subset(np.arange(size)).shuffled("pen", seed).partners("pen")
        assert not (partners == np.arange(size)).any()


def test_one_pair_cannot_be_shuffled(data):
    with pytest.raises(DataError, match="one pair cannot be shuffled"):
        data.subset(np.array([3])).shuffled("pen", 0)


def test_samples_come_in_order_unaugmented_and_unshuffled(data):
    train = data.split("train")
    plain = torch.cat(list(train.samples("image", batch_size=7)))
    assert plain.shape == (40, 1, 8, 8)
    assert plain.dtype == torch.float32
    other = augmented(train.shuffled("image", 1))
    assert torch.equal(plain, torch.cat(list(other.samples("image", batch_size=16))))
    expected = train.modality("image").prepare(torch.from_numpy(data.columns.arrays["image"][:40]))
    assert torch.equal(plain, expected)


def test_batches_hold_prepared_pairs(data):
    train = data.split("train")
    images, pens = (torch.cat(list(train.samples(name))) for name in ("image", "pen"))
    for batch in train.loader({"image": 1, "pen": 1}, batch_size=16, seed=0).epoch(0):
        assert set(batch) == {"image", "pen", "index", "group"}
        assert torch.equal(batch["image"], images[batch["index"]])
        assert torch.equal(batch["pen"], pens[batch["index"]])
        assert torch.equal(batch["group"], torch.from_numpy(train.group)[batch["index"]])


def test_a_shuffled_batch_says_where_each_sample_is_from(data):
    mixed = data.split("train").shuffled("image", 0)
    images, pens = (torch.cat(list(mixed.samples(name))) for name in ("image", "pen"))
    for batch in mixed.loader({"image": 1, "pen": 1}, batch_size=16, seed=0, labels=True).epoch(0):
        index = batch["index"]
        assert not (index["image"] == index["pen"]).any()
        assert torch.equal(batch["image"], images[index["image"]])
        assert torch.equal(batch["pen"], pens[index["pen"]])
        assert torch.equal(batch["label"], torch.from_numpy(mixed.label)[index["pen"]])


def test_labels_come_only_when_asked_for(data):
    assert "label" not in next(iter(data.loader({"pen": 1}, batch_size=4, seed=0).epoch(0)))
    bare = PairedDataset({"pen": data.columns.arrays["pen"]}, {"pen": data.modality("pen")})
    with pytest.raises(DataError, match="labels are asked for, and 'data' has none"):
        bare.loader({"pen": 1}, batch_size=4, seed=0, labels=True)


def test_only_the_modalities_asked_for_are_read(data):
    batch = next(iter(data.loader({"pen": 2}, batch_size=4, seed=0).epoch(0)))
    assert set(batch) == {"pen", "pen#1", "index", "group"}


def test_views_are_augmented_independently(data):
    batch = next(iter(augmented(data).loader({"image": 3}, batch_size=8, seed=0).epoch(0)))
    views = [batch["image"], batch["image#1"], batch["image#2"]]
    for i in range(3):
        for j in range(i):
            assert not torch.allclose(views[i], views[j], atol=0.01)


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_device_that_augments_gives_the_same_batches(data, workers, held, monkeypatch):
    monkeypatch.setattr(Loader, "_may_hold", lambda loader: held and loader.device != torch.device("cpu"))
    how = {"batch_size": 8, "seed": 5, "labels": True, "workers": workers}
    paired = augmented(data).subset(np.arange(3, 40)).shuffled("pen", 1)
    here = paired.loader({"image": 2, "pen": 1}, **how)
    there = paired.loader({"image": 2, "pen": 1}, **how).to(
        torch.device("cpu", 0)
    )  # not plain "cpu": samples are moved
    for epoch in range(2):
        for one, other in zip(here.epoch(epoch, 1), there.epoch(epoch, 1), strict=True):
            assert same(one.pop("index"), other.pop("index"))
            assert same(one, other)


def test_samples_are_augmented_on_the_device_where_that_is_known_to_work(data):
    seen = []

    def own(x, draws):
        seen.append((x.device.type, draws.index.device.type))
        return x + 1

    mixed = augmented(data).augmented({"pen": own})
    batch = next(iter(mixed.loader({"image": 1, "pen": 1}, batch_size=4, seed=0).to(torch.device("meta")).epoch(0)))
    assert seen == [("cpu", "cpu")]
    assert {name: batch[name].device.type for name in ("image", "pen", "index", "group")} == {
        "image": "meta",
        "pen": "meta",
        "index": "cpu",
        "group": "cpu",
    }


def test_order_and_augmentation_are_functions_of_seed_and_epoch(data):
    loader = augmented(data).loader({"image": 2, "pen": 1}, batch_size=16, seed=5)
    again = augmented(data).loader({"image": 2, "pen": 1}, batch_size=16, seed=5)
    assert all(same(a, b) for a, b in zip(loader.epoch(2), again.epoch(2), strict=True))
    other = augmented(data).loader({"image": 2, "pen": 1}, batch_size=16, seed=6)
    for changed in (loader.epoch(3), other.epoch(2)):
        assert not same(next(iter(loader.epoch(2))), next(iter(changed)))
    assert not np.array_equal(np.concatenate(loader.plan(0)), np.concatenate(loader.plan(1)))


def test_skip_leaves_the_rest_unchanged(data):
    loader = augmented(data).loader({"image": 1, "pen": 2}, batch_size=16, seed=5)
    whole = list(loader.epoch(1))
    assert len(whole) == len(loader) == 3
    assert all(same(a, b) for a, b in zip(whole[1:], loader.epoch(1, skip=1), strict=True))


def test_augmentation_does_not_depend_on_the_batch_a_sample_is_in(data):
    views = {"image": 2, "pen": 1}
    large = augmented(data).loader(views, batch_size=60, seed=5, shuffle=False)
    small = augmented(data).loader(views, batch_size=7, seed=5, shuffle=True, drop_last=False)
    reference = next(iter(large.epoch(4)))
    for batch in small.epoch(4):
        for name in ("image", "image#1", "pen"):
            assert torch.equal(batch[name], reference[name][batch["index"]])


def test_ranks_share_the_batch(data):
    loader = augmented(data).loader({"image": 1}, batch_size=16, seed=5)
    whole = next(iter(loader.epoch(0)))
    halves = [next(iter(loader.epoch(0, rank=rank, world=2))) for rank in (0, 1)]
    assert all(torch.equal(whole[k], torch.cat([half[k] for half in halves])) for k in whole)
    with pytest.raises(DataError, match="a batch of 16 cannot be cut into 3"):
        loader.epoch(0, world=3)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_worker_processes_give_the_same_bits(data):
    plain = augmented(data).loader({"image": 2, "pen": 1}, batch_size=16, seed=5, labels=True)
    worked = augmented(data).loader({"image": 2, "pen": 1}, batch_size=16, seed=5, labels=True, workers=2)
    batches = list(worked.epoch(1, skip=1))
    assert len(batches) == 2
    assert all(same(a, b) for a, b in zip(plain.epoch(1, skip=1), batches, strict=True))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_worker_processes_live_on_for_the_next_epoch(data):
    plain = augmented(data).loader({"image": 2, "pen": 1}, batch_size=16, seed=5)
    worked = augmented(data).loader({"image": 2, "pen": 1}, batch_size=16, seed=5, workers=2)
    before = set(multiprocessing.active_children())
    pids = []
    for epoch in (0, 1, 4):
        assert all(same(a, b) for a, b in zip(plain.epoch(epoch), worked.epoch(epoch), strict=True))
        pids.append({process.pid for process in set(multiprocessing.active_children()) - before})
    assert len(pids[0]) == 2
    assert pids[0] == pids[1] == pids[2]
    together = zip(worked.epoch(0), worked.epoch(1), plain.epoch(0), plain.epoch(1), strict=True)
    assert all(same(a, c) and same(b, d) for a, b, c, d in together)
    given_up = worked.epoch(2)
    next(given_up)
    assert all(same(a, b) for a, b in zip(plain.epoch(3), worked.epoch(3), strict=True))
    del worked, given_up, together
    assert set(multiprocessing.active_children()) == before


def test_every_pair_comes_once_an_epoch_without_drop_last(data):
    loader = data.loader({"pen": 1}, batch_size=16, seed=0, drop_last=False)
    assert len(loader) == 4
    assert sorted(torch.cat([b["index"] for b in loader.epoch(0)]).tolist()) == list(range(60))
    ordered = data.loader({"pen": 1}, batch_size=16, seed=0, drop_last=False, shuffle=False)
    assert torch.cat([b["index"] for b in ordered.epoch(7)]).tolist() == list(range(60))


def test_no_whole_batch_is_refused(data):
    with pytest.raises(DataError, match=r"60 pairs here: not one whole batch of 64\. Set batch_size to 60"):
        data.loader({"pen": 1}, batch_size=64, seed=0)
    assert len(data.loader({"pen": 1}, batch_size=64, seed=0, drop_last=False)) == 1


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("batch_size", [1, 4, 10, 15])
def test_distinct_groups(data, drop_last, shuffle, batch_size):
    loader = data.loader(
        {"pen": 1}, batch_size=batch_size, seed=0, drop_last=drop_last, shuffle=shuffle, distinct_groups=True
    )
    seen = []
    for batch in loader.epoch(1):
        assert len(batch["group"].unique()) == len(batch["group"])
        assert len(batch["group"]) == batch_size or (not drop_last and len(batch["group"]) <= batch_size)
        seen += batch["index"].tolist()
    assert len(set(seen)) == len(seen) <= 60
    assert len(seen) == 60 or drop_last


def test_distinct_groups_with_one_large_group(data):
    group = np.r_[np.zeros(30), np.arange(1, 31)]
    lopsided = PairedDataset({"pen": data.columns.arrays["pen"]}, {"pen": data.modality("pen")}, group=group)
    batches = [b["group"] for b in lopsided.loader({"pen": 1}, batch_size=8, seed=0, distinct_groups=True).epoch(0)]
    assert [len(b) for b in batches] == [8] * 4  # 4 of the large group and 28 others
    with pytest.raises(DataError, match="31 groups here, a batch of 32"):
        lopsided.loader({"pen": 1}, batch_size=32, seed=0, distinct_groups=True)


def test_fingerprints_know_what_matters(data):
    train = data.split("train")
    assert train.fingerprint == data.split("train").fingerprint
    assert augmented(train).fingerprint == train.fingerprint
    mixed = train.shuffled("image", 0)
    assert len({train.fingerprint, mixed.fingerprint, train.shuffled("image", 1).fingerprint, data.fingerprint}) == 4
    assert mixed.fingerprint_of("image") == train.fingerprint_of("image") != data.fingerprint_of("image")
    pen = data.columns.arrays["pen"].copy()
    pen[50, 0, 0] += 1e-3
    other = PairedDataset({"image": data.columns.arrays["image"], "pen": pen}, data.modalities, name="toy")
    assert other.fingerprint_of("pen") != data.fingerprint_of("pen")
    assert other.fingerprint_of("image") == data.fingerprint_of("image")


def test_columns_that_do_not_fit_are_refused(data):
    arrays, modalities = data.columns.arrays, data.modalities
    with pytest.raises(DataError, match="every array needs its modality"):
        PairedDataset(arrays, {"pen": modalities["pen"]})
    with pytest.raises(DataError, match=r"array 'pen' is \(59, 3, 10\)"):
        PairedDataset({**arrays, "pen": arrays["pen"][:59]}, modalities)
    with pytest.raises(DataError, match=r"label has shape \(3,\)"):
        PairedDataset(arrays, modalities, label=np.arange(3))
    with pytest.raises(DataError, match=r"labels must lie in 0\.\.1"):
        PairedDataset(arrays, modalities, label=np.arange(60), class_names=("a", "b"))
    with pytest.raises(DataError, match="did you mean 'image'"):
        data.loader({"imgae": 1}, batch_size=4, seed=0)


def test_pairs_without_label(data):
    label = np.where(np.arange(60) % 3 == 0, np.arange(60) % 5, -1)
    label[48:] = np.arange(12) % 5
    half = PairedDataset(data.columns.arrays, data.modalities, label=label, split=data.columns.split)
    assert half.classes == 5
    train = half.split("train")
    assert np.array_equal(train.labelled, np.arange(40) % 3 == 0)
    for batch in train.loader({"pen": 1}, batch_size=4, seed=0, labels=True).epoch(0):
        assert torch.equal(batch["label"], torch.from_numpy(train.label)[batch["index"]])
    assert "label" not in next(train.loader({"pen": 1}, batch_size=4, seed=0).epoch(0))
    known = train.subset(np.flatnonzero(train.labelled))
    assert known.labelled.all()
    for batch in known.loader({"pen": 1}, batch_size=4, seed=0, labels=True).epoch(0):
        assert torch.equal(batch["label"], torch.from_numpy(known.label)[batch["index"]])
    assert train.subset(~train.labelled).label.tolist() == [-1] * 26


def test_keeping_some_labels(data):
    train = data.split("train")
    few = train.keep_labels(np.array([3, 7]))
    assert few.label.tolist() == [i % 5 if i in (3, 7) else -1 for i in range(40)]
    assert np.array_equal(data.label, np.arange(60) % 5)
    assert few.fingerprint != train.fingerprint
    assert few.fingerprint_of("pen") == train.fingerprint_of("pen")
    assert few.class_names == data.class_names
    assert np.array_equal(train.keep_labels(few.labelled).label, few.label)
    assert few.keep_labels(np.arange(5)).label.max() == 3  # what is unknown stays so
    with pytest.raises(DataError, match=r"positions in 0\.\.39"):
        train.keep_labels(np.array([40]))
    with pytest.raises(DataError, match="'data' has no labels to keep"):
        PairedDataset({"pen": data.columns.arrays["pen"]}, {"pen": data.modality("pen")}).keep_labels(np.arange(2))


def test_labels_that_must_be_there(data):
    label = np.arange(60) % 5
    label[50] = -1
    assert not PairedDataset(data.columns.arrays, data.modalities, label=label).labelled[50]
    label[50] = -2
    with pytest.raises(DataError, match="or be -1 for none"):
        PairedDataset(data.columns.arrays, data.modalities, label=label)
    assert not PairedDataset(data.columns.arrays, data.modalities).labelled.any()
