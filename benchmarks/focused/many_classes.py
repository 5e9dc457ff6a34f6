"""How long a walk where classes are many and small; run it with `python -m benchmarks.focused.many_classes`.

242 characters of about 20 pairs each. The demo's experiment with `focused` under several walks, and with the control on
the pen's own neighbourhoods; the share is 0.25, the former default. Accuracy in percent by linear evaluation, 3 labels
a class, on the validation writers and on the test writers. Nothing here is tuned on the test writers. Results are kept
in results/many_classes.json.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from crossdistill.evaluation import accuracy, linear_probe
from crossdistill.experiments import Bench
from crossdistill.experiments.arms import Arm, list_arms
from crossdistill.experiments.files import shipped
from crossdistill.experiments.judge import features
from crossdistill.experiments.schema import read_experiment
from crossdistill.files import write_json

WALKS = (2.0, 8.0)
OUT = Path(__file__).parent / "results" / "many_classes.json"


def score(bench: Bench, arm: Arm, seed: int) -> dict[str, float]:
    """Train an arm, and judge it on both sets of unseen writers."""
    network = bench.product(arm, seed)
    labelled = bench.label_rows(seed)
    assert labelled.label is not None
    probe = linear_probe(features(network, labelled, arm.modality), labelled.label)
    found: dict[str, float] = {}
    for split in ("validation", "test"):
        rows = bench.data.split(split)
        assert rows.label is not None
        found[split] = 100 * float(accuracy(probe.predict(features(network, rows, arm.modality)), rows.label))
    return found


def main() -> None:
    """Measure, keep and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="a folder of the demo's saves its teachers")
    given = parser.parse_args()
    torch.set_num_threads(1)
    compare = [f"{{walk {walk:g}: {{focused: {{walk: {walk}, target_share: 0.25}}}}}}" for walk in WALKS]
    compare.append("{hint: {focused: {n_classes_hint: 242, target_share: 0.25, walk: 8}}}")
    rows: dict[str, list[dict[str, float]]] = {}
    clock = time.process_time()
    for seed in range(given.seeds):
        for walk in WALKS:
            changes = [f"compare=[{', '.join(compare)}]", f"controls.target_graph.walk={walk}"]
            bench = Bench(read_experiment(shipped("demo"), changes), given.out)
            for arm in list_arms(bench.experiment):
                name = f"own graph, walk {walk:g}" if arm.name == "target_graph" else arm.name
                if len(rows.get(name, [])) > seed or not (arm.role in ("method", "baseline") or "own graph" in name):
                    continue
                rows.setdefault(name, []).append(score(bench, arm, seed))
                mean = {s: round(float(np.mean([r[s] for r in rows[name]])), 1) for s in ("validation", "test")}
                print(seed, name, mean, flush=True)
                write_json(OUT, {"cpu_seconds": round(time.process_time() - clock), "rows": rows})


if __name__ == "__main__":
    main()
