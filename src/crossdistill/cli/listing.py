"""What an experiment file may name."""

from __future__ import annotations

from crossdistill.errors import ConfigError, suggest

PACKAGES = ("objectives", "methods", "networks")


def listing(what: str) -> str:
    """Give one line for each objective, method, network, transform or data set.

    Raises:
        ConfigError: If there is no such list.
    """
    if what in PACKAGES:
        from crossdistill.registry import discover

        rows = [
            (name, f"{cls.facts.title} [{cls.facts.paper}]") for name, cls in discover(f"crossdistill.{what}").items()
        ]
    elif what == "transforms":
        from crossdistill.data import available_transforms

        rows = [(t.name, f"{t.title} ({', '.join(t.kinds)})") for t in available_transforms()]
    elif what == "data":
        from crossdistill.data import available_sets

        rows = [(s.name, s.title) for s in available_sets()]
    else:
        raise ConfigError(f"there is no list of '{what}'{suggest(what, (*PACKAGES, 'transforms', 'data'))}")
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {title}" for name, title in rows)
