"""Tensors on their way to a device and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def sent(x: Tensor, device: torch.device) -> Tensor:
    """Give x on a device; to CUDA from pinned memory, as a plain copy waits for all that the device has yet to do."""
    if device.type != "cuda" or x.device.type != "cpu":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


def fetched(content: Mapping[Any, Any]) -> dict[Any, Any]:
    """Give dicts and lists of anything with their tensors on the CPU: those that are there already as they are.

    CUDA devices are waited for once, and not for each tensor, which takes long where processes share a device.
    """
    waited: set[torch.device] = set()

    def fetch(value: Any) -> Any:
        if isinstance(value, Tensor):
            if value.device.type != "cuda":
                return value.cpu()
            waited.add(value.device)
            return value.to("cpu", non_blocking=True)  # into pinned memory
        if isinstance(value, Mapping):
            return {name: fetch(inner) for name, inner in value.items()}  # pyright: ignore[reportUnknownVariableType] - anything
        if isinstance(value, list):
            return [fetch(inner) for inner in value]  # pyright: ignore[reportUnknownVariableType]
        return value

    found = {name: fetch(value) for name, value in content.items()}
    for device in waited:
        torch.cuda.synchronize(device)
    return found
