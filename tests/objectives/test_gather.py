"""Two real processes with half the batch each give the gradient of one process with the whole batch."""

import os
import socket
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from crossdistill.objectives import (
    CrossModalContrastive,
    SimilarityDistillation,
    gather_rows,
    nt_xent,
    unit,
)

LOSSES = {
    "similarity": lambda s, t, g: SimilarityDistillation()(s, t),
    "anchor": lambda s, t, g: SimilarityDistillation(target="anchor")(s, t),
    "contrastive": lambda s, t, g: CrossModalContrastive()(s, t),
    "grouped": lambda s, t, g: CrossModalContrastive(mask_groups=True)(s, t, group=g),
    "learned": lambda s, t, g: CrossModalContrastive(0.3, learnable_tau=True)(s, t),
    "nt_xent": lambda s, t, g: nt_xent(s, t),
    "shared": lambda s, t, g: (gather_rows(s) + gather_rows(s * t)).square().mean(),  # one gradient for two branches
}


def problem():
    generator = torch.Generator().manual_seed(5)
    x, t = (torch.randn(8, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    weight = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    return x, t, weight, torch.tensor([0, 1, 1, 2, 0, 3, 3, 4])


def fill_queue(x, t):
    """Three steps whose teachers do not fit into the queue: the losses, and what is held."""
    objective = SimilarityDistillation(target="anchor", queue_size=10)
    losses = [objective(x, t * step + x).item() for step in range(1, 4)]
    return losses, objective.queue.tolist(), int(objective.filled)


def worker(rank, port, results):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    x, t, weight, group = problem()
    mine = slice(4 * rank, 4 * rank + 4)
    found = {}
    for name, loss in LOSSES.items():
        w = weight.clone().requires_grad_()
        value = loss(x[mine] @ w, t[mine], group[mine])
        value.backward()
        dist.all_reduce(w.grad)
        found[name] = (value.item(), (w.grad / 2).tolist())
    found["queue"] = fill_queue(x[mine], t[mine])
    first = SimilarityDistillation(target="anchor", queue_size=8)
    first(x[mine], t[mine])
    found["first batch"] = first.queue.tolist()
    found["transposed"] = gather_rows(torch.arange(6.0).view(2, 3).T + 10 * rank).tolist()
    try:
        gather_rows(torch.zeros(3 + rank, 2))
    except Exception as error:
        found["uneven"] = str(error)
    results.put(found)
    dist.barrier()
    dist.destroy_process_group()


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
    x, t, weight, group = problem()
    for found in (results.get(), results.get()):
        for name, loss in LOSSES.items():
            w = weight.clone().requires_grad_()
            value = loss(x @ w, t, group)
            value.backward()
            assert found[name][0] == pytest.approx(value.item(), rel=1e-10), name
            gradient = torch.tensor(found[name][1], dtype=torch.float64)
            torch.testing.assert_close(gradient, w.grad, rtol=1e-10, atol=1e-12, msg=lambda m: f"{name}: {m}")  # noqa: B023 (called at once)
        losses, queue, filled = fill_queue(x, t)
        assert found["queue"][0] == pytest.approx(losses, rel=1e-10)
        assert found["queue"][1:] == (queue, filled)
        assert found["first batch"] == unit(t).tolist()  # everyone's rows, in rank order
        assert found["transposed"] == [[0, 3], [1, 4], [2, 5], [10, 13], [11, 14], [12, 15]]
        assert "[3, 4] rows" in found["uneven"]


def test_one_process_is_left_alone():
    rows = torch.randn(3, 2)
    assert gather_rows(rows) is rows
