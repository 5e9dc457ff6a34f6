import pytest

from crossdistill.errors import ConfigError
from crossdistill.training import Settings


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("epochs", 0, "at least 1"),
        ("epochs", 2.5, "whole number"),
        ("epochs", True, "whole number"),
        ("batch_size", 0, "at least 1"),
        ("accumulate", 0, "at least 1"),
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
    ],
)
def test_a_value_outside_its_range_is_named_with_the_range(field, value, allowed):
    with pytest.raises(ConfigError, match=rf"^{field} .*{allowed}"):
        Settings(**{field: value})


def test_the_ends_of_the_ranges_are_inside():
    settings = Settings(epochs=1, batch_size=1, weight_decay=0, momentum=0, warmup=0, clip=1e-9, checkpoint_every=1)
    assert settings.to_json()["clip"] == 1e-9
