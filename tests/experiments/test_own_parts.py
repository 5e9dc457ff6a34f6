"""What users bring along: a teacher by dotted path, objectives and networks of their own, needs that are not met."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from toy_experiment import EXPERIMENT

from crossdistill.data import PairedDataset
from crossdistill.errors import ConfigError, CrossDistillError, NetworkError, TrainingError
from crossdistill.experiments import Bench, parse_experiment, plan, run_experiment
from crossdistill.experiments.arms import list_arms

LEAN = (
    EXPERIMENT.replace("seeds: 2", "seeds: 1")
    .replace("compare: [l2]", "compare: []")
    .replace("fine_tune_steps: 5", "ways: [linear]")
)
TEACHER = "  teacher: {method: simclr, modality: rich, epochs: 2, batch_size: 32}\n"


NETWORK = """
    from torch import nn

    class Mine(nn.Module):
        def __init__(self, width=7):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(12, width), nn.BatchNorm1d(width), nn.ReLU())
            self.classifier = nn.Linear(width, 3)

        def forward(self, x):
            return self.classifier(self.body(x))

    def words():
        return "words"

    def tuned(shape, width=7):
        assert shape == (12,)
        return Mine(width)
"""


def with_teacher(spec):
    assert TEACHER in LEAN
    return LEAN.replace(TEACHER, f"  teacher: {spec}\n")


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_a_teacher_of_ones_own_with_weights_and_a_tap(ending, toy, tmp_path, own):
    name = own(NETWORK)
    torch.manual_seed(5)
    mine = __import__(name).Mine().eval()
    with torch.no_grad():
        mine(torch.randn(4, 12))
        mine.body[1].running_mean.normal_()
    weights = tmp_path / f"weights.{ending}"
    save_file(mine.state_dict(), weights) if ending == "safetensors" else torch.save(mine.state_dict(), weights)
    text = with_teacher(f'{{module: "{name}:tuned", weights: {weights}, tap: body}}')
    bench = Bench(parse_experiment(text), tmp_path / "out", data=toy)
    teacher = bench.teacher(bench.experiment.student, 0).eval()
    x = torch.cat(list(bench.test.samples("rich")))
    assert torch.equal(teacher(x), mine.body(x))
    untaught = bench.teacher(bench.experiment.student, 0, untaught=True)
    assert untaught(x).shape == (100, 7)
    assert not torch.allclose(untaught(x), mine.body(x), atol=0.01)
    results = run_experiment(parse_experiment(text), tmp_path / "out", data=toy)
    assert {"similarity", "teacher", "random_teacher"} <= set(results["methods"])
    assert sum(row["method"] == "teacher" for row in results["rows"]) == 2


def test_other_weights_make_another_student(toy, tmp_path, own):
    name = own(NETWORK)
    for seed in (1, 2):
        torch.manual_seed(seed)
        save_file(__import__(name).Mine().state_dict(), tmp_path / "w.safetensors")
        text = with_teacher(f'{{module: "{name}:Mine", weights: {tmp_path / "w.safetensors"}, tap: body}}')
        bench = Bench(parse_experiment(text), tmp_path / "out", data=toy)
        arm = list_arms(bench.experiment)[0]
        before = set((tmp_path / "out" / "stages").glob("*"))
        bench.product(arm, 0)
        assert len(set((tmp_path / "out" / "stages").glob("*")) - before) == 1


WRONG_MODULES = {
    "no such module": ('{module: "nowhere_at_all:thing"}', ["stages.teacher", "cannot import 'nowhere_at_all'"]),
    "no such name": ('{module: "MINE:tunde"}', ["has no 'tunde'", "'tuned'?"]),
    "no parameter": ('{module: "MINE:tuned", parameters: {widht: 3}}', ["no parameter 'widht'", "'width'?"]),
    "no tap": ('{module: "MINE:tuned", tap: bodi}', ["bodi", "body"]),
    "no weights file": ('{module: "MINE:tuned", weights: gone.safetensors}', ["no weights file gone.safetensors"]),
    "weights of another": (
        '{module: "MINE:tuned", weights: WEIGHTS, parameters: {width: 9}}',
        ["do not fit", "wrong shape", "(7, 12) for (9, 12)"],
    ),
    "cannot read": ('{module: "torch.nn:Linear", parameters: {in_features: 3, out_features: 2}}', ["(12,)"]),
    "no module": ('{module: "MINE:words"}', ["gave a str; it must give a torch module"]),
}


@pytest.mark.parametrize("case", WRONG_MODULES)
def test_a_wrong_teacher_is_refused_before_anything_runs(case, toy, tmp_path, own):
    spec, words = WRONG_MODULES[case]
    name = own(NETWORK)
    save_file(__import__(name).Mine().state_dict(), tmp_path / "w.safetensors")
    text = with_teacher(spec.replace("MINE", name).replace("WEIGHTS", str(tmp_path / "w.safetensors")))
    with pytest.raises(CrossDistillError) as caught:
        run_experiment(parse_experiment(text), tmp_path / "out", data=toy)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert not (tmp_path / "out").exists()


OBJECTIVES = """
    from crossdistill.objectives import Objective
    from crossdistill.registry import Facts

    class Base(Objective):
        facts = Facts(name="base", title="base", paper="ours")
        def __init__(self, power: float = 2.0):
            super().__init__()
            self.power = power
        def parts(self, student, teacher, context):
            return {"near": (student.mean(1) - teacher.mean(1)).abs().pow(self.power).mean()}

    class WantsLogits(Base):
        facts = Facts(name="wants_logits", title="t", paper="ours", needs=frozenset({"teacher_logits"}))

    class ReadsLogits(Base):
        reads = "logits"
        facts = Facts(name="reads_logits", title="t", paper="ours", needs=frozenset({"teacher_logits"}))

    class WantsGroups(Base):
        facts = Facts(name="wants_groups", title="t", paper="ours", needs=frozenset({"group"}))

    class WantsMaps(Base):
        reads = "maps"
        facts = Facts(name="wants_maps", title="t", paper="ours", needs=frozenset({"feature_maps"}))

    class WantsLabels(Base):
        facts = Facts(name="wants_labels", title="t", paper="ours", needs=frozenset({"labels"}))
        def parts(self, student, teacher, context):
            assert context.label is not None
            return super().parts(student, teacher, context)

    class Blind(Base):
        facts = Facts(name="blind", title="t", paper="ours")
        def parts(self, student, teacher, context):
            assert context.label is None
            return super().parts(student, teacher, context)
"""


def comparing(name, *classes):
    rows = ", ".join(f'{cls.lower()}: {{"{name}:{cls}": 1.0}}' for cls in classes)
    return LEAN.replace("compare: []", f"compare: [{{{rows}}}]")


def test_rows_that_cannot_be_served_are_skipped_with_the_reason(toy, tmp_path, own):
    name = own(OBJECTIVES)
    text = comparing(name, "WantsLogits", "WantsGroups", "WantsMaps", "WantsLabels", "Blind")
    results = run_experiment(parse_experiment(text), tmp_path, data=toy)
    reasons = {entry["method"]: entry["reason"] for entry in results["skipped"]}
    assert set(reasons) == {"wantslogits", "wantsgroups", "wantsmaps"}
    assert "a teacher with logits" in reasons["wantslogits"]
    assert "groups, and the data have none" in reasons["wantsgroups"]
    assert "MLP gives no feature maps" in reasons["wantsmaps"]
    assert {"wantslabels", "blind"} <= set(results["methods"])
    assert not set(reasons) & set(results["methods"])


def test_needs_that_the_data_and_the_teacher_serve_are_served(toy, tmp_path, own):
    name = own(OBJECTIVES)
    grouped = PairedDataset(
        toy.columns.arrays,
        toy.modalities,
        name="toy",
        label=toy.columns.label,
        split=toy.columns.split,
        group=np.arange(300),
    )
    text = comparing(name, "WantsLogits", "WantsGroups", "ReadsLogits").replace("method: simclr", "method: supervised")
    tasks = plan(Bench(parse_experiment(text), tmp_path, data=grouped))
    assert not tasks.skipped
    assert {"wantslogits", "wantsgroups", "readslogits"} <= {arm.name for arm in tasks.arms}


def test_a_method_that_cannot_be_served_is_an_error_with_its_place(toy, tmp_path, own):
    name = own(OBJECTIVES)
    text = LEAN.replace("{similarity: 1.0}", f'{{"{name}:WantsLogits": 1.0}}')
    with pytest.raises(ConfigError, match=r"line 10, stages.student.objectives: .*needs a teacher with logits"):
        run_experiment(parse_experiment(text), tmp_path, data=toy)


def test_a_process_that_is_killed_is_told_of_and_ends_the_run(toy_npz, tmp_path, own):
    name = own(
        """
        import multiprocessing, os
        from crossdistill.objectives import Objective
        from crossdistill.registry import Facts

        class Fatal(Objective):
            facts = Facts(name="fatal", title="t", paper="ours")
            def parts(self, student, teacher, context):
                if multiprocessing.parent_process() is not None:
                    os._exit(9)  # as when memory runs out
                return {"near": (student.mean(1) - teacher.mean(1)).square().mean()}
        """
    )
    text = LEAN.replace("name: toy", f"name: {toy_npz}").replace("{similarity: 1.0}", f'{{"{name}:Fatal": 1.0}}')
    with pytest.raises(TrainingError, match=r"a process was killed, .* fewer --jobs"):
        run_experiment(parse_experiment(text), tmp_path / "out", jobs=2)
    assert not (tmp_path / "out" / "results.json").exists()
    assert run_experiment(parse_experiment(text), tmp_path / "out", jobs=1)["methods"]["Fatal"]["role"] == "method"


def test_parameters_of_ones_own_objective_are_checked_like_ours(own):
    name = own(OBJECTIVES)
    with pytest.raises(ConfigError, match=r"powre: unknown key; did you mean 'power'"):
        parse_experiment(LEAN.replace("{similarity: 1.0}", f'{{"{name}:Base": {{powre: 3.0}}}}'))
    spec = parse_experiment(LEAN.replace("{similarity: 1.0}", f'{{"{name}:Base": {{power: 3.0}}}}'))
    assert spec.student.objectives[0].parameters == {"power": 3.0}
    assert list_arms(spec)[0].name == "Base"


def test_an_objective_that_was_edited_is_trained_again(toy, tmp_path, own):
    name = own(OBJECTIVES, name="edited_objective")
    text = LEAN.replace("{similarity: 1.0}", f'{{"{name}:Base": 1.0}}')

    def keys():
        bench = Bench(parse_experiment(text), tmp_path, data=toy)
        return {arm.name: bench.key(arm, 0) for arm in list_arms(bench.experiment) if arm.stage}

    before = keys()
    assert keys() == before
    own(OBJECTIVES.replace("self.power = power", "self.power = 2 * power"), name=name)
    after = keys()
    assert before["Base"] != after["Base"]
    assert before["target_ssl"] == after["target_ssl"]


def test_an_encoder_of_ones_own_by_dotted_path_trains_and_is_deployed(toy, tmp_path, own):
    from crossdistill.experiments import load_student

    name = own(
        """
        from torch import nn
        def small(shape, width=5):
            return nn.Sequential(nn.Linear(shape[0], width), nn.ReLU())
        """
    )
    text = LEAN.replace("poor: {hidden: [16], dim: 8}", f'poor: {{encoder: "{name}:small", width: 6}}')
    run_experiment(parse_experiment(text), tmp_path / "out", data=toy)
    student = load_student(tmp_path / "out" / "student")
    assert student(torch.randn(2, 8)).shape == (2, 4)


def test_a_method_of_ones_own_as_the_teacher(toy, tmp_path, own):
    name = own(
        """
        from crossdistill.methods import Losses, Method
        from crossdistill.registry import Facts

        class Decorrelate(Method):
            facts = Facts(name="decorrelate", title="features without correlation", paper="ours")

            def __init__(self, encoder, *, modality: str, strength: float = 1.0):
                super().__init__()
                self.encoder, self.modality, self.strength = encoder, modality, strength

            def inputs(self):
                return {self.modality: 1}

            def student(self, modality):
                return self.encoder

            def training_step(self, batch):
                z = self.encoder(batch[self.modality])
                c = (z - z.mean(0)).T @ (z - z.mean(0)) / len(z)
                off = c - c.diag().diag()
                return Losses({"off": self.strength * off.square().mean(), "on": (c.diag() - 1).square().mean()})
        """
    )
    text = LEAN.replace("method: simclr", f'method: "{name}:Decorrelate", strength: 0.5')
    results = run_experiment(parse_experiment(text), tmp_path, data=toy)
    assert "teacher" in results["methods"]
    with pytest.raises(ConfigError, match="did you mean 'strength'"):
        parse_experiment(text.replace("strength", "strenght"))


def test_a_tap_that_gives_nothing_to_pool_says_so(toy, tmp_path, own):
    name = own(
        """
        from torch import nn
        class Odd(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = nn.Identity()
            def forward(self, x):
                return "text"
        """
    )
    with pytest.raises(NetworkError, match="gives str without a tensor"):
        Bench(
            parse_experiment(LEAN.replace("poor: {hidden: [16], dim: 8}", f'poor: {{encoder: "{name}:Odd"}}')),
            tmp_path,
            data=toy,
        )
