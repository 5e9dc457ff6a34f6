"""What is found out before training: objectives that fail, widths that cannot match, batches that no stage can fill."""

import random

import numpy as np
import pytest
import torch
import yaml
from toy_experiment import EXPERIMENT

from crossdistill.data import PairedDataset
from crossdistill.errors import ConfigError, CrossDistillError, DataError, NetworkError, ObjectiveError
from crossdistill.experiments import Bench, parse_experiment, plan, read_experiment, run_experiment
from crossdistill.experiments.rehearsal import rehearse

LEAN = (
    EXPERIMENT.replace("seeds: 2", "seeds: 1")
    .replace("compare: [l2]", "compare: []")
    .replace("fine_tune_steps: 5", "ways: [linear]")
)
MAIN = "objectives: {similarity: 1.0}"

WRONG = """
    import torch
    from crossdistill.objectives import Facts, Objective, unit

    class Mine(Objective):
        facts = Facts(name="mine", title="t", paper="ours")

    class Shapes(Mine):
        def parts(self, student, teacher, context):
            return {"near": (student[:, :5] - teacher[:, :4]).square().mean()}

    class Missing(Mine):
        def parts(self, student, teacher, context):
            return {"near": student.meen()}

    class Bare(Mine):
        def parts(self, student, teacher, context):
            return student.mean()

    class Vector(Mine):
        def parts(self, student, teacher, context):
            return {"near": student.mean(1)}

    class Nothing(Mine):
        def parts(self, student, teacher, context):
            return {}

    class Nan(Mine):
        def parts(self, student, teacher, context):
            return {"near": (-1 - student.square()).log().mean()}

    class Gradient(Mine):
        def parts(self, student, teacher, context):
            return {"near": (0 * student).abs().sqrt().mean()}

    class Constant(Mine):
        def parts(self, student, teacher, context):
            return {"near": teacher.mean()}

    class Half(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.mean()
        @staticmethod
        def backward(ctx, gradient):
            raise ValueError("no way back")

    class Backward(Mine):
        def parts(self, student, teacher, context):
            return {"near": Half.apply(student)}

    class Prepares(Mine):
        def prepare(self, student, teacher, *, pairs):
            raise KeyError("bank")
        def parts(self, student, teacher, context):
            return {"near": student.mean()}

    class Refuses(Mine):
        def parts(self, student, teacher, context):
            from crossdistill.objectives.base import check_pair
            check_pair(student, teacher[:-1], name="mine", equal_widths=False)
"""
CASES = {
    "Shapes": ["RuntimeError: The size of tensor a (5)", ".py:10)"],
    "Missing": ["AttributeError: 'Tensor' object has no attribute 'meen'", ".py:14)"],
    "Bare": ["must give a dict of names to scalar tensors; it gave a Tensor", ".py:17)"],
    "Vector": ["'near' is a tensor of shape (32,)", ".py:21)"],
    "Nothing": ["gave an empty dict", ".py:25)"],
    "Nan": ["its part 'near' is nan on a batch of 32 pairs", ".py:29)"],
    "Gradient": ["its gradient is not finite on a batch of 32 pairs", ".py:33)"],
    "Backward": ["ValueError: no way back", ".py:46)"],
    "Prepares": ["KeyError: 'bank'", ".py:54)"],
    "Refuses": ["mine: rows must be pairs; received 32 student, 31 teacher rows", ".py:61)"],
}


def refused(text, folder, data):
    with pytest.raises(CrossDistillError) as caught:
        run_experiment(parse_experiment(text), folder, data=data)
    assert not folder.exists()  # neither was the teacher trained
    message = str(caught.value)
    assert "\n" not in message
    return caught.value, message


@pytest.mark.parametrize("case", CASES)
def test_an_objective_that_fails_is_named_with_its_key_and_line_before_anything_runs(case, toy, tmp_path, own):
    name = own(WRONG)
    error, message = refused(LEAN.replace(MAIN, f'objectives: {{"{name}:{case}": 1.0}}'), tmp_path / "out", toy)
    assert isinstance(error, ObjectiveError)
    assert message.startswith(f"experiment, line 10, stages.student.objectives.{name}:{case}: ")
    assert all(word in message for word in CASES[case]), message


def test_an_objective_to_compare_with_is_named_by_its_own_key(toy, tmp_path, own):
    name = own(WRONG)
    text = LEAN.replace("compare: []", f'compare: [l2, {{row: {{"{name}:Missing": 1.0}}}}]')
    _, message = refused(text, tmp_path / "out", toy)
    assert message.startswith(f"experiment, line 13, compare.1.row.{name}:Missing: AttributeError")


def test_objectives_that_teach_nothing_are_refused(toy, tmp_path, own):
    name = own(WRONG)
    _, message = refused(LEAN.replace(MAIN, f'objectives: {{"{name}:Constant": 1.0}}'), tmp_path / "out", toy)
    assert "stages.student: no gradient reaches the student" in message


def test_a_class_that_is_no_objective_or_cannot_be_made_is_refused_with_its_key(own):
    name = own(
        """
        from crossdistill.objectives import Facts, Objective

        class Other:
            pass

        class Fails(Objective):
            facts = Facts(name="fails", title="t", paper="ours")
            def __init__(self):
                super().__init__()
                self.table = {}["x"]
            def parts(self, student, teacher, context):
                return {"x": student.mean()}

        class Factless(Objective):
            def parts(self, student, teacher, context):
                return {"x": student.mean()}
        """
    )
    for case, words in (
        ("Other", "no Objective"),
        ("Fails", r"KeyError: 'x' \(.*:11\)"),
        ("Factless", "has no `facts`"),
    ):
        with pytest.raises(ConfigError, match=rf"line 10, stages.student.objectives.{name}:{case}: .*{words}"):
            parse_experiment(LEAN.replace(MAIN, f'objectives: {{"{name}:{case}": 1.0}}'))


LATER = """
    import torch
    from crossdistill.objectives import Facts, Objective

    class Later(Objective):
        facts = Facts(name="later", title="t", paper="ours")
        def __init__(self):
            super().__init__()
            self.calls = 0
        def parts(self, student, teacher, context):
            self.calls += 1
            if self.calls == 3:
                raise IndexError("the third time")
            return {"near": student.mean()}

    class Third(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, call):
            ctx.call, ctx.shape = call, x.shape
            return x.mean()
        @staticmethod
        def backward(ctx, gradient):
            if ctx.call == 3:
                raise IndexError("the third time")
            return gradient.expand(ctx.shape), None

    class Back(Later):
        def parts(self, student, teacher, context):
            self.calls += 1
            return {"near": Third.apply(student, self.calls)}
"""


@pytest.mark.parametrize(("case", "line"), [("Later", 13), ("Back", 24)])
def test_an_objective_that_fails_only_in_training_is_named_the_same_way(case, line, toy, tmp_path, own):
    name = own(LATER)
    text = LEAN.replace(MAIN, f'objectives: {{"{name}:{case}": 1.0}}')
    with pytest.raises(ObjectiveError) as caught:
        run_experiment(parse_experiment(text), tmp_path / "out", data=toy)
    start, _, end = str(caught.value).partition(" (")
    assert start == f"experiment, line 10, stages.student.objectives.{name}:{case}: IndexError: the third time"
    assert end.endswith(f"{name}.py:{line})")


def test_the_objective_gets_a_batch_as_in_training(toy, tmp_path, own):
    name = own(
        """
        from crossdistill.objectives import Facts, Objective
        SEEN = []

        class Looks(Objective):
            facts = Facts(name="looks", title="t", paper="ours", needs=frozenset({"labels", "group", "equal_widths"}))
            def parts(self, student, teacher, context):
                SEEN.append((student.detach(), teacher, context, self.training))
                return {"near": student.mean()}
        """
    )
    columns, group = toy.columns, np.arange(300) // 2
    grouped = PairedDataset(
        columns.arrays, toy.modalities, name="toy", label=columns.label, split=columns.split, group=group
    )
    text = LEAN.replace(MAIN, f'objectives: {{"{name}:Looks": 1.0}}').replace(
        "poor: {hidden: [16], dim: 8}", "poor: {}"
    )
    bench = Bench(parse_experiment(text), tmp_path, data=grouped)
    plan(bench)
    seen = __import__(name).SEEN
    assert len(seen) == 1  # arms that share their objectives rehearse them once
    student, teacher, context, training = seen[0]
    assert student.shape == teacher.shape == (32, 8)  # through the projector, as the student is wider
    assert len(torch.unique(student, dim=0)) == len(torch.unique(teacher, dim=0)) == 32
    assert training
    rows = bench.train
    few = set(bench.label_rows(0).rows)  # the labels of all other rows are not known to anybody
    expected = [rows.label[i] if rows.rows[i] in few else -1 for i in context.index.tolist()]
    assert context.label.tolist() == expected
    assert max(expected) >= 0
    assert np.array_equal(context.group.cpu(), rows.group[context.index.cpu()])


def test_no_generator_of_random_numbers_is_moved(toy, tmp_path, own):
    name = own(
        """
        import random
        import numpy as np
        import torch
        from crossdistill.objectives import Facts, Objective

        class Draws(Objective):
            facts = Facts(name="draws", title="t", paper="ours")
            def parts(self, student, teacher, context):
                torch.manual_seed(3), random.random(), np.random.rand()
                return {"near": (student * torch.randn(())).mean()}
        """
    )
    bench = Bench(parse_experiment(LEAN.replace(MAIN, f'objectives: {{"{name}:Draws": 1.0}}')), tmp_path, data=toy)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    plan(bench)
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_every_objective_of_ours_passes(toy, tmp_path):
    from crossdistill.registry import discover

    names = ", ".join(name for name in discover("crossdistill.objectives") if name != "similarity")
    bench = Bench(parse_experiment(LEAN.replace("compare: []", f"compare: [{names}]")), tmp_path, data=toy)
    assert len(plan(bench).arms) >= 3 + 6
    before = torch.get_rng_state()
    rehearse(bench, plan(bench).arms)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("reads", ["embedding", "features"])
def test_widths_that_cannot_match_are_refused_before_anything_runs(reads, toy, tmp_path):
    text = LEAN.replace(MAIN, f"objectives: {{l2: 1.0}}\n    projector: none\n    teacher_reads: {reads}")
    error, message = refused(text.replace("poor: {hidden: [16], dim: 8}", "poor: {dim: 9}"), tmp_path / "out", toy)
    assert isinstance(error, NetworkError)
    width = {"embedding": 64, "features": 8}[reads]
    assert f"stages.student: l2 needs equal widths, but the student gives 9, the teacher {width}" in message
    bench = Bench(parse_experiment(text.replace("dim: 8}\nstages", f"dim: {width}}}\nstages")), tmp_path, data=toy)
    assert plan(bench).arms[0].name == "l2"


def test_a_teacher_without_embedding_is_refused_before_anything_runs(toy, tmp_path):
    text = LEAN.replace(MAIN, f"{MAIN}\n    teacher_reads: embedding").replace("method: simclr", "method: supervised")
    _, message = refused(text, tmp_path / "out", toy)
    assert "stages.student: the network gives no embedding, only features, logits" in message


def test_batches_that_are_too_large_are_told_of_all_at_once(toy, tmp_path):
    both = LEAN.replace("batch_size: 32}", "batch_size: 300}").replace("batch_size: 32\n", "batch_size: 161\n")
    error, message = refused(both, tmp_path / "out", toy)
    assert isinstance(error, DataError)
    assert message == (
        "experiment, line 6, stages.teacher.batch_size: a batch of 300 does not fit into 160 training samples; "
        "experiment, line 12, stages.student.batch_size: a batch of 161 does not fit into 160 training samples; "
        "lower each"
    )
    _, message = refused(both + "controls: {target_ssl: {batch_size: 200}}\n", tmp_path / "out", toy)
    assert "controls.target_ssl.batch_size: a batch of 200" in message
    assert message.count("does not fit") == 3


def test_the_resolved_file_names_every_network_as_it_was_built(toy, tmp_path):
    text = LEAN.replace("networks:\n  rich: {hidden: [16], dim: 8}\n  poor: {hidden: [16], dim: 8}\n", "")
    text = text.replace("epochs: 2", "epochs: 1")
    assert "networks" not in text
    run_experiment(parse_experiment(text), tmp_path / "out", data=toy)
    written = (tmp_path / "out" / "experiment.yaml").read_text()
    networks = yaml.safe_load(written)["networks"]
    assert set(networks) == {"rich", "poor"}
    bench, again = (Bench(parse_experiment(each), tmp_path, data=toy) for each in (text, written))
    for modality, given in networks.items():
        assert given["encoder"] == "mlp"
        assert given["dim"] == bench.encoder(modality, 0).dim
    started = []
    run_experiment(again.experiment, tmp_path / "out", data=toy, listen=lambda word, facts: started.append(word))
    assert "stepped" not in started  # it is the same run


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("stages.teacher.batch_size=1", "stages.teacher: a batch of one row is too little for a batch norm"),
        ("seeds=[99999999999999999999]", "distinct seeds from 0 to 2\\*\\*32 - 1"),
        ("seeds=100000000", "at most 1000 seeds"),
        ("stages.student.epochs=true", "stages.student.epochs: expected no true or false; received true"),
        ("evaluate.labels_per_class=true", "evaluate.labels_per_class: expected no true or false"),
    ],
)
def test_what_would_fail_after_minutes_is_found_before(change, message, toy, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(LEAN)
    with pytest.raises(CrossDistillError, match=message):
        plan(Bench(read_experiment(path, [change]), tmp_path / "out", data=toy))


def test_micro_batches_of_a_step_that_cannot_be_cut_are_refused_before_anything_is_trained(toy, tmp_path):
    split = yaml.safe_load(LEAN)
    split["stages"]["student"]["micro_batch"] = 16
    assert plan(Bench(parse_experiment(yaml.safe_dump(split, sort_keys=False)), tmp_path, data=toy)).tasks
    split["stages"]["student"] = {"method": "mla", "epochs": 1, "batch_size": 32, "micro_batch": 16}
    del split["stages"]["teacher"]
    with pytest.raises(ConfigError, match=r"micro_batch.*mla cannot be cut"):
        plan(Bench(parse_experiment(yaml.safe_dump(split, sort_keys=False)), tmp_path, data=toy))
