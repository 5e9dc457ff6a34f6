"""The control on the target's own neighbourhoods: no teacher, no partner, no label has a say in it."""

import numpy as np
import pytest
import torch
from stages import check_resumes, train
from toy_experiment import EXPERIMENT

from crossdistill.data import PairedDataset
from crossdistill.errors import NetworkError
from crossdistill.experiments import Bench, parse_experiment, plan
from crossdistill.methods.neighbour_graph import NeighbourGraph
from crossdistill.networks import MLP
from crossdistill.objectives import similarity_distillation
from crossdistill.objectives.smoothed import SmoothedTarget


def graph(**how):
    return NeighbourGraph(MLP((8,), hidden=(16,), dim=8), modality="poor", **how)


def test_its_loss_is_cmd_on_the_coordinates_of_its_own_inputs(toy):
    data = toy.split("train")
    method = train(graph, data)
    x = torch.cat(list(data.samples("poor")))
    target = SmoothedTarget(target_share=1).fit(None, x)
    assert torch.equal(method.objective.coordinates, target.coordinates)
    index, rows = torch.tensor([5, 1, 90, 33]), slice(0, 4)
    features = method.train().network(x[index]).features
    found = method.training_step({"poor": x[index], "index": index}).terms["focused"]
    assert torch.equal(
        found, similarity_distillation(features, target.coordinates[index], tau_student=0.2, tau_teacher=0.2)
    )
    method.eval()
    held_out = method.training_step({"poor": x[rows] + 0.1, "index": index}).terms["focused"]
    placed = target.extend(None, x[rows] + 0.1)
    features = method.network(x[rows] + 0.1).features
    assert torch.equal(held_out, similarity_distillation(features, placed, tau_student=0.2, tau_teacher=0.2))


def test_neither_labels_nor_partners_change_it(toy):
    columns = toy.columns
    other = PairedDataset(
        {**columns.arrays, "rich": columns.arrays["rich"][::-1].copy()},
        toy.modalities,
        name="other",
        label=np.roll(columns.label, 1),
        split=columns.split,
    )
    one, two = (train(graph, data.split("train")).state_dict() for data in (toy, other))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_stopped_and_resumed_it_ends_with_the_same_bits(toy, tmp_path):
    check_resumes(graph, toy.split("train"), tmp_path, steps=(1, 5), held_out=toy.split("validation"))


def test_it_trains_the_named_modality_alone():
    with pytest.raises(NetworkError, match="trains an encoder of 'poor', none of 'rich'"):
        graph().student("rich")


def test_the_control_starts_from_the_students_weights_and_a_file_may_change_it(toy, tmp_path):
    text = EXPERIMENT + "controls: {target_graph: {walk: 2, epochs: 3}}\n"
    bench = Bench(parse_experiment(text), tmp_path, data=toy)
    arms = {arm.name: arm for arm in plan(bench).arms}
    arm = arms["target_graph"]
    assert (arm.role, arm.modality, arm.labels) == ("control", "poor", False)
    assert bench.steps(arm, 0) == 15
    one, other = (bench.method(arms[name], 0).student("poor").state_dict() for name in ("target_graph", "similarity"))
    assert all(torch.equal(one[name], other[name]) for name in one)
