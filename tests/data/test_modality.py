from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from crossdistill.data import Modality
from crossdistill.data.decode import frames_of, log_mel, read_picture, resample_time
from crossdistill.errors import DataError

GREY = Modality(name="image", kind="image", shape=(1, 4, 6), dtype="uint8", scale=1 / 255)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float16", "float32"])
@pytest.mark.parametrize(("kind", "shape"), [("vector", (5,)), ("sequence", (2, 7)), ("image", (3, 4, 4))])
def test_fitted_training_samples_are_standard(dtype, kind, shape):
    raw = np.random.default_rng(0).integers(0, 200, (50, *shape)).astype(dtype)
    modality = Modality(name="m", kind=kind, shape=shape, dtype=dtype, scale=0.1).fitted(raw, np.arange(30))
    x = modality.prepare(torch.from_numpy(raw[:30]))
    assert x.dtype == torch.float32
    axes = (0, *range(2, x.ndim))
    torch.testing.assert_close(x.mean(dim=axes), torch.zeros(shape[0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std(dim=axes, correction=0), torch.ones(shape[0]), atol=1e-4, rtol=0)


def test_mean_and_std_are_of_the_rows_given_alone():
    raw = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    rows = np.arange(0, 40, 3)
    modality = Modality(name="m", kind="vector", shape=(3,))
    other = raw.copy()
    other[1::3] = 1e6
    assert modality.fitted(raw, rows) == modality.fitted(other, rows)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6, -3.3])
def test_constant_channels_have_std_one(value):
    raw = np.full((3000, 2), value, dtype=np.float32)
    raw[:, 1] = np.random.default_rng(0).normal(size=3000)
    modality = Modality(name="m", kind="vector", shape=(2,)).fitted(raw)
    assert modality.std[0] == 1.0
    assert modality.std[1] == pytest.approx(1, abs=0.05)


def test_a_small_spread_on_a_large_mean_is_measured():
    raw = (1000 + np.random.default_rng(0).normal(size=(5000, 1)) * 0.05).astype(np.float32)
    assert Modality(name="m", kind="vector", shape=(1,)).fitted(raw).std[0] == pytest.approx(0.05, rel=0.05)


def test_prepare_is_the_formula_and_leaves_its_input():
    modality = Modality(
        name="m", kind="sequence", shape=(2, 3), mean=(1.0, -2.0), std=(0.5, 4.0), scale=0.01, dtype="int16"
    )
    raw = torch.arange(12, dtype=torch.int16).reshape(2, 2, 3) * 50
    expected = (raw.double() * 0.01 - torch.tensor([[1.0], [-2.0]])) / torch.tensor([[0.5], [4.0]])
    torch.testing.assert_close(modality.prepare(raw).double(), expected, atol=1e-6, rtol=1e-6)
    floats = torch.ones(1, 2, 3)
    modality.prepare(floats)
    assert torch.equal(floats, torch.ones(1, 2, 3))
    torch.testing.assert_close(modality.background, torch.tensor([-2.0, 0.5]))
    with pytest.raises(DataError, match=r"'m' has samples of shape \(2, 3\); received \(3, 2\)"):
        modality.prepare(torch.zeros(1, 3, 2))


def test_json_and_back():
    sound = Modality(
        name="sound", kind="audio", shape=(1, 4, 5), dtype="float16", decode={"rate": 8000, "seconds": 0.5, "mels": 4}
    )
    for modality in (GREY, sound):
        assert Modality.from_json(json.loads(json.dumps(modality.to_json()))) == modality
    with pytest.raises(DataError, match="a modality has no 'shap'; did you mean 'shape'"):
        Modality.from_json({"name": "a", "kind": "image", "shap": [1]})
    with pytest.raises(DataError, match="a modality needs 'shape'"):
        Modality.from_json({"name": "a", "kind": "image"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "imaeg"}, "no kind is called 'imaeg'; did you mean 'image'"),
        ({"shape": (4, 6)}, r"a sample of kind image is \(c, h, w\); received \(4, 6\)"),
        ({"shape": (1, 0, 6)}, r"received \(1, 0, 6\)"),
        ({"dtype": "float64"}, "samples cannot be stored as float64"),
        ({"mean": (1.0, 2.0)}, "mean needs 1 or 1 finite numbers"),
        ({"mean": (math.nan,)}, "mean needs 1 or 1 finite numbers"),
        ({"std": (0.0,)}, "std must be positive; received 0"),
        ({"channels": ("a", "b")}, "2 names for 1 channels"),
        ({"name": "label"}, "no modality can be called 'label': batches use group, index, label, present, stored"),
        ({"name": "image#1"}, "no modality can be called 'image#1'"),
    ],
)
def test_wrong_modalities(changes, message):
    with pytest.raises(DataError, match=message):
        Modality(**{"name": "image", "kind": "image", "shape": (1, 4, 6), **changes})


# Pictures -----------------------------------------------------------------------------------------------------------


def test_shrinking_averages_areas(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    mean = pixels.reshape(4, 2, 6, 2).mean(axis=(1, 3))
    assert np.abs(GREY.read(tmp_path / "a.png")[0].astype(float) - mean).max() <= 1  # rounded along each axis
    bigger = Modality(name="image", kind="image", shape=(3, 16, 24), dtype="uint8")
    assert bigger.read(tmp_path / "a.png").shape == (3, 16, 24)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "LA"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_of_all_modes(tmp_path, mode, channels):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new("RGB", (6, 4), (255, 0, 0)).convert(mode).save(path)
    pixels = read_picture(path, size=(4, 6), channels=channels)
    assert pixels.shape == (channels, 4, 6)
    assert pixels.dtype == np.uint8
    if channels == 3 and mode in ("RGB", "RGBA", "P", "CMYK"):
        assert np.abs(pixels[:, 0, 0].astype(int) - [255, 0, 0]).max() <= 1


def test_transparent_becomes_white(tmp_path):
    Image.new("RGBA", (6, 4), (0, 0, 0, 0)).save(tmp_path / "a.png")
    assert (read_picture(tmp_path / "a.png", size=(4, 6), channels=3) == 255).all()


def test_deep_pictures_keep_their_numbers(tmp_path):
    depth = np.arange(24, dtype=np.uint16).reshape(4, 6) * 1000
    Image.fromarray(depth).save(tmp_path / "a.png")
    modality = Modality(name="depth", kind="image", shape=(1, 4, 6))
    assert np.array_equal(modality.read(tmp_path / "a.png")[0], depth)
    with pytest.raises(DataError, match="a picture of more than 8 bits among pictures of 8"):
        GREY.read(tmp_path / "a.png")
    Image.fromarray(depth.astype(np.uint8)).save(tmp_path / "b.png")
    for dtype in ("float32", "int16"):
        with pytest.raises(DataError, match=r"b\.png: a picture of 8 bits, where the others have more"):
            Modality(name="depth", kind="image", shape=(1, 4, 6), dtype=dtype).read(tmp_path / "b.png")


def test_a_picture_on_its_side_is_turned_upright(tmp_path):
    pixels = np.arange(24, dtype=np.uint8).reshape(4, 6)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    Image.fromarray(np.rot90(pixels, 1).copy()).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(GREY.read(tmp_path / "a.png")[0], pixels)


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(DataError, match=r"a\.png: there is no such file"):
        GREY.read(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"b\.png: not a picture"):
        GREY.read(tmp_path / "b.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60), dtype=np.uint8)).save(tmp_path / "c.png")
    (tmp_path / "c.png").write_bytes((tmp_path / "c.png").read_bytes()[:2000])
    with pytest.raises(DataError, match=r"c\.png: a broken picture"):
        GREY.read(tmp_path / "c.png")
    with pytest.raises(DataError, match=r"d\.wav: a file ending in '\.wav' cannot be read as image"):
        GREY.read(tmp_path / "d.wav")


# Arrays and sounds --------------------------------------------------------------------------------------------------


def test_arrays(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(24, dtype=np.uint8).reshape(4, 6))
    assert GREY.read(tmp_path / "a.npy").shape == (1, 4, 6)
    np.save(tmp_path / "b.npy", np.arange(10.0).reshape(2, 5))
    sequence = Modality(name="s", kind="sequence", shape=(2, 9))
    assert sequence.read(tmp_path / "b.npy").tolist() == [
        np.arange(0, 4.1, 0.5).tolist(),
        np.arange(5, 9.1, 0.5).tolist(),
    ]
    assert np.array_equal(resample_time(np.arange(10.0).reshape(2, 5), 5), np.arange(10.0).reshape(2, 5))


def test_arrays_with_colours_last(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    np.save(tmp_path / "a.npy", pixels)
    colour = Modality(name="image", kind="image", shape=(3, 4, 6), dtype="uint8")
    assert np.array_equal(colour.read(tmp_path / "a.npy"), pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("value", [np.nan, np.inf, 65536 + 7.0, -1.0, 0.7])
@pytest.mark.parametrize("kind", ["vector", "sequence"])
def test_numbers_that_whole_ones_cannot_hold_are_refused(tmp_path, value, kind):
    numbers = np.arange(6.0) if kind == "vector" else np.arange(12.0).reshape(2, 6)
    np.save(tmp_path / "a.npy", numbers)
    modality = Modality(name="m", kind=kind, shape=numbers.shape, dtype="uint8")
    assert np.array_equal(modality.read(tmp_path / "a.npy"), numbers)
    numbers[..., 3] = value
    np.save(tmp_path / "a.npy", numbers)
    with pytest.raises(DataError, match=r"a\.npy: "):
        modality.read(tmp_path / "a.npy")


def test_numbers_that_cannot_be_stored_are_named(tmp_path):
    np.save(tmp_path / "a.npy", np.array([1, 40000]))
    with pytest.raises(
        DataError, match=r"holds 40000; samples are stored as int16 here, whole numbers in -32768\.\.32767"
    ):
        Modality(name="m", kind="vector", shape=(2,), dtype="int16").read(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", np.array([1, 1e300]))
    for dtype in ("float16", "float32"):
        with pytest.raises(DataError, match=rf"holds 1e\+300; samples are stored as {dtype} here"):
            Modality(name="m", kind="vector", shape=(2,), dtype=dtype).read(tmp_path / "a.npy")


def test_whole_numbers_are_rounded_where_they_are_resampled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[0, 10, 30]]))
    sequence = Modality(name="s", kind="sequence", shape=(1, 5), dtype="int16")
    assert sequence.read(tmp_path / "a.npy").tolist() == [[0, 5, 10, 20, 30]]


def test_fractions_and_numbers_of_8_bits_do_not_mix(tmp_path):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).random((4, 6)))
    with pytest.raises(DataError, match=r"a\.npy: holds 0\.\d+; samples are stored as uint8"):
        GREY.read(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", np.full((4, 6), 9, dtype=np.uint8))
    with pytest.raises(DataError, match=r"a\.npy: numbers of 8 bits in 0\.\.255, where the others are fractions"):
        Modality(name="image", kind="image", shape=(1, 4, 6)).read(tmp_path / "a.npy")


def test_a_tone_is_in_its_band():
    time = torch.arange(8000) / 8000
    for hertz in (200.0, 1000.0, 3000.0):
        found = log_mel(torch.sin(2 * math.pi * hertz * time)[None], rate=8000, mels=40)
        assert found.shape == (1, 40, frames_of(8000, 1.0))
        top = 2595 * math.log10(1 + 4000 / 700)
        band = 2595 * math.log10(1 + hertz / 700) / top * 41 - 1
        assert abs(int(found[0, :, 50].argmax()) - band) < 1


def test_silence_and_noise_are_finite():
    for rate, mels in ((8000, 128), (16000, 64), (44100, 64)):
        assert torch.isfinite(log_mel(torch.zeros(1, rate), rate=rate, mels=mels)).all()
    quiet, loud = (log_mel(a * torch.ones(1, 4000).cumsum(1).sin(), rate=8000, mels=20) for a in (0.1, 1.0))
    heard = quiet > math.log(1e-8)
    assert heard.float().mean() > 0.1
    torch.testing.assert_close((loud - quiet)[heard], torch.full_like(loud, math.log(100))[heard], atol=0.02, rtol=0)


def test_sounds_are_mixed_resampled_cut_and_padded(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    time = np.arange(16000) / 16000
    tone = 0.5 * np.sin(2 * np.pi * 440 * time)
    soundfile.write(tmp_path / "a.flac", np.stack([tone, tone], axis=1), 16000)
    soundfile.write(tmp_path / "b.wav", tone[::2], 8000)
    decode = {"rate": 8000, "seconds": 1.2, "mels": 30}
    modality = Modality(name="s", kind="audio", shape=(1, 30, frames_of(8000, 1.2)), dtype="float32", decode=decode)
    a, b = modality.read(tmp_path / "a.flac"), modality.read(tmp_path / "b.wav")
    loud = b > b.max() - 5
    assert np.abs(a - b)[loud].max() < 0.1
    assert (a[0, :, -5:] == np.float32(math.log(1e-8))).all()
    (tmp_path / "c.wav").write_bytes(b"RIFF")
    with pytest.raises(DataError, match=r"c\.wav: not a sound"):
        modality.read(tmp_path / "c.wav")
    with pytest.raises(DataError, match=r"d\.wav: there is no such file"):
        modality.read(tmp_path / "d.wav")
