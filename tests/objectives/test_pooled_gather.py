"""Two real processes with half the batch each give loss, gradients and memories of one with the whole batch."""

import os
import socket
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from crossdistill.objectives import Context, CrossModalContrastive, SimilarityDistillation
from crossdistill.objectives.both import CMCD
from crossdistill.objectives.cc import CorrelationCongruence
from crossdistill.objectives.crd import ContrastiveRepresentation
from crossdistill.objectives.focused import Focused
from crossdistill.objectives.labels import CrossEntropy
from crossdistill.objectives.pkt import ProbabilisticTransfer
from crossdistill.objectives.rkd import RelationalDistillation
from crossdistill.objectives.seed import Seed
from crossdistill.objectives.sp import SimilarityPreserving


def studied():
    """Neighbourhoods of 20 pairs, known before the first step."""
    generator = torch.Generator().manual_seed(3)
    z, h = (torch.randn(20, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    objective = Focused(n_coords=8)
    objective.study([(z, Context(inputs=h))])
    return objective


MAKE = {
    "pkt": ProbabilisticTransfer,
    "pkt entries": lambda: ProbabilisticTransfer("entries"),
    "sp": SimilarityPreserving,
    "rkd": RelationalDistillation,
    "rkd of different samples": lambda: RelationalDistillation(over="different"),
    "cmcd": CMCD,
    "few labels": CrossEntropy,
    "similarity with itself": lambda: SimilarityDistillation(exclude_self=False),
    "contrastive one way": lambda: CrossModalContrastive(symmetric=False),
    "cc gaussian": lambda: CorrelationCongruence("kernel", kernel="gaussian", normalise=True),
    "cc as torchdistill": lambda: CorrelationCongruence("kernel", kernel="gaussian", order=2),
    "rkd of three corners": lambda: RelationalDistillation(vertices=3),
    "cc": CorrelationCongruence,
    "cc embedded": lambda: CorrelationCongruence(width=3, train_teacher=True),
    "seed": lambda: Seed(0.1, queue_size=10),
    "focused": studied,
    "crd memory": lambda: ContrastiveRepresentation(dim=3, count=5, tau=0.3),
    "crd batch": lambda: ContrastiveRepresentation("batch", dim=3, tau=0.3),
    "crd queue": lambda: ContrastiveRepresentation("queue", dim=3, count=10, tau=0.3),
}


def two_steps(name, mine, world):
    """Losses of two steps, averaged gradients of the second, and what is remembered."""
    generator = torch.Generator().manual_seed(5)
    x, t = (torch.randn(8, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    w = torch.randn(6, 6, generator=generator, dtype=torch.float64).requires_grad_()
    torch.manual_seed(7)
    objective = MAKE[name]()
    objective.prepare(x, t, pairs=20)
    index = torch.tensor([3, 11, 0, 19, 7, 8, 5, 2])
    label = torch.tensor([0, 1, 2, -1, -1, -1, -1, 3])  # three are known to one process, one to the other
    losses = []
    learning = [w, *(p for p in objective.parameters() if p.requires_grad)]
    for step in (1, 2):
        for parameter in learning:
            parameter.grad = None
        value = objective(x[mine] @ w, t[mine] * step + x[mine], index=(index[mine] + step) % 20, label=label[mine])
        value.backward()
        if world > 1 and name == "few labels":  # each gives its share, and their average is the loss
            value = value.detach().clone()
            dist.all_reduce(value)
            value /= world
        losses.append(value.item())
    for parameter in learning:
        if world > 1:
            dist.all_reduce(parameter.grad)
    gradients = [(parameter.grad / world).tolist() for parameter in learning]
    return losses, gradients, {key: value.tolist() for key, value in objective.named_buffers()}


def worker(rank, port, results):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    results.put({name: two_steps(name, slice(4 * rank, 4 * rank + 4), 2) for name in MAKE})
    dist.barrier()
    dist.destroy_process_group()


def close(ours, theirs, name):
    torch.testing.assert_close(
        torch.tensor(ours, dtype=torch.float64),
        torch.tensor(theirs, dtype=torch.float64),
        rtol=1e-9,
        atol=1e-12,
        msg=lambda m: f"{name}: {m}",
    )


@pytest.mark.slow
def test_world_size_does_not_change_the_mathematics():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.get_context("spawn")
    results = context.SimpleQueue()
    processes = [context.Process(target=worker, args=(rank, port, results), daemon=True) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
        assert process.exitcode == 0
    everyone = [results.get(), results.get()]
    for name in MAKE:
        losses, gradients, buffers = two_steps(name, slice(None), 1)
        assert torch.tensor(gradients[0]).any(), name
        for found in everyone:
            assert found[name][0] == pytest.approx(losses, rel=1e-10), name
            for ours, theirs in zip(found[name][1], gradients, strict=True):
                close(ours, theirs, name)
            assert found[name][2].keys() == buffers.keys()
            for key, value in buffers.items():
                close(found[name][2][key], value, f"{name}: {key}")
