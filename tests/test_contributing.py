"""What CONTRIBUTING.md tells a contributor to write works as it stands there."""

import json
import re
import sys
from pathlib import Path

import pytest
from toy_experiment import EXPERIMENT

from crossdistill.errors import NetworkError
from crossdistill.experiments import parse_experiment, run_experiment

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.fixture
def module(tmp_path, monkeypatch):
    section = TEXT.partition("## Adding a loss")[2].partition("\n## ")[0]
    (snippet,) = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    (tmp_path / "contributed_loss.py").write_text(snippet)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "contributed_loss"
    sys.modules.pop("contributed_loss", None)


def experiment(module, projector):
    (parameters,) = re.findall(r"`objectives: \{my_loss: (\{.*?\})\}`", TEXT)
    text = EXPERIMENT
    for old, new in (
        ("poor: {hidden: [16], dim: 8}", "poor: {hidden: [16], dim: 5}"),  # the teacher's width is 8
        ("{similarity: 1.0}", f'{{"{module}:MyLoss": {parameters}}}\n    projector: {projector}'),
        ("compare: [l2]", "compare: []"),
        ("fine_tune_steps: 5", "ways: [linear]"),
        ("seeds: 2", "seeds: 1"),
    ):
        assert old in text
        text = text.replace(old, new)
    return parse_experiment(text)


def test_the_loss_of_the_example_trains_a_student_of_another_width(module, toy, tmp_path):
    results = run_experiment(experiment(module, "auto"), tmp_path / "out", data=toy)
    assert results["methods"]["MyLoss"]["role"] == "method"
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["method"] == "MyLoss"]
    assert len(losses) == 2
    assert losses[1] < losses[0]


def test_without_a_projector_the_example_is_refused_as_it_states_its_need(module, toy, tmp_path):
    with pytest.raises(NetworkError, match=r"MyLoss needs equal widths, but the student gives 5, the teacher 8; set"):
        run_experiment(experiment(module, "none"), tmp_path / "out", data=toy)
    assert not (tmp_path / "out").exists()
