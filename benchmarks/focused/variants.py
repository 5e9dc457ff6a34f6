"""Other settings of `focused`; run it with `python -m benchmarks.focused.variants omniglot --rows walk=2 walk=8`.

Experiments of a suite under the league's protocol. Beside the rows stand what clusters of both modalities share by
their number (`alike`), the number that is believed, and the share and the walk that are chosen by default. Accuracy
in percent by linear evaluation, a mean over four draws of the labels, on validation and on test rows. Results are
added to results/variants.json; what an earlier start trained is in the folder of --out, and is not trained again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from crossdistill.data import PairedDataset
from crossdistill.evaluation import accuracy, few_labels, linear_probe
from crossdistill.experiments.arms import list_arms
from crossdistill.experiments.bench import Bench
from crossdistill.experiments.judge import features
from crossdistill.experiments.suite_plan import Hall
from crossdistill.experiments.suites import Shelf, expand
from crossdistill.experiments.yaml_lines import Document, read_document
from crossdistill.files import write_json
from crossdistill.objectives._graph import alike, generic_features, neighbour_graph, shared_clusters
from crossdistill.objectives.smoothed import SmoothedTarget

SUITES = Path(__file__).parents[1] / "suites"
OUT = Path(__file__).parent / "results" / "variants.json"
DRAWS = 4


def said_by_the_pairs(bench: Bench, train: PairedDataset, seed: int) -> dict[str, Any]:
    """Give what clusters of a teacher's features and of the target's inputs share, and the default's share and walk."""
    source, target = bench.experiment.data.source, bench.experiment.data.target
    z = torch.as_tensor(features(bench.teacher(bench.experiment.student, seed), train, source))
    h = generic_features(torch.cat(list(train.samples(target))))
    chosen = SmoothedTarget().fit(z, h, pairing=train.pairing)
    graphs = neighbour_graph(z), neighbour_graph(h, standardise=True)
    return {
        "alike": {number: round(value, 3) for number, value in alike(*graphs).items()},
        "clusters": shared_clusters(*graphs),
        "target_share": round(chosen.target_share, 2),
        "walk": chosen.walk,
    }


def main() -> None:
    """Train, judge, keep and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="+")
    parser.add_argument("--suite", type=Path, default=SUITES / "real.yaml")
    parser.add_argument("--rows", nargs="*", default=[], help="settings, as walk=2 or walk=auto,mask_groups=true")
    parser.add_argument("--labels", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/variants"), help="a folder for networks")
    given = parser.parse_args()
    if strange := [row for row in given.rows if not all("=" in setting for setting in row.split(","))]:
        parser.error(f"rows are settings such as walk=2; received {', '.join(strange)}")
    torch.set_num_threads(1)
    document = read_document(given.suite)
    values: dict[str, Any] = {**document.values, "labels_per_class": [1]}
    values["experiments"] = {
        name: {k: v for k, v in document.values["experiments"][name].items() if k != "labels_per_class"}
        for name in given.experiments
    }
    rows = {row: yaml.safe_load("\n".join(row.replace("=", ": ").split(","))) for row in given.rows}
    values["methods"] = ["similarity", *({row: {"focused": settings}} for row, settings in rows.items())]
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
            if arm.name not in rows:
                continue
            network = bench.product(arm, given.seed)
            x, scores = features(network, train, arm.modality), dict[str, float]()
            for k in given.labels:
                draws = [few_labels(train.label, k, 1000 * given.seed + d, fewer="take") for d in range(DRAWS)]
                probes = [linear_probe(x[chosen], train.label[chosen]) for chosen in draws]
                for split, part in (("validation", validation), ("test", test)):
                    z, y = features(network, part, arm.modality), part.label
                    assert y is not None
                    right = [float(accuracy(probe.predict(z), y)) for probe in probes]
                    scores[f"{split}, {k}"] = round(100 * float(np.mean(right)), 1)
            found[arm.name] = scores
        print(entry.name, given.seed, found, flush=True)
        kept = json.loads(OUT.read_text(encoding="utf-8")) if OUT.exists() else {}
        name = f"{entry.name}, seed {given.seed}"
        write_json(OUT, {**kept, name: {**kept.get(name, {}), **found}})


if __name__ == "__main__":
    main()
