import json

import pytest

from crossdistill.errors import ConfigError
from crossdistill.training import Settings


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("epochs", 0, "at least 1"),
        ("epochs", 2.5, "whole number"),
        ("epochs", True, "whole number"),
        ("steps", 0, "at least 1"),
        ("batch_size", 0, "at least 1"),
        ("accumulate", 0, "at least 1"),
        ("micro_batch", 0, "at least 1"),
        ("workers", -1, "at least 0"),
        ("checkpoint_every", 0, "at least 1"),
        ("lr", 0.0, "above 0"),
        ("lr", float("nan"), "above 0"),
        ("lr", float("inf"), "above 0"),
        ("weight_decay", -1e-9, "at least 0"),
        ("momentum", 1.0, "below 1"),
        ("warmup", 1.0, "below 1"),
        ("clip", 0.0, "above 0"),
        ("optimizer", "adamm", "did you mean 'adam"),
        ("schedule", "step", "cosine"),
        ("precision", "16-true", "16-mixed"),
        ("keep", "all", "best"),
        ("gamma", 1.0, "below 1"),
        ("gamma", 0.0, "above 0"),
        ("distinct_groups", 1, "true or false"),
        ("shard", "yes", "true or false"),
        ("milestones", (0.5,), "schedule is 'cosine'"),
        ("milestones", 0.5, r"\[0.6, 0.8\]; received 0.5"),
    ],
)
def test_a_value_outside_its_range_is_named_with_the_range(field, value, allowed):
    with pytest.raises(ConfigError, match=rf"^{field} .*{allowed}"):
        Settings(**{field: value})


@pytest.mark.parametrize("other", [{"micro_batch": 4}, {"precision": "16-mixed"}])
def test_what_sharding_cannot_be_combined_with_is_named(other):
    with pytest.raises(ConfigError, match=f"^shard cannot be combined with {next(iter(other))}"):
        Settings(shard=True, **other)


def test_the_ends_of_the_ranges_are_inside():
    settings = Settings(epochs=1, batch_size=1, weight_decay=0, momentum=0, warmup=0, clip=1e-9, checkpoint_every=1)
    assert settings.to_json()["clip"] == 1e-9


@pytest.mark.parametrize("shares", [(), (0.0,), (1.0,), (0.8, 0.6), (0.5, 0.5), (float("nan"),), ("half",)])
def test_milestones_are_rising_shares_of_the_steps(shares):
    with pytest.raises(ConfigError, match=r"^milestones"):
        Settings(schedule="steps", milestones=shares)


def test_settings_of_json_are_the_same():
    settings = Settings(schedule="steps", milestones=(0.6, 0.8))
    text = json.dumps(settings.to_json())
    assert json.loads(text) == settings.to_json()
    assert Settings.of(**json.loads(text)) == settings


def test_an_unknown_setting_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match="there is no setting 'epoch'; did you mean 'epochs'"):
        Settings.of(epoch=3)
    with pytest.raises(ConfigError, match=r"^lr must be"):
        Settings.of(lr=-1)
