"""Pairs of which some lack a modality: what is absent is zeros, said in `present`, and part of no statistic."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from crossdistill.data import Modality, PairedDataset, build_transforms, load
from crossdistill.errors import DataError

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (60, 1, 8, 8), dtype=np.uint8)
PEN = RNG.normal(size=(60, 3, 10)).astype(np.float32) + 5
HERE = np.arange(60) % 10 >= 3  # three of ten lack the pen
SPLIT = np.repeat([0, 1, 2], [40, 8, 12])


def dataset(here=HERE, *, junk=np.nan, **facts) -> PairedDataset:
    pen = PEN.copy()
    if here is not None:
        pen[~here] = junk
    train = np.arange(40) if here is None else np.flatnonzero(here[:40])
    kinds = {
        "image": Modality(name="image", kind="image", shape=(1, 8, 8), dtype="uint8", scale=1 / 255).fitted(IMAGE[:40]),
        "pen": Modality(name="pen", kind="sequence", shape=(3, 10)).fitted(PEN, train),
    }
    present = {} if here is None else {"pen": here}
    columns = {"label": np.arange(60) % 5, "split": SPLIT, "group": np.arange(60) // 4, "present": present, **facts}
    return PairedDataset({"image": IMAGE, "pen": pen}, kinds, **columns)


def augmented(data: PairedDataset) -> PairedDataset:
    spec = {"image": ["affine", "noise"], "pen": ["time_warp", "noise"]}
    return data.augmented({name: build_transforms(chain, data.modality(name)) for name, chain in spec.items()})


def test_absent_samples_are_zeros_whatever_is_stored_for_them():
    data = dataset()
    pens = torch.cat(list(data.samples("pen", batch_size=7)))
    assert torch.equal(pens[~HERE], torch.zeros(18, 3, 10))
    assert torch.equal(pens[HERE], data.modality("pen").prepare(torch.from_numpy(PEN[HERE])))
    assert np.array_equal(data.raw("pen", np.array([0, 3])), np.stack([np.zeros((3, 10), "float32"), PEN[3]]))
    assert np.array_equal(data.present("pen"), HERE)
    assert data.present("image") is None
    assert "pen sequence (3, 10) in 42" in repr(data)


def test_a_batch_says_who_is_absent_where_some_pair_is():
    data = augmented(dataset())
    whole = PairedDataset({"image": IMAGE, "pen": PEN}, data.modalities, group=np.arange(60) // 4)
    views = {"image": 1, "pen": 2}
    for batch, full in zip(
        data.loader(views, batch_size=16, seed=1).epoch(2),
        augmented(whole).loader(views, batch_size=16, seed=1).epoch(2),
        strict=True,
    ):
        here = torch.from_numpy(HERE)[batch["index"]]
        assert batch["present"].keys() == {"pen"}
        assert torch.equal(batch["present"]["pen"], here)
        assert "present" not in full
        assert torch.equal(batch["image"], full["image"])
        for name in ("pen", "pen#1"):
            assert torch.equal(batch[name][here], full[name][here])
            assert not batch[name][~here].any()
    assert "present" not in next(data.loader({"image": 1}, batch_size=16, seed=1).epoch(0))
    assert "present" not in next(data.having("pen").loader(views, batch_size=16, seed=1).epoch(0))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_and_ranks_get_it_too():
    data = augmented(dataset())
    plain = list(data.loader({"pen": 1}, batch_size=16, seed=5).epoch(1))
    worked = list(data.loader({"pen": 1}, batch_size=16, seed=5, workers=2).epoch(1))
    halves = [list(data.loader({"pen": 1}, batch_size=16, seed=5).epoch(1, rank=r, world=2)) for r in (0, 1)]
    for k, batch in enumerate(plain):
        assert torch.equal(worked[k]["present"]["pen"], batch["present"]["pen"])
        assert torch.equal(worked[k]["pen"], batch["pen"])
        assert torch.equal(torch.cat([half[k]["present"]["pen"] for half in halves]), batch["present"]["pen"])


def test_views_carry_it():
    data = dataset()
    train = data.split("train")
    assert np.array_equal(train.present("pen"), HERE[:40])
    rows = np.array([9, 0, 5])
    assert train.subset(rows).present("pen").tolist() == [True, False, True]
    assert train.subset(HERE[:40]).present("pen") is None
    assert np.array_equal(train.keep_labels(rows).named(name="x").present("pen"), HERE[:40])
    assert np.array_equal(train.having("image", "pen").rows, np.flatnonzero(HERE[:40]))
    assert train.having("image") is train
    with pytest.raises(DataError, match="did you mean 'pen'"):
        train.having("pan")


def test_shuffling_moves_who_is_there_among_each_other():
    train = dataset().split("train")
    mixed = train.shuffled("pen", seed=3)
    partners, here = mixed.partners("pen"), HERE[:40]
    assert np.array_equal(partners[~here], np.flatnonzero(~here))
    assert sorted(partners[here]) == np.flatnonzero(here).tolist()
    assert not (partners[here] == np.flatnonzero(here)).any()
    assert np.array_equal(mixed.present("pen"), here)
    pens = torch.cat(list(train.samples("pen")))
    for batch in mixed.loader({"image": 1, "pen": 1}, batch_size=8, seed=0).epoch(0):
        assert torch.equal(batch["pen"], pens[batch["index"]["pen"]])
        assert torch.equal(batch["present"]["pen"], torch.from_numpy(here)[batch["index"]["image"]])
    with pytest.raises(DataError, match="one pair cannot be shuffled: 'data' has 1 here"):
        train.subset(np.array([0, 1, 2, 3])).shuffled("pen", 0)


def test_fingerprints_know_who_is_absent():
    data, other = dataset(junk=0), dataset(np.roll(HERE, 1), junk=0)
    assert data.fingerprint == dataset(junk=0).fingerprint
    whole = PairedDataset(data.columns.arrays, data.modalities, name="x")
    all_there = PairedDataset(data.columns.arrays, data.modalities, name="x", present={"pen": np.ones(60, bool)})
    some = PairedDataset(data.columns.arrays, data.modalities, name="x", present={"pen": HERE})
    assert all_there.fingerprint == whole.fingerprint != some.fingerprint
    assert all_there.fingerprint_of("pen") == whole.fingerprint_of("pen") != some.fingerprint_of("pen")
    assert some.fingerprint_of("image") == whole.fingerprint_of("image")
    assert other.split("train").fingerprint != data.split("train").fingerprint


@pytest.mark.parametrize(
    ("present", "message"),
    [
        ({"pan": HERE}, "`present` knows no modality 'pan'; did you mean 'pen'"),
        ({"pen": HERE[:59]}, r"present of 'pen' is \(59,\) bool; 60 pairs ask for \(60,\) bool"),
        ({"pen": HERE.astype(int)}, r"is \(60,\) int64"),
        ({"pen": HERE, "image": np.arange(60) != 12}, "row 12 has none of image, pen; leave it out"),
    ],
)
def test_columns_that_cannot_be_meant(present, message):
    with pytest.raises(DataError, match=message):
        dataset(present=present)


# From files ----------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CROSSDISTILL_CACHE", str(tmp_path / "cache"))


def archive(path: Path, *, junk=np.nan, **changes) -> Path:
    pen = PEN.astype(np.float64)
    pen[~HERE] = junk
    columns = {"image": IMAGE[:, 0], "pen": pen, "present_pen": HERE, "label": np.arange(60) % 5, "split": SPLIT}
    np.savez(path, **{name: column for name, column in {**columns, **changes}.items() if column is not None})
    return path


@pytest.mark.parametrize("junk", [np.nan, 7.0, 1e300])
def test_an_archive_says_who_has_a_modality(tmp_path, junk):
    data = load(archive(tmp_path / "d.npz", junk=junk))
    assert data.warnings == ("'pen': 18 of 60 pairs lack it",)
    assert np.array_equal(data.present("pen"), HERE)
    seen = PEN[:40][HERE[:40]]
    assert data.modality("pen").mean == pytest.approx(seen.mean(axis=(0, 2)), rel=1e-6)
    assert data.modality("pen").std == pytest.approx(seen.std(axis=(0, 2)), rel=1e-5)
    assert data.fingerprint == load(archive(tmp_path / "e.npz", present_pen=HERE.astype(int)), name="d").fingerprint
    assert load(tmp_path / "d.npz", modalities=["image"]).warnings == ()


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({"present_pan": HERE}, ["'present_pan' says who has 'pan', and no array is called that; did you mean 'pen'"]),
        ({"present_pen": HERE[1:]}, ["'present_pen' must hold true or false for each row, (60,); it is bool (59,)"]),
        ({"present_pen": np.arange(60)}, ["'present_pen' must hold true or false"]),
        ({"present_image": HERE}, ["18 problems (the first 10 of at least 18)", "row 0 has none of image, pen"]),
        ({"present_pen": np.arange(60) >= 40, "pen": PEN}, ["'pen': no training row has it"]),
        ({"present_pen": None}, ["'pen', row 0: 30 of 30 numbers are NaN"]),
    ],
)
def test_archives_that_cannot_be_meant(tmp_path, changes, messages):
    with pytest.raises(DataError) as caught:
        load(archive(tmp_path / "d.npz", **changes))
    for message in messages:
        assert message in str(caught.value)


def manifest(root: Path, cells) -> Path:
    """Make root/pairs.csv with pictures and vectors; `cells` says of row i which of the two it names."""
    root.mkdir(exist_ok=True)
    with (root / "pairs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "pen", "split"])
        for i in range(24):
            Image.fromarray(IMAGE[i, 0]).save(root / f"{i}.png")
            np.save(root / f"{i}.npy", PEN[i, 0])
            image, pen = cells(i)
            names = [f"{i}.png" if image else "", f"{i}.npy" if pen else ""]
            writer.writerow([*names, ("train", "train", "val", "test")[i // 2 % 4]])
    return root / "pairs.csv"


def test_an_empty_cell_of_a_manifest_is_an_absent_sample(tmp_path):
    path = manifest(tmp_path / "m", lambda i: (i != 1, i % 3 > 0))
    data = load(path)
    assert np.array_equal(data.present("pen"), np.arange(24) % 3 > 0)
    assert np.array_equal(data.present("image"), np.arange(24) != 1)
    assert data.warnings == ("'image': 1 of 24 pairs lack it", "'pen': 8 of 24 pairs lack it")
    rows = np.flatnonzero((data.columns.split == 0) & data.present("pen"))
    assert data.modality("pen").mean == pytest.approx(PEN[rows, 0].mean(axis=0), rel=1e-6)
    assert not torch.cat(list(data.samples("pen")))[::3].any()
    assert load(path).fingerprint == data.fingerprint  # from the store
    full = load(manifest(tmp_path / "m", lambda _: (True, True)))
    assert full.warnings == ()
    assert full.fingerprint_of("pen") != data.fingerprint_of("pen")


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (lambda i: (i != 4, i not in (4, 6)), "row 5 has none of image, pen; leave it out"),
        (lambda i: (i % 8 > 3, True), "'image': no training row has it"),
    ],
)
def test_manifests_that_cannot_be_meant(tmp_path, cells, message):
    with pytest.raises(DataError, match=message):
        load(manifest(tmp_path / "m", cells))


def test_a_column_without_a_single_file(tmp_path):
    path = manifest(tmp_path / "m", lambda _: (True, False))
    with pytest.raises(DataError, match="unknown column 'pen'"):
        load(path)
    with pytest.raises(DataError, match="'pen': no row has it; leave its column out"):
        load(path, modalities=["image", "pen"])


def test_absent_samples_are_no_duplicates_no_constants_and_bind_no_rows(tmp_path):
    here = np.arange(60) % 2 == 0  # half of the pens: constant ones would be an error
    data = load(archive(tmp_path / "d.npz", present_pen=here, pen=PEN, split=None))
    assert data.warnings == ("'pen': 30 of 60 pairs lack it",)
    alike = load(archive(tmp_path / "e.npz", present_pen=None, pen=PEN, split=None))
    assert np.array_equal(data.columns.split, alike.columns.split)
    vectors = {"image": IMAGE[:, 0, 0].astype(np.float32), "pen": PEN[:, 0]}
    vectors["image"][41] = vectors["image"][0]
    with np.errstate(all="ignore"):
        found = load(archive(tmp_path / "f.npz", **vectors, present_pen=~np.isin(np.arange(60), (0, 41))))
    assert len(found.warnings) == 2  # a vector equal by chance, and not the same pair
    assert "'image': the same sample is on both sides of a split: row 0 (train) and row 41" in found.warnings[1]
