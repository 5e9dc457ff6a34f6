"""A user's own DataLoader, or anything that can be iterated again and again, as training data."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast, get_args

import numpy as np
import torch
from torch import Tensor

from crossdistill.data.modality import blanked
from crossdistill.errors import DataError, suggest
from crossdistill.files import digest
from crossdistill.methods.base import RESERVED, modality_of, view
from crossdistill.registry import Pairing
from crossdistill.training.cut import cut, size_of
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
        loader: Gives dicts from modality to tensors (b, ...), beside `label`, `group`, `index` (b,) int64 and, where
            samples may lack a modality, `present`, a dict from modality to bool (b,): what is absent is zeros from
            here on. Streams that are not paired have label, group and index as dicts by modality. Or tuples.
        names: What the members of a tuple are, in order, e.g. ("image", "audio", "label").
        batches: Batches an epoch, where `len(loader)` does not say.
        pairing: "natural" for pairs of one event (the default), "class" where they were matched by label.

    Raises:
        DataError: If the loader can be iterated only once, or does not say how long it is, or pairing is no such word.
    """

    augmented_modalities: frozenset[str] = frozenset()
    label: np.ndarray | None = None
    group: np.ndarray | None = None

    def __init__(
        self,
        loader: Iterable[Any],
        names: Sequence[str] | None = None,
        *,
        batches: int | None = None,
        pairing: Pairing = "natural",
    ) -> None:
        if pairing not in get_args(Pairing):
            raise DataError(f"pairing is '{pairing}'{suggest(pairing, get_args(Pairing))}")
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
        self.pairing: Pairing = pairing
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

        Pairs that were matched by label are other data. Asked for the first time, it reads the first batch of epoch 0
        twice, with the generators of torch, numpy and Python seeded and afterwards put back.
        """
        if self._fingerprint is None:
            first = first_batch(self._loader, self.named)
            said = [] if self.pairing == "natural" else [self.pairing]
            self._fingerprint = digest(self._batches, first, *said) if first else ""
        return self._fingerprint

    def fingerprint_of(self, modality: str) -> str:
        """Nobody knows what the loader will give: empty."""
        return ""

    def augmentation(self, modality: str, epoch: int) -> None:
        """Nobody knows what the loader does."""

    def partners(self, modality: str) -> np.ndarray:
        """Row i belongs to row i."""
        return np.arange(len(self))

    def present(self, modality: str) -> None:
        """Batches say which of their rows have a modality; nobody knows before."""

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

    def epoch(self, epoch: int, skip: int = 0, *, rank: int = 0, world: int = 1) -> Iterator[dict[str, Any]]:
        """Give the batches of one epoch; those skipped are read and thrown away, as nobody else can find the rest.

        Of several processes each reads whole batches, and takes its share of each.

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
                checked = self._checked_batch(batch, number)
                yield checked if world == 1 else _share(checked, rank, world)

    def _checked_batch(self, batch: Any, number: int) -> dict[str, Any]:
        """Give what is wanted of a batch, zeros where something is absent; numbers are looked at in the first alone."""
        named = self._data.named(batch)
        where = f"batch {number + 1}" if number else "the first batch"
        keep = RESERVED if self._labels else RESERVED - {"label"}
        found = {name: _wanted(named, name, where) for name in self._wanted}
        reserved = {key: _of_rows(named, key, found, where) for key in _KINDS if key in keep and key in named}
        _check_lengths(found, reserved, where)
        for name, x in found.items():
            found[name] = blanked(x, reserved.get("present", {}).get(modality_of(name)))
        if not self._checked:
            for name, x in found.items():
                _check_finite(name, x, where)
            self._checked = True
        if self._labels and "label" not in reserved:
            raise DataError(f"{where} lacks 'label'{suggest('label', named)}")
        return {**found, **reserved, **{key: named[key] for key in keep & named.keys() if key not in _KINDS}}


def _share(batch: dict[str, Any], rank: int, world: int) -> dict[str, Any]:
    size, rest = divmod(size_of(batch), world)
    if rest:
        raise DataError(f"a batch of {size_of(batch)} cannot be cut into {world} equal shares; change the loader's")
    return dict(cut(batch, slice(rank * size, (rank + 1) * size)))


_KINDS = {
    "label": "int64 (b,), (b, c), or real targets",
    "group": "int64 (b,)",
    "index": "int64 (b,)",
    "present": "bool (b,)",
}
"""What a batch says of its rows, and what tensors of it are."""


def _wanted(batch: Mapping[str, Any], name: str, where: str) -> Tensor:
    """Give the tensor of a view."""
    if name not in batch:
        raise DataError(f"{where} lacks '{name}'{suggest(name, batch)}")
    value = batch[name]
    if not isinstance(value, Tensor) or not value.ndim:
        raise DataError(f"'{name}' of {where} is a {type(value).__name__}; a tensor (b, ...) is needed")
    return value


def _of_rows(batch: Mapping[str, Any], key: str, found: Mapping[str, Tensor], where: str) -> Any:
    """Give what a batch says of its rows under a reserved key; of a dict, what it says of the modalities wanted.

    Raises:
        DataError: If it is of another type, or of a modality that is not there.
    """
    value = batch[key]
    if not isinstance(value, Mapping):
        if key == "present":
            raise DataError(f"'present' of {where} is a {type(value).__name__}; a dict from modality to bool is needed")
        return _typed(value, key, key, where)
    given = cast("Mapping[str, Any]", value)
    modalities = {modality_of(name) for name in batch if name not in RESERVED}
    for modality in given:
        if modality not in modalities:
            raise DataError(f"'{key}' of {where} is of '{modality}', no modality{suggest(modality, modalities)}")
    wanted = dict.fromkeys(map(modality_of, found))
    lacking = [modality for modality in wanted if modality not in given]
    if key == "index" and lacking:
        raise DataError(f"'index' of {where} is by modality, and lacks '{lacking[0]}'")
    return {m: _typed(given[m], key, f"{key} of {m}", where) for m in wanted if m in given}


def _typed(value: Any, key: str, name: str, where: str) -> Tensor:
    """Refuse what is no tensor of the key's kind."""
    if isinstance(value, Tensor):
        dtype = torch.bool if key == "present" else torch.int64
        real = key == "label" and value.is_floating_point() and value.ndim in (1, 2)
        if real and bool(value.isinf().any()):  # a target that is not known is NaN
            row = int(value.isinf().nonzero()[0, 0])
            raise DataError(f"'{name}' of {where} is not finite, first in row {row}; NaN is a target that is not known")
        if real or (value.ndim == 1 and value.dtype == dtype) or (key == "label" and value.ndim == 2):
            return value
    is_ = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
    raise DataError(f"'{name}' in {where} is {is_}; a tensor {_KINDS[key]} is needed")


def _check_lengths(found: Mapping[str, Tensor], reserved: Mapping[str, Any], where: str) -> None:
    """Refuse rows that cannot belong to each other: of streams that are not paired, within each of them.

    Label, group or index by modality say that streams are not paired.
    """
    streams: dict[str, dict[str, int]] = {}
    for name, x in found.items():
        streams.setdefault(modality_of(name), {})[name] = len(x)
    for key, value in reserved.items():
        if isinstance(value, Mapping):
            for modality, rows in cast("Mapping[str, Tensor]", value).items():
                streams[modality][f"{key} of {modality}"] = len(rows)
    whole = {key: len(value) for key, value in reserved.items() if isinstance(value, Tensor)}
    unpaired = any(isinstance(value, Mapping) for key, value in reserved.items() if key != "present")
    together = {name: length for stream in streams.values() for name, length in stream.items()}
    for stream in streams.values() if unpaired else [together]:
        lengths = {**stream, **whole}
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise DataError(f"row i of all must be one thing, but {where} has different lengths: {told}")


def _check_finite(name: str, x: Tensor, where: str) -> None:
    if x.is_floating_point() and not bool(torch.isfinite(x).all()):
        rows = ~torch.isfinite(x).flatten(1).all(dim=1) if x.ndim > 1 else ~torch.isfinite(x)
        raise DataError(f"'{name}' of {where} is not finite, first in row {int(rows.nonzero()[0])}")


def _rows(batch: Mapping[str, Any]) -> int:
    return next(len(value) for value in batch.values() if isinstance(value, Tensor))
