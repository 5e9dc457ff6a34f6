"""A user's own data: a folder, a manifest or one NPZ file, checked at the border, as a `PairedDataset`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crossdistill.data.archive import load_archive
from crossdistill.data.assemble import assemble
from crossdistill.data.checks import Problems
from crossdistill.data.columns import Pairing
from crossdistill.data.dataset import PairedDataset
from crossdistill.data.modality import Modality, check_name
from crossdistill.data.options import ReadOptions
from crossdistill.data.paths import Files, Names, expanded
from crossdistill.data.probe import guess_modality, told_of_axes
from crossdistill.data.store import Stored, decoded
from crossdistill.data.tables import Table, read_folder, read_manifest
from crossdistill.errors import ConfigError, DataError


def load_files(
    source: str | Path,
    *,
    modalities: Sequence[str] | None = None,
    name: str | None = None,
    pairing: Pairing = "natural",
    split_seed: int = 0,
    cache: str | Path | None = None,
    size: int | Sequence[int] | Mapping[str, Any] | None = None,
    channels: int | Mapping[str, int] | None = None,
    rate: int | Mapping[str, int] | None = None,
    seconds: float | Mapping[str, float] | None = None,
    mels: int | Mapping[str, int] | None = None,
    length: int | Mapping[str, int] | None = None,
    kinds: Mapping[str, str] | None = None,
    duplicates: str = "refuse",
) -> PairedDataset:
    """Read a folder, a CSV or Parquet manifest, or a NPZ file.

    A folder: FOLDER/<modality>/[<split>/][<class>/]<file>, pairs by equal paths below the modality. A manifest: a
    column a modality with paths relative to it, and `label`, `group`, `split` where known. A NPZ file: an array a
    modality, row i of each one pair, and `label`, `group`, `split`, `class_names` where known. Rows of manifests count
    from 1 in messages, those of arrays from 0.

    Outside the test split a label may be missing: an empty cell, a file beside the class folders, -1, or NaN in a NPZ
    file. It is -1 in the data set.

    A pair may lack modalities, all but one: an empty cell of a manifest, or false in a NPZ file's `present_<modality>`.

    Files are decoded once into the store and memory-mapped from there. Everything is checked in that pass; up to ten
    problems are told at once.

    Args:
        source: The folder or file.
        modalities: Which to use; default: all.
        name: Of the data set; default: the folder's or file's.
        pairing: "natural" for pairs of one event (the default), "class" where you matched them by label.
        split_seed: Of the 70/10/20 split that is made where the data have none.
        cache: The store's folder; default: CROSSDISTILL_CACHE, then ~/.cache/crossdistill.
        size: Of pictures; this and the rest as in `ReadOptions`, each one value or a mapping from modality to value.
        channels: Of pictures.
        rate: Of sounds in Hz.
        seconds: Of sounds.
        mels: Bands of spectrograms.
        length: Of sequences.
        kinds: Of arrays whose axes leave a doubt.
        duplicates: What to do with equal samples on two sides of a split, a leak: "refuse" the data, or "drop" the rows
            of training and validation whose samples are held back for judging.

    Returns:
        The data set, with what is odd but not wrong in `warnings`.

    Raises:
        DataError: With what is wrong, naming files and rows.
        ConfigError: If an option is of another type, out of range, or of no use with these data.
    """
    if duplicates not in ("refuse", "drop"):
        raise ConfigError(f"duplicates is refuse or drop; received '{duplicates}'")
    path = expanded(source)
    options = ReadOptions(
        size=size, channels=channels, rate=rate, seconds=seconds, mels=mels, length=length, kinds=kinds
    )
    problems = Problems(str(path))
    if path.suffix.lower() == ".npz":
        data = load_archive(path, modalities, options, problems, name or path.stem, split_seed, duplicates)
        return data.named(pairing=pairing)
    table = read_folder(path, problems, modalities) if path.is_dir() else read_manifest(path, modalities, problems)
    if not table.rows:
        problems.add("there is not a single pair")
        problems.raise_if_any()
    data = _load_table(table, options, problems, name or path.stem, split_seed, cache, duplicates)
    return data.named(pairing=pairing)


def _load_table(
    table: Table,
    options: ReadOptions,
    problems: Problems,
    name: str,
    seed: int,
    cache: str | Path | None,
    duplicates: str,
) -> PairedDataset:
    """Decode a table's files and put the data set together."""
    stored: dict[str, Stored] = {}
    modalities: dict[str, Modality] = {}
    options.check_names(table.files)
    for modality, files in table.files.items():
        check_name(modality)
        try:
            modalities[modality] = guess_modality(modality, files.paths, options)
        except DataError as error:
            problems.add(str(error))
            continue
        if doubt := told_of_axes(modalities[modality], options):
            problems.warn(doubt)
    if len(modalities) == len(table.files):
        options.check_used()
    for modality, kind in modalities.items():
        found = None if problems.full else decoded(table.files[modality], table.rows, kind, problems, cache)
        if found is not None:
            stored[modality] = found
    if len(stored) < len(table.files):
        problems.raise_if_any()
    names = {modality: _names(table.rows, files) for modality, files in table.files.items()}
    return assemble(
        {m: s.array for m, s in stored.items()},
        modalities,
        {m: s.contents for m, s in stored.items()},
        names,
        table,
        problems,
        name=name,
        seed=seed,
        digests={m: s.digest for m, s in stored.items()},
        duplicates=duplicates,
    )


def _names(rows: Sequence[str], files: Files) -> Names:
    """Name samples by row and file."""
    return Names(len(rows), lambda row: f"{rows[row]} ({files.path(row)})")
