"""Files that nobody makes on purpose, or somebody does: pipes, devices, bombs, names that steer a terminal."""

import io
import os
import pickle
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from crossdistill import load
from crossdistill.data import Modality
from crossdistill.data.archive import read_archive
from crossdistill.data.decode import read_picture, read_sound
from crossdistill.errors import DataError

N = 24


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CROSSDISTILL_CACHE", str(tmp_path / "cache"))


def arrays(**changes):
    random = np.random.default_rng(0)
    split = np.array(["train"] * 16 + ["test"] * 8)
    given = {
        "a": random.normal(size=(N, 4)),
        "b": random.normal(size=(N, 3)),
        "label": np.arange(N) % 4,
        "split": split,
    }
    return {**given, **changes}


def refused(path, word):
    with pytest.raises(DataError) as caught:
        load(path)
    text = str(caught.value)
    assert word in text, text
    assert len(text.splitlines()) == 1
    return text


# Archives ------------------------------------------------------------------------------------------------------------


def with_members(path, *members):
    np.savez(path, **arrays())
    with zipfile.ZipFile(path, "a") as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def as_npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["readme.txt", "folder/", "inner.npz"])
def test_a_member_of_an_archive_that_is_no_array_is_named(name, tmp_path):
    refused(with_members(tmp_path / "d.npz", (name, b"hello")), f"'{name}' is no array")


def test_what_macos_puts_into_an_archive_is_passed_over(tmp_path):
    path = with_members(tmp_path / "d.npz", ("__MACOSX/._a.npy", b"\0\5\x16\7"))
    assert sorted(load(path).modalities) == ["a", "b"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_array_that_stands_twice_is_refused(tmp_path):
    path = with_members(tmp_path / "d.npz", ("a.npy", as_npy(np.zeros((N, 4)))))
    refused(path, "holds 'a' more than once")


def test_one_array_under_the_name_of_an_archive(tmp_path):
    (tmp_path / "d.npz").write_bytes(as_npy(np.zeros((N, 4))))
    refused(tmp_path / "d.npz", "one array, not an archive of several")


@pytest.mark.timeout(20)
def test_labels_that_are_hashes_take_no_time(tmp_path):
    np.savez(tmp_path / "d.npz", **arrays(label=np.arange(N, dtype=np.uint64) % 4 + np.uint64(2**63)))
    refused(tmp_path / "d.npz", "without gaps; 0, 1, 2, 3, 4 never occur")


@pytest.mark.parametrize("name", ["\x1b[31mred", "a\nb", "a\0b", "\ud800"])
def test_a_class_whose_name_steers_a_terminal_or_is_no_text_is_refused(name, tmp_path):
    np.savez(tmp_path / "d.npz", **arrays(label=np.array([name, "x", "y", "z"])[np.arange(N) % 4]))
    text = refused(tmp_path / "d.npz", "a class is called ")
    assert text.isprintable()


def test_a_modality_whose_name_steers_a_terminal_is_refused(tmp_path):
    np.savez(tmp_path / "d.npz", **arrays(**{"\x1b[31mred": np.random.default_rng(1).normal(size=(N, 2))}))
    assert refused(tmp_path / "d.npz", "a modality is called ").isprintable()


def test_numbers_that_differ_by_less_than_32_bits_can_tell_are_refused():
    modality = Modality(name="a", kind="vector", shape=(2,))
    with pytest.raises(DataError, match="lost in 32 bits; scale them up"):
        modality.fitted(np.array([[1e-40, 1.0], [2e-40, 1.0]], dtype=np.float32))
    beside = modality.fitted(np.array([[1e-40, 1.0], [2e-40, 2.0]], dtype=np.float32))
    assert beside.std == (1.0, 0.5)  # as a constant one


# What is no file -----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["pipe", "device", "folder"])
def no_file(request):
    def put(path):
        if request.param == "pipe":
            os.mkfifo(path)
        elif request.param == "device":
            path.symlink_to("/dev/zero")
        else:
            path.mkdir()
        return path

    put.word = "is a folder" if request.param == "folder" else "is a pipe or a device"
    return put


@pytest.mark.timeout(20)
def test_an_archive_that_is_no_file(no_file, tmp_path):
    with pytest.raises(DataError, match=no_file.word):
        read_archive(no_file(tmp_path / "d.npz"))


@pytest.mark.timeout(20)
@pytest.mark.parametrize("ending", ["npy", "png"])
def test_a_sample_that_is_no_file(ending, no_file, tmp_path):
    kind, shape = ("image", (3, 4, 4)) if ending == "png" else ("vector", (4,))
    modality = Modality(name="a", kind=kind, shape=shape, dtype="uint8" if ending == "png" else "float32")
    with pytest.raises(DataError, match=no_file.word):
        modality.read(no_file(tmp_path / f"x.{ending}"))


@pytest.mark.timeout(20)
def test_a_cell_of_a_manifest_that_is_no_file(no_file, tmp_path):
    random = np.random.default_rng(0)
    for i in range(N):
        for name in "ab":
            np.save(tmp_path / f"{name}{i}.npy", random.normal(size=4))
    (tmp_path / "a5.npy").unlink()
    no_file(tmp_path / "a5.npy")
    (tmp_path / "m.csv").write_text("a,b\n" + "".join(f"a{i}.npy,b{i}.npy\n" for i in range(N)))
    refused(tmp_path / "m.csv", f"row 6: {tmp_path / 'a5.npy'}: {no_file.word}")


@pytest.mark.timeout(20)
def test_data_that_are_a_pipe_or_a_link_to_nowhere(tmp_path):
    os.mkfifo(tmp_path / "d.csv")
    refused(tmp_path / "d.csv", "is a pipe or a device, not a file")
    (tmp_path / "e.npz").symlink_to("gone.npz")
    refused(tmp_path / "e.npz", "is a link to 'gone.npz', which is not there")


# Pictures, sounds, tables --------------------------------------------------------------------------------------------


def test_no_other_program_is_started_for_a_picture(tmp_path, monkeypatch):
    """Pillow hands PostScript, whatever the file's ending, to Ghostscript, which runs it."""
    ghost = tmp_path / "bin" / "gs"
    ghost.parent.mkdir()
    ghost.write_text(f"#!/bin/sh\ntouch {tmp_path}/sprung\n")
    ghost.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ghost.parent}{os.pathsep}{os.environ['PATH']}")
    assert shutil.which("gs") == str(ghost)
    path = tmp_path / "x.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 12 12\n%%EndComments\nshowpage\n")
    with pytest.raises(DataError, match="not a picture"):
        read_picture(path, size=(8, 8), channels=3)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM"])
def test_pictures_of_known_forms_are_read_whatever_their_ending(form, tmp_path):
    Image.new("RGB", (8, 8), (250, 0, 0)).save(tmp_path / "x.bin", format=form)
    (tmp_path / "x.bin").rename(tmp_path / "x.png")
    picture = read_picture(tmp_path / "x.png", size=(8, 8), channels=3)
    assert picture[0].min() > 240
    assert picture[1:].max() < 10


def test_a_sound_of_hours_takes_the_memory_of_what_is_kept(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    random = np.random.default_rng(0)
    wave = random.normal(size=24000).clip(-3, 3) / 4
    soundfile.write(tmp_path / "short.wav", wave, 8000, subtype="FLOAT")
    content = (tmp_path / "short.wav").read_bytes()
    with (tmp_path / "long.wav").open("wb") as file:  # says 66 hours, which its holes do not take on the disk
        at = content.index(b"data") + 4
        file.write(content[:at] + (1_900_000_000).to_bytes(4, "little") + content[at + 4 :])
        file.truncate(at + 4 + 1_900_000_000)
    for rate in (8000, 5000):
        long = read_sound(tmp_path / "long.wav", rate=rate, seconds=2.0)
        assert long.equal(read_sound(tmp_path / "short.wav", rate=rate, seconds=2.0))


@pytest.mark.parametrize(("rate", "word"), [(2**31 - 1, "a rate of 2147483647 Hz"), (0, "rate of 0|can be read")])
def test_a_sound_with_a_rate_that_none_has(rate, word, tmp_path):
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "x.wav", np.zeros(800), 8000)
    content = bytearray((tmp_path / "x.wav").read_bytes())
    content[24:28] = rate.to_bytes(4, "little")
    (tmp_path / "x.wav").write_bytes(content)
    with pytest.raises(DataError, match=word):
        read_sound(tmp_path / "x.wav", rate=8000, seconds=1.0)


def test_a_sound_louder_than_32_bits_can_square(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "x.wav", np.full(800, 1e30, "float32"), 8000, subtype="FLOAT")
    modality = Modality(
        name="a", kind="audio", shape=(1, 64, 11), dtype="float16", decode={"rate": 8000, "seconds": 0.1, "mels": 64}
    )
    with pytest.raises(DataError, match=r"x\.wav: holds 1e\+30, where sounds are in -1\.\.1"):
        modality.read(tmp_path / "x.wav")


def test_a_table_that_is_not_utf8_says_what_to_do(tmp_path):
    (tmp_path / "m.csv").write_bytes("a,b,label\nx.npy,y.npy,\xe4\n".encode("latin-1"))
    refused(tmp_path / "m.csv", "save it as UTF-8")


def test_a_label_of_thousands_of_digits_is_a_word(tmp_path):
    np.savez(tmp_path / "d.npz", **arrays(label=np.array(["9" * 5000, "0", "1", "2"])[np.arange(N) % 4]))
    assert load(tmp_path / "d.npz").classes == 4


def test_python_objects_are_not_loaded_from_any_of_these(tmp_path):
    trap = pickle.dumps(os.system)
    for name in ("d.npz", "d.npy"):
        (tmp_path / name).write_bytes(trap)
        with pytest.raises(DataError):
            read_archive(tmp_path / name)
