from __future__ import annotations

import csv
import os
import re
import resource
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from crossdistill.data import Modality, load, store, tables
from crossdistill.data.store import cache_folder
from crossdistill.errors import ConfigError, DataError

N = 24


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("CROSSDISTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def picture(seed: int, size: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size), dtype=np.uint8)


def make_folder(root: Path, n: int = N, split: bool = True) -> Path:
    """Make root/{image,pen}/<split>/<class>/<stem>: two classes, 16 training, 4 validation and 4 test pairs."""
    for i in range(n):
        part = ("train", "train", "val", "test", "train", "train")[i // 2 % 6] if split else "."
        for modality in ("image", "pen"):
            place = root / modality / part / f"class{i % 2}"
            place.mkdir(parents=True, exist_ok=True)
            if modality == "image":
                Image.fromarray(picture(i)).save(place / f"{i:03}.png")
            else:
                np.save(place / f"{i:03}.npy", np.random.default_rng(i).normal(size=(3, 10)).astype(np.float32))
    return root


def make_manifest(root: Path, n: int = N, **columns) -> Path:
    """Make root/pairs.csv with columns image and pen, and `columns` (lists of words)."""
    root.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        Image.fromarray(picture(i)).save(root / f"{i}.png")
        np.save(root / f"{i}.npy", np.random.default_rng(i).normal(size=7).astype(np.float32))
    with (root / "pairs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "pen", *columns])
        writer.writerows([f"{i}.png", f"{i}.npy", *(c[i] for c in columns.values())] for i in range(n))
    return root / "pairs.csv"


def splits(n: int = N) -> list[str]:
    return [("train", "train", "train", "val", "test", "train")[i // 2 % 6] for i in range(n)]


def labels(n: int = N) -> list[str]:
    return [("cat", "dog")[i % 2] for i in range(n)]


def make_npz(path: Path, n: int = N, **changes) -> Path:
    rng = np.random.default_rng(0)
    arrays = {
        "photo": rng.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8),
        "sensor": rng.normal(size=(n, 2, 16)),
        "label": np.arange(n) % 2,
        "split": np.array([0, 0, 0, 0, 1, 1, 2, 2])[np.arange(n) % 8],
    }
    np.savez(path, **{k: v for k, v in {**arrays, **changes}.items() if v is not None})
    return path


# What is right ------------------------------------------------------------------------------------------------------


def test_a_folder(tmp_path):
    data = load(make_folder(tmp_path / "road"))
    assert data.name == "road"
    assert len(data) == N
    assert data.class_names == ("class0", "class1")
    assert {s: len(data.split(s)) for s in data.splits} == {"train": 16, "validation": 4, "test": 4}
    assert data.modality("image").shape == (1, 12, 12)
    assert data.modality("pen").shape == (3, 10)
    row = 5
    stem = int(Path(sorted(str(p) for p in (tmp_path / "road/image").rglob("*.png"))[row]).stem)
    assert np.array_equal(data.raw("image", np.array([row]))[0, 0], picture(stem))
    assert data.label[row] == stem % 2
    train = torch.cat(list(data.split("train").samples("image")))
    assert train.mean().abs() < 1e-5
    assert train.std(correction=0) == pytest.approx(1, abs=1e-4)
    assert not data.warnings


def test_a_folder_without_split_gets_one_and_says_so(tmp_path):
    data = load(make_folder(tmp_path / "road", n=60, split=False))
    assert "split 70/10/20 was made by crossdistill (seed 0" in data.about
    counts = np.array([np.bincount(data.split(s).label) for s in ("train", "validation", "test")])
    assert counts.tolist() == [[21, 21], [3, 3], [6, 6]]
    assert np.array_equal(load(tmp_path / "road").rows, data.rows)
    assert load(tmp_path / "road", split_seed=1).fingerprint != data.fingerprint


def test_a_manifest(tmp_path):
    data = load(make_manifest(tmp_path / "m", label=labels(), split=splits(), group=[str(i // 2) for i in range(N)]))
    assert data.class_names == ("cat", "dog")
    assert data.label.tolist() == [i % 2 for i in range(N)]
    assert data.group.tolist() == np.unique([str(i // 2) for i in range(N)], return_inverse=True)[1].tolist()
    assert data.modality("pen").kind == "vector"


@pytest.mark.parametrize(
    ("shape", "dtype", "kind"),
    [
        ((2, 16), "float32", "sequence"),
        ((8, 8), "float64", "image"),  # a square that is large enough
        ((7, 7), "float32", "sequence"),
        ((9, 12), "uint16", "sequence"),
        ((9, 7), "bool", "image"),
        ((9, 7), "uint8", "image"),
    ],
)
def test_two_axes_are_channels_and_time_but_for_what_looks_like_a_picture(shape, dtype, kind, tmp_path):
    values = np.random.default_rng(1).integers(0, 2, (N, *shape)).astype(dtype)
    found = load(make_npz(tmp_path / "d.npz", sensor=values)).modality("sensor")
    assert found.kind == kind
    assert found.shape == ((1, *shape) if kind == "image" else shape)
    other = "sequence" if kind == "image" else "image"
    assert load(tmp_path / "d.npz", kinds={"sensor": other}).modality("sensor").kind == other


def test_sequences_of_unequal_length_are_no_pictures_though_the_first_is_square(tmp_path):
    root = make_folder(tmp_path / "road", n=60, split=False)
    for i, path in enumerate(sorted((root / "pen").rglob("*.npy"))):
        np.save(path, np.random.default_rng(i).normal(size=(8, 8 + i % 3)))
    assert load(root).modality("pen").kind == "sequence"


def test_axes_that_look_swapped_are_told_of(tmp_path):
    series = np.random.default_rng(1).normal(size=(N, 16, 2))
    (told,) = load(make_npz(tmp_path / "d.npz", sensor=series)).warnings
    assert told.startswith("'sensor' is read as sequences, channels by steps 16 x 2: swap its last two axes if")
    assert not load(tmp_path / "d.npz", kinds={"sensor": "sequence"}).warnings


def test_a_column_that_is_nearly_called_label_is_told_so(tmp_path):
    refuses(
        make_npz(tmp_path / "d.npz", labels=np.arange(N) % 2), "'labels': an array of shape", "did you mean 'label'"
    )


def test_a_parquet_manifest(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow.csv").read_csv(make_manifest(tmp_path / "m", label=labels(), split=splits()))
    parquet.write_table(table, tmp_path / "m" / "pairs.parquet")
    data = load(tmp_path / "m" / "pairs.parquet")
    assert data.fingerprint == load(tmp_path / "m" / "pairs.csv").fingerprint


def test_an_archive(tmp_path):
    data = load(make_npz(tmp_path / "d.npz", class_names=np.array(["no", "yes"])))
    assert data.modality("photo").shape == (3, 8, 8)
    assert data.modality("photo").scale == 1 / 255
    assert data.modality("sensor").kind == "sequence"
    assert data.modality("sensor").dtype == "float32"
    assert data.class_names == ("no", "yes")
    assert len(load(tmp_path / "d.npz", modalities=["photo"]).modalities) == 1
    assert data.pairing == "natural"
    assert load(tmp_path / "d.npz", pairing="class").pairing == "class"
    refuses(tmp_path / "d.npz", "pairing is 'label'", pairing="label")
    assert load(tmp_path / "d.npz", kinds={"sensor": "image"}).modality("sensor").shape == (1, 2, 16)
    words = {"label": np.array(labels()).astype("S"), "class_names": None}
    assert load(make_npz(tmp_path / "d.npz", **words)).class_names == ("cat", "dog")
    assert load(make_npz(tmp_path / "d.npz", class_names=np.array([b"no", b"yes"]))).class_names == ("no", "yes")


def test_a_deployed_student_reads_new_files_as_the_data_were_read(tmp_path):
    data = load(make_folder(tmp_path / "road"), size=9)
    for modality, path in (("image", "image/train/class0/000.png"), ("pen", "pen/train/class0/000.npy")):
        row = data.split("train").raw(modality, np.array([0]))[0]
        assert np.array_equal(data.modality(modality).read(tmp_path / "road" / path), row)


@pytest.mark.parametrize(("size", "shape"), [(None, (1, 48, 64)), (20, (1, 20, 20)), ((10, 30), (1, 10, 30))])
def test_size_of_pictures(tmp_path, size, shape):
    root = make_folder(tmp_path / "road")
    for path in (root / "image").rglob("*.png"):
        big = np.kron(picture(int(path.stem), 16)[:12], np.ones((8, 8), dtype=np.uint8))
        Image.fromarray(big).save(path)
    assert load(root, size=None if size is None else {"image": size}).modality("image").shape == shape


def test_sounds(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    root = make_folder(tmp_path / "road")
    rng = np.random.default_rng(0)
    for path in sorted((root / "pen").rglob("*.npy")):
        seconds = 0.3 + 0.2 * (path.stem == "000")
        soundfile.write(path.with_suffix(".wav"), 0.1 * rng.normal(size=int(8000 * seconds)), 8000)
        path.unlink()
    data = load(root, mels={"pen": 20})
    assert data.modality("pen").shape == (1, 20, 51)
    assert dict(data.modality("pen").decode) == {"rate": 8000, "seconds": 0.5, "mels": 20}
    file = root / "pen/train/class0/002.wav"
    assert data.modality("pen").read(file).dtype == np.float16
    assert load(root, rate=4000, seconds=0.2).modality("pen").shape == (1, 64, 21)


def as_arrays(root: Path, make) -> Path:
    """Put NPY files made by make(i) in the place of a folder's pictures."""
    for path in sorted((root / "image").rglob("*.png")):
        np.save(path.with_suffix(".npy"), make(int(path.stem)))
        path.unlink()
    return root


@pytest.mark.parametrize("axes", [(12, 10), (12, 10, 3), (3, 12, 10), (4, 12, 10, 3), (4, 3, 12, 10), (4, 1, 12, 10)])
def test_arrays_in_files_are_understood_as_those_in_an_archive(tmp_path, axes):
    samples = np.random.default_rng(0).integers(0, 256, (N, *axes), dtype=np.uint8)
    root = as_arrays(make_folder(tmp_path / "road"), lambda i: samples[i])
    files, archive = load(root), load(make_npz(tmp_path / "d.npz", photo=samples))
    found, expected = files.modality("image"), archive.modality("photo")
    assert (found.kind, found.shape, found.dtype, found.scale) == ("image", expected.shape, "uint8", 1 / 255)
    stem = int(Path(sorted(str(p) for p in (root / "image").rglob("*.npy"))[5]).stem)
    assert np.array_equal(files.raw("image", np.array([5])), archive.raw("photo", np.array([stem])))


@pytest.mark.parametrize("colours", [1, 3])
def test_frames_of_a_clip_are_channels_in_their_order(tmp_path, colours):
    clips = np.random.default_rng(0).integers(0, 256, (N, 4, colours, 6, 5), dtype=np.uint8)
    first = load(make_npz(tmp_path / "first.npz", clip=clips))
    last = load(make_npz(tmp_path / "last.npz", clip=np.moveaxis(clips, 2, -1)))
    assert first.modality("clip").shape == last.modality("clip").shape == (4 * colours, 6, 5)
    assert np.array_equal(first.raw("clip", np.array([3]))[0], clips[3].reshape(-1, 6, 5))
    assert np.array_equal(first.raw("clip", np.arange(N)), last.raw("clip", np.arange(N)))


def test_the_type_of_all_files_counts(tmp_path):
    def make(i):
        numbers = np.random.default_rng(i).integers(-9, 9, (7,), dtype=np.int16)
        return numbers + 0.5 if i % 6 == 4 else numbers

    data = load(as_arrays(make_folder(tmp_path / "road"), make))
    assert data.modality("image").dtype == "float32"
    stems = [int(Path(p).stem) for p in sorted(str(p) for p in (tmp_path / "road/image").rglob("*.npy"))]
    assert np.array_equal(data.raw("image", np.arange(N)), np.stack([make(i) for i in stems]).astype(np.float32))


def test_links_to_folders_are_followed(tmp_path):
    root = make_folder(tmp_path / "road")
    data = load(root)
    for modality in ("image", "pen"):
        (tmp_path / f"own/{modality}").mkdir(parents=True)
        (tmp_path / f"own/{modality}/test").symlink_to(root / modality / "test")
        (tmp_path / f"own/{modality}/val").symlink_to(root / modality / "val")
        (tmp_path / f"own/{modality}/train").mkdir()
        for name in ("class0", "class1"):
            (tmp_path / f"own/{modality}/train/{name}").symlink_to(root / modality / "train" / name)
    assert load(tmp_path / "own").fingerprint == data.fingerprint
    (root / "pen/train/class0/again").symlink_to(root / "pen")
    refuses(root, "class0/again is a link to a folder that it lies in")
    (root / "pen/train/class0/again").unlink()
    (root / "pen/train/class9").symlink_to(tmp_path / "gone")
    refuses(root, "pen/train/class9 is a link to ", "gone, which is not there")


def test_folders_that_are_not_asked_for_do_not_matter(tmp_path):
    root = make_folder(tmp_path / "road")
    (root / "sound/train/class0").mkdir(parents=True)
    (root / "sound/train/class0/000.npy").write_bytes(b"broken")
    for folder in ("__MACOSX/image", ".git/image", "image/__MACOSX"):
        (root / folder).mkdir(parents=True)
        (root / folder / "._0.png").write_bytes(b"x")
        (root / folder / "0.png").write_bytes(b"x")
    data = load(root, modalities=["image", "pen"])
    assert set(data.modalities) == {"image", "pen"}
    assert len(data) == N
    refuses(root, "24 image, 24 pen, 1 sound")


@pytest.mark.parametrize("comma", [";", "\t"])
def test_a_manifest_with_another_separator(tmp_path, comma):
    path = make_manifest(tmp_path / "m", label=labels(), split=splits())
    data = load(path)
    path.write_text(path.read_text().replace(",", comma))
    assert load(path).fingerprint == data.fingerprint


def test_a_manifest_whose_labels_are_missing_as_minus_one(tmp_path):
    empty = load(make_manifest(tmp_path / "m", label=a_third(), split=splits()))
    data = load(make_manifest(tmp_path / "n", label=[word or "-1" for word in a_third()], split=splits()))
    assert data.class_names == ("cat", "dog")
    assert np.array_equal(data.label, empty.label)


# Few labels ---------------------------------------------------------------------------------------------------------


def a_third() -> list[str]:
    """Labels of a third of the training rows and of the whole test split; none in the validation split."""
    train = [i for i, part in enumerate(splits()) if part == "train"]
    kept = {i for k, i in enumerate(train) if k % 3 == 0} | {i for i, part in enumerate(splits()) if part == "test"}
    return [word if i in kept else "" for i, word in enumerate(labels())]


def test_a_manifest_with_a_third_of_its_training_rows_labelled(tmp_path):
    words = a_third()
    data = load(make_manifest(tmp_path / "m", label=words, split=splits()))
    assert not data.warnings
    assert data.class_names == ("cat", "dog")
    assert data.label.tolist() == [{"": -1, "cat": 0, "dog": 1}[word] for word in words]
    train = data.split("train")
    assert (len(train), int(train.labelled.sum())) == (16, 6)
    assert "2 classes, 6 labelled" in repr(train)
    assert "labelled" not in repr(data.split("test"))
    assert not data.split("validation").labelled.any()
    assert set(train.subset(train.labelled).label.tolist()) == {0, 1}
    everything = load(make_manifest(tmp_path / "n", label=labels(), split=splits()))
    assert data.fingerprint != everything.fingerprint
    assert data.fingerprint_of("pen") == everything.fingerprint_of("pen")


def test_an_archive_with_missing_labels(tmp_path):
    label = np.array([{"": -1, "cat": 0, "dog": 1}[word] for word in a_third()])
    split = np.array([("train", "val", "test").index(s) for s in splits()])
    data = load(make_npz(tmp_path / "d.npz", label=label, split=split))
    assert np.array_equal(data.label, label)
    assert data.class_names == ("0", "1")
    named = load(make_npz(tmp_path / "d.npz", label=label, split=split, class_names=np.array(["no", "yes"])))
    assert np.array_equal(named.label, label)
    assert named.class_names == ("no", "yes")
    floats = np.where(label < 0, np.nan, label)
    assert load(make_npz(tmp_path / "d.npz", label=floats, split=split)).fingerprint == data.fingerprint
    words = load(make_npz(tmp_path / "d.npz", label=np.array(a_third()), split=split))
    assert np.array_equal(words.label, label)


def test_a_parquet_manifest_with_missing_labels(tmp_path):
    parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    number = {"": None, "cat": 3, "dog": 12}
    cells = [number[word] for word in a_third()]
    numbers = ["" if cell is None else str(cell) for cell in cells]
    expected = load(make_manifest(tmp_path / "m", label=numbers, split=splits()))
    assert expected.class_names == ("3", "12")
    table = pytest.importorskip("pyarrow.csv").read_csv(tmp_path / "m/pairs.csv")
    for column in (cells, [np.nan if cell is None else float(cell) for cell in cells]):
        table = table.set_column(2, "label", arrow.array(column, from_pandas=False))
        parquet.write_table(table, tmp_path / "m/pairs.parquet")
        data = load(tmp_path / "m/pairs.parquet")
        assert data.class_names == ("3", "12")
        assert data.fingerprint == expected.fingerprint


def test_files_beside_class_folders_are_unlabelled(tmp_path):
    root = make_folder(tmp_path / "road")
    for modality, ending in (("image", "png"), ("pen", "npy")):
        for stem in ("002", "008"):
            file = root / modality / f"train/class0/{stem}.{ending}"
            file.rename(file.parent.parent / file.name)
    data = load(root)
    assert data.class_names == ("class0", "class1")
    assert np.bincount(data.split("train").label + 1).tolist() == [2, 6, 8]


def test_a_split_that_is_made_trains_what_has_no_label(tmp_path):
    words = [word if i < 20 else "" for i, word in enumerate(labels(60))]
    data = load(make_manifest(tmp_path / "m", n=60, label=words))
    assert "Rows without label, and what must stay with them, are in its training part." in data.about
    assert [int((data.split(s).label == 0).sum()) for s in data.splits] == [7, 1, 2]
    assert (data.columns.split[~data.labelled] == 0).all()
    groups = [f"g{i % 20}" for i in range(60)]  # the first 20 rows are labelled, one of each group
    data = load(make_manifest(tmp_path / "n", n=60, label=words, group=groups))
    assert "in its test part too, where they judge nothing." in data.about
    assert {len(np.unique(data.columns.split[data.columns.group == g])) for g in range(20)} == {1}
    assert [int(data.subset(data.columns.split == k).labelled.sum()) for k in range(3)] == [14, 2, 4]
    groups = [f"g{i // 20}" for i in range(60)]
    refuses(make_manifest(tmp_path / "o", n=60, label=words, group=groups), "3 groups, 1 of them with labels, are too")


@pytest.mark.parametrize("empty", [[""] * N, np.full(N, -1), np.full(N, np.nan)])
def test_a_column_without_a_single_label_is_none(tmp_path, empty):
    if isinstance(empty, list):
        data = load(make_manifest(tmp_path / "m", label=empty, split=splits()))
    else:
        data = load(make_npz(tmp_path / "d.npz", label=empty))
    assert data.label is None
    assert not data.labelled.any()
    assert data.classes == 0
    assert data.warnings == ("not one row has a label: the data are taken as unlabelled",)


def test_a_duplicate_across_splits_is_found_without_labels(tmp_path):
    path = make_manifest(tmp_path / "m", label=a_third(), split=splits())
    Image.fromarray(picture(1)).save(tmp_path / "m/6.png")
    refuses(path, "'image': the same sample is on both sides of a split: row 2 (", "(train) and row 7")


# The store ----------------------------------------------------------------------------------------------------------


def test_files_are_decoded_once_and_memory_mapped(tmp_path, cache):
    root = make_folder(tmp_path / "road")
    first = load(root)
    assert isinstance(first.columns.arrays["image"], np.memmap)
    stamps = {p: p.stat().st_mtime_ns for p in cache.glob("*/*")}
    assert len(stamps) == 6  # samples, facts of the rows and the note, for each modality
    again = load(root)
    assert {p: p.stat().st_mtime_ns for p in cache.glob("*/*")} == stamps
    assert again.fingerprint == first.fingerprint
    assert cache_folder() == cache
    load(root, size=5)
    assert len(list(cache.glob("*/*"))) == 9


def test_a_changed_file_is_decoded_anew(tmp_path):
    root = make_folder(tmp_path / "road")
    first = load(root)
    path = root / "image/train/class0/000.png"
    Image.fromarray(picture(99)).save(path)
    os.utime(path, ns=(1, 1))
    again = load(root)
    assert np.array_equal(again.split("train").raw("image", np.array([0]))[0, 0], np.asarray(picture(99)))
    assert again.fingerprint_of("image") != first.fingerprint_of("image")
    assert again.fingerprint_of("pen") == first.fingerprint_of("pen")


def test_a_failed_decode_leaves_nothing_of_the_modality(tmp_path, cache):
    root = make_folder(tmp_path / "road")
    (root / "image/train/class0/000.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with pytest.raises(DataError, match="not a picture"):
        load(root)
    (folder,) = cache.iterdir()
    assert '"pen"' in (folder / "store.json").read_text()


def test_a_decode_that_was_killed_goes_on(tmp_path, cache, monkeypatch):
    root = make_folder(tmp_path / "road")
    whole = load(root).fingerprint
    shutil.rmtree(cache)
    read, seen = Modality.read, []

    def killed(self, path):
        seen.append(path)
        if len(seen) > 10:
            raise KeyboardInterrupt
        return read(self, path)

    monkeypatch.setattr("crossdistill.data.store.PART", 4)
    monkeypatch.setattr(Modality, "read", killed)
    with pytest.raises(KeyboardInterrupt):
        load(root)
    (half,) = cache.iterdir()
    assert half.name.startswith(".")
    done = (half / "log.jsonl").read_text().count('{"rows": [')
    assert done >= 1
    os.utime(half / "log.jsonl", (time.time() - 90000,) * 2)  # it is gone on with however old it is
    again = []
    monkeypatch.setattr(Modality, "read", lambda self, path: again.append(path) or read(self, path))
    assert load(root).fingerprint == whole
    assert len(again) == 48 - 4 * done
    assert len(list(cache.iterdir())) == 2


def test_what_nobody_goes_on_with_is_removed_after_a_day(tmp_path, cache):
    for age in (80000, 90000):
        half = cache / f".{age}.part"
        half.mkdir(parents=True)
        (half / "log.jsonl").write_text("")
        os.utime(half / "log.jsonl", (time.time() - age,) * 2)
    load(make_folder(tmp_path / "road"))
    assert [path.name for path in cache.glob(".*")] == [".80000.part"]


@pytest.mark.parametrize("name", ["samples.npy", "rows.npy", "store.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"\x93NUMPY damaged"])
def test_a_damaged_store_is_decoded_anew(tmp_path, cache, name, content):
    root = make_folder(tmp_path / "road")
    first = load(root)
    whole = {p: p.read_bytes() for p in cache.glob(f"*/{name}")}
    for path in whole:
        path.write_bytes(content)
    assert load(root).fingerprint == first.fingerprint
    assert {p: p.read_bytes() for p in whole} == whole


def test_a_cache_that_is_a_file(tmp_path, monkeypatch):
    (tmp_path / "afile").write_text("x")
    for place, reason in (("afile", "it is a file, not a folder"), ("afile/below", "it lies below a file")):
        monkeypatch.setenv("CROSSDISTILL_CACHE", str(tmp_path / place))
        refuses(make_folder(tmp_path / "road"), f"the cache {tmp_path / place}", reason, "Set CROSSDISTILL_CACHE")
    monkeypatch.setenv("CROSSDISTILL_CACHE", "~nobody_at_all/cache")
    refuses(tmp_path / "road", "no place for the cache", "'~nobody_at_all/cache'", "CROSSDISTILL_CACHE")


def test_a_cache_on_a_full_disk(tmp_path, cache):
    root = make_folder(tmp_path / "road")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))  # an error while writing, as on a full disk
    try:
        text = refuses(root, f"the cache {cache} cannot be written: ", "CROSSDISTILL_CACHE")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(text.splitlines()) == 1
    assert not list(cache.iterdir())


# What is wrong ------------------------------------------------------------------------------------------------------


def refuses(source: Path, *patterns: str, **options) -> str:
    with pytest.raises(DataError) as caught:
        load(source, **options)
    text = str(caught.value)
    for pattern in patterns:
        assert pattern in text, text
    return text


def test_a_sample_in_one_modality_only(tmp_path):
    root = make_folder(tmp_path / "road")
    (root / "pen/train/class0/000.npy").unlink()
    refuses(root, "image/train/class0/000.png has no partner in pen", "24 image, 23 pen")


def test_a_missing_file_of_a_manifest(tmp_path):
    path = make_manifest(tmp_path / "m", label=labels(), split=splits())
    (tmp_path / "m/3.png").unlink()
    refuses(path, "row 4: ", "m/3.png: there is no such file")


def test_several_problems_at_once(tmp_path):
    path = make_manifest(tmp_path / "m", label=labels(), split=splits())
    (tmp_path / "m/3.png").unlink()
    (tmp_path / "m/5.png").write_bytes(b"no picture")
    np.save(tmp_path / "m/2.npy", np.full(7, np.nan, dtype=np.float32))
    text = refuses(
        path, "3 problems:", "row 4: ", "row 6: ", "5.png: not a picture", "row 3: ", "2.npy: 7 of 7 numbers"
    )
    assert len(text.splitlines()) == 4


def test_at_most_ten_problems_are_told(tmp_path):
    path = make_manifest(tmp_path / "m", label=labels(), split=splits())
    for i in range(15):
        (tmp_path / f"m/{i}.png").write_bytes(b"no picture")
    text = refuses(path, "the first 10 of at least 15")
    assert len(text.splitlines()) == 11


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite(tmp_path, value):
    sensor = np.random.default_rng(0).normal(size=(N, 2, 16))
    sensor[7, 1, 3] = value
    refuses(make_npz(tmp_path / "d.npz", sensor=sensor), "'sensor', row 7: 1 of 32 numbers are NaN or infinite")


def test_numbers_too_large_for_float32(tmp_path):
    sensor = np.random.default_rng(0).normal(size=(N, 2, 16))
    sensor[7, 1, 3] = 1e300
    refuses(make_npz(tmp_path / "d.npz", sensor=sensor), "'sensor': row 7 holds 1e+300; samples are kept as float32")


def test_a_constant_modality(tmp_path):
    refuses(make_npz(tmp_path / "d.npz", sensor=np.ones((N, 2, 16))), "'sensor': all 24 samples are equal")
    rows = np.arange(N)[:, None, None] * np.ones((N, 2, 16))
    refuses(make_npz(tmp_path / "d.npz", sensor=rows), "'sensor': 24 of 24 sequence samples are constant", "row 0")


def test_a_constant_sample_is_a_warning(tmp_path):
    path = make_manifest(tmp_path / "m", label=labels(), split=splits())
    Image.new("L", (12, 12), 7).save(tmp_path / "m/3.png")
    (warning,) = load(path).warnings
    assert "'image': 1 of 24 samples are constant: row 4" in warning
    assert "3.png" in warning


def test_the_same_sample_on_both_sides_of_a_split(tmp_path):
    path = make_manifest(tmp_path / "m", label=labels(), split=splits())
    Image.fromarray(picture(0)).save(tmp_path / "m/8.png")
    refuses(path, "'image': the same sample is on both sides of a split: row 1 (", "0.png) (train) and row 9", "(test)")


def test_the_same_sample_twice_on_one_side_is_fine(tmp_path):
    path = make_manifest(tmp_path / "m", label=labels(), split=splits())
    Image.fromarray(picture(0)).save(tmp_path / "m/1.png")
    assert not load(path).warnings


def test_equal_short_vectors_are_a_warning(tmp_path):
    path = make_manifest(tmp_path / "m", label=labels(), split=splits())
    np.save(tmp_path / "m/8.npy", np.load(tmp_path / "m/0.npy"))
    (warning,) = load(path).warnings
    assert "'pen': the same sample is on both sides" in warning


def test_equal_pairs_of_vectors_are_an_error(tmp_path):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(N, 4)), rng.normal(size=(N, 3))
    a[6], b[6] = a[0], b[0]
    path = make_npz(tmp_path / "d.npz", photo=a, sensor=b)
    refuses(path, "the same pair is on both sides of a split: row 0 (train) and row 6 (test)")


def test_a_split_that_is_made_keeps_equal_samples_together(tmp_path):
    path = make_manifest(tmp_path / "m", label=labels())
    for i in range(1, 8):
        Image.fromarray(picture(0)).save(tmp_path / f"m/{i}.png")
    data = load(path)
    assert len(set(data.columns.split[:8].tolist())) == 1


def test_a_group_on_both_sides_of_a_split(tmp_path):
    groups = [f"g{i // 2}" for i in range(N)]
    groups[8] = "g0"
    path = make_manifest(tmp_path / "m", label=labels(), split=splits(), group=groups)
    refuses(path, "a group is on both sides of a split: row 1 is train, row 9 of the same group is test")


def test_a_split_that_is_made_keeps_groups_whole(tmp_path):
    groups = [f"g{i % 8}" for i in range(N)]
    data = load(make_manifest(tmp_path / "m", label=labels(), group=groups))
    for group in np.unique(data.group):
        assert len(set(data.columns.split[data.group == group].tolist())) == 1
    assert set(data.splits) >= {"train", "test"}


def test_unknown_splits(tmp_path):
    words = splits()
    words[5] = "tarin"
    refuses(make_manifest(tmp_path / "m", split=words), "row 6: no split is called 'tarin'; did you mean 'train'?")
    split = np.zeros(N, dtype=int)
    split[4] = 3
    refuses(make_npz(tmp_path / "d.npz", split=split), "row 4: no split is called '3'")


def test_a_missing_group(tmp_path):
    words = labels()
    words[2] = ""
    refuses(make_manifest(tmp_path / "n", group=words), "row 3: the group is missing")


def test_a_test_row_without_label_is_read_as_one_that_has_none(tmp_path):
    words = labels()
    words[2] = words[8] = ""
    data = load(make_manifest(tmp_path / "m", label=words, split=splits()))
    assert np.flatnonzero(~data.labelled).tolist() == [2, 8]
    label = np.arange(N) % 2
    label[6] = -1
    assert np.flatnonzero(~load(make_npz(tmp_path / "d.npz", label=label)).labelled).tolist() == [6]


def test_a_class_whose_training_rows_are_unlabelled(tmp_path):
    words = ["" if s == "train" and w == "dog" else w for s, w in zip(splits(), labels(), strict=True)]
    path = make_manifest(tmp_path / "m", label=words, split=splits())
    refuses(path, "class 'dog' has no labelled training rows (2 validation, 2 test)")


def test_a_class_that_training_never_sees(tmp_path):
    words = ["owl" if s == "test" else w for s, w in zip(splits(), labels(), strict=True)]
    refuses(make_manifest(tmp_path / "m", label=words, split=splits()), "class 'owl' has no training rows")


def test_a_class_without_test_rows_is_a_warning(tmp_path):
    words = labels()
    words[0] = words[1] = "owl"
    (warning,) = load(make_manifest(tmp_path / "m", label=words, split=splits())).warnings
    assert "class 'owl' has no test rows" in warning


def test_numbers_for_classes_have_no_gaps(tmp_path):
    label = np.arange(N) % 3 * 2
    refuses(make_npz(tmp_path / "d.npz", label=label), "labels must run from 0 to 4 without gaps; 1, 3 never occur")
    label[label == 0] = -1
    refuses(make_npz(tmp_path / "d.npz", label=label), "labels must run from 0 to 4 without gaps; 0, 1, 3 never occur")
    label = np.arange(N) % 2
    label[9] = -2
    refuses(make_npz(tmp_path / "d.npz", label=label), "row 9: label -2 is not in 0..1")
    label[9] = 2
    names = np.array(["no", "yes"])
    refuses(make_npz(tmp_path / "d.npz", label=label, class_names=names), "row 9: label 2 is not in 0..1")


def test_too_few_rows(tmp_path):
    words = ["test"] * (N - 1) + ["train"]
    refuses(make_manifest(tmp_path / "m", split=words), "1 training rows; at least 2 are needed")
    (tmp_path / "empty.csv").write_text("image,pen\n")
    refuses(tmp_path / "empty.csv", "there is not a single pair")
    (tmp_path / "blank.csv").write_text("")
    refuses(tmp_path / "blank.csv", "the table is empty")


def test_no_test_rows_is_a_warning(tmp_path):
    (warning,) = load(make_manifest(tmp_path / "m", split=["train"] * (N - 2) + ["val"] * 2)).warnings
    assert "no test rows" in warning


def test_an_unknown_column(tmp_path):
    path = make_manifest(tmp_path / "m", lable=labels())
    refuses(path, "unknown column 'lable' (row 1: 'cat')", "did you mean 'label'?")
    assert set(load(path, modalities=["image", "pen"]).modalities) == {"image", "pen"}
    refuses(path, "no column is called 'imgae'; did you mean 'image'?", modalities=["imgae"])


def test_a_short_line(tmp_path):
    path = make_manifest(tmp_path / "m")
    path.write_text(path.read_text().replace("4.png,4.npy", "4.png"))
    refuses(path, "row 5: 1 cells for 2 columns (cells are separated by ',')")


def test_a_file_of_another_kind(tmp_path):
    path = make_manifest(tmp_path / "m")
    np.save(tmp_path / "m/3.npy", np.zeros(9))
    refuses(path, "row 4: ", "3.npy: the sample has shape (9,), the others (7,)")
    np.save(tmp_path / "m/3.npy", np.array(["a", "b"]))
    refuses(path, "3.npy: holds <U1, not an array of real numbers")
    (tmp_path / "m/3.npy").write_bytes(b"")
    refuses(path, "3.npy: not an array that can be read")


def test_nothing_is_unpickled(tmp_path):
    refuses(make_npz(tmp_path / "d.npz", sensor=np.array([{}] * N, dtype=object)), "array 'sensor' cannot be read")
    path = make_manifest(tmp_path / "m")
    np.save(tmp_path / "m/3.npy", np.array([{}] * 7, dtype=object), allow_pickle=True)
    refuses(path, "row 4: ", "3.npy: not an array that can be read")


def test_unequal_counts_in_an_archive(tmp_path):
    refuses(make_npz(tmp_path / "d.npz", sensor=np.zeros((5, 3))), "found rows: photo 24, sensor 5, label 24, split 24")


def test_arrays_that_are_no_numbers(tmp_path):
    refuses(make_npz(tmp_path / "d.npz", sensor=np.array(["a"] * N)), "'sensor': holds <U1, not real numbers")
    refuses(make_npz(tmp_path / "d.npz", sensor=np.zeros(N)), "'sensor': an array of shape (24,) is no kind")
    refuses(make_npz(tmp_path / "d.npz", label=np.zeros((N, 2))), "'label' must be one whole number or word a row")
    for wrong in (0.5, np.inf):
        refuses(make_npz(tmp_path / "d.npz", label=np.full(N, wrong)), "'label' must be one whole number or word a row")
    refuses(make_npz(tmp_path / "d.npz", group=np.zeros(N)), "'group' must be one whole number or word a row")


def test_folders_of_another_layout(tmp_path):
    root = make_folder(tmp_path / "road")
    (root / "train").mkdir()
    refuses(root, "expected FOLDER/<modality>/[<split>/][<class>/]<file>", "image, pen, train")
    (tmp_path / "empty").mkdir()
    refuses(tmp_path / "empty", "found no folders")
    deep = make_folder(tmp_path / "deep")
    for modality, ending in (("image", "png"), ("pen", "npy")):
        (deep / modality / "train/a/b").mkdir(parents=True)
        (deep / modality / f"train/class0/000.{ending}").rename(deep / modality / f"train/a/b/000.{ending}")
    refuses(deep, "train/a/b/000.png lies too deep")


def test_two_files_of_one_name(tmp_path):
    root = make_folder(tmp_path / "road")
    Image.fromarray(picture(0)).save(root / "image/train/class0/000.bmp")
    refuses(root, "000.png and ", "000.bmp have the same name")


def test_other_files_in_a_folder_are_told_of(tmp_path):
    root = make_folder(tmp_path / "road")
    (root / "image/notes.txt").write_text("hello")
    (root / "image/.hidden").write_text("hello")
    (warning,) = load(root).warnings
    assert "1 files are passed over" in warning


def test_sources_and_options_that_do_not_exist(tmp_path):
    refuses("omniglot-smal", "did you mean 'omniglot-small'?")
    refuses("synthetic:shared", "no world is called 'shared'; did you mean 'shared_latent'?")
    refuses(tmp_path / "none.csv", "is neither a file, a folder nor a set")
    (tmp_path / "a.txt").write_text("x")
    refuses(tmp_path / "a.txt", "data are a folder, or a .csv, .parquet or .npz file")
    refuses(make_folder(tmp_path / "road"), "no modality folder is called 'sound'", modalities=["sound"])
    with pytest.raises(ConfigError, match="has no option 'sice'; did you mean 'size'"):
        load(tmp_path / "road", sice=5)


@pytest.mark.parametrize("shallow", [0, 9])
def test_pictures_of_8_and_of_more_bits(tmp_path, shallow):
    root = make_folder(tmp_path / "road")
    for k, path in enumerate(sorted((root / "image").rglob("*.png"))):
        if k >= shallow:
            Image.fromarray(picture(int(path.stem)).astype(np.uint16) * 200).save(path)
    if shallow:
        refuses(root, "a picture of 8 bits, where the others have more (float32); convert it or the others")
    else:
        assert load(root).modality("image").dtype == "float32"


def test_a_file_of_fractions_among_whole_numbers(tmp_path):
    root = as_arrays(make_folder(tmp_path / "road", n=40), lambda i: np.arange(7, dtype=np.int16) + i)
    path = sorted((root / "image").rglob("*.npy"))[3]  # every second one is looked at
    np.save(path, np.arange(7) + 0.5)
    refuses(root, path.name, "holds 0.5; samples are stored as int16")
    np.save(path, np.full(7, np.nan))
    refuses(root, path.name, "7 of 7 numbers are NaN or infinite")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["no", "no"], "'class_names' holds 'no' more than once"),
        ([["no", "yes"]], "'class_names' must be one word a class; it is <U3 (1, 2)"),
        ([0.5, 1.5], "'class_names' must be one word a class; it is float64 (2,)"),
    ],
)
def test_class_names_that_are_none(tmp_path, names, message):
    refuses(make_npz(tmp_path / "d.npz", class_names=np.array(names)), message)


@pytest.mark.parametrize("name", ["index", "present", "stored", "sensor#1"])
def test_names_of_modalities_that_are_taken(tmp_path, name):
    message = f"no modality can be called '{name}'"
    refuses(make_npz(tmp_path / "d.npz", **{name: np.zeros((N, 3))}), message)
    root = make_folder(tmp_path / "road")
    (root / "pen").rename(root / name)
    refuses(root, message)
    path = make_manifest(tmp_path / "m")
    path.write_text(path.read_text().replace("image,pen", f"image,{name}"))
    refuses(path, message)


def test_names_that_are_no_text(tmp_path):
    root = make_folder(tmp_path / "road")
    (root / "image/train" / os.fsdecode(b"caf\xe9")).mkdir()
    refuses(root, r"image/train/caf\xe9: the name is not UTF-8 text; rename it")
    refuses("~nobody_at_all/data", "'~nobody_at_all/data': nobody has that home folder")


OPTIONS = {
    "another modality": ({"size": {"imgae": 3}}, "size: no modality is called 'imgae'; did you mean 'image'?"),
    "kinds of another": ({"kinds": {"penn": "image"}}, "kinds: no modality is called 'penn'; did you mean 'pen'?"),
    "of no use": ({"rate": 8000}, "rate is for sound files, and there are none; options here: size, channels, length"),
    "of no use to one": ({"length": {"image": 3}}, "length: 'image' is not read from sequences in NPY files"),
    "no length": ({"length": 0}, "length is a whole number in 1..1000000; received 0"),
    "rate": ({"rate": "x"}, "rate is a whole number of Hz in 1000..384000; received 'x'"),
    "seconds": ({"seconds": "x"}, "seconds is a number of seconds in 0.025..3600; received 'x'"),
    "infinite": ({"seconds": float("inf")}, "received inf"),
    "too short": ({"seconds": "1e-9"}, "received '1e-9'"),
    "mels": ({"mels": 2.5}, "mels is a whole number in 1..1024; received 2.5"),
    "list of mels": ({"mels": [1]}, "received [1]"),
    "size": ({"size": 3.5}, "size is a number of pixels in 1..16384 or (height, width); received 3.5"),
    "true size": ({"size": True}, "received True"),
    "size of three": ({"size": {"image": [1, 2, 3]}}, "size.image is a number of pixels"),
    "channels": ({"channels": 2}, "channels is 1 (grey) or 3 (colour); received 2"),
    "true channels": ({"channels": True}, "received True"),
    "kinds": ({"kinds": {"pen": "vectr"}}, "kinds.pen is one of vector, sequence, image, audio; received 'vectr'"),
    "seed": ({"split_seed": "x"}, "split_seed is a whole number of at least 0; received 'x'"),
    "negative seed": ({"split_seed": -1}, "received -1"),
    "number of modalities": ({"modalities": 3}, "modalities is a list of names, as in [rich, poor]; received 3"),
    "one modality": ({"modalities": "pen"}, "modalities is a list of names, as in [rich, poor]; received 'pen'"),
    "name": ({"name": 3}, "name is a word; received 3"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options_that_are_wrong(tmp_path, case):
    options, message = OPTIONS[case]
    with pytest.raises(ConfigError, match=re.escape(message)):
        load(make_folder(tmp_path / "road", n=8), **options)


def test_options_of_archives_and_worlds(tmp_path):
    with pytest.raises(ConfigError, match="size is for picture files, and there are none; options here: kinds"):
        load(make_npz(tmp_path / "d.npz"), size=3)
    with pytest.raises(ConfigError, match="kinds: no modality is called 'sensr'; did you mean 'sensor'"):
        load(tmp_path / "d.npz", kinds={"sensr": "image"})
    with pytest.raises(ConfigError, match="rho is a number; received 'x'"):
        load("synthetic:shared_latent", rho="x")
    with pytest.raises(ConfigError, match="label is a word; received 3"):
        load("omniglot-small", label=3)
    assert "rho = 0.001" in load("synthetic:shared_latent", rho="1e-3", n_pairs=5, n_test=5, n_validation=5).about


def test_numbers_that_yaml_takes_for_words(tmp_path):
    assert load(make_folder(tmp_path / "road"), size="7", length={"pen": "5e0"}).modality("pen").shape == (3, 5)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"group": ["a", "b"] * 12}, "no test rows can be split off: 2 groups are too few to keep whole; give more"),
        ({"label": [f"id{i}" for i in range(N)]}, "no class has 3 labelled rows that differ (of 24 the largest has 1)"),
        ({"label": [str(i / 7) for i in range(N)]}, "leave the label out if it is no class but a number or a name"),
    ],
)
def test_a_split_that_cannot_be_made_says_why(tmp_path, columns, message):
    text = refuses(make_manifest(tmp_path / "m", **columns), message, "or give a split of your own")
    assert len(text.splitlines()) == 1


def test_a_split_that_is_made_is_not_blamed_on_the_data(tmp_path):
    path = make_manifest(tmp_path / "m", label=["cat"] * 23 + ["owl"], group=["a"] * 16 + ["b"] * 8)
    refuses(path, "class 'owl' has no training rows", "the split was made here: give one of your own")


@pytest.mark.parametrize("pictures", [False, True])
def test_equal_samples_on_two_sides_of_a_split_can_be_dropped_from_the_lesser_side(tmp_path, pictures):
    rng = np.random.default_rng(0)
    photo = (
        rng.integers(0, 256, (60, 3, 6, 5), dtype=np.uint8) if pictures else rng.normal(size=(60, 7)).astype("float32")
    )
    other = rng.normal(size=(60, 4)).astype("float32")
    split = np.repeat([0, 1, 2], 20)
    copies = [
        (3, 45),
        (25, 50),
        (7, 30),
        (8, 9),
    ]  # train of test, validation of test, train of validation, within train
    for to, of in copies:
        photo[to], other[to] = photo[of], other[of]
    np.savez(tmp_path / "d.npz", photo=photo, other=other, split=split, label=np.arange(60) % 3)
    with pytest.raises(DataError, match=r"on both sides of a split: .*duplicates: drop"):
        load(tmp_path / "d.npz")
    data = load(tmp_path / "d.npz", duplicates="drop")
    assert sorted(set(range(60)) - set(data.rows.tolist())) == [3, 7, 25]
    assert any("3 rows are left out" in warning for warning in data.warnings)
    kept = np.setdiff1d(np.arange(20), [3, 7])
    assert np.allclose(data.modality("other").mean, other[kept].mean(axis=0), atol=1e-5)
    with pytest.raises(ConfigError, match="duplicates is refuse or drop; received 'keep'"):
        load(tmp_path / "d.npz", duplicates="keep")


# Much of it ---------------------------------------------------------------------------------------------------------


def shared_files(root: Path, own: bool) -> Path:
    """Rows that share files of their split, or the same rows with copies of their own; the pen of some is absent."""
    path = make_manifest(root, label=labels(), split=splits())
    rows = list(csv.reader(path.read_text().splitlines()))
    table = [rows[0]]
    for i in range(10 * N):
        one, other = rows[1 + i % N], rows[1 + (i + 12 * (i // N)) % N]
        image, pen = one[0], "" if i % 7 == 0 else other[1]
        if own:
            for name in filter(None, (image, pen)):
                (root / f"{i}-{name}").write_bytes((root / name).read_bytes())
            image, pen = f"{i}-{image}", pen and f"{i}-{pen}"
        table.append([image, pen, *one[2:]])
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(table)
    return path


@pytest.mark.parametrize("room", [0, 3 * 144, 1 << 20])  # of none, of three pictures, of all
def test_rows_that_share_files_are_as_rows_with_copies(tmp_path, monkeypatch, room):
    monkeypatch.setattr(store, "KEPT", room)
    monkeypatch.setattr(store, "PART", 16)
    one, other = (load(shared_files(tmp_path / str(own), own), name="d") for own in (False, True))
    assert one.fingerprint == other.fingerprint
    assert np.array_equal(one.columns.arrays["image"][::N], one.columns.arrays["image"][:1].repeat(10, axis=0))
    assert one.present("pen").sum() == 10 * N - len(range(0, 10 * N, 7))
    assert [w for w in one.warnings if "pairs lack it" in w] == [w for w in other.warnings if "pairs lack it" in w]


def test_a_broken_file_of_many_rows_is_told_of_once(tmp_path):
    path = shared_files(tmp_path / "m", own=False)
    (tmp_path / "m/3.png").write_bytes(b"no picture")
    (tmp_path / "m/5.npy").unlink()
    text = refuses(path, "2 problems:", "row 4: ", "3.png: not a picture", "row 6: ", "5.npy: there is no such file")
    assert len(text.splitlines()) == 3


def test_lines_are_read_in_parts(tmp_path, monkeypatch):
    path = make_manifest(tmp_path / "m", label=labels(), split=splits())
    whole = load(path).fingerprint
    monkeypatch.setattr(tables, "LINES", 5)
    assert load(path).fingerprint == whole
    path.write_text(path.read_text().replace("17.png,17.npy", "17.png"))
    refuses(path, "row 18: 3 cells for 4 columns")


def test_as_many_classes_as_rows_need_few_words(tmp_path):
    n = 300
    label = np.r_[np.arange(200), np.arange(100)]
    many = {"photo": None, "sensor": np.random.default_rng(0).normal(size=(n, 4)), "label": label}
    tested = np.where(np.arange(n) < 200, 0, 2)
    warnings = load(make_npz(tmp_path / "d.npz", n, **many, split=tested)).warnings
    assert len(warnings) == 11
    assert warnings[-1] == "90 more of the 200 classes have no test rows either"
    refuses(make_npz(tmp_path / "e.npz", n, **many, split=2 - tested), "the first 10 of at least 100")


def test_as_many_wrong_splits_as_rows_need_few_words(tmp_path):
    words = [f"part {i}" for i in range(300)]
    text = refuses(make_manifest(tmp_path / "m", 300, split=words), "the first 10 of at least 100", "row 1: ")
    assert len(text.splitlines()) == 11
