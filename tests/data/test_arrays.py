"""Arrays of pairs from NPY files: what is read, and what is refused where."""

import pickle

import numpy as np
import pytest

from crossdistill.data.arrays import read_features, read_groups, read_labels
from crossdistill.errors import DataError


@pytest.fixture
def save(tmp_path):
    def write(array, name="a.npy"):
        np.save(tmp_path / name, array, allow_pickle=True)
        return tmp_path / name

    return write


def test_features_are_rows_whatever_shape_a_sample_has(save):
    x = np.arange(24, dtype=np.uint8).reshape(4, 2, 3)
    rows = read_features(save(x))
    assert rows.dtype == np.float64
    assert np.array_equal(rows, x.reshape(4, 6))
    assert read_features(save(np.arange(3.0))).shape == (3, 1)


@pytest.mark.parametrize(
    ("column", "expected", "names"),
    [
        ([3, -1, 7, 3], [0, -1, 1, 0], ("3", "7")),
        ([1.0, np.nan, 0.0, 1.0], [1, -1, 0, 1], ("0", "1")),
        (["cat", "", "dog", "cat"], [0, -1, 1, 0], ("cat", "dog")),
        ([[2], [10], [-1], [2]], [0, 1, -1, 0], ("2", "10")),
    ],
)
def test_labels_are_numbered_and_unknown_ones_are_minus_one(save, column, expected, names):
    label, found = read_labels(save(np.array(column)), 4)
    assert label.tolist() == expected
    assert found == names


def test_groups_are_numbered(save):
    assert read_groups(save(np.array(["ann", "bob", "ann"])), 3).tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (np.array([[1.0, 2.0], [np.nan, 1.0], [np.inf, 0.0]]), "row 1, column 0 is nan, and 1 more"),
        (np.array([{"a": 1}, None]), "not an array that can be read: it holds Python objects, which are never loaded"),
        (np.array(["one", "two"]), "not an array of real numbers"),
        (np.zeros((0, 3)), r"shape \(0, 3\)"),
        (np.array(1.0), r"shape \(\)"),
        (np.array([1j]), "not an array of real numbers"),
    ],
)
def test_features_that_are_none_are_refused_with_the_place(save, array, told):
    path = save(array)
    with pytest.raises(DataError, match=told) as caught:
        read_features(path)
    assert str(caught.value).startswith(str(path))


def test_a_pickle_under_another_name_is_refused_and_never_loaded(tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("sprung").touch, ())

    path = tmp_path / "a.npy"
    path.write_bytes(pickle.dumps(Trap()))
    for read in (read_features, lambda p: read_labels(p, 2), lambda p: read_groups(p, 2)):
        with pytest.raises(DataError, match="not an array that can be read") as caught:
            read(path)
        assert "never loaded" in str(caught.value)
        assert "unsafe" not in str(caught.value)
    assert not (tmp_path / "sprung").exists()
    with pytest.raises(DataError, match="there is no such file"):
        read_features(tmp_path / "b.npy")


@pytest.mark.parametrize(
    ("column", "told"),
    [
        ([0, 1, 2], "3 rows, and there are 4 pairs"),
        ([0, 1, -2, 0], "row 2: label -2; classes are 0, 1, 2"),
        ([0.5, 1.0, 0.0, 1.0], "one whole number or word a row"),
        ([[0, 1], [1, 0], [0, 0], [1, 1]], "one whole number or word a row"),
    ],
)
def test_labels_that_are_none_are_refused(save, column, told):
    with pytest.raises(DataError, match=told):
        read_labels(save(np.array(column)), 4)


def test_a_label_of_minus_one_that_was_cast_is_refused(save):
    for kind, most in ((np.uint8, 255), (np.uint16, 65535)):
        with pytest.raises(DataError, match=f"row 2: label {most} is probably -1"):
            read_labels(save(np.array([0, 100, -1, 3]).astype(kind)), 4)
    # with others near it, it is a class like them
    label, names = read_labels(save(np.array([0, 128, 255, 3], dtype=np.uint8)), 4)
    assert label.tolist() == [0, 2, 3, 1]
    assert names[-1] == "255"
    assert read_labels(save(np.array([0, 255])), 2)[1] == ("0", "255")
    assert read_groups(save(np.array([0, 255], dtype=np.uint8)), 2).tolist() == [0, 1]


def test_a_row_without_group_is_refused(save):
    with pytest.raises(DataError, match="row 1: the group is missing"):
        read_groups(save(np.array(["ann", "", "ann"])), 3)
