"""Networks that torch compiles for the length of a stage."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator

from torch import nn

from crossdistill.errors import ConfigError, NetworkError, suggest
from crossdistill.methods.base import Method
from crossdistill.networks.base import Network


def check_backend(name: object) -> None:
    """Refuse what torch.compile does not know.

    Raises:
        ConfigError: Naming the nearest.
    """
    import torch._dynamo  # seconds, which only those wait for who ask

    if name not in torch._dynamo.list_backends(exclude_tags=()):
        known = torch._dynamo.list_backends()  # without those that are for debugging
        raise ConfigError(
            f"compile is the name of a backend of torch.compile; received {name!r}{suggest(str(name), known)}"
        )


@contextlib.contextmanager
def compiled(method: Method, backend: str | None) -> Generator[None]:
    """Have a method's networks, its live teachers among them, compiled at their first batch, until the block ends.

    Weights, names and what is saved stay the same.
    """
    if backend is None:
        yield
        return
    networks = _networks(method)
    for network in networks:
        network.compile(backend=backend)
    try:
        yield
    finally:
        for network in networks:
            network._compiled_call_impl = None  # pyright: ignore[reportPrivateUsage] - torch has no other way back


def _networks(method: Method) -> list[nn.Module]:
    """Give the frozen teachers and what trains, as the outermost networks that hold it."""
    found = [*method.teachers().values(), *(part for part in method.modules() if isinstance(part, Network))]
    for modality in method.inputs():
        with contextlib.suppress(NetworkError):
            found.append(method.student(modality))
    inside = {id(part) for network in found for part in network.modules() if part is not network}
    return list(dict.fromkeys(network for network in found if id(network) not in inside))


def is_compilers(error: BaseException) -> bool:
    """Say whether an error is of the compiler, and not of what it compiled."""
    dynamo = sys.modules.get("torch._dynamo.exc")
    return dynamo is not None and isinstance(error, dynamo.TorchDynamoException)
