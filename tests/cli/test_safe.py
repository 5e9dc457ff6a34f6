"""Files of strangers: no code of theirs runs, whatever they hold; with --safe none that a file names."""

import json
import os
import pickle
import shutil
import sys
import zipfile

import numpy as np
import pytest
import torch
from commands import call
from safetensors.torch import save_file
from toy_experiment import EXPERIMENT

from crossdistill.errors import ConfigError, CrossDistillError, TrainingError
from crossdistill.experiments import load_student, read_experiment
from crossdistill.registry import library_alone, load_dotted
from crossdistill.training.checkpoint import read_checkpoint

LEAN = EXPERIMENT.replace("seeds: 2", "seeds: 1").replace("fine_tune_steps: 5", "ways: [linear]")
STRANGER = "import pathlib\npathlib.Path('sprung').write_text('')\n"


class Trap:
    """Would leave a file behind where it is unpickled."""

    def __reduce__(self):
        return (open, ("sprung", "w"))


@pytest.fixture
def says(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    (tmp_path / "stranger.py").write_text(STRANGER)
    yield lambda *arguments: call(monkeypatch, capsys, *arguments)
    sys.modules.pop("stranger", None)


@pytest.fixture
def file(toy_npz, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(LEAN.replace("name: toy", f"name: {toy_npz.name}"))
    return path


# What an experiment names --------------------------------------------------------------------------------------------

NAMED = {
    "a teacher": ("stages.teacher={module: 'stranger:net'}", "stages.teacher.module"),
    "a method": ("stages.teacher.method=stranger:Method", "stages.teacher.method"),
    "an encoder": ("networks.poor={encoder: 'stranger:net'}", "networks.poor.encoder"),
    "a loss": ("stages.student.objectives={'stranger:Loss': 1.0}", "stages.student.objectives.stranger:Loss"),
    "a loss beside": ("compare=['stranger:Loss']", "compare.0.stranger:Loss"),
    "a row with a method": ("compare=[{mine: {method: 'stranger:Method'}}]", "compare.0.mine.method"),
    "a model of another library": ("networks.poor={encoder: 'timm:resnet18'}", "networks.poor.encoder"),
    "Python's own": ("networks.poor={encoder: 'os:system', command: 'touch sprung'}", "networks.poor.encoder"),
}


@pytest.mark.parametrize("case", NAMED)
def test_safe_imports_nothing_that_a_file_names(case, says, file, tmp_path):
    change, key = NAMED[case]
    said = says("run", file, change, "--safe")
    assert said.code == 2, said
    assert f"{key}: '" in said.err
    assert "leave out --safe if you trust the file" in said.err
    assert len(said.err.splitlines()) == 1
    assert not (tmp_path / "sprung").exists()
    assert "stranger" not in sys.modules


def test_without_safe_it_is_imported(says, file, tmp_path):
    says("run", file, NAMED["a loss"][0], "--dry-run")
    assert (tmp_path / "sprung").exists()


def test_safe_leaves_the_librarys_own_alone_and_ends_with_the_command(says, file, tmp_path):
    assert says("run", file, "--safe", "--dry-run").code == 0
    assert str(tmp_path) not in sys.path
    assert load_dotted("json:dumps") is json.dumps
    with library_alone(), library_alone(False), pytest.raises(ConfigError, match="--safe"):
        load_dotted("json:dumps")


def test_safe_suites_and_diagnoses(says, file, toy_npz, tmp_path):
    suite = f"""
methods: [similarity, {{mine: {{'stranger:Loss': 1.0}}}}]
experiments: {{toy: {{data: {{name: {toy_npz.name}, source: rich, target: poor}}}}}}
"""
    (tmp_path / "suite.yaml").write_text(suite)
    of_data = ("--data", toy_npz, "--source", "rich", "--target", "poor", "--methods", "stranger:Loss")
    file.write_text(file.read_text().replace("method: simclr, modality: rich", "module: 'stranger:net'"))
    file.write_text(file.read_text().replace(", epochs: 2, batch_size: 32}", "}"))
    for command in (("bench", "suite.yaml"), ("bench", *of_data), ("diagnose", file)):
        said = says(*command, "--safe")
        assert said.code == 2, said
        assert "--safe" in said.err
        assert "'stranger:" in said.err
    assert not (tmp_path / "sprung").exists()


# What files hold -----------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_never_unpickled(says, tmp_path):
    torch.save({"identity": {}, "method": Trap()}, tmp_path / "checkpoint.pt")
    with pytest.raises(TrainingError, match=r"checkpoint\.pt"):
        read_checkpoint(tmp_path / "checkpoint.pt", {})
    (tmp_path / "checkpoint.pt").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(TrainingError, match=r"checkpoint\.pt"):
        read_checkpoint(tmp_path / "checkpoint.pt", {})
    assert not (tmp_path / "sprung").exists()


def test_the_trap_is_one(says, tmp_path):
    pickle.loads(pickle.dumps(Trap())).close()
    assert (tmp_path / "sprung").exists()


def student(folder, encoder, parameters=None):
    folder.mkdir()
    made = {"name": encoder, "shape": [8], "parameters": parameters or {}}
    modality = {"name": "poor", "kind": "vector", "shape": [8]}
    config = {"format": 1, "crossdistill": "0", "modality": modality, "encoder": made, "features": 8}
    (folder / "config.json").write_text(json.dumps({**config, "class_names": ["a", "b"]}))
    save_file({"weight": torch.zeros(1)}, folder / "model.safetensors")
    return folder


def test_a_students_folder_is_never_unpickled_and_safe_imports_nothing_of_it(says, tmp_path):
    folder = student(tmp_path / "student", "mlp")
    (folder / "model.safetensors").write_bytes(pickle.dumps(Trap()))
    assert says("predict", folder, "x.npy").code == 2
    torch.save(Trap(), folder / "model.safetensors")
    assert says("predict", folder, "x.npy").code == 2
    shutil.rmtree(folder)
    student(folder, "os:system", {"command": "touch sprung"})
    said = says("predict", folder, "x.npy", "--safe")
    assert said.code == 2
    assert "'os:system'" in said.err
    assert "leave out --safe" in said.err
    shutil.rmtree(folder)
    student(folder, "stranger:net")
    assert "--safe" in says("predict", folder, "x.npy", "--safe").err
    assert not (tmp_path / "sprung").exists()
    with pytest.raises(CrossDistillError):  # without --safe it is imported: the folder must be trusted
        load_student(folder)


def test_arrays_of_objects_are_never_unpickled(says, file, toy_npz, tmp_path):
    objects = np.array([Trap()] * 300, dtype=object)
    with np.load(toy_npz) as archive:
        arrays = dict(archive)
    np.savez(toy_npz, **{**arrays, "rich": objects})
    said = says("run", file)
    assert said.code == 2
    assert "'rich'" in said.err
    np.savez(toy_npz, **{**arrays, "label": objects})
    assert says("run", file).code == 2
    np.save(tmp_path / "objects.npy", objects, allow_pickle=True)
    said = says("diagnose", "--source", "objects.npy", "--target", "objects.npy")
    assert said.code == 2
    assert "objects.npy" in said.err
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch sprung']",
        "!!python/object/new:os.system ['touch sprung']",
        "!!python/name:os.system",
        "!!python/module:stranger",
    ],
)
def test_no_tag_of_yaml_makes_an_object(text, says, file, tmp_path):
    file.write_text(file.read_text() + f"controls: {text}\n")
    with pytest.raises(ConfigError, match=r"line \d+"):
        read_experiment(file)
    (tmp_path / "suite.yaml").write_text(f"experiments: {text}\n")
    assert says("bench", "suite.yaml").code == 2
    said = says("run", file, f"seeds={text}")
    assert said.code == 2
    assert not (tmp_path / "sprung").exists()


def test_an_archive_writes_nothing_wherever_its_members_say(says, file, toy_npz, tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    shutil.move(toy_npz, inner / toy_npz.name)
    file.write_text(file.read_text().replace("toy.npz", "inner/toy.npz"))
    with zipfile.ZipFile(inner / toy_npz.name, "a") as archive:
        inside = archive.read("rich.npy")
        archive.writestr("../sprung.npy", inside)
        archive.writestr(os.path.join(tmp_path, "sprung.npy"), inside)  # noqa: PTH118 - as it stands in the archive
    before = sorted(tmp_path.rglob("*"))
    assert says("run", file, "--dry-run").code == 0
    changes = ("data.source=../sprung", "stages.teacher.modality=../sprung", "networks={}")
    assert says("run", file, "--dry-run", *changes).code == 0  # a modality's name is no path
    assert sorted(tmp_path.rglob("*")) == before
