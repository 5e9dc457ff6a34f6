"""The student that a run leaves, and the evidence beside it: what is on disk is what was evaluated."""

import json
import sys

import numpy as np
import pytest
import torch
from toy_experiment import EXPERIMENT

from crossdistill.errors import DataError, NetworkError
from crossdistill.evaluation import linear_probe
from crossdistill.experiments import Bench, load_student, parse_experiment, run_experiment
from crossdistill.experiments.arms import list_arms
from crossdistill.experiments.evidence import write_evidence
from crossdistill.experiments.judge import features
from crossdistill.report import write_report

TEXT = EXPERIMENT.replace("seeds: 2", "seeds: [3]").replace("fine_tune_steps: 5", "ways: [linear, knn]")


@pytest.fixture(scope="module")
def done(toy, tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("student")
    results = run_experiment(parse_experiment(TEXT), folder, data=toy)
    return results, folder, Bench(parse_experiment(TEXT), folder, data=toy)


def test_the_saved_student_is_the_evaluated_one(done):
    results, folder, bench = done
    student = load_student(folder / "student")
    arm = list_arms(bench.experiment)[0]
    encoder, labelled = bench.product(arm, 3), bench.label_rows(3)
    probe = linear_probe(features(encoder, labelled, "poor"), labelled.label, c=10.0)
    raw = torch.from_numpy(bench.test.raw("poor", np.arange(100)))
    with torch.no_grad():
        logits = student(raw)
        in_memory = probe.head()(encoder(bench.data.modality("poor").prepare(raw)))
    assert torch.equal(logits, in_memory)
    accuracy = (logits.argmax(1).numpy() == bench.test.label).mean()
    row = next(
        r
        for r in results["rows"]
        if (r["method"], r["evaluation"], r["metric"]) == ("similarity", "linear", "accuracy")
    )
    assert accuracy == pytest.approx(row["value"])
    assert not student.training


def test_predictions_on_files(done, tmp_path):
    _, folder, bench = done
    student = load_student(folder / "student")
    raw, files = bench.test.raw("poor", np.arange(5)), []
    for i, sample in enumerate(raw):
        files.append(tmp_path / f"{i}.npy")
        np.save(files[-1], sample)
    found = student.predict(files, batch_size=2)
    with torch.no_grad():
        p = student(torch.from_numpy(raw)).softmax(1)
    for i, one in enumerate(found):
        assert one.file == str(files[i])
        assert one.label == bench.data.class_names[int(p[i].argmax())]
        assert one.probability == pytest.approx(float(p[i].max()), abs=1e-6)
        assert sum(one.probabilities.values()) == pytest.approx(1.0, abs=1e-5)
        assert list(one.probabilities) == ["0", "1", "2", "3"]


def test_files_that_do_not_fit_are_named(done, tmp_path):
    student = load_student(done[1] / "student")
    np.save(tmp_path / "wide.npy", np.zeros(9, dtype="float32"))
    np.save(tmp_path / "nan.npy", np.full(8, np.nan, dtype="float32"))
    (tmp_path / "text.txt").write_text("words")
    for name in ("wide.npy", "nan.npy", "text.txt", "gone.npy"):
        with pytest.raises(DataError, match=name):
            student.predict([tmp_path / name])
    assert student.predict([]) == []


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_a_bad_file_costs_no_other_its_prediction(batch_size, done, tmp_path):
    _, folder, bench = done
    student, raw = load_student(folder / "student"), bench.test.raw("poor", np.arange(3))
    good = [tmp_path / f"{i}.npy" for i in range(3)]
    for path, sample in zip(good, raw, strict=True):
        np.save(path, sample)
    np.save(tmp_path / "wide.npy", np.zeros(9, dtype="float32"))
    files = [tmp_path / "gone.npy", good[0], good[1], tmp_path / "wide.npy", good[2]]
    found = list(student.predict_each(files, batch_size=batch_size))
    assert [isinstance(one, DataError) for one in found] == [True, False, False, True, False]
    assert "gone.npy" in str(found[0])
    assert "wide.npy" in str(found[3])
    for one, alone in zip([found[i] for i in (1, 2, 4)], student.predict(good), strict=True):
        assert (one.file, one.label) == (alone.file, alone.label)
        assert one.probability == pytest.approx(alone.probability, abs=1e-6)


def test_loading_leaves_the_random_state_alone(done):
    before = torch.get_rng_state()
    load_student(done[1] / "student")
    assert torch.equal(torch.get_rng_state(), before)


def copy_of(done, tmp_path, **changes):
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in (done[1] / "student").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


def test_a_copied_student_works_alone(done, tmp_path):
    folder = copy_of(done, tmp_path)
    x = torch.randn(3, 8)
    with torch.no_grad():
        assert torch.equal(load_student(folder)(x), load_student(done[1] / "student")(x))


def flip(path):
    content = path.read_bytes()
    path.write_bytes(content[:-5] + bytes([content[-5] ^ 4]) + content[-4:])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no tensors"), "damaged"),
        (
            lambda folder: flip(folder / "model.safetensors"),
            "checksum of the weights is another; copy the folder again",
        ),
        (lambda folder: (folder / "config.json").write_text("{"), "damaged"),
        (lambda folder: (folder / "config.json").write_text("[]"), "copy"),
    ],
)
def test_a_damaged_student_is_refused(damage, message, done, tmp_path):
    folder = copy_of(done, tmp_path)
    damage(folder)
    with pytest.raises(NetworkError, match=message):
        load_student(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 99}, "has format 99"),
        ({"features": 5}, "do not belong together"),
        ({"class_names": ["0", "1"]}, "do not belong together"),
        ({"class_names": None}, "do not belong together"),
        ({"encoder": {"name": "auto"}}, "do not belong together"),
        ({"encoder": {"name": "mpl", "shape": [8], "parameters": {}}}, "mlp"),
        ({"modality": {"name": "poor"}}, "kind"),
        ({"modality": 7}, "do not belong together"),
    ],
)
def test_a_changed_configuration_is_refused(changes, message, done, tmp_path):
    with pytest.raises(NetworkError, match=message) as caught:
        load_student(copy_of(done, tmp_path, **changes))
    assert "copy" in str(caught.value)


def test_a_file_of_the_folder_is_not_the_folder(done):
    with pytest.raises(NetworkError, match="is a file; give the folder that holds it"):
        load_student(done[1] / "student" / "model.safetensors")


OWN = """
from torch import nn

class Net(nn.Module):
    def __init__(self, width=6):
        super().__init__()
        self.layer = nn.Linear(8, width)

    def forward(self, x):
        if getattr(self, "tired", False):
            raise KeyError("tired")
        return self.layer(x)
"""


def test_an_encoder_of_ones_own_names_its_module(toy, tmp_path, monkeypatch):
    (tmp_path / "nets_of_a_user.py").write_text(OWN)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        text = TEXT.replace("compare: [l2]", "compare: []").replace(
            "poor: {hidden: [16], dim: 8}", 'poor: {encoder: "nets_of_a_user:Net"}'
        )
        run_experiment(parse_experiment(text), tmp_path / "out", data=toy)
        student = load_student(tmp_path / "out" / "student")
        np.save(tmp_path / "x.npy", np.zeros(8, dtype="float32"))
        assert len(student.predict([tmp_path / "x.npy"])) == 1
        student.encoder.net.tired = True
        with pytest.raises(NetworkError, match=r"KeyError: 'tired' \(.*nets_of_a_user.py:11\)"):
            student.predict([tmp_path / "x.npy"])
    sys.modules.pop("nets_of_a_user")
    card = (tmp_path / "out" / "student" / "README.md").read_text()
    assert "**Needs** the module `nets_of_a_user`" in card
    with pytest.raises(NetworkError, match="a module of your own, and 'nets_of_a_user' must be importable") as caught:
        load_student(tmp_path / "out" / "student")
    assert "do not belong together" not in str(caught.value)


def test_the_model_card_says_what_it_is_and_how_good(done):
    results, folder, _ = done
    card = (folder / "student" / "README.md").read_text()
    assert results["sentence"] in card
    assert "(seed 3)" in card
    mine = [r for r in results["rows"] if r["method"] == "similarity" and r["metric"] == "accuracy"]
    assert all(f"| {r['evaluation']} | {100 * r['value']:.1f} |" in card for r in mine)
    assert "**Needs**" not in card
    for words in ("Student of poor, distilled from rich", "3 labels per class", "natural", "licence not stated"):
        assert words in card


def test_class_pairs_are_told_of_in_the_card(toy, tmp_path):
    matched = toy.named(pairing="class", licence="CC0", attribution="Nobody at all.")
    run_experiment(parse_experiment(TEXT.replace("compare: [l2]", "compare: []")), tmp_path, data=matched)
    card = (tmp_path / "student" / "README.md").read_text()
    assert "matched by label" in card
    assert "CC0" in card
    assert "Nobody at all." in card


def test_the_evidence_shows_test_samples_and_what_they_retrieve(done):
    _, folder, bench = done
    with np.load(folder / "evidence.npz", allow_pickle=False) as file:
        kept = {name: file[name] for name in file.files}
    assert set(kept) == {
        *("map_label", "map_teacher", "map_student", "map_control", "map_control_name", "query_target", "query_label"),
        *("retrieved_source", "retrieved_target", "retrieved_label", "class_names", "modalities"),
    }
    assert np.array_equal(kept["map_label"], bench.test.label)
    assert kept["map_student"].shape == kept["map_control"].shape == kept["map_teacher"].shape == (100, 8)
    assert sorted(kept["query_label"][:4]) == [0, 1, 2, 3]
    queries, depth = len(kept["query_label"]), kept["retrieved_label"].shape[1]
    assert kept["retrieved_source"].shape == (queries, depth, 12)
    assert kept["retrieved_target"].shape == (queries, depth, 8)
    poor, train = bench.data.columns.arrays["poor"], bench.train
    for q in range(queries):
        for k in range(depth):  # what is retrieved are pairs of the training split, with their labels
            row = int(np.flatnonzero((poor == kept["retrieved_target"][q, k]).all(1))[0])
            assert row in train.rows
            assert np.array_equal(bench.data.columns.arrays["rich"][row], kept["retrieved_source"][q, k])
            assert bench.data.columns.label[row] == kept["retrieved_label"][q, k]
    modalities = json.loads(str(kept["modalities"]))
    assert modalities["target"] == {"name": "poor", "kind": "vector", "shape": [8], "channels": []}
    arms = list_arms(bench.experiment)
    write_evidence(bench, arms, 3)
    with np.load(folder / "evidence.npz", allow_pickle=False) as file:
        assert all(np.array_equal(file[name], kept[name]) for name in kept)


@pytest.mark.filterwarnings("ignore")  # matplotlib's own
def test_the_report_is_written_from_the_folder(done):
    results, folder, _ = done
    page = write_report(folder).read_text(encoding="utf-8")
    assert results["sentence"].split(":")[0] in page
    assert "shuffled_pairs" in page
    for absent in ("http://cdn", "https://cdn", 'src="http'):
        assert absent not in page
