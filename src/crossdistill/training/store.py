"""Outputs of frozen teachers, computed once per sample and read by position: distilling costs no teacher.

folder/<key>/features.npy  (n, d), memory-mapped       key = hash of the teacher's weights, structure, classes and taps,
             embedding.npy, logits.npy, map@PATH.npy         the samples, how they are kept, and our version
             store.json    all that the key is made of, shapes, largest magnitudes, largest errors of rounding

`crossdistill.rowfiles` says how several processes make one, and what is left by one that was killed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from crossdistill._version import __version__
from crossdistill.errors import ConfigError, TrainingError
from crossdistill.files import digest, read_json
from crossdistill.methods.base import index_of
from crossdistill.networks.base import Outputs, as_outputs
from crossdistill.rowfiles import ABOUT, Made, RowCountError, fill, open_rows
from crossdistill.training.identity import check_frozen, differences, parts_of
from crossdistill.training.protocols import TrainingData
from crossdistill.training.stored import CLASSES, Dtype, Form, StoredOutputs, distances

TOLERANCE, TF32 = 1e-4, 5e-3
"""How far stored and live outputs may be apart on the CPU and on accelerators, relative to the largest."""

BLOCK = 512
"""Samples that a teacher sees at a time."""


class TeacherStore:
    """Outputs of frozen teachers; one pass over the data serves every student, run and process that shares the store.

    Several processes that want the same outputs share the pass. A pass that was killed goes on where it was.

    Args:
        folder: Where to keep them; None keeps them in memory, for as long as this object lives.
        dtype: What they are kept in: float32, the default, gives what the live teacher gives, bit for bit; float16 and
            bfloat16 take half the room and come back as float32, and store.json says how far off at most.
        top_k: How many of a row's logits to keep, the others as their sum alone (`StoredOutputs.rows`); None keeps all.
        maps_gib: Room that a teacher's feature maps may take. A map of 256 x 14 x 14 is 196 KiB a sample in float32:
            the default of 1 GiB stores small ones, and leaves alive a teacher whose maps would fill the disk.
        verify: Rows, at random, that are compared with the live teacher whenever a store is opened; 8 see any mistake
            that is in more than a third of the rows with a probability of 96 %, for the price of one small batch.
        compute: Whether to compute what is not there. False only reads, and refuses with what differs.
        tolerance: How far a stored output may be from a live one, relative to the output's largest magnitude, beside
            the rounding to `dtype`. None is 1e-4 on the CPU, which lets other batch sizes and thread counts round
            differently, and 5e-3 on accelerators, whose convolutions keep ten bits of a number (TF32; 2e-4 was seen);
            neither lets a wrong row through.
        replay: Whether to store teachers of augmented samples too, one store an epoch: the augmentation of a sample is
            a function of (seed, sample, epoch), so what a store has of it is what training would show the teacher.
            Data that repeat their draws after K epochs (`PairedDataset.augmented`) need K of them, others one for
            every epoch. False leaves such teachers alive, and asks for no disk.
        made_of: What else decides what the teachers give, hashed: constructor arguments, say, which neither their
            weights nor their classes tell.

    Raises:
        ConfigError: If a value is out of range, or `replay` has no folder: memory would not hold every epoch.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        *,
        dtype: Dtype = "float32",
        top_k: int | None = None,
        maps_gib: float = 1.0,
        verify: int = 8,
        compute: bool = True,
        tolerance: float | None = None,
        replay: bool = False,
        made_of: str = "",
    ) -> None:
        if not maps_gib >= 0 or verify < 0:
            raise ConfigError(f"maps_gib and verify are at least 0; received {maps_gib} and {verify}")
        if replay and folder is None:
            raise ConfigError(
                "replay keeps what teachers give in every epoch, which memory may not hold: name a folder"
            )
        self.folder = None if folder is None else Path(folder)
        self.form, self.maps_gib, self.verify, self.compute = Form(dtype, top_k), maps_gib, verify, compute
        self.tolerance, self.replay, self.made_of = tolerance, replay, made_of
        self._open: dict[str, StoredOutputs | None] = {}

    def refuses(self, data: TrainingData, modality: str, *, epoch: int | None = None) -> str:
        """Say why what teachers of a modality give, in an epoch or once for all, is not stored; empty where it is."""
        if not data.fingerprint_of(modality):
            return "has no fingerprint"
        if modality not in data.augmented_modalities:
            return ""
        if epoch is None or not self.replay:
            return "is augmented"
        if data.augmentation(modality, epoch) is None:
            return "is augmented by a transform with parameters that nobody can read"
        return "" if np.array_equal(data.partners(modality), np.arange(len(data))) else "is augmented and shuffled"

    def outputs(
        self,
        teacher: nn.Module,
        data: TrainingData,
        modality: str,
        *,
        device: torch.device | None = None,
        seed: int = 0,
        epoch: int | None = None,
    ) -> StoredOutputs | None:
        """Give a teacher's outputs for all samples of a modality, from the store or, the first time, from the teacher.

        Args:
            teacher: Frozen, in eval mode; called with (b, ...) batches of the modality in float32.
            data: Where the samples come from.
            modality: What the teacher reads.
            device: Where the teacher is; the CPU if None.
            seed: Of the augmentation, and of the choice of rows that are compared with the live teacher.
            epoch: Whose augmented samples the teacher is shown, where the modality is augmented.

        Returns:
            The outputs, or None where they are not to be stored: feature maps that take more than `maps_gib`.

        Raises:
            TrainingError: If the teacher is not frozen, the store `refuses` the modality, what is stored is not what
                the teacher gives, an output is NaN or too large for the dtype, or nothing is stored and nothing may be
                computed.
        """
        check_frozen(teacher, modality)
        if why := self.refuses(data, modality, epoch=epoch):
            raise TrainingError(f"a teacher's outputs cannot be stored: '{modality}' {why}; leave the teacher live")
        replayed = modality in data.augmented_modalities
        how = data.augmentation(modality, epoch) if replayed and epoch is not None else None
        shown = _Shown(data, modality, seed, None if how is None else how[1])
        parts = {**parts_of(teacher), "data": data.fingerprint_of(modality), "version": __version__}
        parts |= {"dtype": self.form.dtype, "top_k": self.form.top_k, "made_of": self.made_of}
        parts |= {} if how is None else {"transform": how[0], "epoch": how[1], "seed": seed}
        key = digest(parts)
        if key in self._open:
            return self._open[key]
        kept = self._opened(teacher, shown, key, parts, device or torch.device("cpu"))
        if how is None:  # an epoch's outputs are not asked for again soon
            self._open[key] = kept
        return kept

    def _opened(
        self, teacher: nn.Module, shown: _Shown, key: str, parts: Mapping[str, Any], device: torch.device
    ) -> StoredOutputs | None:
        """Give a store that this object has not open yet."""
        run, where = _runner(teacher, device), f"the teacher of '{shown.modality}'"
        make = _maker(run, self.form, where, self.maps_gib * 2**30 / max(1, len(shown.data)))
        if self.folder is None:
            return _remember(shown, make, self.form)
        folder = self.folder / key
        kept = _load(folder, len(shown.data), self.form)
        if kept is not None:
            tolerance = TOLERANCE if device.type == "cpu" else TF32
            tolerance = tolerance if self.tolerance is None else self.tolerance
            _compare(run, kept, shown, min(self.verify, len(shown.data)), tolerance, f"Delete {folder}")
            return kept
        if not self.compute:
            raise TrainingError(_absent(self.folder, shown.modality, parts))

        def about(facts: Mapping[str, list[float]], _: Mapping[str, np.ndarray]) -> dict[str, Any]:
            arrays = {name: {"largest": largest, "error": off} for name, (largest, off) in facts.items()}
            return {"key": dict(parts), "modality": shown.modality, "arrays": arrays}

        try:
            there = fill(folder, len(shown.data), shown.blocks, make, about)
        except RowCountError as error:
            raise _other_count(shown, error.found) from None
        return _load(folder, len(shown.data), self.form) if there else None


@dataclass(frozen=True)
class _Shown:
    """What a teacher is shown: a modality's samples as they are, or augmented with the draws of (seed, epoch)."""

    data: TrainingData
    modality: str
    seed: int
    epoch: int | None

    def blocks(self) -> Iterator[Tensor]:
        """Give all samples (b, ...) in the order of positions."""
        if self.epoch is None:
            return self.data.samples(self.modality)
        views = {self.modality: 1}
        loader = self.data.loader(views, batch_size=BLOCK, seed=self.seed, shuffle=False, drop_last=False)
        return (batch[self.modality] for batch in loader.epoch(self.epoch))

    def some(self, count: int) -> tuple[Tensor, Tensor]:
        """Give the positions (b,) and samples (b, ...) of so many at random."""
        loader = self.data.loader({self.modality: 1}, batch_size=count, seed=self.seed)
        batch = next(iter(loader.epoch(self.epoch or 0)))
        return index_of(batch, self.modality), batch[self.modality]


_Run = Callable[[Tensor], Outputs]
_Make = Callable[[Tensor], "Made | None"]


def _runner(teacher: nn.Module, device: torch.device) -> _Run:
    """Make the function from samples to outputs, both on the CPU."""

    def run(samples: Tensor) -> Outputs:
        with torch.no_grad():
            return as_outputs(teacher(samples.to(device))).to(torch.device("cpu"))

    return run


def _maker(run: _Run, form: Form, where: str, room: float) -> _Make:
    """Make the function from samples to arrays; None where maps take more bytes a sample than there is room for."""

    def make(samples: Tensor) -> Made | None:
        outputs = run(samples)
        maps = sum(math.prod(value.shape[1:]) for value in (outputs.maps or {}).values())
        return None if maps * form.precision.itemsize > room else form.made(outputs, where)

    return make


def _remember(shown: _Shown, make: _Make, form: Form) -> StoredOutputs | None:
    """Compute into memory."""
    arrays: dict[str, np.ndarray] = {}
    facts: dict[str, tuple[float, float]] = {}
    start, rows = 0, len(shown.data)
    for samples in shown.blocks():
        begin, start = start, start + len(samples)
        made = make(samples) if start <= rows else None
        if made is None:
            break
        for name, values in made[0].items():
            if name not in arrays:
                arrays[name], facts[name] = np.empty((rows, *values.shape[1:]), values.dtype), (0.0, 0.0)
            arrays[name][begin:start] = values
            largest, off = made[1][name]
            facts[name] = (max(facts[name][0], largest), max(facts[name][1], off))
    else:
        if start == rows:
            return StoredOutputs(arrays, form, facts)
    if start <= rows and not arrays:
        return None
    raise _other_count(shown, start)


def _other_count(shown: _Shown, found: int) -> TrainingError:
    return TrainingError(f"the data say {len(shown.data)} pairs, but give {found} samples of '{shown.modality}'")


def _load(folder: Path, rows: int, form: Form) -> StoredOutputs | None:
    """Open a store; None if there is none, or not a whole one."""
    found = open_rows(folder)
    if found is None:
        return None
    arrays, about = found
    try:
        facts = {name: (float(of["largest"]), float(of["error"])) for name, of in about["arrays"].items()}
    except (KeyError, TypeError, ValueError):
        facts = None
    if facts is None or "features" not in arrays or len(arrays["features"]) != rows:
        raise TrainingError(f"{folder} is not a store of {rows} rows of features; delete it")
    return StoredOutputs(arrays, form, facts)


def _compare(run: _Run, kept: StoredOutputs, shown: _Shown, count: int, tolerance: float, cure: str) -> None:
    """Compare some rows with the live teacher's."""
    if not count:
        return
    index, samples = shown.some(count)
    stored, outputs = kept.parts(index), run(samples)
    live = kept.form.split(outputs, stored.get(CLASSES))
    where = f"of the teacher of '{shown.modality}'"
    if {name: value.shape for name, value in live.items()} != {name: value.shape for name, value in stored.items()}:
        raise TrainingError(f"stored outputs {where} are other ones than it gives now. {cure} to compute them anew")
    for name, here in stored.items():
        largest, rounding = kept.facts[name]
        off = distances(live[name], here).reshape(count, -1)
        if not bool((off <= tolerance * largest + rounding).all()):
            row = int(off.nan_to_num(torch.inf).amax(dim=1).argmax())
            raise TrainingError(
                f"stored {name} {where} differ from the live ones: sample {int(index[row])} by "
                f"{float(off[row].amax()):.3g} where values reach {largest:.3g}. {cure} to compute them anew"
            )


def _absent(folder: Path, modality: str, parts: Mapping[str, Any]) -> str:
    """Say what the nearest store of a modality was made of, and what is wanted now."""
    nearest: list[tuple[int, float, str, list[str]]] = []
    for path in folder.glob(f"*/{ABOUT}"):
        try:
            about: dict[str, Any] = read_json(path)
            if about["modality"] == modality:
                found = differences(about["key"], parts)
                nearest.append((len(found), -path.stat().st_mtime, path.parent.name, found))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    if not nearest:
        return f"{folder} holds no outputs of a teacher of '{modality}', and compute is False"
    _, _, name, found = min(nearest)
    return f"{folder} holds no outputs of this teacher of '{modality}': in the nearest, {name}, {', '.join(found)}"
