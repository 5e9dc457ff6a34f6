"""Augmented views of the teacher's samples, stored by the experiment file's word."""

import json

import pytest
import torch
from toy_experiment import EXPERIMENT

from crossdistill.errors import ConfigError
from crossdistill.experiments import Bench, parse_experiment
from crossdistill.experiments.arms import list_arms
from crossdistill.experiments.schema import to_yaml
from crossdistill.training import fit

HOW = "epochs: 5\n    stored_views: 2\n    augment: {rich: [noise], poor: [noise]}"
VIEWS = EXPERIMENT.replace(
    "objectives: {similarity: 1.0}\n    epochs: 2", f"objectives: {{similarity: 1.0}}\n    {HOW}"
)


def arm(bench, role):
    return next(arm for arm in list_arms(bench.experiment) if arm.role == role)


def test_the_teacher_is_shown_so_many_views_and_what_it_gives_is_stored(toy, tmp_path):
    bench = Bench(parse_experiment(VIEWS), tmp_path, data=toy)
    method = arm(bench, "method")
    bench.trained(method, 0)
    abouts = [json.loads(path.read_text())["key"] for path in tmp_path.glob("store/*/store.json")]
    assert sorted(about["epoch"] for about in abouts if "epoch" in about) == [0, 1]  # the held-out pairs stay plain
    data = bench.stage_data(method, 0)
    assert [data.drawn("rich", epoch) for epoch in range(5)] == [0, 1, 0, 1, 0]
    assert [data.drawn("poor", epoch) for epoch in range(5)] == [0, 1, 2, 3, 4]


def test_stored_and_live_views_train_to_the_same_weights(toy, tmp_path):
    bench = Bench(parse_experiment(VIEWS), tmp_path, data=toy)
    method = arm(bench, "method")
    live = fit(bench.method(method, 0), bench.stage_data(method, 0), bench.settings(method, 0), seed=0)
    products = [bench.trained(method, 0), live]
    for one, other in zip(*(p.student("poor").parameters() for p in products), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_shared_draws_come_again_in_both_modalities(toy, tmp_path):
    text = VIEWS.replace("poor: [noise]", "poor: [{noise: {shared: true}}]")
    bench = Bench(parse_experiment(text), tmp_path, data=toy)
    assert [bench.stage_data(arm(bench, "method"), 0).drawn("poor", epoch) for epoch in range(3)] == [0, 1, 0]


def test_the_file_says_it_and_says_it_again():
    experiment = parse_experiment(VIEWS)
    assert experiment.student.stored_views == 2
    assert parse_experiment(to_yaml(experiment)) == experiment
    assert "stored_views" not in to_yaml(parse_experiment(EXPERIMENT))


def test_rows_that_are_compared_have_as_many_views():
    row = "{own: {method: distillation, teacher: teacher, objectives: {l2: 1.0}}}"
    compare = parse_experiment(VIEWS.replace("compare: [l2]", f"compare: [l2, {row}]")).compare
    assert {name: stage.stored_views for name, stage in compare.items()} == {"l2": 2, "own": 2}
    with pytest.raises(ConfigError, match="needs a 'teacher'"):  # of views the row says nothing
        parse_experiment(VIEWS.replace("compare: [l2]", "compare: [{alone: {method: simclr, modality: poor}}]"))


def test_views_of_nothing_are_refused(toy, tmp_path):
    for old, new in (("stored_views: 2", "stored_views: 0"), ("modality: rich,", "modality: rich, stored_views: 2,")):
        with pytest.raises(ConfigError, match=r"stored_views.*at least 1"):
            parse_experiment(VIEWS.replace(old, new))
    with pytest.raises(ConfigError, match="'rich' is not augmented"):
        Bench(parse_experiment(VIEWS.replace("rich: [noise], ", "")), tmp_path, data=toy)
