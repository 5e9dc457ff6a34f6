"""What the loop asks of data and of whoever watches it; anything of that shape will do."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from crossdistill.registry import Pairing


class Loader(Protocol):
    """Batches of one epoch after another."""

    def __len__(self) -> int:
        """Give the number of batches an epoch."""
        ...

    def epoch(self, epoch: int, skip: int = 0, *, rank: int = 0, world: int = 1) -> Iterator[dict[str, Any]]:
        """Give the batches of an epoch (from 0) without the first `skip`; the rest are what they would have been.

        Of each batch the part `rank` of `world` equal ones, contiguous and in order, is given; the two are passed only
        where several processes share a stage.
        """
        ...


@runtime_checkable
class MovableLoader(Protocol):
    """A loader that can prepare and augment its batches on a device."""

    def to(self, device: torch.device) -> Loader:
        """Give samples on a device from now on; gives itself."""
        ...


class TrainingData(Protocol):
    """A data set of n pairs; `crossdistill.data.PairedDataset` is one, `UserData` makes one of any DataLoader."""

    @property
    def fingerprint(self) -> str:
        """Hash of what the batches hold; empty where nobody knows."""
        ...

    @property
    def pairing(self) -> Pairing:
        """Whether pairs are of one event, "natural", or were matched by label, "class"."""
        ...

    @property
    def augmented_modalities(self) -> Collection[str]:
        """Modalities whose samples differ from epoch to epoch."""
        ...

    @property
    def label(self) -> np.ndarray | None:
        """Classes (n,) int64; read in stages with labels only."""
        ...

    @property
    def group(self) -> np.ndarray | None:
        """Groups (n,) int64."""
        ...

    def __len__(self) -> int:
        """Give n."""
        ...

    def fingerprint_of(self, modality: str) -> str:
        """Hash of what `samples(modality)` gives; empty where nobody knows, and nothing is stored then."""
        ...

    def augmentation(self, modality: str, epoch: int) -> tuple[str, int] | None:
        """Give a hash of how loaders augment a modality, and the epoch whose draws they take; None if nobody knows.

        Asked only of augmented modalities. For one seed an epoch's samples depend on these two alone.
        """
        ...

    def partners(self, modality: str) -> np.ndarray:
        """Give which sample of `modality` belongs to each pair, (n,) int64: 0..n-1, unless pairs are shuffled."""
        ...

    def present(self, modality: str) -> np.ndarray | None:
        """Say which pairs have a sample of `modality`, (n,) bool; None where all have, or only the batches know.

        Shuffled pairs too: a pair that lacks the modality gets nobody's sample.
        """
        ...

    def samples(self, modality: str, batch_size: int = 512) -> Iterator[Tensor]:
        """Give a modality's samples (b, ...), prepared, not augmented, in the order of positions; zeros if absent."""
        ...

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
    ) -> Loader:
        """Give batches with so many views of each modality, and without labels unless they are asked for.

        `distinct_groups` (at most one sample of a group in a batch) is passed only where the settings ask for it.
        """
        ...


class Listener(Protocol):
    """Who wants to know how training goes; the loop itself prints nothing."""

    def started(self, total_steps: int, first_step: int) -> None:
        """Training starts at `first_step` (above 0 after a resumption) of `total_steps`."""
        ...

    def stepped(self, step: int, loss: float, rate: float, data_wait: float) -> None:
        """`step` steps are done; at most five times a second.

        Args:
            step: Steps done.
            loss: Of the latest batch.
            rate: Samples per second since the last call.
            data_wait: Share of that time spent waiting for data, 0 to 1.
        """
        ...

    def epoch_ended(self, record: Mapping[str, Any]) -> None:
        """An epoch is done; `record` is its line in the log."""
        ...

    def finished(self) -> None:
        """The stage is done and saved."""
        ...
