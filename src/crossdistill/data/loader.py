"""Batches of pairs: which samples, in which order, how augmented, all as functions of (seed, epoch)."""

from __future__ import annotations

import copy
import math
import signal
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from crossdistill.data.draws import Draws, permutation
from crossdistill.data.modality import blanked
from crossdistill.data.moving import sent
from crossdistill.data.transforms import anywhere
from crossdistill.errors import DataError

if TYPE_CHECKING:
    from crossdistill.data.dataset import PairedDataset

_CPU = torch.device("cpu")
_Job = tuple[int | None, np.ndarray]
"""An epoch and positions; without an epoch the samples are read alone."""
HELD = 2 << 30
"""Bytes of samples that a GPU holds for a loader at the most, and no more than a quarter of what it has free. Of
larger data each batch is read from the CPU's memory, which takes longer than a small student's step."""


class Loader:
    """Batches of a data set; made by `PairedDataset.loader`, which documents the arguments."""

    def __init__(
        self,
        data: PairedDataset,
        views: Mapping[str, int],
        *,
        batch_size: int,
        seed: int,
        shuffle: bool,
        drop_last: bool,
        labels: bool,
        workers: int,
        distinct_groups: bool,
    ) -> None:
        for name, count in views.items():
            data.modality(name)
            if count < 1:
                raise DataError(f"a batch holds at least one view of '{name}'; received {count}")
        if not views:
            raise DataError("a loader needs at least one modality to read")
        if batch_size < 1 or workers < 0:
            raise DataError(f"batch_size is at least 1 and workers at least 0; received {batch_size} and {workers}")
        if labels and data.label is None:
            raise DataError(f"labels are asked for, and '{data.name}' has none")
        self.data, self.views, self.batch_size, self.seed = data, dict(views), batch_size, seed
        self.shuffle, self.drop_last, self.workers = shuffle, drop_last, workers
        self._label = data.label if labels else None
        self._group = data.group
        self._partners = {name: data.partners(name) for name in views if name in data.shuffles}
        self._present = {name: here for name in views if (here := data.present(name)) is not None}
        self._workers: _Workers | None = None
        self.device = _CPU
        self._held: dict[str, Tensor] | None = None
        self._deal: _Deal | None = None
        if distinct_groups:
            if self._group is None:
                raise DataError(f"distinct_groups is asked for, and '{data.name}' has no groups")
            self._deal = _Deal(self._group, batch_size, drop_last, data.name)
        if not len(self):
            raise DataError(
                f"'{data.name}' has {len(data)} pairs here: not one whole batch of {batch_size}. "
                f"Set batch_size to {max(1, len(data))} or less, or drop_last to false"
            )

    def __len__(self) -> int:
        """Give the number of batches an epoch."""
        if self._deal is not None:
            return self._deal.batches
        whole, rest = divmod(len(self.data), self.batch_size)
        return whole + bool(rest and not self.drop_last)

    def to(self, device: torch.device) -> Loader:
        """Prepare and augment batches on a device from now on, to which samples go as they are stored; gives itself.

        A GPU holds all samples from the first batch on, where they are few enough (`HELD`). Draws are the same on every
        device, what is computed from them is but for rounding. Transforms that are not of this library stay on the CPU,
        as nobody knows where they work. `index`, `label` and `group` stay there too.
        """
        self.device, self._held = device, None
        return self

    def epoch(self, epoch: int, skip: int = 0, *, rank: int = 0, world: int = 1) -> Iterator[dict[str, Any]]:
        """Give the batches of one epoch.

        Args:
            epoch: Number of the epoch, from 0; another number gives another order and other augmentations.
            skip: How many batches to leave out at the start (to resume within an epoch); the rest are unchanged.
            rank: Which share of every batch to give, 0..world-1.
            world: Number of shares; rows of a batch are cut into contiguous shares of equal size.

        Yields:
            Modality to float32 (b, *shape), the k-th further view as "name#k"; `index` (b,) int64, positions in the
            data set (by modality where a modality read here is shuffled); `label` and `group` (b,) int64 where there;
            `present`, modality to (b,) bool, of those read here that some pair of the data set lacks. Absent samples
            are zeros, in every view.

        Raises:
            DataError: If a batch cannot be cut into `world` equal shares.
        """
        plan = self.plan(epoch)[skip:]
        if world > 1:
            plan = [_share(positions, rank, world) for positions in plan]
        if not self.workers or self._hold():
            return (self.batch(epoch, positions) for positions in plan)
        if self.device == _CPU:
            return self._worked([(epoch, positions) for positions in plan])
        read = self._worked([(None, positions) for positions in plan])
        return (self._made(epoch, positions, raw) for positions, raw in zip(plan, read, strict=True))

    def _worked(self, jobs: list[_Job]) -> Iterator[dict[str, Any]]:
        """Have worker processes prepare batches, or read their samples; they live on for the next epoch.

        Who iterates holds them, so that a second iteration at the same time gets processes of its own, and those of one
        that is given up end with it.
        """
        workers, self._workers = self._workers or _Workers(self), None
        yield from workers.batches(jobs)
        self._workers = workers

    def plan(self, epoch: int) -> list[np.ndarray]:
        """Give the positions of every batch of an epoch, each (b,) int64."""
        if self._deal is not None:
            return self._deal.plan(self.seed if self.shuffle else None, epoch)
        order = permutation(self.seed, epoch, len(self.data)) if self.shuffle else np.arange(len(self.data))
        return [order[k * self.batch_size : (k + 1) * self.batch_size] for k in range(len(self))]

    def batch(self, epoch: int, positions: np.ndarray) -> dict[str, Any]:
        """Give the samples at `positions` (b,) as a batch of `epoch`."""
        if held := self._hold():
            own = {name: sent(torch.from_numpy(self._own(name, positions)), self.device) for name in held}
            return self._made(epoch, positions, {name: held[name].index_select(0, own[name]) for name in held})
        return self._made(epoch, positions, self.read(positions))

    def read(self, positions: np.ndarray) -> dict[str, Tensor]:
        """Give the samples at `positions` (b,) as they are stored, by modality."""
        return {name: torch.from_numpy(self.data.raw(name, self._own(name, positions))) for name in self.views}

    def _hold(self) -> dict[str, Tensor]:
        """Give all samples on the device, as they are stored, by modality; nothing where they are not held there."""
        if self._held is None:
            self._held = {name: self._brought(name) for name in self.views} if self._may_hold() else {}
        return self._held

    def _may_hold(self) -> bool:
        """Say whether samples go to a GPU, whose transforms are done there too, and which has room for them."""
        if self.device.type != "cuda" or not all(map(anywhere, self.data.transforms.values())):
            return False
        modalities = [self.data.modality(name) for name in self.views]
        size = len(self.data) * sum(math.prod(m.shape) * np.dtype(m.dtype).itemsize for m in modalities)
        return size <= min(HELD, torch.cuda.mem_get_info(self.device)[0] // 4)

    def _brought(self, name: str) -> Tensor:
        """Bring all samples of a modality to the device, some at a time."""
        parts = np.array_split(np.arange(len(self.data)), math.ceil(len(self.data) / 4096))
        return torch.cat([sent(torch.from_numpy(self.data.raw(name, rows)), self.device) for rows in parts])

    def _own(self, name: str, positions: np.ndarray) -> np.ndarray:
        return self._partners[name][positions] if name in self._partners else positions

    def _made(self, epoch: int, positions: np.ndarray, raw: Mapping[str, Tensor]) -> dict[str, Any]:
        """Prepare and augment what was read."""
        batch: dict[str, Any] = {}
        places: dict[str, Tensor] = {}
        present = {name: torch.from_numpy(here[positions]) for name, here in self._present.items()}
        for name, count in self.views.items():
            places[name] = torch.from_numpy(self._own(name, positions).copy())
            transform = self.data.transforms.get(name)
            # nobody knows where transforms that are not ours work
            where = self.device if transform is None or anywhere(transform) else _CPU
            index, here = sent(places[name], where), sent(present[name], where) if name in present else None
            prepared = self.data.modalities[name].prepare(sent(raw[name], where))
            drawn = self.data.drawn(name, epoch)
            for k in range(count):
                draws = Draws(seed=self.seed, epoch=drawn, index=index, modality=name, view=k)
                seen = blanked(prepared if transform is None else transform(prepared, draws), here)
                batch[f"{name}#{k}" if k else name] = sent(seen, self.device)
        batch["index"] = places if self._partners else torch.from_numpy(positions.copy())
        if self._label is not None:
            batch["label"] = torch.from_numpy(self._label[positions])
        if self._group is not None:
            batch["group"] = torch.from_numpy(self._group[positions])
        if present:
            batch["present"] = present
        return batch


class _Deal:
    """Batches with at most one sample of a group, by dealing the samples like cards.

    sorted by group   a a a b b c d d      sample k goes to batch k mod m;
    batch of 3        0 1 2 0 1 2 0 1      no group has more than m samples, so none comes to a batch twice
    """

    def __init__(self, group: np.ndarray, batch_size: int, drop_last: bool, name: str) -> None:
        self.group, self.drop_last, self.batch_size = group, drop_last, batch_size
        sizes = np.unique(group, return_counts=True)[1]
        if drop_last:  # the largest m for which m batches can be filled, big groups giving only m samples an epoch
            fits = [m for m in range(1, len(group) // batch_size + 1) if np.minimum(sizes, m).sum() >= m * batch_size]
            self.batches = max(fits, default=0)
            if not fits:
                raise DataError(
                    f"distinct_groups: '{name}' has {len(sizes)} groups here, a batch of {batch_size} needs as many as "
                    f"samples. Set batch_size to {len(sizes)} or less"
                )
        else:
            self.batches = int(max(-(-len(group) // batch_size), sizes.max(initial=0)))

    def plan(self, seed: int | None, epoch: int) -> list[np.ndarray]:
        """Give the positions of every batch; `seed` None keeps the order of positions as far as it can be kept."""
        n, m = len(self.group), self.batches
        order = np.arange(n) if seed is None else permutation(seed, epoch, n)
        if self.drop_last:
            order = order[_occurrence(self.group[order]) < m][: m * self.batch_size]
        # groups one after the other, in the order in which they first occur
        _, first, inverse = np.unique(self.group[order], return_index=True, return_inverse=True)
        dealt = order[np.argsort(first[inverse], kind="stable")]
        batches = [dealt[k::m] for k in range(m)]
        if seed is None:
            return [np.sort(batch) for batch in batches]
        return [batches[k] for k in permutation(seed, epoch, m, "order of batches")]


def _occurrence(group: np.ndarray) -> np.ndarray:
    """Number the samples of each group 0, 1, 2, ... in the order given, (n,) int64."""
    order = np.argsort(group, kind="stable")
    ordered = group[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    lengths = np.diff(np.r_[starts, len(group)])
    number = np.empty(len(group), dtype=np.int64)
    number[order] = np.arange(len(group)) - np.repeat(starts, lengths)
    return number


def _share(positions: np.ndarray, rank: int, world: int) -> np.ndarray:
    size, rest = divmod(len(positions), world)
    if rest:
        raise DataError(f"a batch of {len(positions)} cannot be cut into {world} equal shares; change batch_size")
    return positions[rank * size : (rank + 1) * size]


class _Workers:
    """Processes that prepare the batches of one epoch after another."""

    def __init__(self, loader: Loader) -> None:
        own = copy.copy(loader)  # else processes and loader would hold each other, and none would end
        self._jobs: list[_Job] = []
        self._batches = DataLoader(
            _Batches(own),
            batch_size=None,
            sampler=self._jobs,
            num_workers=loader.workers,
            persistent_workers=True,
            worker_init_fn=_pass_over_one,
        )

    def batches(self, jobs: list[_Job]) -> Iterator[dict[str, Any]]:
        """Give the batch of each job, in order."""
        self._jobs[:] = jobs
        return iter(self._batches)


def _pass_over_one(worker: int) -> None:
    """Pass over the first SIGTERM: who sends it to all processes of a run wants a checkpoint, which needs one batch."""
    del worker

    def first(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, first)


class _Batches(Dataset[dict[str, Any]]):
    """What a worker process does with an epoch and positions."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def __getitem__(self, job: _Job) -> dict[str, Any]:
        epoch, positions = job
        return dict(self.loader.read(positions)) if epoch is None else self.loader.batch(epoch, positions)
