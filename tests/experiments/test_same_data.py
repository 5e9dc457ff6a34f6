"""Data that change between two starts in one folder: told of by file and part, or refused."""

import numpy as np
import pytest
from toy_experiment import EXPERIMENT

from crossdistill.errors import DataError
from crossdistill.experiments import parse_experiment, run_experiment


class Begun(Exception):
    pass


def begin(data, folder):
    """Start a run, and end it before anything is trained."""

    def listen(word, facts):
        raise Begun

    text = EXPERIMENT.replace("name: toy", f"name: {data}")
    with pytest.raises(Begun):
        run_experiment(parse_experiment(text), folder, listen=listen)


def flip(array):
    """Flip the lowest bit of one number."""
    array.reshape(-1).view(np.uint32)[7] ^= 1


def archive(toy, path):
    columns = {**{name: np.array(x) for name, x in toy.columns.arrays.items()}, "label": toy.label.copy()}
    np.savez(path, **columns, split=toy.columns.split)
    return columns


def test_an_archive_that_changes_between_two_starts_is_named_with_what_changed(toy, tmp_path, caplog):
    path, out = tmp_path / "mine.npz", tmp_path / "out"
    columns = archive(toy, path)
    begin(path, out)
    begin(path, out)
    assert not caplog.messages
    flip(columns["rich"])
    columns["label"][0] = (columns["label"][0] + 1) % 4
    np.savez(path, **columns, split=toy.columns.split)
    begin(path, out)
    assert caplog.messages[0].startswith(
        f"{path}: 'rich' and labels, groups, splits or absences changed since '{out}' was worked in before"
    )
    begin(path, out)
    assert len(caplog.messages) == 1


def test_an_archive_with_a_flipped_bit_is_refused(toy, tmp_path):
    path, out = tmp_path / "mine.npz", tmp_path / "out"
    archive(toy, path)
    begin(path, out)
    content = bytearray(path.read_bytes())
    content[content.index(toy.columns.arrays["rich"].tobytes()) + 100] ^= 4
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"mine\.npz: array 'rich' cannot be read"):
        begin(path, out)


def test_a_bit_flipped_in_a_file_of_a_manifest_is_told_of(toy, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("CROSSDISTILL_CACHE", str(tmp_path / "cache"))
    lines = ["rich,poor,label,split"]
    for row in range(100, 260):
        for name, x in toy.columns.arrays.items():
            np.save(tmp_path / f"{name}{row}.npy", x[row])
        split = ("train", "validation", "test")[toy.columns.split[row]]
        lines.append(f"rich{row}.npy,poor{row}.npy,c{toy.label[row]},{split}")
    (tmp_path / "pairs.csv").write_text("\n".join(lines) + "\n")
    begin(tmp_path / "pairs.csv", tmp_path / "out")
    sample = np.load(tmp_path / "poor120.npy")
    flip(sample)
    np.save(tmp_path / "poor120.npy", sample)
    begin(tmp_path / "pairs.csv", tmp_path / "out")
    (told,) = caplog.messages
    assert told.startswith(f"{tmp_path / 'pairs.csv'}: 'poor' changed since")


def test_a_damaged_note_says_nothing(toy, tmp_path, caplog):
    path, out = tmp_path / "mine.npz", tmp_path / "out"
    archive(toy, path)
    begin(path, out)
    text = (out / "data.json").read_text()
    for damaged in (text[:-9], "[]", text.replace('"rich": "', '"rich": "0')):
        (out / "data.json").write_text(damaged)
        begin(path, out)
    assert not caplog.messages
    assert (out / "data.json").read_text() == text
