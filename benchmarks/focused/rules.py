"""Can the walk and the target's share be chosen without labels? Run it with `python -m benchmarks.focused.rules`.

Students of Multiple Features are distilled with several shares and walks. Rules that read no label then choose among
them, and are judged by the accuracy of what they chose, against the former defaults (share 0.25, walk 8). The rule that
was found afterwards, and is the default now, is judged in share.py.

    found     half of the pairs make the target, a kernel ridge student learns it, and on the other half we count how
              many of each pair's ten neighbours for the teacher are among its ten nearest for that student
    both      the same, and the neighbours in the target's own raw features counted too
    leading   of the share alone: 0.5 where the leading eigenvalues of the target's graph exceed the teacher's
    auto      of the walk alone: the smallest whose participation is at most 10

The protocol is that of benchmarks/cmcd (Adam, MLPs, ten draws of labels). Results are kept in results/rules.json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.cmcd.protocol import DRAWS, augmented, distilled, encoder, features, probed, samples, self_supervised
from torch import Tensor

from crossdistill.data import PairedDataset, load
from crossdistill.evaluation import few_labels
from crossdistill.files import write_json
from crossdistill.nearest import nearest
from crossdistill.objectives import SimilarityDistillation, unit
from crossdistill.objectives.focused import Focused
from crossdistill.objectives.smoothed import SmoothedTarget

PAIRS = (("pix", "zer"), ("fac", "fou"), ("fou", "kar"), ("zer", "mor"))
SHARES = (0.0, 0.25, 0.5, 1.0)
WALKS: tuple[Any, ...] = (2.0, 4.0, 8.0, "auto")
DEFAULT = (0.25, 8.0)
SETTINGS = (*((share, 8.0) for share in SHARES), *((0.25, walk) for walk in WALKS if walk != DEFAULT[1]))
LABELS = (1, 5, 20)
NOISE = [{"noise": {"std": 0.3}}, {"dropout": {"share": 0.2}}]
BATCH, NEAR = 256, 10
OUT = Path(__file__).parent / "results" / "rules.json"


def spread(z: Tensor) -> Tensor:
    """Centre and standardise columns, then scale rows: the features that graphs are made of."""
    z = z - z.mean(dim=0)
    return unit(z / z.square().mean(dim=0).sqrt().clamp(min=1e-6))


def ridge(x: Tensor, y: Tensor, new: Tensor, penalty: float = 0.1) -> Tensor:
    """Predict y (m columns, rows at unit length) at `new` by kernel ridge regression of median width."""
    width = torch.cdist(x, x).median()
    kernel = torch.exp(-(torch.cdist(x, x) ** 2) / (2 * width**2))
    weights = torch.linalg.solve(kernel + penalty * torch.eye(len(x)), unit(y))
    return torch.exp(-(torch.cdist(new, x) ** 2) / (2 * width**2)) @ weights


def shared(one: Tensor, other: Tensor) -> float:
    """Give the share of each row's ten nearest in `one` that are among its ten nearest in `other`."""
    a, b = nearest(unit(one - one.mean(dim=0)), NEAR)[0], nearest(unit(other - other.mean(dim=0)), NEAR)[0]
    return float((a[:, :, None] == b[:, None, :]).any(dim=2).float().mean())


def foretold(z: Tensor, x: Tensor, share: float, walk: Any) -> dict[str, float]:
    """Say without labels how good a setting is, from halves of the training pairs."""
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(0))
    fit, held = order[: len(z) // 2], order[len(z) // 2 :]
    target = SmoothedTarget(target_share=share, walk=walk).fit(z[fit], x[fit])
    student = ridge(spread(x)[fit], target.coordinates, spread(x)[held])
    by_teacher, by_target = shared(student, z[held]), shared(student, spread(x)[held])
    return {"found": by_teacher, "both": (by_teacher + by_target) / 2}


def describe(z: Tensor, x: Tensor) -> dict[str, float]:
    """Compare the two graphs: how clustered each is, and how many neighbours they share."""
    means: dict[str, float] = {}
    for name, share in (("teacher", 0.0), ("target", 1.0)):
        target = SmoothedTarget(target_share=share).fit(z, x)
        means[f"{name}_leading"] = float(target.eigenvalues[:NEAR].mean())
        means[f"{name}_participation"] = target.participation
    return {**means, "overlap": shared(z, spread(x))}


def measure(data: PairedDataset, source: str, target: str, seed: int, epochs: int) -> dict[str, Any]:
    """Train the teacher and all students of a direction and seed."""
    train, test = data.split("train"), data.split("test")
    label = train.label
    assert label is not None
    draws = {n: [train.subset(few_labels(label, n, 100 * seed + d)) for d in range(DRAWS)] for n in LABELS}
    noisy = augmented(train, {source: NOISE, target: NOISE})
    net = encoder(data, source, seed)
    teacher = self_supervised(net, noisy, source, epochs=7 * epochs // 4, batch_size=BATCH, seed=seed)
    z, x = torch.from_numpy(features(teacher, train, source)), samples(train, target)
    pairs = augmented(train, {target: NOISE})

    def scored(objective: torch.nn.Module) -> dict[str, float]:
        student = distilled(
            encoder(data, target, seed + 50), teacher, pairs, {"loss": objective},  # type: ignore[dict-item]
            source=source, target=target, epochs=epochs, batch_size=BATCH, seed=seed,
        )  # fmt: skip
        found = {f"{n} labels": probed(student, draws[n], test, target) for n in LABELS}
        return {**found, "mean": float(np.mean(list(found.values())))}

    rows: list[dict[str, Any]] = [{"setting": "similarity", **scored(SimilarityDistillation(0.2, tau_student=0.2))}]
    for share, walk in SETTINGS:
        objective = Focused(target_share=share, walk=walk)
        row = {"setting": f"share {share:g}, walk {walk}", "share": share, "walk": walk, **scored(objective)}
        rows.append({**row, "walked": objective.target.walk, **foretold(z, x, share, walk)})
    return {"source": source, "target": target, "seed": seed, "graphs": describe(z, x), "rows": rows}


def chosen(run: Mapping[str, Any], rule: str) -> float:
    """Give the mean accuracy of what a rule would have taken."""
    rows = [row for row in run["rows"] if "share" in row]
    by = {(row["share"], row["walk"]): row["mean"] for row in rows}
    if rule in ("found", "both"):
        return max(rows, key=lambda row: row[rule])["mean"]
    if rule == "best in hindsight":
        return max(by.values())
    if rule == "leading":
        good = run["graphs"]["target_leading"] > run["graphs"]["teacher_leading"]
        return by[0.5 if good else 0.25, 8.0]
    return by[0.25, "auto" if rule == "auto" else 8.0]


def main() -> None:
    """Measure all directions and seeds, keep them, and print what each rule is worth."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=100)
    given = parser.parse_args()
    torch.set_num_threads(1)
    data, runs, clock = load("mfeat"), [], time.process_time()
    for seed in range(10, 10 + given.seeds):
        for source, target in PAIRS:
            runs.append(measure(data, source, target, seed, given.epochs))
            rules = ("found", "both", "leading", "auto", "best in hindsight")
            verdict = {rule: [chosen(run, rule) - chosen(run, "default") for run in runs] for rule in rules}
            found = {"cpu_seconds": round(time.process_time() - clock), "minus_default": verdict, "runs": runs}
            write_json(OUT, found)
            print(source, target, seed, {row["setting"]: round(row["mean"], 1) for row in runs[-1]["rows"]}, flush=True)
    for rule, values in verdict.items():
        print(f"{rule:20} minus default {np.mean(values):+.2f} (se {np.std(values) / len(values) ** 0.5:.2f})")


if __name__ == "__main__":
    main()
