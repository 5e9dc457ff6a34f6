"""Networks that have learnt nothing: the random teacher's parameters and batch-norm statistics."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from crossdistill.experiments.rehearsal import seeded
from crossdistill.experiments.specs import StageSpec

if TYPE_CHECKING:
    from crossdistill.experiments.bench import Bench


def build_untaught(bench: Bench, stage: StageSpec, seed: int) -> nn.Module:
    """Build the random teacher of a stage: the teacher's architecture, random weights, batch norms settled."""
    made_by = bench.experiment.stages[stage.teacher]
    with seeded(seed, "random teacher"):
        if made_by.module is None:
            method = bench.method(bench.teacher_arm(made_by), seed, purpose="random teacher")
            network = bench.as_teacher(stage, method)
        else:
            network = bench.module(dataclasses.replace(made_by.module, weights=None), made_by.name)
            forget(network)
    spec = bench.experiment.data
    rows = bench.train.having(*(spec.modalities if stage.fused else (spec.source,)))
    return settle(network, bench.teacher_reads(stage, rows, 512))


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


def settle(network: nn.Module, batches: Iterable[Any]) -> nn.Module:
    """Fill a random network's batch-norm statistics with those of the data, as a trained one's would be.

    Args:
        network: In eval mode afterwards.
        batches: What it is given: tensors (b, ...), or mappings of them.
    """
    norms = [part for part in network.modules() if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over all batches
    network.train()
    with torch.no_grad():
        for x in batches:
            if len(x if isinstance(x, Tensor) else next(iter(x.values()))) > 1:
                network(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return network.eval()
