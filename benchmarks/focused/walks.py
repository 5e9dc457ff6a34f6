"""How long a walk, and what says so; run it with `python -m benchmarks.focused.walks omniglot --out runs/walks`.

Experiments of benchmarks/suites/real.yaml under the league's protocol: `focused` with walks of several lengths. Beside
them stand the number of clusters that both modalities share (`shared_clusters`) and the walk that it leads to. Accuracy
in percent by linear evaluation, a mean over four draws of the labels, on validation and on test rows. Results are kept
in results/walks.json; what an earlier start trained is in the folder of --out, and is not trained again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crossdistill.data import PairedDataset
from crossdistill.evaluation import accuracy, few_labels, linear_probe
from crossdistill.experiments.arms import list_arms
from crossdistill.experiments.bench import Bench
from crossdistill.experiments.judge import features
from crossdistill.experiments.suite_plan import Hall
from crossdistill.experiments.suites import Shelf, expand
from crossdistill.experiments.yaml_lines import Document, read_document
from crossdistill.files import write_json
from crossdistill.objectives._graph import generic_features, neighbour_graph, shared_clusters
from crossdistill.objectives.smoothed import SmoothedTarget

SUITE = Path(__file__).parents[1] / "suites" / "real.yaml"
OUT = Path(__file__).parent / "results" / "walks.json"
DRAWS = 4


def said_by_the_pairs(bench: Bench, train: PairedDataset, seed: int) -> dict[str, float]:
    """Give the clusters that a teacher's features and the target's inputs share, and the automatic share and walk."""
    source, target = bench.experiment.data.source, bench.experiment.data.target
    z = torch.as_tensor(features(bench.teacher(bench.experiment.student, seed), train, source))
    h = generic_features(torch.cat(list(train.samples(target))))
    chosen = SmoothedTarget().fit(z, h)
    clusters = shared_clusters(neighbour_graph(z), neighbour_graph(h, standardise=True))
    return {"clusters": clusters, "target_share": chosen.target_share, "walk": chosen.walk}


def main() -> None:
    """Train, judge, keep and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="+")
    parser.add_argument("--walks", type=float, nargs="*", default=[2.0, 4.0, 8.0])
    parser.add_argument("--labels", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/walks"), help="a folder for networks")
    given = parser.parse_args()
    torch.set_num_threads(1)
    document = read_document(SUITE)
    values: dict[str, Any] = {**document.values, "labels_per_class": [1]}
    values["experiments"] = {
        name: {k: v for k, v in document.values["experiments"][name].items() if k != "labels_per_class"}
        for name in given.experiments
    }
    values["methods"] = ["similarity", *({f"walk {t:g}": {"focused": {"walk": t}}} for t in given.walks)]
    shelf = Shelf()
    lines = {place: line for place, line in document.lines.items() if place[0] != "methods"}
    suite = expand(Document(document.name, values, lines), shelf)
    hall = Hall(suite.entries, given.out, shelf)
    for entry in suite.entries:
        bench = next(iter(hall.benches(entry.name).values()))
        train, validation, test = (bench.data.split(name) for name in ("train", "validation", "test"))
        assert train.label is not None
        found: dict[str, Any] = said_by_the_pairs(bench, train, given.seed)
        for arm in list_arms(bench.experiment):
            if not arm.name.startswith("walk "):
                continue
            network = bench.product(arm, given.seed)
            x, scores = features(network, train, arm.modality), dict[str, float]()
            for k in given.labels:
                draws = [few_labels(train.label, k, 1000 * given.seed + d, fewer="take") for d in range(DRAWS)]
                probes = [linear_probe(x[rows], train.label[rows]) for rows in draws]
                for split, part in (("validation", validation), ("test", test)):
                    z, y = features(network, part, arm.modality), part.label
                    assert y is not None
                    right = [float(accuracy(probe.predict(z), y)) for probe in probes]
                    scores[f"{split}, {k}"] = round(100 * float(np.mean(right)), 1)
            found[arm.name] = scores
        print(entry.name, given.seed, found, flush=True)
        write_json(OUT, {**_kept(), f"{entry.name}, seed {given.seed}": found})


def _kept() -> dict[str, Any]:
    return json.loads(OUT.read_text(encoding="utf-8")) if OUT.exists() else {}


if __name__ == "__main__":
    main()
