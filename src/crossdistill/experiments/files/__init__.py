"""Experiment files that come with the package."""

from pathlib import Path

from crossdistill.errors import ConfigError, suggest


def shipped(name: str) -> Path:
    """Give the path of the shipped experiment file called `name`, without ".yaml".

    Raises:
        ConfigError: If there is none.
    """
    known = {path.stem: path for path in Path(__file__).parent.glob("*.yaml")}
    if name not in known:
        raise ConfigError(f"no experiment file '{name}' is shipped{suggest(name, known)}")
    return known[name]
