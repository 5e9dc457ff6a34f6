"""Every experiment file that is shipped or shown parses, says all it does in its resolved form, and plans."""

from pathlib import Path

import pytest

from crossdistill.errors import ConfigError
from crossdistill.experiments import Bench, parse_experiment, plan, read_experiment, to_yaml
from crossdistill.experiments.files import shipped

ROOT = Path(__file__).parents[2]
FILES = sorted([*(ROOT / "src/crossdistill/experiments/files").glob("*.yaml"), *(ROOT / "examples").glob("**/*.yaml")])
OURS = {"omniglot-small"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_shipped_file_parses_and_its_resolved_form_is_the_same_experiment(path):
    experiment = read_experiment(path)
    again = parse_experiment(to_yaml(experiment))
    assert again == experiment
    assert to_yaml(again) == to_yaml(experiment)
    assert len(experiment.seeds) >= 3


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_shipped_file_plans_without_training(path, tmp_path):
    experiment = read_experiment(path)
    if experiment.data.name not in OURS and not experiment.data.name.startswith("synthetic:"):
        pytest.skip("its data do not come with the package")
    tasks = plan(Bench(experiment, tmp_path / "out"))
    assert tasks.skipped == {}
    assert tasks.total_steps > 0
    assert {"raw_features", "scratch", "target_ssl", "target_graph", "random_teacher", "shuffled_pairs", "teacher"} < {
        arm.name for arm in tasks.arms
    }
    assert not (tmp_path / "out").exists()


def test_the_demo_fits_a_screen():
    lines = shipped("demo").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 25
    assert len(shipped("template").read_text(encoding="utf-8").splitlines()) <= 40


def test_a_file_that_is_not_shipped_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'demo'"):
        shipped("dmeo")
