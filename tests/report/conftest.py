"""A run folder as `crossdistill run` would leave it: small, seeded, with doodles to look at."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

MakeRun = Callable[..., Path]

METHODS = {
    "cmcd": ("method", "Similarity distillation and cross-modal contrast (Lin et al. 2024)", 0.71),
    "rkd": ("method", "Relational distillation (Park et al. 2019)", 0.655),
    "logit_kd": ("method", "Softened logits (Hinton et al. 2015)", 0.63),
    "scratch": ("control", "Student from scratch on labels alone", 0.64),
    "target_ssl": ("control", "Self-supervision on the target alone (SimCLR)", 0.612),
    "raw_features": ("baseline", "Raw features of the target", 0.44),
    "shuffled_pairs": ("control", "cmcd with shuffled pairs", 0.585),
    "random_teacher": ("control", "cmcd with a random teacher", 0.60),
    "teacher": ("ceiling", "The teacher on its own modality", 0.86),
}
CLASSES = ("loop", "eight", "clover", "arch", "wave", "spiral", "star", "hook", "ring", "fish")


def make_results(seeds: int = 5, names: dict[str, str] | None = None) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    names = names or {}
    scores: dict[tuple[str, str], np.ndarray] = {}
    rows = []
    for method, (role, _, mean) in METHODS.items():
        for evaluation, shift in (("linear", 0.0), ("knn", -0.04), ("fine_tune", 0.05)):
            if evaluation == "fine_tune" and method in ("raw_features", "teacher"):
                continue
            values = np.clip(mean + shift + rng.normal(0, 0.015, seeds), 0, 1)
            scores[method, evaluation] = values
            side = {"source": "picture", "target": "picture" if role == "ceiling" else "pen"}
            rows += [
                {"data": "doodles", **side, "method": names.get(method, method), "seed": seed, "evaluation": evaluation,
                 "metric": "accuracy", "value": float(value)}
                for seed, value in enumerate(values)
            ]  # fmt: skip
    comparisons = []
    for method in ("cmcd", "rkd", "logit_kd", "shuffled_pairs", "random_teacher"):
        for against in ("scratch", "target_ssl"):
            for evaluation in ("linear", "knn"):
                difference = scores[method, evaluation] - scores[against, evaluation]
                half = stats.t.ppf(0.975, seeds - 1) * difference.std(ddof=1) / np.sqrt(seeds) if seeds > 1 else None
                mean = float(difference.mean())
                comparisons.append(
                    {"method": names.get(method, method), "against": names.get(against, against), "metric": "accuracy",
                     "evaluation": evaluation, "difference": mean, "seeds": seeds,
                     "low": None if half is None else mean - float(half),
                     "high": None if half is None else mean + float(half)}
                )  # fmt: skip
    return {
        "rows": rows,
        "comparisons": comparisons,
        "verdict": "helped" if seeds > 1 else "undecided",
        "sentence": "Distillation helped: cmcd beats scratch, the best student without it, on linear accuracy.",
        "headline": {"method": names.get("cmcd", "cmcd"), "against": names.get("scratch", "scratch"),
                     "evaluation": "linear", "metric": "accuracy"},
        "methods": {names.get(m, m): {"role": role, "title": title} for m, (role, title, _) in METHODS.items()},
        "skipped": [{"method": "mfh", "reason": "needs teacher logits; the teacher was trained without labels"}],
        "data": {
            "name": "doodles", "about": "Closed curves as picture and as pen movement.", "pairing": "natural",
            "licence": "CC0-1.0", "attribution": "Drawn by a seeded generator, see https://example.org/doodles",
            "counts": {"train": {"pairs": 3388, "labelled": 400}, "test": 968}, "classes": 10,
            "warnings": ["12 test pairs are near-duplicates of training pairs; they were left out."],
        },
        "environment": {
            "crossdistill": "0.1.0", "code": "f043a4c", "python": "3.11.9", "torch": "2.13.0", "platform": "Linux",
            "cpu": "a processor with 8 cores", "started": "2026-03-01T09:30:00Z", "seconds": 4321.5,
            "command": "crossdistill run doodles.yaml",
        },
    }  # fmt: skip


def make_history(seeds: int = 3) -> str:
    rng = np.random.default_rng(1)
    lines = []
    for method in ("cmcd", "rkd", "scratch", "shuffled_pairs"):
        for stage in ("distil",) if method != "scratch" else ("train",):
            for seed in range(seeds):
                for epoch in range(20):
                    loss = 2.2 * np.exp(-epoch / 6) + 0.3 + rng.normal(0, 0.03)
                    line = {"method": method, "stage": stage, "seed": seed, "epoch": epoch, "step": 50 * epoch,
                            "loss": loss, "cmc": loss / 2, "lr": 1e-3, "data_wait": 0.01}  # fmt: skip
                    if method != "shuffled_pairs":
                        line["held_out/loss"] = loss + 0.1 + 0.012 * epoch
                    lines.append(json.dumps(line))
    return "\n".join(lines) + "\n"


def _doodle(label: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A pen path (3, 48) of x, y, pen and its picture (3, 32, 32) in [0, 1]."""
    t = np.linspace(0, 2 * np.pi, 44)
    a, b, c = 1 + label % 4, 1 + (label * 2) % 5, 0.15 * label
    x, y = np.cos(a * t + c) * (1 + 0.3 * np.cos(3 * t)), np.sin(b * t)
    path = np.stack([x, y], 1) + rng.normal(0, 0.03, (44, 2))
    pen = np.ones(44)
    pen[[0, 22]] = 0
    sequence = np.zeros((48, 3))
    sequence[:44] = np.column_stack([path, pen])
    grid = np.stack(np.meshgrid(np.linspace(-1.5, 1.5, 32), np.linspace(-1.5, 1.5, 32)), -1)
    distance = np.linalg.norm(grid[:, :, None] - path[None, None], axis=-1).min(-1)
    ink = np.exp(-((distance / 0.13) ** 2))
    hue = 0.5 + 0.5 * np.cos(2 * np.pi * (label / 10 + np.array([0, 0.33, 0.67])))
    ground = np.array([0.95, 0.93, 0.88]) - 0.1 * rng.random(3)
    return sequence.T, (ground[:, None, None] * (1 - ink) + hue[:, None, None] * ink).astype(np.float32)


def make_evidence(points: int = 300, queries: int = 5, depth: int = 6, classes: int = 10) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    labels = rng.integers(classes, size=points)
    spaces = {}
    for key, width, spread in (("map_teacher", 24, 1.2), ("map_student", 16, 0.9), ("map_control", 16, 0.5)):
        centres = rng.normal(size=(classes, width)) * spread
        spaces[key] = (centres[labels] + rng.normal(size=(points, width))).astype(np.float32)
    query_label = rng.integers(min(classes, 10), size=queries)
    right = rng.random((queries, depth)) < 0.7
    found = np.where(right, query_label[:, None], (query_label[:, None] + 3) % 10)
    items = [[_doodle(int(label), rng) for label in row] for row in found]
    described = {
        "source": {"name": "picture", "kind": "image", "shape": [3, 32, 32]},
        "target": {"name": "pen", "kind": "sequence", "shape": [3, 48], "channels": ["x", "y", "pen"]},
    }
    return {
        "map_label": labels,
        **spaces,
        "map_control_name": np.array("scratch"),
        "query_target": np.stack([_doodle(int(label), rng)[0] for label in query_label]),
        "query_label": query_label,
        "retrieved_source": np.array([[item[1] for item in row] for row in items]),
        "retrieved_target": np.array([[item[0] for item in row] for row in items]),
        "retrieved_label": found,
        "class_names": np.array([*CLASSES, *(f"more {i}" for i in range(classes - 10))]),
        "modalities": np.array(json.dumps(described)),
    }


EXPERIMENT = "data: doodles\nsource: picture\ntarget: pen\nseeds: [0, 1, 2, 3, 4]\nmethods: [cmcd, rkd, logit_kd]\n"


def _make_run(
    folder: Path,
    *,
    results: dict[str, Any] | None = None,
    history: str | None = None,
    evidence: dict[str, np.ndarray] | None = None,
    without: tuple[str, ...] = (),
) -> Path:
    """Write a run folder; `without` names files to leave out, the rest replaces what the generator would give."""
    folder.mkdir(parents=True, exist_ok=True)
    if "results.json" not in without:
        (folder / "results.json").write_text(json.dumps(results or make_results()), encoding="utf-8")
    if "metrics.jsonl" not in without:
        (folder / "metrics.jsonl").write_text(history or make_history(), encoding="utf-8")
    if "experiment.yaml" not in without:
        (folder / "experiment.yaml").write_text(EXPERIMENT, encoding="utf-8")
    if "evidence.npz" not in without:
        np.savez_compressed(folder / "evidence.npz", **(evidence or make_evidence()))
    return folder


@pytest.fixture(scope="session")
def make_run() -> MakeRun:
    return _make_run


@pytest.fixture(scope="session")
def results_json() -> Callable[..., dict[str, Any]]:
    return make_results


@pytest.fixture(scope="session")
def evidence_arrays() -> Callable[..., dict[str, np.ndarray]]:
    return make_evidence
