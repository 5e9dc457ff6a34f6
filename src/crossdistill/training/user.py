"""A user's own DataLoader, or anything that can be iterated again and again, as training data."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from crossdistill.errors import DataError, suggest
from crossdistill.files import digest
from crossdistill.methods.base import RESERVED, view
from crossdistill.training.glance import first_batch, tell_epoch


class UserData:
    """Training data around a loader of batches that already exists.

    Batch size, order, augmentation and workers are the loader's own: those of the settings do not apply. Before each
    epoch torch's generator is seeded from (seed, epoch) and a sampler's `set_epoch` is called, so that shuffling and
    augmentation which draw from torch repeat; what draws from numpy's or Python's global generator does not.
    Teachers stay live: only data of ours know which sample a stored row belongs to.

    What a folder of `fit` is compared with is the number of batches and the content of the first one (`fingerprint`),
    so a run that is resumed on other data is refused where these differ there, and only there.

    Args:
        loader: Gives dicts from modality (or reserved key: label, index, group) to tensors (b, ...), or tuples.
        names: What the members of a tuple are, in order, e.g. ("image", "audio", "label").
        batches: Batches an epoch, where `len(loader)` does not say.

    Raises:
        DataError: If the loader can be iterated only once, or does not say how long it is.
    """

    augmented_modalities: frozenset[str] = frozenset()
    label: np.ndarray | None = None
    group: np.ndarray | None = None

    def __init__(
        self, loader: Iterable[Any], names: Sequence[str] | None = None, *, batches: int | None = None
    ) -> None:
        if isinstance(loader, Iterator):
            raise DataError(
                f"a {type(loader).__name__} can be read only once; give a DataLoader, a list, or an object whose "
                "__iter__ starts anew"
            )
        if batches is None:
            try:
                batches = len(loader)  # pyright: ignore[reportArgumentType] - that is what is being tried
            except TypeError:
                raise DataError(
                    "the loader does not say how many batches it has; give UserData(..., batches=n)"
                ) from None
        self._loader, self._names, self._batches = loader, None if names is None else tuple(names), batches
        self._size: int | None = None
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        """Give the number of samples: the data set's length where the loader has one, else counted once."""
        if self._size is None:
            try:
                self._size = len(self._loader.dataset)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownArgumentType]
            except (AttributeError, TypeError):
                self._size = sum(_rows(self.named(batch)) for batch in itertools.islice(self._loader, self._batches))
        return self._size

    @property
    def fingerprint(self) -> str:
        """Hash of the number of batches and of what the first one holds; empty where the loader does not repeat it.

        Asked for the first time, it reads the first batch of epoch 0 twice, with the generators of torch, numpy and
        Python seeded and afterwards put back.
        """
        if self._fingerprint is None:
            first = first_batch(self._loader, self.named)
            self._fingerprint = digest(self._batches, first) if first else ""
        return self._fingerprint

    def fingerprint_of(self, modality: str) -> str:
        """Nobody knows what the loader will give: empty."""
        return ""

    def partners(self, modality: str) -> np.ndarray:
        """Row i belongs to row i."""
        return np.arange(len(self))

    def samples(self, modality: str, batch_size: int = 512) -> Iterator[Tensor]:
        """Give the samples of a modality as the loader gives them, in its order and its batches."""
        loader = self.loader({modality: 1}, batch_size=batch_size, seed=0)
        return (batch[modality] for batch in loader.epoch(0))

    def loader(
        self,
        views: Mapping[str, int],
        *,
        batch_size: int,
        seed: int,
        shuffle: bool = True,
        drop_last: bool = True,
        labels: bool = False,
        workers: int = 0,
        distinct_groups: bool = False,
    ) -> UserLoader:
        """Give the loader's batches, checked; of the arguments only `views`, `seed` and `labels` apply.

        Raises:
            DataError: If distinct groups are asked for.
        """
        if distinct_groups:
            raise DataError(
                "distinct_groups is asked for, but the loader itself decides which samples share a batch; leave it out "
                "and give the DataLoader a batch_sampler that does so"
            )
        return UserLoader(self, self._loader, self._batches, views, seed=seed, labels=labels)

    def named(self, batch: Any) -> dict[str, Any]:
        """Give a batch as a dict.

        Raises:
            DataError: If it is neither a dict nor a tuple that `names` fits.
        """
        if isinstance(batch, Mapping):
            return dict(cast("Mapping[str, Any]", batch))
        if not isinstance(batch, tuple | list):
            raise DataError(f"a batch must be a dict or a tuple of tensors; the loader gave {type(batch).__name__}")
        members = cast("Sequence[Any]", batch)
        if self._names is None or len(self._names) != len(members):
            given = "no names" if self._names is None else f"the names {', '.join(self._names)}"
            raise DataError(
                f"a batch is a tuple of {len(members)}, and UserData was given {given}; give one name for each"
            )
        return dict(zip(self._names, members, strict=True))


class UserLoader:
    """Batches of a `UserData`, each epoch a function of (seed, epoch)."""

    def __init__(
        self, data: UserData, loader: Iterable[Any], batches: int, views: Mapping[str, int], *, seed: int, labels: bool
    ) -> None:
        self._data, self._loader, self._batches = data, loader, batches
        self._wanted = [view(modality, k) for modality, count in views.items() for k in range(count)]
        self._seed, self._labels, self._checked = seed, labels, False

    def __len__(self) -> int:
        """Give the number of batches an epoch."""
        return self._batches

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[dict[str, Any]]:
        """Give the batches of one epoch; those skipped are read and thrown away, as nobody else can find the rest.

        The loader draws from a stream of its own, as torch's generator has to serve the networks in between.
        """
        tell_epoch(self._loader, epoch)
        own = torch.Generator().manual_seed(int(digest("loader", self._seed, epoch), 16) >> 1).get_state()
        batches: Iterator[Any] | None = None
        for number in range(self._batches):
            outer = torch.get_rng_state()
            torch.set_rng_state(own)
            try:
                batches = iter(self._loader) if batches is None else batches
                batch = next(batches, None)
                own = torch.get_rng_state()
            finally:
                torch.set_rng_state(outer)
            if batch is None:
                raise DataError(f"the loader said {self._batches} batches an epoch, but gave {number}")
            if number >= skip:
                yield self._checked_batch(batch)

    def _checked_batch(self, batch: Any) -> dict[str, Any]:
        named = self._data.named(batch)
        if not self._checked:
            self._check(named)
            self._checked = True
        keep = RESERVED if self._labels else RESERVED - {"label"}
        return {name: named[name] for name in (*self._wanted, *sorted(keep)) if name in named}

    def _check(self, batch: dict[str, Any]) -> None:
        wanted = [*self._wanted, *(["label"] if self._labels else [])]
        for name in wanted:
            if name not in batch:
                raise DataError(f"the first batch lacks '{name}'{suggest(name, batch)}")
            value = batch[name]
            if not isinstance(value, Tensor):
                raise DataError(f"'{name}' of the first batch is a {type(value).__name__}; a tensor (b, ...) is needed")
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                rows = (~torch.isfinite(value)).flatten(1).any(dim=1) if value.ndim > 1 else ~torch.isfinite(value)
                raise DataError(f"'{name}' of the first batch is not finite, first in row {int(rows.nonzero()[0])}")
        lengths = {name: len(batch[name]) for name in wanted}
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise DataError(f"row i of all must be one thing, but the first batch has different lengths: {told}")


def _rows(batch: Mapping[str, Any]) -> int:
    return next(len(value) for value in batch.values() if isinstance(value, Tensor))
