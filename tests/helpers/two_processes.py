"""Two real processes, joined by gloo, each with half of a batch of eight: what one with the whole batch must equal."""

from __future__ import annotations

import os
import pickle
import socket
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

ROWS = 8


def averaged(tensor):
    """Give the mean of a tensor over all processes, as data parallelism does to gradients."""
    if not dist.is_initialized():
        return tensor.detach().clone()
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def mine(rank):
    """Give the rows of a batch that a process holds."""
    return slice(ROWS // 2 * rank, ROWS // 2 * (rank + 1))


def _worker(rank, port, pipe, work):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    pipe.send_bytes(pickle.dumps(work(mine(rank))))  # as bytes: torch would share memory that ends with the process
    dist.barrier()
    dist.destroy_process_group()


def in_two_processes(work):
    """Give what `work(rows)`, a function of a module, returns in each of two processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context, pipes, processes = mp.get_context("spawn"), [], []
    for rank in range(2):
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=_worker, args=(rank, port, theirs, work), daemon=True))
        processes[-1].start()
        theirs.close()  # so that a process that dies is noticed
        pipes.append(ours)
    found = [pickle.loads(pipe.recv_bytes()) for pipe in pipes]
    for process in processes:
        process.join(timeout=120)
        assert process.exitcode == 0
    return found


def check_world_size(work, *, rtol=1e-10, atol=1e-12):
    """`work(rows)`, nested tensors and numbers, is the same from the whole batch here and from two halves of it."""
    expected = work(slice(None))
    for found in in_two_processes(work):
        torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)
    return expected
