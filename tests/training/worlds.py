"""A tiny data set, small methods of every kind the loop must serve, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from crossdistill.errors import NetworkError
from crossdistill.methods.base import Batch, Losses, Method, freeze
from crossdistill.networks.base import Outputs
from crossdistill.registry import Facts
from crossdistill.training.cut import cut


class Pairs:
    """n pairs of "image" (n, 6) and "audio" (n, 4); the audio is a linear image of the image, with noise."""

    def __init__(self, n: int = 48, *, seed: int = 0, noisy: bool = False, cycle: bool = False) -> None:
        g = torch.Generator().manual_seed(seed)
        self.arrays = {"image": torch.randn(n, 6, generator=g)}
        self.arrays["audio"] = self.arrays["image"] @ torch.randn(6, 4, generator=g) + 0.1 * torch.randn(
            n, 4, generator=g
        )
        self.label = (self.arrays["image"][:, 0] > 0).long().numpy()
        self.group = np.arange(n) // 2
        self.fingerprint = f"pairs {n} {seed} {noisy} {cycle}"
        self.augmented_modalities = frozenset({"audio"} if noisy else ())
        self.noisy, self.cycle = noisy, cycle
        self.read: list[str] = []

    def __len__(self) -> int:
        return len(self.group)

    def fingerprint_of(self, modality: str) -> str:
        return f"{self.fingerprint} {modality}"

    def augmentation(self, modality: str, epoch: int) -> None:
        return None

    def partners(self, modality: str) -> np.ndarray:
        return np.roll(np.arange(len(self)), -1) if self.cycle and modality == "image" else np.arange(len(self))

    def present(self, modality: str) -> np.ndarray | None:
        return None

    def samples(self, modality: str, batch_size: int = 512) -> Iterator[Tensor]:
        self.read.append(modality)
        return iter(self.arrays[modality].split(batch_size))

    def loader(self, views: Mapping[str, int], **how: Any) -> PairsLoader:
        self.read += list(views)
        return PairsLoader(self, dict(views), **how)


class PairsLoader:
    def __init__(
        self,
        data: Pairs,
        views: dict[str, int],
        *,
        batch_size,
        seed,
        shuffle=True,
        drop_last=True,
        labels=False,
        workers=0,
        distinct_groups=False,
    ) -> None:
        self.distinct_groups = distinct_groups
        self.data, self.views, self.batch_size, self.seed = data, views, batch_size, seed
        self.shuffle, self.drop_last, self.labels, self.workers = shuffle, drop_last, labels, workers

    def __len__(self) -> int:
        whole, rest = divmod(len(self.data), self.batch_size)
        return whole + (0 if self.drop_last or not rest else 1)

    def epoch(self, epoch: int, skip: int = 0, *, rank: int = 0, world: int = 1) -> Iterator[dict[str, Any]]:
        g = torch.Generator().manual_seed(1000 * self.seed + epoch)
        order = torch.randperm(len(self.data), generator=g) if self.shuffle else torch.arange(len(self.data))
        if self.distinct_groups:  # groups are neighbours: first one of each, then the other
            order = torch.cat([order[order % 2 == k].sort().values for k in (0, 1)])
        jobs = Jobs(self, epoch, list(order.split(self.batch_size))[skip : len(self)], rank, world)
        return iter(
            DataLoader(jobs, batch_size=None, num_workers=self.workers)
        )  # draws a number, as torch's loader does


class Jobs(Dataset):
    def __init__(self, loader: PairsLoader, epoch: int, plan: list[Tensor], rank: int, world: int) -> None:
        self.loader, self.epoch, self.plan, self.share = loader, epoch, plan, (rank, world)

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, k: int) -> dict[str, Any]:
        rows, data, batch = self.plan[k], self.loader.data, {}
        index = {}
        for name, count in self.loader.views.items():
            index[name] = torch.from_numpy(data.partners(name))[rows]
            for v in range(count):
                value = data.arrays[name][index[name]]
                if name in data.augmented_modalities:
                    g = torch.Generator().manual_seed(int(rows[0]) + 997 * self.epoch + 31 * v)
                    value = value + 0.1 * torch.randn(value.shape, generator=g)
                batch[f"{name}#{v}" if v else name] = value
        batch["index"] = index if data.cycle and "image" in index else rows
        batch["group"] = torch.from_numpy(data.group)[rows]
        if self.loader.labels:
            batch["label"] = torch.from_numpy(data.label)[rows]
        rank, world = self.share
        size = len(rows) // world
        return batch if world == 1 else dict(cut(batch, slice(rank * size, (rank + 1) * size)))


class Small(Method):
    """What the small methods share: a student of audio."""

    facts: ClassVar[Facts] = Facts(name="small", title="small", paper="ours")

    def __init__(self, *, seed: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 6))

    def inputs(self) -> Mapping[str, int]:
        return {"image": 1, "audio": 1}

    def student(self, modality: str) -> nn.Module:
        if modality != "audio":
            raise NetworkError("only audio")
        return self.net


class Regression(Small):
    """Predict the image from the audio by least squares."""

    def training_step(self, batch: Batch) -> Losses:
        return Losses({"square": (self.net(batch["audio"]) - batch["image"]).square().mean()})


class TwoTerms(Regression):
    """Regression, and the size of what comes out; needs labels if told to."""

    def training_step(self, batch: Batch) -> Losses:
        out = self.net(batch["audio"])
        terms = {"square": (out - batch["image"]).square().mean(), "size": 0.01 * out.abs().mean()}
        return Losses(terms, {"largest": out.detach().abs().amax()})


class Teacher(nn.Module):
    """With a batch norm, whose statistics must not move, and all three outputs."""

    def __init__(self, *, seed: int = 5) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.body = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU())
            self.head = nn.Linear(6, 2)
        self.dim, self.calls, self.rows = 6, 0, 0

    def forward(self, x: Tensor) -> Outputs:
        self.calls, self.rows = self.calls + 1, self.rows + len(x)
        features = self.body(x)
        return Outputs(features, embedding=features[:, :3], logits=self.head(features))


class Distil(Small):
    """Bring the student's features to the frozen teacher's."""

    def __init__(self, teacher: nn.Module | None = None, *, seed: int = 3, dropout: float = 0.0) -> None:
        super().__init__(seed=seed, dropout=dropout)
        self.teacher = freeze(teacher or Teacher())
        self.seen: list[frozenset[str]] = []

    def teachers(self) -> Mapping[str, nn.Module]:
        return {"image": self.teacher}

    def training_step(self, batch: Batch) -> Losses:
        self.seen.append(frozenset(batch))
        teacher = self.teacher_outputs(batch, "image")
        return Losses({"feature": (self.net(batch["audio"]) - teacher.features).square().mean()})


class Alternating(Small):
    """Two optimiser steps on one batch: first one layer, then the other, each seeing the other's new weights."""

    def __init__(self, *, seed: int = 3, dropout: float = 0.0) -> None:
        super().__init__(seed=seed, dropout=dropout)
        self.trace: list[str] = []

    def training_steps(self, batch: Batch) -> Iterator[Losses]:
        for name, layer, other in (("first", 0, 3), ("second", 3, 0)):
            for k in (layer, other):
                self.net[k].requires_grad_(k == layer)
            before = self.net[layer].weight.detach().clone()
            self.trace.append(f"loss {name}")
            yield Losses({name: (self.net(batch["audio"]) - batch["image"]).square().mean()})
            assert not torch.equal(before, self.net[layer].weight), (
                "the optimiser has stepped when the generator goes on"
            )
        for layer in (0, 3):
            self.net[layer].requires_grad_(True)

    def held_out_step(self, batch: Batch) -> Mapping[str, Tensor]:
        return {"loss": (self.net(batch["audio"]) - batch["image"]).square().mean()}

    def after_backward(self) -> None:
        grads = [p.grad is not None for p in self.net.parameters()]
        self.trace.append(f"gradients {grads}")

    def after_step(self) -> None:
        assert all(p.grad is None for p in self.parameters())
        self.trace.append("stepped")


class Momentum(Small):
    """A slow copy and a queue of its outputs, moved after each step; the loss needs both."""

    def __init__(self, *, seed: int = 3, dropout: float = 0.0) -> None:
        super().__init__(seed=seed, dropout=dropout)
        self.slow = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.0), nn.Linear(8, 6)).requires_grad_(False)
        self.slow.load_state_dict(self.net.state_dict())
        self.register_buffer("queue", torch.zeros(16, 6))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))
        self.register_buffer("grown", torch.zeros(0, 6))  # changes its size from epoch to epoch
        self.register_buffer("late", None)
        self.latest: Tensor | None = None

    def before_epoch(self, data: Any, epoch: int) -> None:
        first = next(iter(data.batches()))
        self.grown = torch.cat([self.grown, self.slow(first["audio"][:1]).detach() + torch.randn(1, 6)])
        self.late = torch.tensor(float(epoch))

    def training_step(self, batch: Batch) -> Losses:
        out = self.net(batch["audio"])
        with torch.no_grad():
            self.latest = self.slow(batch["audio"])
        near = (out - batch["image"]).square().mean() + (out - self.grown.mean(0)).square().mean()
        return Losses(
            {"near": near, "far": 0.1 * (out @ self.queue.T).square().mean() + 0.1 * (out - self.latest).abs().mean()}
        )

    @torch.no_grad()
    def after_step(self) -> None:
        for slow, fast in zip(self.slow.parameters(), self.net.parameters(), strict=True):
            slow.lerp_(fast, 0.05)
        assert self.latest is not None
        places = (int(self.filled) + torch.arange(len(self.latest))) % len(self.queue)
        self.queue[places] = self.latest
        self.filled += len(self.latest)


class Projected(Regression):
    """The change of the last layer's weights is projected onto a subspace that a buffer holds."""

    def __init__(self, *, seed: int = 3, dropout: float = 0.0) -> None:
        super().__init__(seed=seed, dropout=dropout)
        self.register_buffer("basis", torch.zeros(8, 2))
        self.before: Tensor | None = None
        self.calls = 0

    def before_stage(self, data: Any) -> None:
        rows = torch.cat([batch["audio"] for batch in data.batches()])
        self.basis = torch.linalg.qr(self.net[:2](rows).detach().T @ torch.randn(len(rows), 2)).Q

    def after_backward(self) -> None:
        self.calls += 1
        self.before = self.net[3].weight.detach().clone()

    @torch.no_grad()
    def after_step(self) -> None:
        change = self.net[3].weight - self.before
        self.net[3].weight.copy_(self.before + change @ self.basis @ self.basis.T)
