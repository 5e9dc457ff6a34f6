"""What each of W processes does of one batch, with exponents in W: run it with `python -m benchmarks.speed.world`.

The global batch stays the same, so that 1/W of it is each process's. Processes are joined by gloo, one thread each; the
machine may have fewer cores than they are, which is why CPU seconds of a process are counted, and not the wall time:
what all of them together send and compute, on its own core. The slowest process counts. Nothing but crossdistill is
needed.

contrast, similarity   loss and gradient of 8,192 pairs of 128 columns in tiles: CPU seconds (medians of 5),
                       multiplications of matrix products, bytes that autograd keeps for backward
student                of 4.8 million weights, whole in each process and sharded: CPU seconds of a step with 256 rows in
                       all, bytes of weights, gradients and AdamW's moments when it is done
"""

from __future__ import annotations

import argparse
import os
import pickle
import socket
import statistics
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from benchmarks.record import Check
from benchmarks.speed.curves import Loss, in_form, rows
from benchmarks.speed.measure import ROUNDS, bytes_kept, keep, seconds_of, slope
from torch.utils.flop_counter import FlopCounterMode

from crossdistill.methods import Supervised
from crossdistill.networks import MLP
from crossdistill.objectives import cross_modal_contrastive, similarity_distillation
from crossdistill.training import Settings
from crossdistill.training.optimiser import build
from crossdistill.training.processes import Processes
from crossdistill.training.shards import Shards

PAIRS, WIDTH, STEP = 8192, 128, 256
WORLDS = (1, 2, 4)

LOSSES: dict[str, Loss] = {
    "contrast": lambda s, t: cross_modal_contrastive(s, t, tau=0.1),
    "similarity": lambda s, t: similarity_distillation(s, t),  # noqa: PLW0108 - its options are not a Loss's
}
Found = dict[str, dict[str, float]]
"""What one process measured: row to measure to number."""


def of_loss(loss: Loss, rounds: int) -> dict[str, float]:
    """Measure this process's share of a loss and its gradient."""
    rank, world = dist.get_rank(), dist.get_world_size()
    mine = slice(rank * PAIRS // world, (rank + 1) * PAIRS // world)
    s, t = (x[mine].detach().clone() for x in rows(PAIRS, WIDTH))
    s.requires_grad_()

    def step() -> torch.Tensor:
        return torch.autograd.grad(loss(s, t), s)[0]

    with FlopCounterMode(display=False) as counter:
        gradient = step()
    kept, _ = bytes_kept(lambda: loss(s, t), (s, t))
    taken: list[float] = []
    for _ in range(rounds):
        dist.barrier()
        taken.append(seconds_of(step))
    sums = torch.stack([gradient.double().square().sum()])
    dist.all_reduce(sums)  # each row's gradient is as many times too large as there are processes; averaging mends it
    return {
        "cpu_seconds": statistics.median(taken),
        "multiplications": counter.get_total_flops() / 2,
        "bytes": kept,
        "gradient": float(sums.sqrt()) / world,
    }


def of_student(shard: bool, rounds: int) -> dict[str, float]:
    """Take steps of a student, and count the bytes that this process holds after one; one has nothing to shard."""
    torch.manual_seed(0)
    here, world = torch.device("cpu"), dist.get_world_size()
    method: Any = Supervised(MLP((512,), hidden=(1536, 1536, 1024), dim=64), modality="x", classes=10)
    shards = Shards(method, here) if shard and world > 1 else None
    method = method if shards is None else shards.method
    optimizer = build(method, Settings(), shards)
    processes = Processes(here, shared=True, seed=0)
    batch = {"x": torch.randn(STEP // world, 512), "label": torch.arange(STEP // world) % 10}

    def step() -> None:
        method.zero_grad()
        method.training_step(batch).total.backward()
        processes.average(list(method.parameters()))
        if shards is not None:
            shards.take_gradients()
        optimizer.step()

    step()
    taken: list[float] = []
    for _ in range(rounds):
        dist.barrier()
        taken.append(seconds_of(step))
    held = [p for group in optimizer.param_groups for p in group["params"]]
    moments = [x for state in optimizer.state.values() for x in state.values() if x.ndim]
    total = sum(x.nbytes for p in held for x in (p, p.grad)) + sum(x.nbytes for x in moments)
    return {"cpu_seconds": statistics.median(taken), "bytes": total}


def work(rank: int, world: int, port: int, pipe: Connection, rounds: int) -> None:
    """Measure everything in one of several processes."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    found = {f"{name} over W, tiles": of_loss(in_form(loss, "always"), rounds) for name, loss in LOSSES.items()}
    found["whole student over W"] = of_student(False, rounds)
    found["sharded student over W"] = of_student(True, rounds)
    pipe.send_bytes(pickle.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def measured(world: int, rounds: int) -> list[Found]:
    """Start processes, and give what each measured."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context, pipes, started = mp.get_context("spawn"), [], []
    for rank in range(world):
        ours, theirs = context.Pipe()
        started.append(context.Process(target=work, args=(rank, world, port, theirs, rounds), daemon=True))
        started[-1].start()
        theirs.close()  # so that one that dies is noticed
        pipes.append(ours)
    found = [pickle.loads(pipe.recv_bytes()) for pipe in pipes]
    for process in started:
        process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    rounds = parser.parse_args().rounds
    worlds: dict[int, list[Found]] = {}
    for world in WORLDS:
        worlds[world] = measured(world, rounds)
        print(f"{world} processes: done", file=sys.stderr, flush=True)
    found: list[dict[str, Any]] = []
    fitted: dict[tuple[str, str], float] = {}
    apart: list[float] = []
    for name, first in worlds[1][0].items():
        row: dict[str, Any] = {"row": name, "sizes": list(WORLDS)}
        for measure in first:
            values = [max(process[name][measure] for process in worlds[world]) for world in WORLDS]
            if measure == "gradient":
                apart += [abs(value / values[0] - 1) for value in values]
                continue
            row[measure] = [round(value, 6) for value in values]
            row[f"{measure}_exponent"] = round(slope(WORLDS, values), 3)
            fitted[name, measure] = slope(WORLDS, values)
            print(f"{name}: {measure} ~ W^{fitted[name, measure]:.2f}: {said(measure, values)}")
        found.append(row)

    def near(name: str, measure: str, low: float, high: float) -> Check:
        value = fitted[name, measure]
        return Check(f"{name}: exponent of {measure} from {low:g} to {high:g}", f"{value:.2f}", low <= value <= high)

    checks = [near(f"{name} over W, tiles", "multiplications", -1.02, -0.98) for name in LOSSES]
    checks += [near(f"{name} over W, tiles", "cpu_seconds", -1.2, -0.8) for name in LOSSES]
    checks += [near(f"{name} over W, tiles", "bytes", -0.05, 0.05) for name in LOSSES]
    checks += [
        near("whole student over W", "bytes", 0, 0),
        near("sharded student over W", "bytes", -1.05, -0.95),
        Check("gradients have the norm of one process's, to 1e-5", f"{max(apart):.1e}", max(apart) <= 1e-5),
    ]
    keep("world", "What each of W processes does", found, checks)


def said(measure: str, values: Sequence[float]) -> str:
    """Write a row of numbers."""
    if measure == "cpu_seconds":
        return ", ".join(f"{value:.3f} s" for value in values)
    if measure == "bytes":
        return ", ".join(f"{value / 2**20:.2f} MiB" for value in values)
    return ", ".join(f"{value / 1e9:.2f} G" for value in values)


if __name__ == "__main__":
    main()
