"""Methods whose networks teach each other, named in an experiment file, with keys of their own."""

import pytest
from toy_experiment import EXPERIMENT

from crossdistill.experiments import Bench, parse_experiment, plan
from crossdistill.experiments.schema import to_yaml

STUDENT = EXPERIMENT[EXPERIMENT.index("stages:") : EXPERIMENT.index("compare")]


@pytest.mark.parametrize(
    "stage",
    [
        "ctsl_mkt, start: fresh, self_weight: 1.0, angle_vertices: 16",
        "mla, order: [poor, rich], protect: dataset_mean",
        "mind, widths: [1, 2], teacher_weight: {rich: 0.5, poor: 2.0}, task: multiclass",
    ],
)
def test_it_trains_from_a_file(stage, toy, tmp_path):
    text = EXPERIMENT.replace(STUDENT, f"stages: {{together: {{method: {stage}, epochs: 2, batch_size: 20}}}}\n")
    experiment = parse_experiment(text.replace("compare: [l2]\n", ""))
    assert parse_experiment(to_yaml(experiment)) == experiment
    bench = Bench(experiment, tmp_path, data=toy)
    arm = plan(bench).arms[0]
    trained = bench.trained(arm, 0)
    assert trained.facts.name == stage.partition(",")[0]
    before = bench.method(arm, 0).student("poor").state_dict()
    after = trained.student("poor").state_dict()
    assert any((after[name] != before[name]).any() for name in before)
