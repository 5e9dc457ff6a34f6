from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from crossdistill.data import available_sets, build_transforms, load
from crossdistill.data.omniglot import resample_pen
from crossdistill.errors import ConfigError, DataError


def test_the_shipped_set_needs_nothing_else(monkeypatch):
    monkeypatch.delenv("CROSSDISTILL_DATA", raising=False)
    data = load("omniglot-small")
    assert len(data) == 4840
    assert data.classes == 242
    assert {s: len(data.split(s)) for s in data.splits} == {"train": 3388, "validation": 484, "test": 968}
    groups = [set(data.split(s).group.tolist()) for s in data.splits]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 20  # no writer on two sides
    assert load("omniglot-small", label="alphabet").classes == 8
    assert data.licence == "MIT"
    assert "Lake" in data.attribution


def test_the_shipped_pictures_and_pens_show_the_same():
    data = load("omniglot-small")
    rows = np.arange(0, 4840, 97)
    ink, pen = data.raw("image", rows)[:, 0], data.raw("pen", rows) / 100
    for picture, (x, y, down) in zip(ink, pen, strict=True):
        assert set(down.tolist()) <= {0.0, 1.0}
        columns, lines = (x / 105 * 28).astype(int).clip(0, 27), (y / 105 * 28).astype(int).clip(0, 27)
        padded = np.pad(picture, 1)
        near = np.stack([padded[lines + i, columns + j] for i in range(3) for j in range(3)])
        assert (near.max(axis=0) > 0).mean() > 0.9  # points of the pen lie on or beside ink


def test_the_shipped_set_can_be_augmented():
    data = load("omniglot-small").split("train").subset(np.arange(64))
    data = data.augmented({m: build_transforms(["affine"], data.modality(m)) for m in ("image", "pen")})
    batch = next(iter(data.loader({"image": 2, "pen": 1}, batch_size=32, seed=0).epoch(0)))
    assert batch["pen"].shape == (32, 3, 64)
    assert batch["image#1"].shape == (32, 1, 28, 28)


def test_facts_of_all_sets():
    facts = available_sets()
    assert facts[0].shipped
    assert len({f.name for f in facts}) == len(facts) == 7
    assert all(f.licence and f.attribution and f.origin and f.title for f in facts)
    assert [f.name for f in facts if f.pairing == "class"] == ["avdigits"]


def test_what_to_set_is_said(monkeypatch, tmp_path):
    monkeypatch.delenv("CROSSDISTILL_DATA", raising=False)
    with pytest.raises(
        DataError, match=r"'mfeat' is not shipped: set CROSSDISTILL_DATA to the folder.*mfeat\.npz.*UCI"
    ):
        load("mfeat")
    monkeypatch.setenv("CROSSDISTILL_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"mfeat\.npz is missing"):
        load("mfeat")
    with pytest.raises(ConfigError, match=r"'mfeat' has no option 'views'.*modalities"):
        load("mfeat", views=["pix"])
    with pytest.raises(DataError, match="no label is called 'alfabet'; did you mean 'alphabet'"):
        load("omniglot-small", label="alfabet")


@pytest.mark.parametrize("facts", [f for f in available_sets() if not f.shipped], ids=lambda f: f.name)
def test_sets_are_as_their_facts_say(facts):
    root = os.environ.get("CROSSDISTILL_DATA")
    if not root or not (Path(root) / facts.name).is_dir():
        pytest.skip("needs the public data; set CROSSDISTILL_DATA")
    data = load(facts.name)
    assert (len(data), data.classes, set(data.modalities)) == (facts.pairs, facts.classes, set(facts.modalities))
    assert (data.pairing, data.licence) == (facts.pairing, facts.licence)
    assert data.splits == ("train", "validation", "test")
    assert all("the same" in warning for warning in data.warnings)
    assert bool(data.warnings) == (facts.name in ("emoji", "mfeat"))  # each has one pair on both sides of its split
    if data.group is not None:
        homes = [set(data.split(s).group.tolist()) for s in data.splits]
        assert sum(map(len, homes)) == len(set.union(*homes))
    for name in data.modalities:
        x = next(data.split("train").subset(np.arange(200)).samples(name))
        assert x.isfinite().all()
        assert 0.3 < x.std() < 3


def test_pens_are_resampled_along_the_ink():
    xy = np.array([[0, 0], [300, 0], [300, 100], [500, 500], [500, 500]])
    stroke = np.array([0, 0, 0, 1, 1])
    x, y, pen = resample_pen(xy, stroke, 7)
    assert pen.tolist() == [0, 100, 100, 100, 100, 0, 100]
    assert list(zip(x, y, strict=True)) == [(0, 0), (100, 0), (200, 0), (300, 0), (300, 100), (500, 500), (500, 500)]


def test_a_pen_that_never_moved():
    x, y, pen = resample_pen(np.array([[5, 6]]), np.array([0]), 4)
    assert (x.tolist(), y.tolist(), pen.tolist()) == ([5] * 4, [6] * 4, [0, 100, 100, 100])


def test_options_of_a_set_take_lists_where_they_are_lists():
    with pytest.raises(ConfigError, match=r"modalities is a list of names, as in \[rich, poor\]; received 3"):
        load("mfeat", modalities=3)
    if "CROSSDISTILL_DATA" in os.environ:
        assert list(load("mfeat", modalities=["fou", "kar"]).modalities) == ["fou", "kar"]


def test_speakers_can_be_left_out_of_avdigits(tmp_path, monkeypatch):
    rng, count = np.random.default_rng(0), 6 * 10 * 12
    speaker, digit, index = (part.ravel() for part in np.meshgrid(range(6), range(10), range(12), indexing="ij"))
    tones = (8000 * np.sin(np.arange(4000) * (0.02 + 0.05 * speaker[:, None]))).astype(np.int16)
    (tmp_path / "avdigits").mkdir()
    np.savez(
        tmp_path / "avdigits/fsdd.npz",
        audio=tones.ravel(),
        offsets=np.arange(count + 1) * 4000,
        digit=digit,
        speaker=speaker,
        index=index,
    )
    pictures = rng.integers(0, 256, (55100, 28, 28), dtype=np.uint8)
    np.savez(
        tmp_path / "avdigits/mnist.npz",
        train_images=pictures,
        train_labels=np.arange(55100) % 10,
        test_images=pictures[:100],
        test_labels=np.arange(100) % 10,
    )
    monkeypatch.setenv("CROSSDISTILL_DATA", str(tmp_path))
    heard = {}
    for speakers in ("shared", "left_out"):
        data = load("avdigits", train=600, validation=100, test=100, speakers=speakers)
        loudest = {
            s: set(
                data.raw("audio", np.flatnonzero(data.columns.split == k))[:, 0].mean(axis=2).argmax(axis=1).tolist()
            )
            for k, s in enumerate(data.splits)
        }
        heard[speakers] = loudest
    assert heard["shared"]["test"] <= heard["shared"]["train"]
    assert heard["left_out"]["test"].isdisjoint(heard["left_out"]["train"] | heard["left_out"]["validation"])
    with pytest.raises(DataError, match="speakers are shared or left_out; received 'none'"):
        load("avdigits", speakers="none")
