"""Judging an arm: its frozen encoder, the few labels, the test split; predictions are kept for paired tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from crossdistill.data import PairedDataset
from crossdistill.evaluation import (
    accuracy,
    embed,
    fine_tune,
    knn_predict,
    linear_probe,
    macro_f1,
)
from crossdistill.experiments.arms import Arm
from crossdistill.experiments.bench import Bench
from crossdistill.experiments.sources import JUDGING, code_version
from crossdistill.files import digest, filed, whole_file, write_json

Row = dict[str, Any]


def features(network: nn.Module | None, rows: PairedDataset, modality: str) -> np.ndarray:
    """Embed all samples of a view, (n, d) float32; without a network give the standardised inputs, flattened."""
    if network is None:
        return np.concatenate([x.flatten(1).numpy() for x in rows.samples(modality)])
    return embed(network, rows.samples(modality))


def everything(rows: PairedDataset, modality: str) -> Tensor:
    """Stack all prepared samples of a view, (n, ...)."""
    return torch.cat(list(rows.samples(modality)))


class Judge:
    """Evaluates arms on a bench, once each.

    Args:
        bench: The experiment's data, folder and products.
    """

    def __init__(self, bench: Bench) -> None:
        self.bench, self.spec = bench, bench.experiment.evaluate

    def key(self, arm: Arm, seed: int) -> str:
        """Hash of what the verdict on an arm depends on."""
        bench = self.bench
        made = bench.key(arm, seed) if arm.stage is not None else bench.train.fingerprint
        teacher = bench.ceiling_key(seed) if arm.role == "ceiling" else ""
        labels = bench.label_rows(seed, arm.modality).fingerprint
        code, test = code_version(JUDGING), bench.test.having(arm.modality).fingerprint
        return digest(code, made, teacher, arm.modality, vars(self.spec), labels, test, seed)

    def rows(self, arm: Arm, seed: int, network: nn.Module | None) -> list[Row]:
        """Evaluate an arm, or find that it was; predictions go to DIR/predictions.

        Args:
            arm: Which.
            seed: Of the run; it decides the labels.
            network: Its frozen encoder; None for raw features.

        Returns:
            A row for each way of evaluation and metric.
        """
        key = self.key(arm, seed)
        path = self.bench.folder / "evaluations" / f"{key}.json"
        kept = self.bench.folder / "predictions" / f"{filed(arm.name)}-{seed}.npz"
        test = self.bench.test.having(arm.modality)
        label = test.label
        assert label is not None
        found = _kept(kept, key)  # another setting in this folder may have left others there
        predictions = dict(self.predictions(arm, seed, network)) if found is None else found
        rows: list[Row] = []
        for way, predicted in predictions.items():
            for metric, value in (("accuracy", accuracy(predicted, label)), ("macro_f1", macro_f1(predicted, label))):
                rows.append(self._row(arm, seed, way, metric, float(value)))
        write_json(path, rows)
        if found is not None:
            return rows
        with whole_file(kept) as temporary, temporary.open("wb") as file:
            arrays: dict[str, Any] = {"key": np.array(key), "label": label, "rows": test.rows, **predictions}
            np.savez_compressed(file, **arrays)
        return rows

    def validation(self, arm: Arm, seed: int, network: nn.Module | None) -> float:
        """Give the linear probe's accuracy on the labelled validation rows, for choices that must not see the test."""
        labelled, held_out = self.bench.label_rows(seed), self.bench.held_out
        assert held_out is not None
        held_out = held_out.subset(held_out.labelled)
        y, truth = labelled.label, held_out.label
        assert y is not None
        assert truth is not None
        x = features(network, labelled, arm.modality)
        probe = linear_probe(x, y, c=self.spec.c, normalise=network is not None)
        return float(accuracy(probe.predict(features(network, held_out, arm.modality)), truth))

    def _row(self, arm: Arm, seed: int, way: str, metric: str, value: float) -> Row:
        data = self.bench.experiment.data
        return {
            "data": self.bench.data.name,
            "source": data.source,
            "target": data.target,
            "method": arm.name,
            "seed": seed,
            "evaluation": way,
            "metric": metric,
            "value": value,
        }

    def predictions(
        self, arm: Arm, seed: int, network: nn.Module | None, seen: dict[str, np.ndarray] | None = None
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Predict the class of every test row, in each way of evaluation.

        Args:
            arm: Which.
            seed: Of the run; it decides the labels.
            network: The frozen encoder; None for raw features.
            seen: What the network made of the test rows is kept here and found here, for another number of labels.

        Yields:
            The way and the predicted classes (n,).
        """
        labelled, test = self.bench.label_rows(seed, arm.modality), self.bench.test.having(arm.modality)
        spec = self.spec
        y = labelled.label
        assert y is not None
        seen = {} if seen is None else seen
        if "test" not in seen:
            seen["test"] = features(network, test, arm.modality)
        train_x, test_x = features(network, labelled, arm.modality), seen["test"]
        tunes = "fine_tune" in spec.ways and network is not None and arm.role != "ceiling"
        probe = None
        if tunes or "linear" in spec.ways:  # with thousands of classes it takes minutes, and neighbours do without
            probe = linear_probe(train_x, y, c=spec.c, normalise=network is not None)  # raw inputs' lengths count
        if "linear" in spec.ways and probe is not None:
            yield "linear", probe.predict(test_x)
        if "knn" in spec.ways:
            metric = "euclidean" if network is None else "cosine"
            yield "knn", knn_predict(train_x, y, test_x, k=min(spec.neighbours, len(y)), metric=metric)
        if tunes and network is not None and probe is not None:
            samples, column = everything(labelled, arm.modality), np.searchsorted(probe.classes, y)
            tuned, head = fine_tune(network, probe.head(), samples, column, steps=spec.fine_tune_steps, seed=seed)
            with torch.no_grad():
                logits: Tensor = head(torch.from_numpy(features(tuned, test, arm.modality)))
            yield "fine_tune", probe.classes[logits.argmax(dim=1).numpy()]


def _kept(path: Path, key: str) -> dict[str, np.ndarray] | None:
    """Read the predictions of a verdict, in the order of the ways; None where they are of another, or damaged."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}  # all of it, for each has a checksum of its own
    except Exception:  # numpy, zipfile and zlib raise a dozen kinds for broken archives
        return None
    if str(arrays.pop("key", "")) != key:
        return None
    return {name: array for name, array in arrays.items() if name not in ("label", "rows")}
