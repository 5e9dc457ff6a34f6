"""From two arrays to a verdict: an NPZ file, an experiment in eight lines, and the page that proves it."""

import tempfile
from pathlib import Path

import numpy as np

from crossdistill.experiments import parse_experiment, run_experiment
from crossdistill.report import write_report

rng = np.random.default_rng(0)
label = rng.integers(0, 4, 600)
latent = rng.normal(size=(4, 6))[label] + 0.7 * rng.normal(size=(600, 6))
rich = (latent @ rng.normal(size=(6, 32))).astype("float32")
poor = (latent @ rng.normal(size=(6, 10)) + rng.normal(size=(600, 10))).astype("float32")
folder = Path(tempfile.mkdtemp())
np.savez(folder / "pairs.npz", rich=rich, poor=poor, label=label)

experiment = parse_experiment(f"""
data: {{name: {folder}/pairs.npz, source: rich, target: poor}}
networks: {{rich: {{hidden: [32]}}, poor: {{hidden: [32]}}}}
stages:
  teacher: {{method: simclr, modality: rich, epochs: 2, batch_size: 64}}
  student: {{method: distillation, teacher: teacher, objectives: {{similarity: 1.0}}, epochs: 2, batch_size: 64}}
evaluate: {{labels_per_class: 5, ways: [linear]}}
seeds: 2
""")
results = run_experiment(experiment, folder / "run", jobs=1)
print(results["sentence"])
print(write_report(folder / "run").name)
