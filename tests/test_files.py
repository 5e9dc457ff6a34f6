import json

import pytest

from crossdistill.files import digest, whole_file, write_json, write_text


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), whole_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_json_round_trip_and_refusal_of_nan(tmp_path):
    write_json(tmp_path / "x.json", {"a": [1, 2.5], "é": None})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [1, 2.5], "é": None}
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert json.loads((tmp_path / "x.json").read_text())["a"] == [1, 2.5]


def test_digests_tell_parts_apart_and_do_not_depend_on_the_order_of_keys():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest("ab", "c") != digest("a", "bc")
    assert digest(b"x") != digest("x")
    assert len(digest()) == 16
