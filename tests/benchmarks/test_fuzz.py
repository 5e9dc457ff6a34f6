"""Broken experiment files and data, drawn by number: each is taken or refused with its place."""

import numpy as np
import pytest
from benchmarks.reliability import fuzz_data
from benchmarks.reliability.fuzz import EXPERIMENTS, SUITE, mutant, outcome_of, tried, write_data
from PIL import Image

from crossdistill.data.decode import load_array, picture_facts
from crossdistill.errors import DataError


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path)
    return tmp_path


def test_the_files_that_are_broken_are_good_ones(here):
    for text in (*EXPERIMENTS, SUITE):
        assert tried(text, here / "out", suite=text is SUITE).kind == "taken"


def test_a_number_is_one_file_and_others_are_others():
    texts = [mutant(number, EXPERIMENTS[0]) for number in range(30)]
    assert texts == [mutant(number, EXPERIMENTS[0]) for number in range(30)]
    assert len(set(texts)) > 25


LONG = "x" * 3000
FOUND = {
    "a suite's data that are a word": (SUITE.replace("data: {name: toy.npz}", "data: x"), "experiments.toy.data"),
    "a number for a parameter's name": (EXPERIMENTS[0].replace("{std: 0.1}", "{1: 2}"), "'1'"),
    "a long value": (EXPERIMENTS[0].replace("epochs: 2", f"epochs: {LONG}", 1), "line 6: a word of 3000 letters"),
    "a long name": (EXPERIMENTS[0].replace("encoder: mlp", f"encoder: {LONG}"), "line 4: a word of 3000 letters"),
    "a long key": (EXPERIMENTS[0].replace("lr: 1e-3", f"? {LONG}"), "a word of 3000 letters"),
    "an empty row": (SUITE.replace("[similarity, ", "[similarity, {}, "), "methods.1: an empty row"),
    "a row that does not distil": (
        EXPERIMENTS[1].replace("{method: mke}", "{method: supervised, modality: poor}"),
        "compare.1.two: the last stage must distil",
    ),
}
"""Files that ended in a traceback, in a message of thousands of letters, or at a wrong place."""


@pytest.mark.parametrize("case", FOUND)
def test_what_was_found_is_refused_in_a_line(case, here):
    text, told = FOUND[case]
    found = tried(text, here / "out", suite=text.startswith("title"))
    assert found.kind == "refused", found.said
    assert told in found.said
    assert len(found.said) < 500


def test_every_broken_file_is_taken_or_refused_with_its_place(here):
    kinds = set()
    for number in range(60):
        text, found = outcome_of(number, here / "out")
        assert found.kind in ("taken", "refused"), f"{number}: {found.said}\n{text}"
        kinds.add(found.kind)
    assert kinds == {"taken", "refused"}
    assert [path.name for path in here.iterdir()] == ["toy.npz"]


def test_every_broken_data_set_is_taken_or_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("CROSSDISTILL_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "data"
    folder.mkdir()
    kinds = set()
    for number in range(30):
        found = fuzz_data.outcome_of(number, folder)
        assert found.kind in ("taken", "refused"), f"{number}: {found.said}"
        kinds.add(found.kind)
    assert kinds == {"taken", "refused"}


@pytest.mark.parametrize("header", ["{'descr': '<f4', 'fortran_order': False, 'shape': (7,", "(9" * 40])
def test_a_header_that_is_no_python_is_refused_with_its_file(header, tmp_path):
    content = header.encode().ljust(118) + b"\n"
    path = tmp_path / "broken.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(content).to_bytes(2, "little") + content + np.zeros(7, "<f4").tobytes())
    with pytest.raises(DataError, match=r"broken\.npy: not an array that can be read"):
        load_array(path)


def test_a_picture_whose_stream_is_broken_is_refused_with_its_file(tmp_path):
    path = tmp_path / "broken.png"
    Image.fromarray(np.arange(144, dtype=np.uint8).reshape(12, 12)).save(path)
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 4] = 0  # where zlib says what it is
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"broken\.png: a broken picture"):
        picture_facts(path)
