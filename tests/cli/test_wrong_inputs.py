"""What users get wrong: exit code 2, one or two lines that say what, where and what to do, and never a traceback."""

import json

import numpy as np
import pytest
import torch
from commands import call
from safetensors.torch import save_file
from toy_experiment import LEAN

from crossdistill.data import PairedDataset
from crossdistill.training.checkpoint import save_checkpoint


@pytest.fixture
def says(monkeypatch, capsys, tmp_path):
    """Run a command in an empty folder and check the form of its complaint; gives the complaint."""
    monkeypatch.chdir(tmp_path)

    def complain(*arguments):
        said = call(monkeypatch, capsys, *arguments)
        assert said.code == 2, said
        assert said.out == ""
        assert said.err.startswith("error: ")
        assert "Traceback" not in said.err
        assert "internal error" not in said.err
        assert len(said.err.splitlines()) <= 2, said.err
        return said.err

    return complain


@pytest.fixture
def file(toy_npz, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(LEAN.replace("name: toy", f"name: {toy_npz.name}"))
    return path


# The experiment file and its changes on the command line -------------------------------------------------------------

CHANGES = {
    "unknown key": ("stages.student.epcohs=2", ["stages.student.epcohs", "did you mean 'epochs'"]),
    "unknown section": ("evalute={}", ["evalute", "did you mean 'evaluate'"]),
    "no equals sign": ("stages.student.epochs", ["write key.path=value"]),
    "empty key": ("=3", ["write key.path=value"]),
    "no YAML": ("seeds=[1", ["'[1' is not valid YAML"]),
    "into a number": ("seeds.first=1", ["nothing called 'first' to step into"]),
    "wrong type": ("stages.student.epochs=many", ["command line, stages.student.epochs", "'many'"]),
    "a nan": ("stages.student.lr=.nan", ["lr must be a number above 0; received nan"]),
    "an infinite rate": ("stages.student.lr=.inf", ["lr must be a number above 0; received inf"]),
    "negative seed": ("seeds=[-1]", ["seeds", "distinct seeds from 0 to 2**32 - 1; received [-1]"]),
    "no seeds": ("seeds=0", ["seeds", "above 0"]),
    "negative number of seeds": ("seeds=-2", ["seeds", "above 0"]),
    "half a seed": ("seeds=1.5", ["seeds", "1.5"]),
    "unknown objective": ("stages.student.objectives={similarty: 1}", ["'similarity'?"]),
    "bad temperature": ("stages.student.objectives={similarity: {tau_student: 0}}", ["must be a temperature"]),
    "objectives of a list": ("stages.student.objectives=[similarity]", ["stages.student.objectives"]),
    "unknown method": ("stages.teacher.method=simclear", ["no method is called 'simclear'", "'simclr'?"]),
    "method without a class": ("stages.teacher.method=os:nothing", ["'os' has no 'nothing'"]),
    "method from nowhere": ("stages.teacher.method=nowhere_to_be_found:A", ["cannot import 'nowhere_to_be_found'"]),
    "unknown optimiser": ("stages.student.optimizer=adamx", ["optimizer", "adamx", "adamw"]),
    "unknown precision": ("stages.student.precision=8-bit", ["precision", "32-true"]),
    "unknown source": (
        ["data.source=ritch", "stages.teacher.modality=ritch", "networks={}"],
        ["data.source", "did you mean 'rich'"],
    ),
    "source that the teacher does not read": ("data.source=ritch", ["no modality 'rich' here", "data.source"]),
    "best of the few labels": ("controls.scratch.keep=best", ["controls.scratch.keep", "no held-out pairs"]),
    "teacher's batch larger than the data": ("stages.teacher.batch_size=500", ["stages.teacher", "a batch of 500"]),
    "unknown network": ("networks.poor.encoder=mpl", ["networks.poor", "did you mean 'mlp'"]),
    "network of another kind": ("networks.poor={encoder: cnn}", ["networks.poor", "reads image, not vector"]),
    "network parameter": ("networks.poor.hiden=[3]", ["networks.poor", "hiden", "did you mean 'hidden'?"]),
    "network parameter out of range": ("networks.poor.dim=0", ["networks.poor", "dim"]),
    "network parameter of wrong type": ("networks.poor.dim=wide", ["networks.poor", "dim"]),
    "network of no text": ("networks.poor.encoder=5", ["networks.poor", "5"]),
    "network of another modality": ("networks.pour={}", ["networks.pour", "'poor'?"]),
    "unknown transform": ("stages.student.augment={poor: [nosie]}", ["augment.poor", "'noise'?"]),
    "transform of another kind": ("stages.student.augment={poor: [rotate]}", ["augment.poor"]),
    "transform parameter": ("stages.student.augment={poor: [{noise: {sdt: 1}}]}", ["augment.poor", "sdt", "std"]),
    "transform out of range": ("stages.student.augment={poor: [{noise: {std: -1}}]}", ["augment.poor", "std"]),
    "batch larger than the data": ("stages.student.batch_size=500", ["a batch of 500", "160 training samples"]),
    "more labels than there are": ("evaluate.labels_per_class=900", ["900"]),
    "unknown way": ("evaluate.ways=[liner]", ["evaluate.ways", "'liner'"]),
    "negative penalty": ("evaluate.c=-1", ["evaluate.c", "greater than 0; received -1"]),
    "penalty of words": ("evaluate.c=best", ["evaluate.c", "'best'"]),
    "own teacher from nowhere": ("stages.teacher={module: 'nowhere_to_be_found:net'}", ["cannot import"]),
    "own teacher without weights": (
        "stages.teacher={module: 'torch.nn:Linear', weights: gone.pt, parameters: {in_features: 12, out_features: 3}}",
        ["there is no weights file gone.pt"],
    ),
    "own teacher with a wrong tap": (
        "stages.teacher={module: 'torch.nn:Linear', tap: inner, parameters: {in_features: 12, out_features: 3}}",
        ["stages.teacher", "inner"],
    ),
    "own teacher of another width": (
        "stages.teacher={module: 'torch.nn:Linear', parameters: {in_features: 5, out_features: 3}}",
        ["stages.teacher", "cannot read samples of shape (12,)"],
    ),
    "no projector where one is needed": (
        ["stages.student.objectives={l2: 1}", "stages.student.projector=none", "networks.poor.dim=4"],
        ["stages", "equal widths", "the student gives 4, the teacher 8"],
    ),
    "data option": ("data.options={sise: 3}", ["no option 'sise'", "'size'?"]),
    "unknown modality in options": ("data.options={modalities: [rich, pour]}", ["no array is called 'pour'", "poor"]),
    "data that are not there": ("data.name=gone.npz", ["'gone.npz' is neither a file, a folder nor a set"]),
    "a world that is not there": ("data.name=synthetic:sharedlatent", ["'shared_latent'?"]),
    "a file of another kind": ("data.name=mine.yaml", ["data are a folder, or a .csv, .parquet or .npz file"]),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_wrong_value(case, says, file):
    change, words = CHANGES[case]
    err = says("run", file, *([change] if isinstance(change, str) else change), "--out", "out", "--jobs", 1)
    assert all(word in err for word in words), err


FILES = {
    "missing": (None, ["there is no experiment file 'mine.yaml'", "crossdistill init"]),
    "empty": (b"", ["a mapping of keys"]),
    "a list": (b"- a\n- b\n", ["a mapping of keys"]),
    "binary": (b"\x93NUMPY\x00\xff\xfe", ["cannot read 'mine.yaml'"]),
    "tabs": (b"data:\n\tname: x\n", ["mine.yaml, line 2", "not valid YAML"]),
    "a key twice": (b"seeds: 1\nseeds: 2\n", ["line 2: 'seeds' stands twice"]),
    "half": (b"data: {name: toy, source: rich, target: poor}\n", ["'stages' is missing"]),
    "python in YAML": (b"data: !!python/object/apply:os.system ['echo x']\n", ["not valid YAML"]),
}


@pytest.mark.parametrize("case", FILES)
def test_a_wrong_experiment_file(case, says, tmp_path):
    content, words = FILES[case]
    if content is not None:
        (tmp_path / "mine.yaml").write_bytes(content)
    err = says("run", "mine.yaml")
    assert all(word in err for word in words), err


# Data ----------------------------------------------------------------------------------------------------------------


def broken(toy, case):
    arrays = {name: array.copy() for name, array in toy.columns.arrays.items()}
    arrays |= {"label": toy.columns.label.copy(), "split": toy.columns.split.copy()}
    if case == "nan":
        arrays["poor"][7, 3] = np.nan
    elif case == "unequal counts":
        arrays["poor"] = arrays["poor"][:-1]
    elif case == "constant":
        arrays["poor"][:] = 4.0
    elif case == "words":
        arrays["poor"] = arrays["poor"].astype(str)
    elif case == "objects":
        arrays["poor"] = np.array([{"a": 1}] * 300, dtype=object)
    elif case == "group leak":
        arrays["group"] = np.arange(300) % 150
    elif case == "duplicates":
        for name in ("rich", "poor"):
            arrays[name][250] = arrays[name][3]
    elif case == "no labels":
        del arrays["label"]
    elif case == "label gap":
        arrays["label"] = arrays["label"] * 2
    elif case == "half labels":
        arrays["label"] = arrays["label"] + 0.5
    elif case == "unknown split":
        arrays["split"] = np.array(["train", "tset"])[(arrays["split"] > 0).astype(int)]
    elif case == "no test":
        arrays["split"][arrays["split"] == 2] = 0
    elif case == "one class":
        arrays["label"][:] = 0
    elif case == "no rows":
        arrays = {name: array[:0] for name, array in arrays.items()}
    elif case == "a modality less":
        del arrays["rich"]
    elif case == "class only in the test":
        arrays["label"][arrays["split"] == 2] = 4
    return arrays


DATA = {
    "nan": ["'poor', row 7", "NaN"],
    "unequal counts": ["poor 299", "rich 300"],
    "constant": ["'poor': all 300 samples are equal"],
    "words": ["'poor': holds", "not real numbers"],
    "objects": ["array 'poor' cannot be read"],
    "group leak": ["a group is on both sides of a split", "row "],
    "duplicates": ["the same pair is on both sides of a split", "row 3", "row 250"],
    "no labels": ["no labels to evaluate with"],
    "label gap": ["without gaps"],
    "half labels": ["'label' must be one whole number or word a row"],
    "unknown split": ["no split is called 'tset'", "test"],
    "no test": ["no test split"],
    "one class": ["class"],
    "no rows": ["all arrays need one row a pair"],
    "a modality less": ["data.source", "no modality 'rich'"],
    "class only in the test": ["class '4' has no training rows"],
}


@pytest.mark.parametrize("case", DATA)
def test_wrong_data(case, says, file, toy, toy_npz, monkeypatch, capsys):
    arrays = broken(toy, case)
    np.savez(toy_npz, **arrays)
    if case in ("group leak", "duplicates", "label gap", "unknown split", "class only in the test"):
        said = call(monkeypatch, capsys, "run", file, "--out", "out")  # several problems: one a line, at most ten
        assert (said.code, said.out) == (2, "")
        assert said.err.startswith("error: ")
        assert "Traceback" not in said.err
        assert len(said.err.splitlines()) <= 11
        err = said.err
    else:
        err = says("run", file, "--out", "out")
    assert all(word in err for word in DATA[case]), err


@pytest.mark.parametrize("content", [b"", b"no archive at all", b"PK\x03\x04 and then nothing"])
def test_a_corrupt_archive(content, says, file, toy_npz):
    toy_npz.write_bytes(content)
    assert "toy.npz: the archive cannot be read" in says("run", file)


def test_a_truncated_archive(says, file, toy_npz):
    toy_npz.write_bytes(toy_npz.read_bytes()[:-200])
    assert "toy.npz" in says("run", file)


def test_a_manifest_that_names_a_file_that_is_not_there(says, file, tmp_path):
    rng = np.random.default_rng(0)
    for i in range(6):
        np.save(tmp_path / f"{i}.npy", rng.normal(size=3))
    rows = "".join(f"{i}.npy,{i if i < 5 else 'gone'}.npy,{i % 2}\n" for i in range(6))
    (tmp_path / "data.csv").write_text(f"rich,poor,label\n{rows}")
    err = says("run", file, "data.name=data.csv")
    assert "gone.npy" in err
    assert "row 6" in err


def test_a_manifest_without_the_column(says, file, tmp_path):
    (tmp_path / "data.csv").write_text("rich,pour,label\na.npy,b.npy,1\n")
    assert "no column is called 'poor'" in says("run", file, "data.name=data.csv", "data.options={modalities: [poor]}")


# Commands, folders, students -----------------------------------------------------------------------------------------

COMMANDS = {
    "unknown command": (["rnu"], ["rnu", "--help"]),
    "unknown option": (["run", "mine.yaml", "--outt", "x"], ["--outt"]),
    "no file": (["run"], ["Missing argument 'file'"]),
    "jobs of nothing": (["run", "mine.yaml", "--jobs", "0"], ["--jobs", "greater than or equal to 1"]),
    "jobs of words": (["run", "mine.yaml", "--jobs", "two"], ["--jobs", "valid integer"]),
    "a value without its option": (["demo", "extra"], ["extra"]),
    "unknown list": (["list", "objektives"], ["no list of 'objektives'", "'objectives'?"]),
    "report of nothing": (["report", "empty"], ["'empty' has no results.json"]),
    "report of a file": (["report", "mine.yaml"], ["mine.yaml", "results.json"]),
    "init over a file": (["init", "mine.yaml"], ["'mine.yaml' is there already", "--force"]),
    "init into a folder": (["init", "empty", "--force"], ["empty"]),
    "init below a file": (["init", "mine.yaml/x.yaml"], ["mine.yaml"]),
    "predict without files": (["predict", "student"], ["Missing argument 'files'"]),
    "predict without a student": (["predict", "empty", "mine.yaml"], ["'empty' is no student", "DIR/student"]),
    "predict with a file as student": (["predict", "mine.yaml", "mine.yaml"], ["mine.yaml"]),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_a_wrong_command(case, says, file, tmp_path):
    (tmp_path / "empty").mkdir()
    arguments, words = COMMANDS[case]
    err = says(*arguments)
    assert all(word in err for word in words), err


@pytest.mark.parametrize("out", ["mine.yaml", "mine.yaml/deeper", "/proc/nothing/here"])
def test_a_folder_that_cannot_be_written(out, says, file):
    assert "cannot write into" in says("run", file, "--out", out)


def test_results_that_are_no_results(says, tmp_path):
    for content in ("{", "[]", json.dumps({"rows": [{"method": 1}]})):
        (tmp_path / "results.json").write_text(content)
        assert "results.json" in says("report", ".")


def test_files_that_a_student_cannot_read(says, done, tmp_path):
    np.save(tmp_path / "wide.npy", np.zeros(9, dtype="float32"))
    np.save(tmp_path / "nan.npy", np.full(8, np.nan, dtype="float32"))
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "words.txt").write_text("words")
    (tmp_path / "words.npy").write_text("words")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n")
    for name in ("wide.npy", "nan.npy", "objects.npy", "words.txt", "words.npy", "picture.png", "gone.npy"):
        assert name in says("predict", done / "student", name)


def test_a_bad_file_among_good_ones(done, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("a.npy", "b.npy"):
        np.save(name, np.zeros(8, dtype="float32"))
    np.save("wide.npy", np.zeros(9, dtype="float32"))
    files = ["a.npy", "wide.npy", "b.npy", "gone.npy"]
    said = call(monkeypatch, capsys, "predict", done / "student", *files)
    assert said.code == 2
    assert [line.split("\t")[0] for line in said.out.splitlines()] == ["a.npy", "b.npy"]
    assert [line.split(": ")[:2] for line in said.err.splitlines()] == [["error", "wide.npy"], ["error", "gone.npy"]]


def test_a_damaged_student(says, done, tmp_path):
    student = tmp_path / "student"
    student.mkdir()
    np.save(tmp_path / "x.npy", np.zeros(8, dtype="float32"))
    config = (done / "student" / "config.json").read_text()
    for name, content, word in (
        ("config.json", "{", "damaged"),
        ("config.json", "[]", "format None"),
        ("config.json", config.replace('"format": 1', '"format": 2'), "format 2"),
        ("model.safetensors", "words", "damaged"),
    ):
        for path in (done / "student").iterdir():
            (student / path.name).write_bytes(path.read_bytes())
        (student / name).write_text(content)
        err = says("predict", student, "x.npy")
        assert "student" in err
        assert word in err


def test_weights_of_another_student(says, done, tmp_path):
    student = tmp_path / "student"
    student.mkdir()
    np.save(tmp_path / "x.npy", np.zeros(8, dtype="float32"))
    (student / "config.json").write_bytes((done / "student" / "config.json").read_bytes())
    save_file({"weight": torch.zeros(3, 3)}, student / "model.safetensors")
    assert "do not belong together" in says("predict", student, "x.npy")


def checkpoint(folder, content):
    bench_folders = [path for path in (folder / "stages").iterdir() if path.is_dir()]
    assert bench_folders
    for stage in bench_folders:
        for name in ("stage.json", "product.safetensors"):
            (stage / name).unlink(missing_ok=True)
        if isinstance(content, bytes):
            (stage / "checkpoint.pt").write_bytes(content)
        else:
            save_checkpoint(stage / "checkpoint.pt", content, {"weights": torch.zeros(1)})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"broken", ["not a checkpoint of ours", "delete it to start anew"]),
        ({"key": "of another", "seed": 7}, ["of another run"]),
    ],
)
def test_a_checkpoint_that_is_none_of_this_run(content, words, says, file, tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, capsys, "run", file, "--out", "out", "--jobs", 1).code == 0
    for path in (tmp_path / "out" / "evaluations").iterdir():
        path.unlink()
    checkpoint(tmp_path / "out", content)
    said = call(monkeypatch, capsys, "run", file, "--out", "out", "--jobs", 1)
    assert said.code == 2
    complaint = said.err.splitlines()[-1]
    assert complaint.startswith("error: ")
    assert "Traceback" not in said.err
    assert all(word in complaint for word in ["checkpoint.pt", *words]), complaint


def test_a_teacher_from_a_file_that_holds_more_than_tensors(says, file, tmp_path):
    torch.save({"model": PairedDataset}, tmp_path / "evil.pt")
    err = says(
        "run",
        file,
        "stages.teacher={module: 'torch.nn:Linear', weights: evil.pt, parameters: {in_features: 12, out_features: 3}}",
    )
    assert "evil.pt holds more than tensors" in err


# Options of the reader, and what students are given ------------------------------------------------------------------

OPTIONS = {
    "size: x": "size",
    "mels: 2.5": "mels is a whole number",
    "seconds: .inf": "seconds",
    "split_seed: -1": "split_seed",
    "modalities: rich": "modalities is a list of names",
    "kinds: {pooor: image}": "did you mean 'poor'",
    "length: 5": "length is for sequences",
}


@pytest.mark.parametrize("options", OPTIONS)
def test_a_wrong_option_of_the_data(options, says, file):
    assert OPTIONS[options] in says("run", file, f"data.options={{{options}}}", "--dry-run")


def test_a_home_that_nobody_has(says, file):
    assert "'~nobody_at_all': nobody has that home folder" in says("run", file, "data.name=~nobody_at_all", "--dry-run")


def test_groups_that_are_too_few_to_split(toy, says, file, toy_npz):
    np.savez(toy_npz, **toy.columns.arrays, label=toy.label, group=np.arange(300) % 2)
    assert "2 groups are too few" in says("run", file, "--dry-run")


def test_numbers_that_a_student_of_whole_ones_cannot_hold(toy, says, file, tmp_path, monkeypatch, capsys):
    whole = {name: (100 * array).round().astype("int16") for name, array in toy.columns.arrays.items()}
    np.savez(tmp_path / "toy.npz", **whole, label=toy.label, split=toy.columns.split)
    assert call(monkeypatch, capsys, "run", file, "--out", "out", "--jobs", 1).code == 0
    np.save("good.npy", np.arange(8))
    assert call(monkeypatch, capsys, "predict", "out/student", "good.npy").code == 0
    for value in (np.nan, np.inf, 65536 + 3, 0.7):
        np.save("bad.npy", np.arange(8) + value)
        assert "bad.npy" in says("predict", "out/student", "bad.npy")
