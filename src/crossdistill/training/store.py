"""Outputs of frozen teachers, computed once per sample and read by position: distilling costs no teacher.

folder/<key>/features.npy  (n, d), memory-mapped       key = hash of the teacher's weights, structure, classes and taps,
             embedding.npy, logits.npy, map@PATH.npy         the samples, how they are kept, and our version
             store.json    all that the key is made of, shapes, largest magnitudes, largest errors of rounding

`crossdistill.rowfiles` says how several processes make one, and what is left by one that was killed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from crossdistill._version import __version__
from crossdistill.errors import ConfigError, TrainingError
from crossdistill.files import digest
from crossdistill.methods.base import index_of
from crossdistill.networks.base import Outputs, as_outputs
from crossdistill.rowfiles import ABOUT, Made, fill, open_rows
from crossdistill.training.identity import check_frozen, differences, parts_of
from crossdistill.training.protocols import TrainingData
from crossdistill.training.stored import CLASSES, Dtype, Form, StoredOutputs, distances

TOLERANCE, TF32 = 1e-4, 5e-3
"""How far stored and live outputs may be apart on the CPU and on accelerators, relative to the largest."""


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
        made_of: What else decides what the teachers give, hashed: constructor arguments, say, which neither their
            weights nor their classes tell.

    Raises:
        ConfigError: If a value is out of range.
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
        made_of: str = "",
    ) -> None:
        if not maps_gib >= 0 or verify < 0:
            raise ConfigError(f"maps_gib and verify are at least 0; received {maps_gib} and {verify}")
        self.folder = None if folder is None else Path(folder)
        self.form, self.maps_gib, self.verify, self.compute = Form(dtype, top_k), maps_gib, verify, compute
        self.tolerance, self.made_of = tolerance, made_of
        self._open: dict[str, StoredOutputs | None] = {}

    def outputs(
        self,
        teacher: nn.Module,
        data: TrainingData,
        modality: str,
        *,
        device: torch.device | None = None,
        seed: int = 0,
    ) -> StoredOutputs | None:
        """Give a teacher's outputs for all samples of a modality, from the store or, the first time, from the teacher.

        Args:
            teacher: Frozen, in eval mode; called with (b, ...) batches of the modality in float32.
            data: Where the samples come from.
            modality: What the teacher reads.
            device: Where the teacher is; the CPU if None.
            seed: Chooses the rows that are compared with the live teacher when a store is opened.

        Returns:
            The outputs, or None where they are not to be stored: feature maps that take more than `maps_gib`.

        Raises:
            TrainingError: If the teacher is not frozen, the samples are augmented or of unknown identity, what is
                stored is not what the teacher gives, an output is NaN or too large for the dtype, or nothing is stored
                and nothing may be computed.
        """
        check_frozen(teacher, modality)
        fingerprint = data.fingerprint_of(modality)
        if not fingerprint or modality in data.augmented_modalities:
            why = "is augmented" if fingerprint else "has no fingerprint"
            raise TrainingError(f"a teacher's outputs cannot be stored: '{modality}' {why}; leave the teacher live")
        parts: dict[str, Any] = {**parts_of(teacher), "data": fingerprint, "dtype": self.form.dtype}
        more = {"made_of": self.made_of, "top_k": self.form.top_k}
        parts |= {"version": __version__, **{name: value for name, value in more.items() if value}}
        key = digest(parts)
        if key not in self._open:
            run = _runner(teacher, device or torch.device("cpu"))
            make = _maker(run, self.form, f"the teacher of '{modality}'", self.maps_gib * 2**30 / max(1, len(data)))
            if self.folder is None:
                kept = self._remembered(data, modality, make)
            else:
                kept = _load(self.folder / key, len(data), self.form)
                if kept is not None:
                    self._compare(run, kept, data, modality, seed, exact=device is None or device.type == "cpu")
                elif self.compute:
                    kept = self._computed(self.folder / key, data, modality, make, parts)
                else:
                    raise TrainingError(_absent(self.folder, modality, parts))
            self._open[key] = kept
        return self._open[key]

    def _remembered(self, data: TrainingData, modality: str, make: _Make) -> StoredOutputs | None:
        """Compute into memory."""
        arrays: dict[str, np.ndarray] = {}
        facts: dict[str, tuple[float, float]] = {}
        start = 0
        for samples in data.samples(modality):
            made = make(samples)
            if made is None:
                return None
            for name, rows in made[0].items():
                if name not in arrays:
                    arrays[name] = np.empty((len(data), *rows.shape[1:]), rows.dtype)
                arrays[name][start : start + len(rows)] = rows[: max(0, len(data) - start)]
                largest, off = made[1][name]
                before = facts.get(name, (0.0, 0.0))
                facts[name] = (max(before[0], largest), max(before[1], off))
            start += len(samples)
        if start != len(data):
            raise TrainingError(f"the data say {len(data)} pairs, but give {start} samples of '{modality}'")
        return StoredOutputs(arrays, self.form, facts)

    def _computed(
        self, folder: Path, data: TrainingData, modality: str, make: _Make, parts: Mapping[str, Any]
    ) -> StoredOutputs | None:
        """Compute into files, with whichever process does so too."""

        def about(facts: Mapping[str, list[float]]) -> dict[str, Any]:
            of = {
                name: {"largest": largest, "error": off, **({"classes": int(largest)} if name == CLASSES else {})}
                for name, (largest, off) in facts.items()
            }
            return {"key": dict(parts), "modality": modality, "arrays": of}

        try:
            there = fill(folder, len(data), lambda: data.samples(modality), make, about)
        except ValueError as error:
            raise TrainingError(f"'{modality}': the data give {error}") from None
        return _load(folder, len(data), self.form) if there else None

    def _compare(
        self, run: _Run, kept: StoredOutputs, data: TrainingData, modality: str, seed: int, *, exact: bool
    ) -> None:
        """Compare some rows with the live teacher's."""
        if not self.verify:
            return
        loader = data.loader({modality: 1}, batch_size=min(self.verify, len(data)), seed=seed)
        batch = next(iter(loader.epoch(0)))
        index = index_of(batch, modality)
        stored, outputs = kept.parts(index), run(batch[modality])
        live = self.form.split(outputs, stored.get(CLASSES))
        tolerance = self.tolerance if self.tolerance is not None else TOLERANCE if exact else TF32
        where = f"of the teacher of '{modality}'"
        cure = f"Delete {self.folder} to compute them anew"
        if {name: value.shape for name, value in live.items()} != {name: value.shape for name, value in stored.items()}:
            raise TrainingError(f"stored outputs {where} are other ones than it gives now. {cure}")
        for name, here in stored.items():
            largest, rounding = kept.facts[name]
            off = (
                distances(live[name], here).reshape(len(here), -1).amax(dim=1)
                if here[0].numel()
                else torch.zeros(len(here))
            )
            if not bool((off <= tolerance * largest + rounding).all()):
                row = int(off.nan_to_num(torch.inf).argmax())
                raise TrainingError(
                    f"stored {name} {where} differ from the live ones: sample {int(index[row])} by "
                    f"{float(off[row]):.3g} where values reach {largest:.3g}. {cure}"
                )


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


def _load(folder: Path, rows: int, form: Form) -> StoredOutputs | None:
    """Open a store; None if there is none, or not a whole one."""
    found = open_rows(folder)
    if found is None:
        return None
    arrays, about = found
    facts = {name: (of["largest"], of["error"]) for name, of in about["arrays"].items()}
    if "features" not in arrays or len(arrays["features"]) != rows:
        return None
    return StoredOutputs(arrays, form, facts)


def _absent(folder: Path, modality: str, parts: Mapping[str, Any]) -> str:
    """Say what the nearest store of a modality was made of, and what is wanted now."""
    nearest: list[tuple[int, float, str, list[str]]] = []
    for path in folder.glob(f"*/{ABOUT}"):
        try:
            about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if about["modality"] == modality:
                found = differences(about["key"], parts)
                nearest.append((len(found), -path.stat().st_mtime, path.parent.name, found))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    if not nearest:
        return f"{folder} holds no outputs of a teacher of '{modality}', and compute is False"
    _, _, name, found = min(nearest)
    return f"{folder} holds no outputs of this teacher of '{modality}': in the nearest, {name}, {', '.join(found)}"
