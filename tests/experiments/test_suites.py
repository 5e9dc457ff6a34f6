"""The suite file: what it expands to, and that its errors say where."""

import itertools
import signal
import time

import numpy as np
import pytest
import torch
from absent import who_is_there

from crossdistill.errors import ConfigError, CrossDistillError, Interrupted, ObjectiveError
from crossdistill.experiments import parse_experiment, to_yaml
from crossdistill.experiments.suite_estimate import JUDGING, estimate
from crossdistill.experiments.suite_plan import Hall, plan, stage_steps
from crossdistill.experiments.suites import SCALED, Shelf, expand, fitting_pairs, standard
from crossdistill.experiments.yaml_lines import parse_document
from crossdistill.methods import Distillation
from crossdistill.methods._clock import Clock
from crossdistill.objectives.at import Attention
from crossdistill.registry import discover
from crossdistill.training import Settings, fit


def suite(text, **how):
    return expand(parse_document(text, name="s.yaml"), Shelf(), **how)


SMALL = """
methods: [similarity, l2, {{mine: {{cosine: {{weight: 2.0}}}}}}]
budget: {{steps: 10, teacher_steps: 20, batch_size: 32}}
experiments:
  toy: {{data: {{name: {path}, source: rich, target: poor}}}}
labels_per_class: [1, null]
seeds: 2
"""


def test_every_entry_is_an_experiment_like_one_of_a_file_of_its_own(toy_npz):
    (entry,) = suite(SMALL.format(path=toy_npz)).entries
    again = parse_experiment(to_yaml(entry.experiment))
    assert again == entry.experiment
    assert list(entry.experiment.compare) == ["l2", "mine"]
    assert entry.experiment.compare["mine"].objectives[0].weight == 2.0
    assert entry.at(None).evaluate.labels_per_class is None


@pytest.mark.parametrize(("steps", "batch"), [(10, 32), (1, 32), (7, 50), (10, 4096)])
def test_the_budget_in_steps_becomes_epochs_of_full_batches(toy_npz, steps, batch):
    text = SMALL.format(path=toy_npz).replace("steps: 10", f"steps: {steps}", 1).replace("size: 32", f"size: {batch}")
    settings = suite(text).entries[0].experiment.student.settings
    fits = min(batch, 160 // 2)
    assert settings["batch_size"] == fits
    taken = Settings(**settings).passes(160 // fits) * (160 // fits)
    assert steps <= taken < steps + 160 // fits


def test_rows_that_lack_a_modality_take_no_steps_away(toy, tmp_path):
    here = who_is_there(300, share=0.4)
    arrays = {name: np.where(here[name][:, None], array, 0) for name, array in toy.columns.arrays.items()}
    masks = {f"present_{name}": mask for name, mask in here.items()}
    np.savez(tmp_path / "d.npz", **arrays, **masks, label=toy.label, split=toy.columns.split)
    text = SMALL.format(path=tmp_path / "d.npz").replace("target: poor}}", "target: poor}, pairs: [70, null]}")
    made = suite(text)
    planned = plan(made, tmp_path / "out", shelf := Shelf())
    hall = Hall(made.entries, tmp_path / "out", shelf)
    for entry in made.entries:
        for seed in (0, 1):
            steps = stage_steps(list(hall.benches(entry.name).values()), planned.rows[entry.name], seed)
            assert {"similarity", "l2", "target_ssl", "scratch", "random_teacher"} <= set(steps)
            rows = here["rich"] & here["poor"] & (toy.columns.split == 0)
            assert fitting_pairs(shelf.get(entry.experiment.data.name, {}), "rich", "poor") == rows.sum()
            for row in steps.keys() - {"raw_features", "teacher"}:  # an epoch has five full batches at most
                assert all(10 <= count < 15 for count in steps[row]), (row, steps[row])


def test_a_row_keeps_the_budget_of_its_own_whether_it_is_the_main_one_or_not(toy_npz):
    own = "{own: {method: distillation, teacher: teacher, objectives: {l2: 1.0}, epochs: 4, lr: 0.5}}"
    for rows in (own, f"similarity, {own}"):
        text = SMALL.format(path=toy_npz).replace("[similarity, l2, {mine: {cosine: {weight: 2.0}}}]", f"[{rows}]")
        experiment = suite(text).entries[0].experiment
        stage = experiment.compare.get("own", experiment.student)
        assert [stage.settings[key] for key in ("epochs", "steps", "lr", "batch_size")] == [4, None, 0.5, 32]


def test_between_makes_all_ordered_pairs_and_pairs_make_a_family(toy_npz):
    text = SMALL.format(path=toy_npz).replace(
        "{data: {name: " + str(toy_npz) + ", source: rich, target: poor}}",
        "{data: {name: " + str(toy_npz) + "}, between: [rich, poor], pairs: [null, 64]}",
    )
    entries = suite(text).entries
    names = [f"toy-{a}-{b}" for a, b in itertools.permutations(["rich", "poor"], 2)]
    assert [e.name for e in entries] == [f"{n}{limit}" for n in names for limit in ("", "-64")]
    assert {e.family for e in entries} == set(names)
    assert [e.experiment.data.pairs for e in entries] == [None, 64, None, 64]


def test_what_an_experiment_says_goes_over_the_base(toy_npz):
    text = SMALL.format(path=toy_npz) + "base: {evaluate: {ways: [linear], c: 1.0}, stages: {student: {lr: 0.5}}}\n"
    text = text.replace("target: poor}}", "target: poor}, stages: {student: {lr: 0.25}}}")
    experiment = suite(text).entries[0].experiment
    assert experiment.student.settings["lr"] == 0.25
    assert experiment.evaluate.ways == ("linear",)
    assert experiment.evaluate.c == 1.0


def test_in_the_labelled_track_losses_stand_beside_cross_entropy_and_the_teacher_reads_labels(toy_npz):
    text = SMALL.format(path=toy_npz).replace("l2,", "l2, mfh, cross_entropy, mla,") + "track: labelled\n"
    experiment = suite(text).entries[0].experiment
    assert experiment.stages["teacher"].method == "supervised"
    assert [o.name for o in experiment.student.objectives] == ["cross_entropy", "similarity"]
    assert [o.name for o in experiment.compare["l2"].objectives] == ["cross_entropy", "l2"]
    assert [o.name for o in experiment.compare["mfh"].objectives] == ["mfh"]
    assert [o.name for o in experiment.compare["cross_entropy"].objectives] == ["cross_entropy"]
    assert experiment.compare["mla"].method == "mla"
    assert [o.name for o in experiment.compare["mine"].objectives] == ["cosine"]


def test_all_names_every_objective_and_every_method_of_several_networks(toy_npz):
    document = standard(str(toy_npz), "rich", "poor", seeds=1)
    rows = expand(document, Shelf()).entries[0].experiment.compare
    objectives = set(discover("crossdistill.objectives"))
    methods = set(discover("crossdistill.methods")) - {"simclr", "supervised", "distillation", "neighbour_graph"}
    named = {f"{name}_method" if name in objectives else name for name in methods}
    assert {*rows, "similarity"} == objectives | named
    assert all(rows[name].objectives[0].parameters.items() >= own.items() for name, own in SCALED.items())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("l2,", "l22,", r"s\.yaml, line 2, methods\.1: no objective or method is called 'l22'.*l2"),
        ("methods:", "method:", r"unknown key.*methods"),
        ("steps: 10", "stepz: 10", r"budget\.stepz: unknown key.*steps"),
        ("source: rich", "source: ritch", r"s\.yaml, experiments\.toy, line 5, data\.source: .*did you mean 'rich'"),
        ("seeds: 2", "seeds: 0", r"seeds: give a number above 0"),
        ("labels_per_class: [1, null]", "labels_per_class: [0]", r"labels_per_class\.0"),
        ("[similarity, l2,", "[similarity, similarity,", r"'similarity' is the name of another row"),
        (
            "{cosine: {weight: 2.0}}",
            "{cosine: {wait: 2.0}}",
            r"s\.yaml, experiments\.toy, line 2, compare\.1\.mine\.cosine\.wait: unknown key.*weight",
        ),
        ("target: poor}}", "target: poor}, betwen: [rich, poor]}", r"experiments\.toy\.betwen: unknown key.*between"),
    ],
)
def test_errors_say_where_and_what_is_right(toy_npz, old, new, message):
    text = SMALL.format(path=toy_npz)
    assert old in text
    with pytest.raises(CrossDistillError, match=message):
        suite(text.replace(old, new, 1))


def test_two_experiments_of_one_name_are_refused(toy_npz):
    text = SMALL.format(path=toy_npz).replace(
        "target: poor}}",
        f"target: poor}}, pairs: [64]}}\n  toy-64: {{data: {{name: {toy_npz}, source: rich, target: poor}}}}",
    )
    with pytest.raises(ConfigError, match=r"two experiments are called 'toy-64'"):
        suite(text)


def test_a_data_set_is_loaded_once(toy_npz):
    shelf = Shelf()
    first = shelf.get(str(toy_npz), {})
    assert shelf.get(str(toy_npz), {}) is first
    assert np.array_equal(first.columns.arrays["rich"], shelf.get(str(toy_npz), {}).columns.arrays["rich"])


def test_objectives_of_maps_run_on_the_deepest_ones_and_fsp_says_that_it_needs_two(tmp_path):
    rng = np.random.default_rng(0)
    views = {name: rng.normal(size=(90, 1, 12, 12)).astype(np.float32) for name in ("day", "night")}
    np.savez(tmp_path / "views.npz", **views, label=np.arange(90) % 3, split=np.repeat([0, 1, 2], 30))
    names = ["at", "nst", "cmst", "ft", "ab", "fsp"]
    document = standard(str(tmp_path / "views.npz"), "day", "night", methods=names, seeds=1, tune=3)
    suite = expand(document, Shelf())
    assert suite.trials == 3
    planned = plan(suite, tmp_path / "out", Shelf())
    rows = {arm.name for arm in planned.rows["day-night"]}
    assert rows >= set(names) - {"fsp"}
    [reason] = [reason for _, name, reason in planned.skipped if name == "fsp"]
    assert "needs two or more" in reason


def test_the_number_of_pairs_the_keys_of_data_and_the_main_row_are_blamed_where_they_stand(toy_npz):
    text = SMALL.format(path=toy_npz)
    with pytest.raises(
        ConfigError, match=r"s\.yaml, line \d+, experiments\.toy\.pairs: 161 are more than all 160; null"
    ):
        suite(text.replace("target: poor}}", "target: poor}, pairs: [64, 161]}"))
    with pytest.raises(ConfigError, match=r"the key 'target' is missing, or no word; there is no key 'traget'"):
        suite(text.replace("target:", "traget:"))
    with pytest.raises(ConfigError, match=r"s\.yaml, experiments\.toy, line 2, stages\.student\.objectives\.l2\.temp"):
        suite(text.replace("[similarity, l2,", "[{cold: {l2: {temp: 3}}},"))


LAYERS = """
methods:
- similarity
- {stages: {fsp: {layers: [[stages.0, stages.0], [stages.1, stages.1]]}}}
- {narrow: {fsp: {layers: [[stages.0, stages.0], [stages.1, %s]]}}}
experiments:
  numbers: {data: {name: "%s", source: rich, target: poor}}
  pictures: {data: {name: "%s", source: day, target: night}}
  shallow: {data: {name: "%s", source: day, target: night}, networks: {night: {encoder: cnn, blocks: %s}}}
labels_per_class: [1]
seeds: 1
"""


@pytest.fixture
def views_npz(tmp_path):
    rng = np.random.default_rng(0)
    views = {name: rng.normal(size=(90, 1, 24, 24)).astype(np.float32) for name in ("day", "night")}
    np.savez(tmp_path / "views.npz", **views, label=np.arange(90) % 3, split=np.repeat([0, 1, 2], 30))
    return tmp_path / "views.npz"


def test_layers_that_networks_lack_leave_a_row_out_before_anything_is_trained(toy_npz, views_npz, tmp_path):
    text = LAYERS % ("stages.1.0", toy_npz, views_npz, views_npz, "[1]")
    planned = plan(suite(text), tmp_path / "out", Shelf())
    assert {"stages", "narrow"} <= {arm.name for arm in planned.rows["pictures"]}
    reasons = {(entry, row): reason for entry, row, reason in planned.skipped}
    assert set(reasons) == {(entry, row) for entry in ("numbers", "shallow") for row in ("stages", "narrow")}
    assert reasons["numbers", "stages"].startswith("fsp needs feature maps: MLP gives no feature maps")
    assert reasons["shallow", "stages"].startswith("fsp.layers, the student's: CNN has no submodule 'stages.1'")


def test_layers_that_no_network_has_are_refused(toy_npz, views_npz, tmp_path):
    text = LAYERS % ("stage.1", toy_npz, views_npz, views_npz, "[1]")
    with pytest.raises(
        ConfigError, match=r"row 'narrow' runs in no experiment; in pictures: fsp\.layers, the teacher's: CNN"
    ):
        plan(suite(text), tmp_path / "out", Shelf())


class Demanding(Attention):
    """An objective of the user's own that wants what a look at its layers does not have."""

    def study(self, teacher):
        self.studied = True

    def parts(self, student, teacher, context):
        if context.inputs is None or not self.studied:
            raise ObjectiveError("inputs and a study are needed")
        return super().parts(student, teacher, context)


def test_layers_are_looked_for_and_nothing_else(toy_npz, views_npz, tmp_path):
    own = f"{{own: {{'{__name__}:Demanding': {{layers: [[stages.0, stages.0]]}}}}}}"
    text = LAYERS % ("stages.1.0", toy_npz, views_npz, views_npz, "[1]")
    planned = plan(suite(text.replace("- similarity", f"- {own}")), tmp_path / "out", Shelf())
    assert "Demanding" in {arm.name for arm in planned.rows["shallow"]}


@pytest.mark.parametrize("track", ["label-free", "labelled"])
def test_the_steps_of_every_row_are_timed_before_it_starts(toy_npz, tmp_path, track):
    shelf = Shelf()
    text = SMALL.format(path=toy_npz).replace("[similarity, l2, {mine: {cosine: {weight: 2.0}}}]", "all")
    made = expand(parse_document(f"track: {track}{text}", name="s.yaml"), shelf)
    planned = plan(made, tmp_path / "out", shelf)
    before = torch.random.get_rng_state()
    found = estimate(made, planned, tmp_path / "out", shelf)
    assert found.unknown == 0
    assert found.disk > 0
    judged = {job: 0.0 if job.teaching else JUDGING * 2 for job in found.seconds}
    untimed = [job.row for job, seconds in found.seconds.items() if job.steps and seconds <= judged[job]]
    assert not untimed
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not (tmp_path / "out").exists()


class Slow(Clock):
    """Its later half takes most of the time."""

    def tick(self):
        super().tick()
        time.sleep(0.1 * (self.progress() > 0.5))


def estimated(text, folder):
    shelf = Shelf()
    made = expand(parse_document(text, name="s.yaml"), shelf)
    planned = plan(made, folder, shelf)
    return planned, estimate(made, planned, folder, shelf)


def test_a_row_that_slows_down_as_it_goes_on_counts_as_such(toy_npz, tmp_path, monkeypatch):
    monkeypatch.setattr("crossdistill.methods.distillation.Clock", Slow)
    monkeypatch.setattr("crossdistill.experiments.suite_estimate.LONGEST", 60.0)
    planned, found = estimated(SMALL.format(path=toy_npz), tmp_path / "out")
    jobs = [job for job in planned.jobs if job.row == "l2"]
    assert all(found.seconds[job] > 0.04 * job.steps for job in jobs)


def test_what_a_method_does_before_its_first_step_counts(toy_npz, tmp_path, monkeypatch):
    monkeypatch.setattr(Distillation, "before_stage", lambda method, data: time.sleep(0.3))
    planned, found = estimated(SMALL.format(path=toy_npz), tmp_path / "out")
    assert all(found.seconds[job] > 0.3 + 2 * JUDGING for job in planned.jobs if job.row == "l2")


def test_each_batch_and_each_number_of_labels_is_timed(toy_npz, tmp_path, monkeypatch):
    seen = []

    def watched(method, data, settings, **how):
        seen.append((type(method).__name__, settings.batch_size))
        return fit(method, data, settings, **how)

    monkeypatch.setattr("crossdistill.experiments.suite_estimate.fit", watched)
    other = f"  other: {{data: {{name: {toy_npz}, source: rich, target: poor}}, base: {{}}}}\n"
    text = SMALL.format(path=toy_npz).replace("labels_per_class", f"{other}labels_per_class")
    estimated(text.replace("base: {}", "pairs: [20]"), tmp_path / "out")
    assert {("Distillation", 32), ("Distillation", 10), ("Supervised", 4), ("Supervised", 32)} <= set(seen)


def test_stages_whose_steps_take_long_end_early(toy_npz, tmp_path, monkeypatch):
    monkeypatch.setattr("crossdistill.experiments.suite_estimate.LONGEST", 0.0)
    planned, found = estimated(SMALL.format(path=toy_npz), tmp_path / "out")
    assert found.unknown == 0
    assert set(found.seconds) == set(planned.jobs)


def test_an_accumulated_step_counts_all_its_batches(toy_npz, tmp_path, monkeypatch):
    seen = []

    def watched(method, data, settings, **how):
        seen.append((type(method).__name__, len(data), settings.batch_size, settings.accumulate))
        return fit(method, data, settings, **how)

    monkeypatch.setattr("crossdistill.experiments.suite_estimate.fit", watched)
    text = SMALL.format(path=toy_npz).replace("size: 32}", "size: 16}\nbase: {stages: {student: {accumulate: 3}}}")
    estimated(text, tmp_path / "out")
    assert ("Distillation", 2 * 3 * 16, 16, 3) in seen


@pytest.mark.parametrize("hook", ["before_stage", "after_step"])
def test_a_signal_stops_the_timing_wherever_it_comes(toy_npz, tmp_path, monkeypatch, hook):
    def pressed(*_):
        signal.raise_signal(signal.SIGINT)
        raise IndexError("out of range")

    monkeypatch.setattr(Distillation, hook, pressed)
    with pytest.raises(Interrupted):
        estimated(SMALL.format(path=toy_npz), tmp_path / "out")


def test_the_user_can_stop_while_steps_are_timed(toy_npz, tmp_path, monkeypatch):
    def stops(*_, **__):
        raise Interrupted("stopped")

    monkeypatch.setattr("crossdistill.experiments.suite_estimate.fit", stops)
    with pytest.raises(Interrupted):
        estimated(SMALL.format(path=toy_npz), tmp_path / "out")


@pytest.mark.parametrize("hook", ["before_stage", "training_step"])
def test_a_method_that_fails_is_left_to_its_run(toy_npz, tmp_path, monkeypatch, hook):
    def fails(*_):
        raise IndexError("out of range")

    monkeypatch.setattr(Distillation, hook, fails)
    planned, found = estimated(SMALL.format(path=toy_npz), tmp_path / "out")
    rows = {job.row: found.seconds[job] for job in planned.jobs}
    assert rows["l2"] == 2 * JUDGING < rows["scratch"]
    assert found.unknown >= 2 * 3  # of two seeds
