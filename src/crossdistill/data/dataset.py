"""Pairs: one thing measured in several modalities, as cheap views of arrays that are never copied."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crossdistill.data.columns import SPLITS, Columns, Pairing
from crossdistill.data.draws import permutation
from crossdistill.data.loader import Loader
from crossdistill.data.modality import Modality, blanked
from crossdistill.data.transforms import Transform, transform_identity
from crossdistill.errors import DataError, suggest
from crossdistill.files import digest

__all__ = ["SPLITS", "PairedDataset"]


class PairedDataset:
    """Pairs of samples, with labels, groups and a split where they are known.

    A data set is a view: an ordered choice of rows of arrays that all views share. Its methods give new views. A
    *position* is a place in the view, 0..n-1; a *row* is one in the arrays.

    Args:
        arrays: Stored samples (n, *shape) by modality, in memory or memory-mapped; row i of each is one pair.
        modalities: What they are, by the same names.
        name: Of the data set.
        label: Classes (n,) of integers 0..c-1, -1 where there is none (never in the test split), or None.
        class_names: Their names; the numbers themselves when empty.
        group: What must not be split (n,) of integers, or None.
        split: 0 train, 1 validation, 2 test (n,), or None.
        present: Modality to which rows have it (n,) bool; those not named are in every row. What the array holds where
            one is absent does not matter; statistics are to be fitted on the others (`Modality.fitted`).
        pairing: "natural" for pairs from one event, "class" for pairs that were matched by label.
        licence: Of the data.
        attribution: Whom to credit.
        about: Where the data are from and what was done to them.
        warnings: What the checks found odd but not wrong.

    Raises:
        DataError: If columns do not fit each other, or a row has no modality at all.
    """

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        modalities: Mapping[str, Modality],
        *,
        name: str = "data",
        label: np.ndarray | None = None,
        class_names: tuple[str, ...] = (),
        group: np.ndarray | None = None,
        split: np.ndarray | None = None,
        present: Mapping[str, np.ndarray] | None = None,
        pairing: Pairing = "natural",
        licence: str = "",
        attribution: str = "",
        about: str = "",
        warnings: tuple[str, ...] = (),
    ) -> None:
        label = None if label is None else np.asarray(label, dtype=np.int64)
        if label is not None and not class_names:
            class_names = tuple(str(c) for c in range(int(label.max(initial=-1)) + 1))
        self.columns = Columns(
            arrays=dict(arrays),
            modalities=dict(modalities),
            name=name,
            label=label,
            class_names=tuple(class_names),
            group=None if group is None else np.asarray(group, dtype=np.int64),
            split=None if split is None else np.asarray(split, dtype=np.uint8),
            present={name: np.asarray(here) for name, here in (present or {}).items()},
            pairing=pairing,
            licence=licence,
            attribution=attribution,
            about=about,
            warnings=tuple(warnings),
        )
        self.rows = np.arange(self.columns.rows)
        self.shuffles: Mapping[str, int] = {}
        self.transforms: Mapping[str, Transform] = {}
        self.repeats: Mapping[str, int] = {}
        self.part = ""

    # What is here --------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        words = ", ".join(f"{m.name} {m.kind} {m.shape}{self._lack(m.name)}" for m in self.modalities.values())
        part = f".split('{self.part}')" if self.part else ""
        count = int(self.labelled.sum())
        some = f", {count} labelled" if self.label is not None and count < len(self) else ""
        return f"<{self.name}{part}: {len(self)} {self.pairing} pairs of {words}; {self.classes} classes{some}>"

    def _lack(self, modality: str) -> str:
        here = self.present(modality)
        return "" if here is None else f" in {int(here.sum())}"

    @property
    def name(self) -> str:
        """Name of the data set."""
        return self.columns.name

    @property
    def modalities(self) -> Mapping[str, Modality]:
        """Modalities by name, with mean and std of the training split."""
        return self.columns.modalities

    @property
    def pairing(self) -> Pairing:
        """Where the pairs come from: "natural" (one event) or "class" (matched by label)."""
        return self.columns.pairing

    @property
    def licence(self) -> str:
        """Licence of the data."""
        return self.columns.licence

    @property
    def attribution(self) -> str:
        """Whom to credit."""
        return self.columns.attribution

    @property
    def about(self) -> str:
        """Where the data are from and what was done to them."""
        return self.columns.about

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the checks at the border found odd but not wrong."""
        return self.columns.warnings

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of class c at place c; empty without labels."""
        return self.columns.class_names

    @property
    def classes(self) -> int:
        """Number of classes; 0 without labels."""
        return self.columns.classes

    @property
    def label(self) -> np.ndarray | None:
        """Classes (n,) int64 of the view, -1 where there is none, or None without labels at all."""
        return None if self.columns.label is None else self.columns.label[self.rows]

    @property
    def labelled(self) -> np.ndarray:
        """Which pairs of the view have a label (n,) bool; `subset` takes it as it is."""
        label = self.label
        return np.zeros(len(self), dtype=bool) if label is None else label >= 0

    @property
    def group(self) -> np.ndarray | None:
        """Groups (n,) int64 of the view, or None."""
        return None if self.columns.group is None else self.columns.group[self.rows]

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that have rows in this view."""
        split = self.columns.split
        return () if split is None else tuple(s for i, s in enumerate(SPLITS) if (split[self.rows] == i).any())

    @property
    def augmented_modalities(self) -> frozenset[str]:
        """Modalities whose samples a loader augments."""
        return frozenset(self.transforms)

    # Other views ---------------------------------------------------------------------------------------------------

    def split(self, name: str) -> PairedDataset:
        """Give the rows of "train", "validation" or "test".

        Raises:
            DataError: If there is no such split here, or no rows are in it.
        """
        if name not in SPLITS:
            raise DataError(f"no split is called '{name}'{suggest(name, SPLITS)}")
        if self.columns.split is None:
            raise DataError(f"'{self.name}' has no split; give it one, or take rows with `subset`")
        view = self.subset(self.columns.split[self.rows] == SPLITS.index(name))
        if not len(view):
            raise DataError(f"'{self.name}' has no {name} rows here; it has {', '.join(self.splits) or 'none at all'}")
        view.part = name
        return view

    def subset(self, rows: np.ndarray) -> PairedDataset:
        """Give some positions of this view.

        Args:
            rows: Positions (m,) of integers 0..n-1 in any order, or a mask (n,) bool.

        Raises:
            DataError: If a position is outside or the mask has another length.
        """
        rows = np.asarray(rows)
        if rows.dtype == bool and rows.shape == (len(self),):
            rows = np.flatnonzero(rows)
        fits = rows.ndim == 1 and (not len(rows) or rows.dtype.kind in "iu")
        if not fits or (len(rows) and not 0 <= rows.min() <= rows.max() < len(self)):
            raise DataError(
                f"rows of '{self.name}' are positions in 0..{len(self) - 1} or a mask of {len(self)}; "
                f"received {rows.dtype} {rows.shape}"
            )
        return self._view(rows=self.rows[rows.astype(np.int64)])

    def having(self, *modalities: str) -> PairedDataset:
        """Give the pairs of this view that lack none of some modalities: all of them, as a rule, and then this view.

        Raises:
            DataError: If there is no such modality.
        """
        masks = [here for name in modalities if (here := self.present(name)) is not None]
        return self.subset(np.logical_and.reduce(masks)) if masks else self

    def keep_labels(self, rows: np.ndarray) -> PairedDataset:
        """Give this view with the labels of some positions alone; those of all others become unknown, -1.

        Args:
            rows: As in `subset`.

        Raises:
            DataError: If there are no labels, or a position is outside.
        """
        if self.columns.label is None:
            raise DataError(f"'{self.name}' has no labels to keep")
        label, kept = self.columns.label.copy(), self.subset(rows).rows
        label[self.rows] = -1
        label[kept] = self.columns.label[kept]
        return self._view(columns=replace(self.columns, label=label))

    def shuffled(self, modality: str, seed: int) -> PairedDataset:
        """Break the pairing of one modality with the rest, within this view: the control "shuffled pairs".

        No sample keeps its partner (a random cycle through all positions that have the modality; those that lack it
        still do). Labels and groups stay with the modalities that are not shuffled. A subset or split of the result is
        shuffled anew within itself, so that no sample of another split slips in.

        Args:
            modality: The one that is moved; usually the source, so that labels stay with the target.
            seed: Of the permutation.

        Raises:
            DataError: If there is no such modality, or fewer than two pairs that have it.
        """
        if (count := len(self.having(modality))) < 2:
            raise DataError(f"one pair cannot be shuffled: '{self.name}' has {count} here")
        return self._view(shuffles={**self.shuffles, modality: seed})

    def augmented(self, transforms: Mapping[str, Transform], *, repeat: int | None = None) -> PairedDataset:
        """Give this view with transforms that loaders apply, by modality; earlier ones of the same modality go.

        Args:
            transforms: What is done to a modality's samples.
            repeat: After how many epochs the same draws come again, so that each sample has so many augmented views
                and a store holds them all; None draws anew in every epoch. Modalities that share draws need the same.

        Raises:
            DataError: If there is no such modality, or `repeat` is less than 1.
        """
        for name in transforms:
            self.modality(name)
        if repeat is not None and repeat < 1:
            raise DataError(f"repeat is a number of epochs, at least 1, or None; received {repeat}")
        kept = {name: count for name, count in self.repeats.items() if name not in transforms}
        repeats = kept if repeat is None else {**kept, **dict.fromkeys(transforms, repeat)}
        return self._view(transforms={**self.transforms, **transforms}, repeats=repeats)

    def named(self, **facts: Any) -> PairedDataset:
        """Give this view with other facts: name, pairing, licence, attribution, about, warnings."""
        return self._view(columns=replace(self.columns, **facts))

    def _view(self, **changes: Any) -> PairedDataset:
        view = copy.copy(self)
        for name, value in changes.items():
            setattr(view, name, value)
        return view

    # Reading -------------------------------------------------------------------------------------------------------

    def modality(self, name: str) -> Modality:
        """Give the modality called `name`.

        Raises:
            DataError: If there is none; the message names the nearest.
        """
        if name not in self.modalities:
            raise DataError(f"'{self.name}' has no modality '{name}'{suggest(name, self.modalities)}")
        return self.modalities[name]

    def present(self, modality: str) -> np.ndarray | None:
        """Say which positions of this view have a sample of `modality`, (n,) bool; None where all have.

        Shuffling changes nothing in this.
        """
        self.modality(modality)
        if modality not in self.columns.present:
            return None
        here = self.columns.present[modality][self.rows]
        return None if here.all() else here

    def partners(self, modality: str) -> np.ndarray:
        """Give the position (n,) int64 of the sample of `modality` that is paired with each position.

        0..n-1, unless the modality is shuffled.
        """
        here, partners = self.present(modality), np.arange(len(self))
        if modality in self.shuffles:
            moved = partners if here is None else np.flatnonzero(here)
            order = moved[permutation(self.shuffles[modality], 0, len(moved), f"shuffled {modality}")]
            partners[order] = np.roll(order, -1)  # along a cycle through all of them: nobody meets the own partner
        return partners

    def raw(self, modality: str, positions: np.ndarray) -> np.ndarray:
        """Give stored samples (m, *shape) at positions (m,) of this view, unshuffled, zeros for absent ones."""
        self.modality(modality)
        rows = self.rows[positions]
        found = self.columns.arrays[modality][rows]
        if modality in self.columns.present:
            found[~self.columns.present[modality][rows]] = 0  # a copy: `rows` are integers
        return found

    def drawn(self, modality: str, epoch: int) -> int:
        """Say which epoch's draws a modality is augmented with in an epoch: its own, unless they are repeated."""
        return epoch % self.repeats[modality] if modality in self.repeats else epoch

    def augmentation(self, modality: str, epoch: int) -> tuple[str, int] | None:
        """Say how a loader augments a modality in an epoch, as far as the seed does not.

        Returns:
            A hash of the transform, and the epoch whose draws are taken; None where nothing is done to the modality, or
            where the transform has parameters that nobody can read (`transform_identity`).
        """
        known = transform_identity(self.transforms[modality]) if modality in self.transforms else ""
        return (known, self.drawn(modality, epoch)) if known else None

    def samples(self, modality: str, batch_size: int = 512) -> Iterator[Tensor]:
        """Give all samples of a modality, prepared, in the order of positions, not shuffled, not augmented.

        Args:
            modality: Which.
            batch_size: Samples a tensor; 512 keeps small pictures within a few MB.

        Yields:
            (b, *shape) float32, zeros where the modality is absent.
        """
        kind, here = self.modality(modality), self.present(modality)
        for start in range(0, len(self), batch_size):
            positions = np.arange(start, min(start + batch_size, len(self)))
            prepared = kind.prepare(torch.from_numpy(self.raw(modality, positions)))
            yield blanked(prepared, None if here is None else torch.from_numpy(here[positions]))

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
        """Give batches of some modalities; only those named in `views` are read.

        Args:
            views: How many independently augmented views of each modality a batch holds.
            batch_size: Pairs a batch.
            seed: Of order and augmentation, which are functions of (seed, epoch) alone.
            shuffle: Whether the order is random; else it is that of positions.
            drop_last: Whether an incomplete last batch is left out (contrastive losses compare within a batch).
            labels: Whether batches carry labels, -1 where one is not known. A stage that is declared label-free does
                not even receive them.
            workers: Processes that prepare batches; 0 prepares them here. The batches are the same, bit for bit. None
                is started where a GPU holds the samples (`Loader.to`).
            distinct_groups: At most one sample of a group in a batch: two sketches of one photo are not negatives.

        Raises:
            DataError: If there are no labels, no groups or no whole batch where they are asked for.
        """
        return Loader(
            self,
            dict(views),
            batch_size=batch_size,
            seed=seed,
            shuffle=shuffle,
            drop_last=drop_last,
            labels=labels,
            workers=workers,
            distinct_groups=distinct_groups,
        )

    # Identity ------------------------------------------------------------------------------------------------------

    @property
    def fingerprint(self) -> str:
        """Hash of all that batches depend on, augmentation apart: samples, rows, pairing, labels, groups, absences."""
        contents = {name: self.columns.content(name) for name in self.modalities}
        facts = {name: modality.identity for name, modality in self.modalities.items()}
        return digest(contents, facts, self.columns.facts, self.rows.tobytes(), dict(self.shuffles))

    def fingerprint_of(self, modality: str) -> str:
        """Hash of what `samples(modality)` gives: stored samples, standardisation and rows; not the pairing."""
        here = self.present(modality)
        absent = () if here is None else (here.tobytes(),)
        return digest(self.columns.content(modality), self.modality(modality).identity, self.rows.tobytes(), *absent)
