"""Arrays that are none are refused in one line that names them."""

import numpy as np
import pytest

from crossdistill.diagnostics import check_pairs, mutual_information, vote_error
from crossdistill.errors import DataError
from crossdistill.evaluation._checks import feature_rows, label_column

RAGGED = [[1.0, 2.0], [3.0]]


@pytest.mark.parametrize(
    ("x", "told"),
    [
        (np.array([["a", "b"], ["c", "d"]]), "received words"),
        (np.array([["1", "2"]]), "received words"),
        (RAGGED, "a list with rows of unequal length"),
        (np.array([[{}, 1.0]], dtype=object), "objects: dict, float"),
        ([[None, "a"]], "objects: NoneType, str"),
        (np.array([[1j]]), "entries of complex128"),
        (None, "received shape"),
    ],
)
def test_features_that_are_no_numbers_are_refused(x, told):
    with pytest.raises(DataError, match=f"^z must be .*{told}") as caught:
        feature_rows("z", x)
    assert "\n" not in str(caught.value)


def test_numbers_of_any_kind_are_features():
    for x in ([[1, 2]], np.array([[True, False]]), np.array([[1, 2.5]], dtype=object), np.float32([[1, 2]])):
        rows = feature_rows("x", x)
        assert rows.dtype == np.float64
        assert rows.shape == (1, 2)
    x = np.ones((2, 2))
    assert feature_rows("x", x) is x


@pytest.mark.parametrize(
    ("label", "told"),
    [
        (RAGGED, "rows of unequal length"),
        (np.array(["a", None], dtype=object), "objects: NoneType, str"),
        (np.array([1, "a"], dtype=object), "objects: int, str"),
        (np.array([{}, {}], dtype=object), "objects: dict"),
        (None, "shape"),
    ],
)
def test_labels_that_are_none_are_refused(label, told):
    with pytest.raises(DataError, match=f"^labels must be .*{told}"):
        label_column("labels", label)


def test_words_and_numbers_of_a_table_are_labels():
    assert label_column("labels", np.array(["a", "b"], dtype=object)).dtype.kind == "U"
    assert label_column("labels", np.array([1, 2], dtype=object)).dtype.kind == "i"


def test_diagnostics_name_the_array():
    z, y = np.random.default_rng(0).normal(size=(128, 3)), np.arange(128) % 2
    with pytest.raises(DataError, match=r"^x must be"):
        mutual_information(RAGGED, z)
    with pytest.raises(DataError, match=r"^z must be"):
        vote_error(None, y)
    with pytest.raises(DataError, match=r"^target must be"):
        check_pairs(z, z.astype(str))
