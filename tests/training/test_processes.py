"""Processes that share a run end with the weights of one process, resume as it does, and refuse what parts them."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from two_processes import in_two_processes
from worlds import Pairs, Teacher

import crossdistill
from crossdistill.errors import DataError, Interrupted, TrainingError
from crossdistill.methods import Distillation, Losses, Separable, SimCLR, Supervised
from crossdistill.methods.neighbour_graph import NeighbourGraph
from crossdistill.networks import MLP
from crossdistill.networks.base import Outputs
from crossdistill.objectives import CrossModalContrastive, SimilarityDistillation
from crossdistill.objectives.kd import KD
from crossdistill.training import Settings, TeacherStore, UserData, fit
from crossdistill.training.processes import Processes
from crossdistill.training.shards import Shards, is_part
from crossdistill.training.shards import whole as whole_of

SETTINGS = Settings(epochs=2, batch_size=12, lr=0.01, clip=0.5)  # 4 steps an epoch
SHARDED = replace(SETTINGS, shard=True)


def encoder(*, dropout=0.0, norm=False):
    torch.manual_seed(3)
    return MLP((4,), hidden=(8,), dim=5, dropout=dropout, norm=norm)


def distillation(**how):
    objectives = {
        "contrastive": CrossModalContrastive(learnable_tau=True),
        "within": SimilarityDistillation(),
        "queue": SimilarityDistillation(target="anchor", queue_size=16),
        "kd": KD(),
    }
    return Distillation(encoder(**how), teacher=Teacher(), objectives=objectives, source="image", target="audio")


def supervised(**how):
    return Supervised(encoder(**how), modality="audio", classes=2)


def simclr(**how):
    return SimCLR(encoder(**how), modality="audio")


def neighbour_graph(**how):
    return NeighbourGraph(encoder(**how), modality="audio", k=4)


def train(method, settings=SETTINGS, data=None, **how):
    torch.set_num_threads(1)
    how = {"seed": 5, "held_out": Pairs(21, seed=1), **how}
    return fit(method, data or Pairs(noisy=True), settings, accelerator="cpu", **how)


def state(method):
    return {name: value.clone() for name, value in method.state_dict().items() if isinstance(value, torch.Tensor)}


def loader():
    data = Pairs()
    batches = torch.arange(48).split(12)
    return [{**{m: x[rows] for m, x in data.arrays.items()}, "index": rows} for rows in batches]


def shared(folder):
    """Train in every way that the loop has; `folder` is the same in all processes."""
    found = {
        "distillation": state(train(distillation(), folder=folder / "logged", store=TeacherStore(folder / "store")))
    }
    found["norms"] = state(train(distillation(norm=True)))
    found["best"] = state(train(simclr(norm=True), replace(SETTINGS, keep="best")))
    found["accumulated"] = state(train(supervised(norm=True), replace(SETTINGS, accumulate=3), labels=True))
    found["micro"] = state(train(distillation(), replace(SETTINGS, micro_batch=4)))
    found["sharded"] = state(train(distillation(norm=True), SHARDED, folder=folder / "sharded"))
    best = replace(SHARDED, keep="best", optimizer="sgd", accumulate=3)
    found["sharded best"] = state(train(supervised(norm=True), best, labels=True))
    found["graph"] = state(train(neighbour_graph(), held_out=None))
    found["own loader"] = state(train(distillation(), data=UserData(loader()), held_out=None))
    again = train(distillation(), folder=folder / "logged", store=TeacherStore(folder / "store"))
    assert all(torch.equal(value, found["distillation"][name]) for name, value in state(again).items())
    return found


class Both:
    """What each of two processes does: everything at once, as starting them is what takes time."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, rows):
        rank = str(dist.get_rank())
        os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
        return shared(self.folder), resumed(self.folder), sharded(self.folder)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    found = in_two_processes(Both(folder))
    return folder, *zip(*found, strict=True)


def records(folder):
    timed = ("seconds", "samples_per_second", "data_wait")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in timed} for line in lines]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_processes_end_with_the_weights_of_one(two, tmp_path):
    folder, weights, _, _ = two
    expected = shared(tmp_path)
    for found in weights:
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    lines = [records(where / "logged") for where in (tmp_path, folder)]
    assert len(lines[1]) == 2
    for one, other in zip(*lines, strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    assert not (folder / "logged" / "checkpoint.pt").exists()
    for name in ("left", "left sharded"):  # stopped in two processes, they go on in one
        left = state(train(distillation(), folder=folder / name))
        torch.testing.assert_close(left, expected["distillation"], rtol=1e-5, atol=1e-6)


class Local(Separable):
    """It keeps what its own rows say, which no two processes agree on."""

    facts = Supervised.facts

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Linear(4, 1)
        self.register_buffer("centre", torch.zeros(4))

    def inputs(self):
        return {"audio": 1}

    def student(self, modality):
        return self.net

    def learnable(self, batch):
        return batch

    def encode(self, rows):
        return {"audio": Outputs(self.net(rows["audio"]))}

    def compare(self, encoded, rows):
        if self.training:
            self.centre.lerp_(rows["audio"].mean(dim=0), 0.1)
        return Losses({"square": encoded["audio"].features.square().mean()})


def resumed(folder):
    rank = dist.get_rank()
    whole = state(train(distillation(dropout=0.3), folder=folder / "whole"))
    calls = []

    def stop():
        calls.append(None)
        return rank == 1 and len(calls) == 3  # one process is told, all stop

    with pytest.raises(Interrupted, match="step 3 of 8"):
        train(distillation(dropout=0.3), folder=folder / "cut", stop=stop)
    assert len(calls) == 3
    cut = state(train(distillation(dropout=0.3), folder=folder / "cut"))
    for name, settings in (("left", SETTINGS), ("left sharded", SHARDED)):
        with pytest.raises(Interrupted):
            train(distillation(), settings, folder=folder / name, stop=lambda: True)
    same = all(torch.equal(cut[name], whole[name]) for name in whole)

    dist.barrier()
    if rank == 0:
        path = folder / "whole" / "product.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    dist.barrier()
    mended = state(train(distillation(dropout=0.3), folder=folder / "whole"))
    same = same and all(torch.equal(mended[name], whole[name]) for name in whole)
    with pytest.raises(TrainingError, match="is of another run: settings"):
        train(distillation(dropout=0.3), replace(SETTINGS, lr=0.1), folder=folder / "whole")

    processes = Processes(torch.device("cpu"), shared=True, seed=1)
    torch.manual_seed(2)
    with processes.own_random(0, 0):
        own = torch.rand(3)
    after = torch.rand(3)

    errors = []
    for method, data in ((Local(), None), (differs(rank), None), (distillation(), Absent())):
        with pytest.raises((TrainingError, DataError)) as error:
            train(method, data=data)
        errors.append(str(error.value))
    for method in (Reads(), Tied()):
        with pytest.raises(TrainingError) as error:
            train(method, SHARDED)
        errors.append(str(error.value))
    return same, own.tolist(), after.tolist(), errors


class Reads(Local):
    """It reads its network's weights without running it."""

    def encode(self, rows):
        return {"audio": Outputs(nn.functional.linear(rows["audio"], self.net.weight, self.net.bias))}


class Tied(Local):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 1)
        self.head.weight = self.net.weight


def differs(rank):
    method = supervised()
    with torch.no_grad():
        method.network.head.weight += rank
    return method


class Absent(UserData):
    def __init__(self):
        super().__init__([{**batch, "present": {"audio": torch.arange(12) % 6 > 0}} for batch in loader()])


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_bits_and_what_would_part_the_copies_is_refused(two):
    folder, _, ((same, own, after, errors), (same_too, own_too, after_too, errors_too)), _ = two
    assert same
    assert same_too
    assert records(folder / "cut") == records(folder / "whole")
    assert (folder / "whole" / "product.damaged.safetensors").exists()  # seen by both processes, put aside by one
    assert own != own_too  # each process drops out other units
    torch.manual_seed(2)
    assert after == after_too == torch.rand(3).tolist()
    for local, start, absent, reads, tied in (errors, errors_too):
        assert "'centre' of Local is not the same in all processes" in local
        assert "step 1: 'network.head.weight' of Supervised is not the same" in start
        assert "some rows lack a modality" in absent
        assert "something else reads them" in reads
        assert "'net.weight' of Tied is used by a student and by what is not sharded" in tied


def sharded(folder):
    """Stop a sharded run twice, and go on; say which part of the weights each process holds."""
    settings = replace(SHARDED, checkpoint_every=1)
    where = folder / "sharded cut"
    for steps in (3, 2):
        asked = iter(range(1, 9))
        with pytest.raises(Interrupted):
            train(distillation(dropout=0.3), settings, folder=where, stop=lambda a=asked, n=steps: next(a) == n)
    cut = state(train(distillation(dropout=0.3), settings, folder=where))
    whole = state(train(distillation(dropout=0.3), settings, folder=folder / "sharded whole"))
    method = distillation(norm=True)
    shards = Shards(method, torch.device("cpu"))
    ordinary = type(method.network.encoder) is MLP and not any(map(is_part, method.parameters()))
    weights = {name: p.detach().clone() for name, p in method.network.named_parameters()}
    together = {name: whole_of(p).detach() for name, p in shards.method.network.named_parameters()}
    torch.testing.assert_close(together, weights, rtol=0, atol=0)
    held, all_of_them = (sum(p.numel() for p in some) for some in (shards.parts, weights.values()))
    mixed = [state(train(simclr(), replace(how, precision="bf16-mixed"))) for how in (SETTINGS, SHARDED)]
    torch.testing.assert_close(*mixed, rtol=1e-5, atol=1e-6)
    return all(torch.equal(cut[name], whole[name]) for name in whole), ordinary, held, all_of_them


@pytest.mark.slow
def test_each_process_holds_its_part_of_the_weights_and_a_stopped_run_goes_on_to_the_same_bits(two):
    *_, ((same, ordinary, held, weights), (same_too, ordinary_too, held_too, weights_too)) = two
    assert same
    assert same_too
    assert ordinary
    assert ordinary_too
    assert held + held_too == weights == weights_too
    assert max(held, held_too) < 0.6 * weights


KILLED = """
import os, signal, socket, sys
from pathlib import Path

sys.path[:0] = sys.argv[2:]
import torch
from test_processes import distillation, train
from crossdistill.errors import TrainingError


def work(case, rank, port, folder):
    for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}.items():
        os.environ[name] = str(value)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    method = distillation()

    def die(*_):
        if rank:
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(method, {"hook": "before_stage", "step": "after_step"}[case], die)
    try:
        train(method, folder=Path(folder) / case)
    except TrainingError as error:
        print(case, error, flush=True)
        os._exit(3)
    os._exit(0)


for case in ("hook", "step"):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(2):
        children.append(os.fork())
        if not children[-1]:
            work(case, rank, port, sys.argv[1])
    print(case, [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children], flush=True)
"""


@pytest.mark.slow
def test_where_one_process_is_killed_the_other_ends_at_once(tmp_path):
    """Without torchrun, which would end the others itself: between steps, and while they wait for a hook."""
    (tmp_path / "killed.py").write_text(KILLED)
    places = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "helpers")]
    environment = {**os.environ, "PYTHONPATH": str(Path(crossdistill.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, str(tmp_path / "killed.py"), str(tmp_path), *places],
        env=environment,
        capture_output=True,
        text=True,
        timeout=150,
        check=True,
    )
    gone = "another process of this run is gone; what it says is the reason"
    assert ended.stdout.splitlines() == [
        line for case in ("hook", "step") for line in (f"{case} {gone}", f"{case} [3, -9]")
    ]
