"""Networks that have learnt nothing: the random teacher's parameters and batch-norm statistics."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from crossdistill.data import PairedDataset


def forget(network: nn.Module) -> None:
    """Draw every parameter of a network anew from torch's generator, whatever it was loaded with.

    A part that knows how starts as it does when it is made; a bare parameter (a class token, a scale) keeps its values,
    in a random order.
    """
    for part in network.modules():
        reset: Any = getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)
        if callable(reset):
            reset()
            continue
        for parameter in part.parameters(recurse=False):
            order = torch.randperm(parameter.numel())
            parameter.data = parameter.data.flatten()[order].view_as(parameter).clone()


def settle(network: nn.Module, rows: PairedDataset, modality: str) -> nn.Module:
    """Fill a random network's batch-norm statistics with those of the data, as a trained one's would be."""
    norms = [part for part in network.modules() if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over all batches
    network.train()
    with torch.no_grad():
        for x in rows.samples(modality):
            if len(x) > 1:
                network(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return network.eval()
