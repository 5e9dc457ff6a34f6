"""The experiment file: what reads back, what is filled in, and what is refused with file, line and key."""

import pytest
from toy_experiment import EXPERIMENT

from crossdistill.errors import ConfigError
from crossdistill.experiments import parse_experiment, read_experiment, to_yaml
from crossdistill.experiments.arms import list_arms
from crossdistill.experiments.yaml_lines import override, parse_document


def test_defaults_are_filled_in_and_the_resolved_file_reads_back_to_the_same():
    experiment = parse_experiment(EXPERIMENT)
    assert experiment.student.settings["lr"] == 1e-3
    assert experiment.student.objectives[0].parameters["tau_teacher"] == 0.1
    assert experiment.seeds == (0, 1)
    assert experiment.evaluate.ways == ("linear", "knn", "fine_tune")
    again = parse_experiment(to_yaml(experiment))
    assert again == experiment
    assert to_yaml(again) == to_yaml(experiment)


def test_a_key_is_a_word_even_where_yaml_takes_it_for_true():
    text = EXPERIMENT.replace("{similarity: 1.0}", "{vid: {on: maps, bias: on}}")
    assert parse_experiment(text).student.objectives[0].parameters["on"] == "maps"
    assert parse_experiment(text).student.objectives[0].parameters["bias"] is True
    again = parse_experiment(to_yaml(parse_experiment(text)))
    assert again.student.objectives[0].parameters == parse_experiment(text).student.objectives[0].parameters


def test_overrides_change_values_and_keep_the_rest():
    document = override(
        parse_document(EXPERIMENT, name="e.yaml"),
        ["stages.student.lr=1e-2", "seeds=[3, 5]", "stages.student.objectives={contrastive: {tau: 0.5}}"],
    )
    from crossdistill.experiments.schema import check_experiment

    experiment = check_experiment(document)
    assert experiment.student.settings["lr"] == 0.01
    assert experiment.seeds == (3, 5)
    assert [o.name for o in experiment.student.objectives] == ["contrastive"]
    assert experiment.student.objectives[0].parameters["tau"] == 0.5


WRONG = {
    "unknown top key": (("compare: [l2]", "comparee: [l2]"), ["line 13", "did you mean 'compare'?"]),
    "unknown stage key": (("    epochs: 2\n", "    epohcs: 2\n"), ["line 11, stages.student.epohcs", "'epochs'?"]),
    "wrong type": (("    epochs: 2\n", "    epochs: many\n"), ["line 11, stages.student.epochs", "'many'"]),
    "out of range": (("    epochs: 2\n", "    epochs: 0\n"), ["line 11, stages.student.epochs", "at least 1"]),
    "unknown method": (("method: simclr", "method: simclir"), ["line 6, stages.teacher.method", "'simclr'?"]),
    "unknown objective": (("{similarity: 1.0}", "{similarty: 1.0}"), ["objectives.similarty", "'similarity'?"]),
    "negative weight": (("{similarity: 1.0}", "{similarity: -1}"), ["weight must be positive", "line 10"]),
    "bad temperature": (
        ("{similarity: 1.0}", "{similarity: {tau_student: 0}}"),
        ["line 10, stages.student.objectives.similarity.tau_student", "must be a temperature"],
    ),
    "unknown parameter": (("{similarity: 1.0}", "{similarity: {tua: 1}}"), ["similarity.tua: unknown key"]),
    "unknown literal": (("{similarity: 1.0}", "{similarity: {target: near}}"), ["target", "'within'"]),
    "unknown teacher": (("teacher: teacher", "teacher: master"), ["line 9", "no earlier stage is called 'master'"]),
    "missing method": (("    method: distillation\n", ""), ["stages.student", "needs a 'method'"]),
    "missing objectives": (("    objectives: {similarity: 1.0}\n", ""), ["the key 'objectives' is missing"]),
    "no objectives": (("{similarity: 1.0}", "{}"), ["at least one objective"]),
    "teacher of the target": (("modality: rich, epochs", "modality: poor, epochs"), ["must read the source 'rich'"]),
    "unknown modality": (("modality: rich, epochs", "modality: ritch, epochs"), ["no modality 'ritch'", "'rich'?"]),
    "one modality twice": (("target: poor", "target: rich"), ["source and target are both 'rich'"]),
    "missing source": ((", source: rich", ""), ["line 1, data: the key 'source' is missing"]),
    "network of nobody": (("  poor: {hidden", "  pour: {hidden"), ["networks.pour", "did you mean 'poor'?"]),
    "seeds of nothing": (("seeds: 2", "seeds: 0"), ["seeds", "above 0"]),
    "seeds twice": (("seeds: 2", "seeds: [1, 1]"), ["distinct seeds"]),
    "labels below one": (
        ("labels_per_class: 3", "labels_per_class: 0"),
        ["evaluate.labels_per_class", "greater than 0"],
    ),
    "unknown way": (("fine_tune_steps: 5", "ways: [linaer]"), ["evaluate.ways.0", "'linaer'"]),
    "row named like a control": (("[l2]", "[{scratch: {l2: 1.0}}]"), ["'scratch' is the name of another row"]),
    "changed control": (("seeds: 2", "controls: {teacher: {}}"), ["only these controls take changes"]),
    "key twice": (("seeds: 2", "seeds: 2\nseeds: 3"), ["line 16: 'seeds' stands twice"]),
    "no YAML": (("seeds: 2", "seeds: [2"), ["not valid YAML"]),
    "a list": ((EXPERIMENT, "- a\n- b\n"), ["a mapping of keys"]),
    "last stage teaches nobody": (
        (EXPERIMENT[EXPERIMENT.index("  student:") : EXPERIMENT.index("compare")], ""),
        ["the last stage must distil"],
    ),
    "augment of nobody": (("epochs: 2, batch_size", "augment: {x: []}, batch_size"), ["no modality 'x'"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named_with_file_line_and_key(case, tmp_path):
    (old, new), expected = WRONG[case]
    assert old in EXPERIMENT
    path = tmp_path / "mine.yaml"
    path.write_text(EXPERIMENT.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        read_experiment(path)
    message = str(caught.value)
    assert message.startswith("mine.yaml")
    assert all(word in message for word in expected), message
    assert len(message.splitlines()) <= 2


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("stages.student.epochs", "write key.path=value"),
        ("=3", "write key.path=value"),
        ("compare.4.x=1", "nothing called '4'"),
        ("seeds=[1", "not valid YAML"),
        ("stages.student.epochs=zero", "command line, stages.student.epochs"),
        ("stages.student.steps=40", "stages.student.epochs: epochs and steps are two budgets; make one of them null"),
    ],
)
def test_wrong_overrides_are_refused(assignment, message, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(EXPERIMENT)
    with pytest.raises(ConfigError, match=message):
        read_experiment(path, [assignment])


def test_steps_are_the_budget_of_all_rows_that_say_no_epochs():
    text = EXPERIMENT.replace("    epochs: 2\n", "    steps: 50\n") + "controls: {target_ssl: {epochs: 4}}\n"
    own = "{own: {method: distillation, teacher: teacher, objectives: {l2: 1.0}, epochs: 5}}"
    experiment = parse_experiment(text.replace("compare: [l2]", f"compare: [cosine, {own}]"))
    found = {arm.name: arm.stage.settings for arm in list_arms(experiment) if arm.stage is not None}
    budgets = {name: (settings["steps"], settings["epochs"]) for name, settings in found.items()}
    assert budgets["similarity"] == budgets["cosine"] == budgets["scratch"] == (50, 30)
    assert budgets["own"] == (None, 5)
    assert budgets["target_ssl"] == (None, 4)
    assert parse_experiment(to_yaml(experiment)) == experiment


def test_the_command_line_turns_one_budget_into_the_other(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(EXPERIMENT)
    changed = read_experiment(path, ["stages.student.epochs=null", "stages.student.steps=40"])
    assert changed.student.settings["steps"] == 40
    path.write_text(EXPERIMENT.replace("    epochs: 2\n", "    steps: 50\n"))
    changed = read_experiment(path, ["stages.student.epochs=7", "stages.student.steps=null"])
    assert (changed.student.settings["epochs"], changed.student.settings["steps"]) == (7, None)


def test_a_missing_file_says_how_to_make_one(tmp_path):
    with pytest.raises(ConfigError, match="crossdistill init"):
        read_experiment(tmp_path / "none.yaml")
