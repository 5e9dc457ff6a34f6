"""Methods that train several networks at once, named in an experiment file like any other."""

import numpy as np
import pytest
from toy_experiment import EXPERIMENT

from crossdistill.errors import ConfigError
from crossdistill.experiments import Bench, parse_experiment, plan, run_experiment
from crossdistill.experiments.schema import to_yaml

PEERS = """
    import torch
    from torch import nn
    from torch.nn import functional as F
    from crossdistill.methods import Losses, Method
    from crossdistill.registry import Facts

    SEEN = []

    class Peers(Method):
        facts = Facts(name="peers", title="two networks agree", paper="ours", needs=frozenset({"labels", "pairs"}))

        def __init__(self, encoders, *, classes: int, strength: float = 1.0):
            super().__init__()
            self.encoders = nn.ModuleDict(encoders)
            self.heads = nn.ModuleDict({m: nn.Linear(e.dim, classes) for m, e in encoders.items()})
            self.strength = strength

        def inputs(self):
            return {m: 1 for m in self.encoders}

        def student(self, modality):
            return self.encoders[modality]

        def training_step(self, batch):
            if self.training:
                SEEN.append(batch["label"])
            logits = {m: self.heads[m](e(batch[m])) for m, e in self.encoders.items()}
            terms = {f"{m}/ce": F.cross_entropy(z, batch["label"]) for m, z in logits.items()}
            a, b = logits.values()
            return Losses({**terms, "agree": self.strength * (a - b).square().mean()})

    class Alone(Peers):
        facts = Facts(name="alone", title="one of the target", paper="ours", needs=frozenset({"labels"}))

        def student(self, modality):
            from crossdistill.errors import NetworkError
            if modality != "poor":
                raise NetworkError("it has no student of 'rich'")
            return self.encoders[modality]
"""
STUDENT = EXPERIMENT[EXPERIMENT.index("stages:") : EXPERIMENT.index("compare")]
LEAN = EXPERIMENT.replace("seeds: 2", "seeds: 1").replace("fine_tune_steps: 5", "ways: [linear]")


def alone(name, cls="Peers"):
    stage = f'stages: {{together: {{method: "{name}:{cls}", strength: 0.5, epochs: 2, batch_size: 32}}}}\n'
    return LEAN.replace(STUDENT, stage).replace("compare: [l2]\n", "")


def test_a_method_without_a_teacher_is_compared_with_the_controls_that_make_sense(toy, tmp_path, own):
    name = own(PEERS)
    results = run_experiment(parse_experiment(alone(name)), tmp_path, data=toy)
    assert {m: f["role"] for m, f in results["methods"].items()} == {
        f"{name}:Peers": "method",
        "raw_features": "control",
        "scratch": "control",
        "target_ssl": "control",
        "target_graph": "control",
        "shuffled_pairs": "control",
        "teacher": "ceiling",
    }
    assert "trained together" in results["methods"]["teacher"]["title"]
    assert (tmp_path / "student" / "model.safetensors").is_file()
    seen = __import__(name).SEEN
    few = Bench(parse_experiment(alone(name)), tmp_path, data=toy).label_rows(0)
    assert {len(batch) for batch in seen} == {len(few)}  # no more labels than the control from scratch


def test_a_method_that_needs_no_pairs_is_not_shuffled_and_may_have_no_network_of_the_source(toy, tmp_path, own):
    name = own(PEERS)
    found = plan(Bench(parse_experiment(alone(name, "Alone")), tmp_path, data=toy))
    assert [arm.name for arm in found.arms] == [
        f"{name}:Alone",
        "raw_features",
        "scratch",
        "target_ssl",
        "target_graph",
    ]
    assert found.skipped == {"teacher": "it has no student of 'rich'"}


def test_a_method_of_its_own_may_be_compared_with(toy, tmp_path, own):
    name = own(PEERS)
    text = LEAN.replace("[l2]", f'[l2, {{peers: {{method: "{name}:Peers", strength: 2.0}}}}]')
    experiment = parse_experiment(text)
    assert parse_experiment(to_yaml(experiment)) == experiment
    stage, main = experiment.compare["peers"], experiment.student
    assert stage.settings == main.settings  # the same budget
    assert stage.parameters == {"strength": 2.0}
    results = run_experiment(experiment, tmp_path, data=toy)
    assert results["methods"]["peers"]["role"] == "baseline"
    assert any(row["method"] == "peers" for row in results["comparisons"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("strength: 0.5", "strenght: 0.5"), "stages.together.strenght: unknown key; did you mean 'strength'"),
        (("evaluate:", "compare: [l2]\nevaluate:"), "compare.0: objectives go with a method that takes them"),
        (("strength: 0.5", "teacher: x"), "stages.together.teacher: unknown key"),
    ],
)
def test_what_is_wrong_with_such_a_stage_is_named(change, message, own):
    with pytest.raises(ConfigError) as caught:
        parse_experiment(alone(own(PEERS)).replace(*change))
    assert message in str(caught.value)


LABELLED = """
    from crossdistill.objectives import Facts, Objective

    class Reads(Objective):
        facts = Facts(name="reads", title="t", paper="ours", needs=frozenset({"labels"}))
        SEEN = []
        def parts(self, student, teacher, context):
            Reads.SEEN.append((self.training, context.index, context.label))
            return {"near": student.square().mean()}
"""


def test_no_row_of_the_comparison_knows_more_labels_than_another(toy, tmp_path, own):
    name = own(LABELLED)
    text = LEAN.replace("[l2]", f'[{{mine: {{"{name}:Reads": 1.0}}}}]')
    run_experiment(parse_experiment(text), tmp_path, data=toy)
    bench = Bench(parse_experiment(text), tmp_path, data=toy)
    few = bench.label_rows(0).rows
    known = set()
    for training, index, label in __import__(name).Reads.SEEN:
        rows = (bench.train if training else bench.held_out).rows[index.cpu().numpy()]
        assert training or (label < 0).all()
        known |= set(rows[label.cpu().numpy() >= 0])
    assert known == set(few)


def test_three_modalities_may_be_read(toy, tmp_path, own):
    from crossdistill.data import Modality, PairedDataset

    arrays = {**toy.columns.arrays, "third": toy.columns.arrays["poor"][:, ::-1].copy()}
    third = Modality(name="third", kind="vector", shape=(8,))
    data = PairedDataset(
        arrays, {**toy.modalities, "third": third}, name="toy", label=toy.label, split=toy.columns.split
    )
    name = own(PEERS.replace("a, b = logits.values()", "a, b, _ = logits.values()"))
    text = alone(name).replace("target: poor}", "target: poor, further: [third]}")
    bench = Bench(parse_experiment(text), tmp_path, data=data)
    method = bench.method(plan(bench).arms[0], 0)
    assert list(method.encoders) == ["rich", "poor", "third"]
    assert not np.array_equal(*(method.encoders[m].layers[1].weight.detach() for m in ("poor", "third")))
    with pytest.raises(ConfigError, match="name no modality twice"):
        parse_experiment(text.replace("[third]", "[rich]"))


def test_the_direction_is_part_of_what_makes_a_product(toy, tmp_path, own):
    name = own(PEERS)
    keys = set()
    for source, target in (("rich", "poor"), ("poor", "rich")):
        text = alone(name).replace("source: rich, target: poor", f"source: {source}, target: {target}")
        bench = Bench(parse_experiment(text), tmp_path, data=toy)
        keys.add(bench.key(plan(bench).arms[0], 0))
    assert len(keys) == 2


PARTLY = """
    from crossdistill.objectives import Facts, Objective

    class Partly(Objective):
        facts = Facts(name="partly", title="t", paper="ours")
        def __init__(self, labelled: bool = False):
            super().__init__()
            self.labelled = labelled
        @property
        def needs(self):
            return self.facts.needs | ({"labels"} if self.labelled else set())
        def parts(self, student, teacher, context):
            assert (context.label is not None) == self.labelled
            return {"near": student.square().mean()}
"""


def test_a_need_of_labels_may_hang_on_a_parameter(toy, tmp_path, own):
    name = own(PARTLY)
    rows = f'[{{with: {{"{name}:Partly": {{labelled: true}}}}}}, {{without: {{"{name}:Partly": {{}}}}}}]'
    results = run_experiment(parse_experiment(LEAN.replace("[l2]", rows)), tmp_path, data=toy)
    assert {"with", "without"} <= set(results["methods"])


def test_a_row_of_the_methods_name_is_the_method_or_an_error(toy, tmp_path):
    same = LEAN.replace("[l2]", "[similarity]")
    assert [a.role for a in plan(Bench(parse_experiment(same), tmp_path, data=toy)).arms].count("baseline") == 0
    other = LEAN.replace("[l2]", "[{similarity: {similarity: {tau_student: 0.5}}}]")
    with pytest.raises(ConfigError, match="'similarity' is the name of the method's row"):
        plan(Bench(parse_experiment(other), tmp_path, data=toy))


def test_the_place_of_a_row_is_found_by_its_whole_name(toy, tmp_path, own):
    name = own(PEERS)
    text = LEAN.replace("[l2]", f'[cosine, l2, {{cos: {{method: "{name}:Peers", keep: best, batch_size: 500}}}}]')
    plain = parse_experiment(text.replace("keep: best, batch_size: 500", "keep: best"))
    with pytest.raises(ConfigError, match=r"compare\.2\.cos\.keep"):  # no held-out pairs for a method on few labels
        plan(Bench(plain, tmp_path, data=toy))


HOOKED = (
    PEERS
    + """
    class Hooked(Peers):
        facts = Facts(name="hooked", title="t", paper="ours", needs=frozenset({"labels"}))
        def before_epoch(self, data, epoch):
            assert len(data) == 12, "hooks see the stage's own data"
"""
)


def test_methods_whose_hooks_see_the_data_first_are_not_rehearsed_on_less(toy, tmp_path, own):
    name = own(HOOKED)
    run_experiment(
        parse_experiment(alone(name, "Hooked").replace("batch_size: 32", "batch_size: 4")), tmp_path, data=toy
    )
