"""The pages of methods are what their classes say, and show stages that an experiment file may hold."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from crossdistill.experiments import parse_experiment

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
generate = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(generate)
PAGES = generate.pages()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_page_is_current(path):
    assert path.is_file(), "run make docs"
    assert path.read_text(encoding="utf-8") == PAGES[path], "run make docs"


def test_no_page_is_of_something_that_is_gone():
    assert {p.name for p in generate.PAGES.glob("*.md")} == {p.name for p in PAGES if p.parent == generate.PAGES}


@pytest.mark.parametrize(
    "path", [p for p in PAGES if p.name not in ("README.md", "fidelity.md")], ids=lambda path: path.stem
)
def test_the_stage_that_a_page_shows_is_understood(path):
    stages = re.findall(r"```yaml\nstages:\n  (.*?)\n```", PAGES[path])
    assert len(stages) == PAGES[path].count("- Class: ")  # a loss and a method may share a page
    for stage in stages:
        kind = stage.partition(":")[0]
        teacher = stage if kind == "teacher" else "teacher: {method: simclr, modality: image}"
        other = "student: {method: distillation, teacher: teacher, objectives: {l2: 1.0}}"
        student = stage if kind == "student" else other
        text = f"data: {{name: omniglot-small, source: image, target: pen}}\nstages:\n  {teacher}\n  {student}\n"
        assert parse_experiment(text).stages[kind].method


def test_every_parameter_is_described():
    for classes in json.loads(generate.described()).values():
        for facts in classes:
            undescribed = [p["name"] for p in facts["parameters"] if not p["about"]]
            assert not undescribed, f"{facts['name']}: {undescribed}"
