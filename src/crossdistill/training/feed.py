"""What a method is given of a data set: batches on its device, with its frozen teachers' outputs from the store."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from crossdistill.data.moving import sent
from crossdistill.errors import DataError, NetworkError
from crossdistill.methods.base import Batch, Method, modality_of, view
from crossdistill.networks.base import Outputs
from crossdistill.registry import Pairing
from crossdistill.training.checkpoint import kept_random
from crossdistill.training.protocols import Loader, MovableLoader, TrainingData
from crossdistill.training.settings import Settings
from crossdistill.training.store import TeacherStore
from crossdistill.training.stored import StoredOutputs
from crossdistill.training.user import UserData


class Feed:
    """One data set as one method sees it; also the `StageData` of its hooks.

    A modality whose frozen teacher is stored, and that no student reads, is not loaded at all. One whose teacher is
    stored for each epoch is read by hooks alone, which see samples as they are.

    Args:
        method: Whose inputs and teachers are meant.
        data: Any training data.
        device: Where batches go.
        labels: Whether batches carry labels.
        batch_size: Samples a batch that hooks are given.
        store: Where teachers' outputs come from; None leaves all teachers live.
        seed: For the store's comparison with the live teacher.
        share: Which part of every training batch this process takes, and of how many equal ones.

    Raises:
        DataError: If a batch is shared, and some rows lack a modality.
    """

    def __init__(
        self,
        method: Method,
        data: TrainingData,
        *,
        device: torch.device,
        labels: bool,
        batch_size: int,
        store: TeacherStore | None,
        seed: int,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self._share = share
        self.data, self.device, self.labels, self.batch_size = data, device, labels, batch_size
        needs, name = method.facts.needs, method.facts.name
        self.learner, self.paired = (name if need in needs else "" for need in ("labels", "pairs"))
        self.epochs = self.steps_per_epoch = 0  # the stage says, once it knows its loader's length
        self.stored: dict[str, StoredOutputs] = {}
        self._replayed: dict[str, Callable[[int], StoredOutputs | None]] = {}
        self.views = dict(method.inputs())
        live: set[str] = set()
        for name, teacher in method.teachers().items():
            modality = modality_of(name)
            outputs: Callable[[int], StoredOutputs | None] | None = None
            if store is not None and self.views.get(modality) == 1 and not store.refuses(data, modality, epoch=0):
                outputs = functools.partial(_outputs, store, teacher, data, modality, device, seed)
            first = None if outputs is None else outputs(0)
            if outputs is None or first is None:
                live.add(modality)
            elif modality in data.augmented_modalities:
                self._replayed[name] = outputs
            else:
                self.stored[name] = first
        unread = [m for m in self.views if m not in live and not _has_student(method, m)]
        self.views = _without(self.views, {modality_of(name) for name in self.stored} & {*unread})
        self._read = _without(self.views, {modality_of(name) for name in self._replayed} & {*unread})
        modalities = {modality_of(name) for name in (*self.stored, *self._replayed)}
        self._partners = {modality: torch.from_numpy(data.partners(modality)) for modality in modalities}
        self._present = _masks(data, modalities)

    def __len__(self) -> int:
        """Give the number of samples."""
        return len(self.data)

    @property
    def pairing(self) -> Pairing:
        """What the data say of their pairs."""
        return self.data.pairing

    def loader(self, settings: Settings, seed: int, *, training: bool) -> Loader:
        """Give the data's own loader of what must be read; on CUDA it prepares and augments there, if it can."""
        size = settings.batch_size if training else min(settings.batch_size, max(1, len(self.data)))
        further: dict[str, Any] = {"distinct_groups": True} if training and settings.distinct_groups else {}
        loader = self.data.loader(
            self._read if training else self.views,
            batch_size=size,
            seed=seed,
            shuffle=training,
            drop_last=training,
            labels=self.labels,
            workers=settings.workers,
            **further,
        )
        if self.device.type == "cuda" and isinstance(loader, MovableLoader):  # others may lack the draws' float64
            return cast("MovableLoader", loader).to(self.device)
        return loader

    def ready(self, batch: dict[str, Any], replayed: Mapping[str, StoredOutputs] | None = None) -> Batch:
        """Complete a loader's batch with stored outputs, those of its epoch too, and move it to the device."""
        stored = {**self.stored, **(replayed or {})}
        if stored:
            batch["stored"] = self._look_up(batch, stored)
        return (
            batch if self.device.type == "cpu" else {name: _move(value, self.device) for name, value in batch.items()}
        )

    def epoch(self, loader: Loader, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """Give a loader's batches of an epoch, ready, the first one checked.

        Opening the loader leaves torch's random numbers alone: torch's DataLoader draws when it is opened, and an epoch
        that is resumed opens it once more than one that ran through.

        Raises:
            DataError: If the first batch does not hold what the method reads, or labels that nobody asked for, or lacks
                some that the method learns from.
        """
        rank, world = self._share
        further: dict[str, int] = {"rank": rank, "world": world} if world > 1 else {}
        with kept_random(self.device):
            replayed = {name: kept for name, outputs in self._replayed.items() if (kept := outputs(epoch)) is not None}
            batches = iter(loader.epoch(epoch, skip, **further))
            first = next(batches, None)
        if first is None:
            return
        self._check(first)
        for batch in itertools.chain([first], batches):
            ready = self.ready(batch, replayed)
            if world > 1 and not all(bool(here.all()) for here in ready.get("present", {}).values()):
                raise DataError(
                    "some rows lack a modality, and processes would learn from unequal numbers of them; leave such "
                    "pairs out (data.having(...)), or train in one process"
                )
            yield ready

    def _check(self, batch: Batch) -> None:
        wanted = [view(modality, k) for modality, count in self._read.items() for k in range(count)]
        missing = [name for name in wanted if name not in batch]
        if missing:
            raise DataError(f"a batch lacks {', '.join(missing)}; it has: {', '.join(sorted(batch))}")
        if "label" in batch and not self.labels:
            raise DataError("this stage takes no labels, but its batches carry them; leave them out of the loader")
        for key in ("label", "group") if self.paired else ():
            if isinstance(batch.get(key), Mapping):
                raise DataError(
                    f"{self.paired} learns from pairs, and batches have '{key}' by modality: give one a row"
                )
        label: Tensor | Mapping[str, Tensor] = batch.get("label", {})
        each = [label] if isinstance(label, Tensor) else [label.get(m) for m in (self.views if label else ())]
        if self.learner and any(y is None or bool((y < 0).any()) for y in each):
            raise DataError(
                f"{self.learner} learns from labels, and some rows have none; take the labelled ones alone: "
                "data.subset(data.labelled)"
            )

    def batches(self) -> Iterator[Batch]:
        """Give every sample once, in order, without augmentation, on the method's device."""
        if isinstance(self.data, UserData):
            loader = self.data.loader(self.views, batch_size=self.batch_size, seed=0, labels=self.labels)
            yield from (self.ready(batch) for batch in loader.epoch(0))
            return
        partners = {modality: torch.from_numpy(self.data.partners(modality)) for modality in self.views}
        shuffled = {m for m, p in partners.items() if not torch.equal(p, torch.arange(len(p)))}
        whole = {m: torch.cat(list(self.data.samples(m, self.batch_size)))[partners[m]] for m in shuffled}
        sources = {
            m: _cut(whole[m], self.batch_size) if m in shuffled else self.data.samples(m, self.batch_size)
            for m in self.views
        }
        label, present = self.data.label if self.labels else None, _masks(self.data, self.views)
        for rows in _cut(torch.arange(len(self.data)), self.batch_size):
            batch: dict[str, Any] = {m: next(source) for m, source in sources.items()}
            batch |= {view(m, k): batch[m] for m, count in self.views.items() for k in range(1, count)}
            batch["index"] = {m: partners[m][rows] for m in partners} if shuffled else rows
            for name, column in (("label", label), ("group", self.data.group)):
                if column is not None:
                    batch[name] = torch.from_numpy(column[rows.numpy()])
            if present:
                batch["present"] = {m: here[rows] for m, here in present.items()}
            yield self.ready(batch)

    def _look_up(self, batch: dict[str, Any], stored: Mapping[str, StoredOutputs]) -> dict[str, Outputs]:
        """Give the stored rows of a batch, and complete its `index` and `present` by the modalities that were not read.

        A loader that does not read a shuffled modality does not say whom it would have paired: partners do.
        """
        index: Tensor | Mapping[str, Tensor] = batch["index"]
        found: dict[str, Tensor] = {}
        for modality in dict.fromkeys(map(modality_of, stored)):
            partners = self._partners[modality]
            if isinstance(index, Mapping):
                read = next(iter(index))
                found[modality] = index[modality] if modality in index else partners[self._position(read)[index[read]]]
            else:
                found[modality] = partners[index]
        if isinstance(index, Mapping) or any(not torch.equal(rows, index) for rows in found.values()):
            read_index = dict(index) if isinstance(index, Mapping) else dict.fromkeys(self.views, index)
            batch["index"] = {**read_index, **found}
        if self._present:
            absent = {m: here[found[m]] for m, here in self._present.items() if m in found}
            batch["present"] = {**batch.get("present", {}), **absent}
        return {name: outputs.rows(found[modality_of(name)]) for name, outputs in stored.items()}

    def _position(self, modality: str) -> Tensor:
        """Give the pair that each sample of a modality belongs to, (n,) int64: the inverse of its partners."""
        return torch.argsort(torch.from_numpy(self.data.partners(modality)))


def _outputs(
    store: TeacherStore,
    teacher: nn.Module,
    data: TrainingData,
    modality: str,
    device: torch.device,
    seed: int,
    epoch: int,
) -> StoredOutputs | None:
    return store.outputs(teacher, data, modality, device=device, seed=seed, epoch=epoch)


def _without(views: Mapping[str, int], modalities: Collection[str]) -> dict[str, int]:
    """Leave modalities out of what is read, except for the last: something must be read."""
    kept = {name: count for name, count in views.items() if name not in modalities}
    return kept or dict(list(views.items())[-1:])


def _masks(data: TrainingData, modalities: Iterable[str]) -> dict[str, Tensor]:
    """Give which pairs have a modality (n,) bool, of those that some pair lacks."""
    return {m: torch.from_numpy(here) for m in modalities if (here := data.present(m)) is not None}


def _has_student(method: Method, modality: str) -> bool:
    try:
        method.student(modality)
    except (NetworkError, KeyError):
        return False
    return True


def _cut(tensor: Tensor, size: int) -> Iterator[Tensor]:
    return (tensor[start : start + size] for start in range(0, len(tensor), size))


def _move(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor | Outputs):
        return sent(value, device) if isinstance(value, Tensor) else value.each(lambda x: sent(x, device))
    if isinstance(value, Mapping):
        return {name: _move(inner, device) for name, inner in value.items()}  # pyright: ignore[reportUnknownVariableType]
    return value
