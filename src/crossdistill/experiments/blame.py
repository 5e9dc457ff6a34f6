"""Where a user's own objective stands, for messages; what their code raised is told of in `crossdistill.errors`."""

from __future__ import annotations

from crossdistill.errors import defined_at, spot_of, told
from crossdistill.registry import lookup

__all__ = ["definition_of", "spot_of", "told"]


def definition_of(name: str) -> str:
    """Give file:line of a user's objective."""
    return defined_at(lookup("crossdistill.objectives", name).parts) if ":" in name else ""
