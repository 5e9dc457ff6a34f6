import numpy as np
import pytest

from crossdistill.report.evidence import read_evidence
from crossdistill.report.inputs import read_history
from crossdistill.report.words import CONTROLS, controls, pairing_words


def test_history_survives_a_killed_run(tmp_path):
    path = tmp_path / "metrics.jsonl"
    good = '{"method": "m", "seed": 1, "epoch": 2, "loss": NaN, "held_out/loss": 0.5, "term": "x"}'
    path.write_text(f'{good}\n\n{{"method": "m", "stage": null, "step": 3}}\n{{"method": "m", "ep', encoding="utf-8")
    lines, broken = read_history(path)
    assert broken == 1
    assert [(line.epoch, line.held_out, line.seed) for line in lines] == [(2, 0.5, 1)]
    assert read_history(tmp_path / "none") == ([], 0)


def test_evidence_is_read_by_parts(tmp_path, evidence_arrays):
    arrays = evidence_arrays(points=20)
    path = tmp_path / "evidence.npz"
    np.savez(path, **{key: value for key, value in arrays.items() if not key.startswith("map_t")})
    evidence = read_evidence(path)
    assert list(evidence.maps.spaces) == ["Student", "Control: scratch"]
    assert evidence.retrieval.target.channels == ("x", "y", "pen")
    assert evidence.absent == {}
    assert evidence.class_name(1) == "eight"
    assert evidence.class_name(99) == "class 99"


@pytest.mark.parametrize(
    ("change", "part", "word"),
    [
        ({"map_student": np.zeros((3, 2))}, "maps", "rows must match"),
        ({"map_student": np.full((20, 2), np.nan)}, "maps", "not finite"),
        ({"map_label": None}, "maps", "holds no map_label"),
        ({"map_teacher": None, "map_student": None, "map_control": None}, "maps", "none of"),
        ({"retrieved_label": np.zeros((5, 0), int)}, "retrieval", "neither of them 0"),
        ({"query_label": np.zeros(4, int)}, "retrieval", "must match"),
        ({"retrieved_source": None, "retrieved_target": None}, "retrieval", "neither"),
        ({"modalities": np.array("{}")}, "retrieval", "modalities"),
        ({"modalities": np.array("[1]")}, "retrieval", "modalities"),
        ({"query_target": None}, "retrieval", "holds no query_target"),
    ],
)
def test_wrong_evidence_is_a_reason_and_spares_the_rest(change, part, word, tmp_path, evidence_arrays):
    arrays = {key: value for key, value in (evidence_arrays(points=20) | change).items() if value is not None}
    np.savez(tmp_path / "evidence.npz", **arrays)
    evidence = read_evidence(tmp_path / "evidence.npz")
    assert word in evidence.absent[part]
    assert list(evidence.absent) == [part]


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04broken"])
def test_broken_archive_is_a_reason(content, tmp_path):
    (tmp_path / "evidence.npz").write_bytes(content)
    assert "cannot be read" in read_evidence(tmp_path / "evidence.npz").absent["maps"]


def test_pickles_are_not_opened(tmp_path):
    np.savez(tmp_path / "evidence.npz", map_label=np.array([{}], dtype=object))
    evidence = read_evidence(tmp_path / "evidence.npz")
    assert "cannot be read" in evidence.absent["retrieval"]


def test_controls_are_recognised_by_name_or_title():
    rows = [
        ("raw_features", "", "baseline"),
        ("a", "The student from scratch", "baseline"),
        ("target_ssl", "", "baseline"),
        ("graph", "", "control"),
        ("random_teacher", "", "control"),
        ("x", "cmcd with shuffled pairs", "control"),
        ("t", "", "ceiling"),
        ("random", "", "method"),
    ]
    ran, missing = controls(rows)
    assert [control.title for control, _ in ran] == [control.title for control in CONTROLS]
    assert [names for _, names in ran] == [
        ["raw_features"],
        ["a"],
        ["target_ssl"],
        ["graph"],
        ["random_teacher"],
        ["x"],
        ["t"],
    ]
    assert missing == []
    assert controls([]) == ([], list(CONTROLS))


def test_class_pairs_are_said_to_carry_labels():
    assert "carries label information" in pairing_words("class-paired")
    assert "carries no label" in pairing_words("natural")
