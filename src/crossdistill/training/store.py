"""Outputs of frozen teachers, computed once per sample and read by position: distilling costs no teacher.

folder/<key>/features.npy  (n, d) float32, memory-mapped      key = hash of the teacher's weights, buffers, structure
             embedding.npy, logits.npy: where there are any         and classes, the samples, and our version
             store.json    shapes, largest magnitudes; written last: without it the rest is not there
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

from crossdistill._version import __version__
from crossdistill.errors import TrainingError
from crossdistill.files import digest, whole_file, write_json
from crossdistill.methods.base import index_of
from crossdistill.networks.base import Outputs, as_outputs
from crossdistill.training.identity import check_frozen, code_of, weights_digest
from crossdistill.training.protocols import TrainingData

_NAMES = ("features", "embedding", "logits")
_PROBES = 8  # rows compared with the live teacher when a store is opened


@dataclass(frozen=True)
class StoredOutputs:
    """A teacher's outputs for all n samples of a modality.

    Attributes:
        arrays: "features" (n, d) and, where the teacher gives them, "embedding" (n, e) and "logits" (n, c), float32.
    """

    arrays: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.arrays["features"])

    def rows(self, index: Tensor) -> Outputs:
        """Give the outputs of the samples at `index` (b,) int64, on the CPU."""
        embedding, logits = self.arrays.get("embedding"), self.arrays.get("logits")
        return Outputs(
            self.arrays["features"].index_select(0, index),
            None if embedding is None else embedding.index_select(0, index),
            None if logits is None else logits.index_select(0, index),
        )


TOLERANCE, TF32 = 1e-4, 5e-3
"""How far stored and live outputs may be apart on the CPU and on accelerators, relative to the largest."""


class TeacherStore:
    """Outputs of frozen teachers; one pass over the data serves every student, run and process that shares the store.

    Args:
        folder: Where to keep them; None keeps them in memory, for as long as this object lives.
        tolerance: How far a stored output may be from a live one, relative to the output's largest magnitude. None is
            1e-4 on the CPU, which lets other batch sizes and thread counts round differently, and 5e-3 on accelerators,
            whose convolutions keep ten bits of a number (TF32; 2e-4 was seen); neither lets a wrong row through.
        made_of: What else decides what the teachers give, hashed: constructor arguments and places of taps, say, which
            neither their weights nor their classes tell.
    """

    def __init__(self, folder: str | Path | None = None, *, tolerance: float | None = None, made_of: str = "") -> None:
        self.folder = None if folder is None else Path(folder)
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
            The outputs, or None where they cannot be stored: the teacher gives feature maps, which are too large.

        Raises:
            TrainingError: If the teacher is not frozen, the samples are augmented or of unknown identity, or what is
                stored is not what the teacher gives.
        """
        check_frozen(teacher, modality)
        fingerprint = data.fingerprint_of(modality)
        if not fingerprint or modality in data.augmented_modalities:
            why = "is augmented" if fingerprint else "has no fingerprint"
            raise TrainingError(f"a teacher's outputs cannot be stored: '{modality}' {why}; leave the teacher live")
        parts = {"weights": weights_digest(teacher), "code": code_of(teacher), "samples": fingerprint}
        parts |= {"made_of": self.made_of} if self.made_of else {}
        key = digest(parts, __version__)
        if key not in self._open:
            run = _runner(teacher, device or torch.device("cpu"))
            folder = None if self.folder is None else self.folder / key
            kept = None if folder is None else _load(folder, len(data))
            if kept is None:
                kept = _compute(run, data, modality, folder, parts)
            elif folder is not None:
                self._compare(run, kept, data, modality, folder, seed, device is None or device.type == "cpu")
            self._open[key] = kept
        return self._open[key]

    def _compare(
        self, run: _Run, kept: StoredOutputs, data: TrainingData, modality: str, folder: Path, seed: int, exact: bool
    ) -> None:
        loader = data.loader({modality: 1}, batch_size=min(_PROBES, len(data)), seed=seed)
        batch = next(iter(loader.epoch(0)))
        index = index_of(batch, modality)
        live, stored = run(batch[modality]), kept.rows(index)
        tolerance = self.tolerance if self.tolerance is not None else TOLERANCE if exact else TF32
        for name, array in kept.arrays.items():
            expected: Tensor | None = getattr(live, name)
            here: Tensor = getattr(stored, name)
            if expected is None or expected.shape != here.shape:
                raise TrainingError(f"{folder} holds {name} that the teacher of '{modality}' does not give; delete it")
            largest = float(array.abs().amax()) if array.numel() else 0.0
            error = (here - expected).abs().flatten(1).amax(dim=1)
            if not bool((error <= tolerance * largest).all()):
                row = int(error.nan_to_num(torch.inf).argmax())
                raise TrainingError(
                    f"stored {name} of the teacher of '{modality}' differ from the live ones: sample {int(index[row])} "
                    f"by {float(error[row]):.3g} where values reach {largest:.3g}. Delete {folder} to compute them anew"
                )


_Run = Callable[[Tensor], Outputs]


def _runner(teacher: nn.Module, device: torch.device) -> _Run:
    """Make the function from samples to outputs, both on the CPU."""

    def run(samples: Tensor) -> Outputs:
        with torch.no_grad():
            outputs = as_outputs(teacher(samples.to(device)))
        given = {name: value.float().cpu() for name in _NAMES if (value := getattr(outputs, name)) is not None}
        return Outputs(**given, maps=outputs.maps)

    return run


def _compute(
    run: _Run, data: TrainingData, modality: str, folder: Path | None, parts: Mapping[str, str]
) -> StoredOutputs | None:
    """Pass all samples through the teacher once; None if it gives feature maps."""
    chunks: dict[str, list[Tensor]] = {}
    with contextlib.ExitStack() as files:
        writers: dict[str, _Writer] = {}
        for samples in data.samples(modality):
            outputs = run(samples)
            if outputs.maps is not None:
                return None
            for name in _NAMES:
                value: Tensor | None = getattr(outputs, name)
                if value is None:
                    continue
                if folder is None:
                    chunks.setdefault(name, []).append(value)
                else:
                    if name not in writers:
                        writers[name] = _Writer(files.enter_context(_npy(folder / f"{name}.npy")))
                    writers[name].append(value.numpy())
        rows = {len(data)}
        rows |= {w.rows for w in writers.values()} | {sum(map(len, parts)) for parts in chunks.values()}
        if len(rows) > 1:
            raise TrainingError(
                f"the data say {len(data)} pairs, but give {max(rows - {len(data)})} samples of '{modality}'"
            )
        for writer in writers.values():
            writer.finish()
    if folder is None:
        return StoredOutputs({name: torch.cat(tensors) for name, tensors in chunks.items()})
    about = {name: {"shape": list(w.shape), "largest": w.largest} for name, w in writers.items()}
    write_json(
        folder / "store.json", {"key": dict(parts), "version": __version__, "modality": modality, "outputs": about}
    )
    return _load(folder, len(data))


def _load(folder: Path, rows: int) -> StoredOutputs | None:
    """Open a store; None if there is none, or not a whole one."""
    try:
        about: dict[str, Any] = json.loads((folder / "store.json").read_text(encoding="utf-8"))["outputs"]
        # copy on write: torch wants memory it may write to, and what is written stays in this process
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="c", allow_pickle=False) for name in about}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    whole = all(list(a.shape) == about[name]["shape"] and a.dtype == np.float32 for name, a in arrays.items())
    if not whole or "features" not in arrays or len(arrays["features"]) != rows:
        return None
    return StoredOutputs({name: torch.from_numpy(array) for name, array in arrays.items()})


@contextlib.contextmanager
def _npy(path: Path) -> Generator[BinaryIO]:
    with whole_file(path) as temporary, temporary.open("r+b") as file:
        yield file


class _Writer:
    """Rows to an .npy file whose number of rows is known at the end only."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.rows, self.largest = file, 0, 0.0
        self.tail: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.rows, *self.tail)

    def append(self, values: np.ndarray) -> None:
        if not self.rows:
            self.tail = values.shape[1:]
            self._header()
        self.file.write(np.ascontiguousarray(values, dtype="<f4").data)
        self.rows += len(values)
        self.largest = max(self.largest, float(np.abs(values).max(initial=0.0)))

    def finish(self) -> None:
        self.file.seek(0)
        self._header()  # numpy pads the header so that a larger number of rows takes no more room
        self.file.flush()

    def _header(self) -> None:
        header = {"descr": "<f4", "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(self.file, header)
