"""A suite's folder as `crossdistill bench` would leave it: predictions of known skill, and their real scores."""

import json
import zlib

import numpy as np

from crossdistill.evaluation import accuracy, macro_f1

METHODS = {
    "similarity": ("method", 0.16),
    "contrastive": ("baseline", 0.13),
    "rkd": ("baseline", 0.10),
    "raw_features": ("control", 0.0),
    "scratch": ("control", 0.05),
    "teacher": ("ceiling", 0.30),
}


def experiment(name="toy-a-b", data="toy", **facts):
    return {
        "track": "label-free", "data": data, "source": "a", "target": "b", "pairing": "natural", "pairs": 800,
        "test": 200, "classes": 4, "class_names": ["ant", "bee", "cat", "dog"], "family": name, "limit": None, **facts,
    }  # fmt: skip


def make_bench(
    folder,
    methods=METHODS,
    experiments=None,
    *,
    seeds=5,
    labels=(5, None),
    evaluations=("linear", "knn"),
    items=200,
    noise=0.02,
    groups=None,
    titles=None,
    tuned=(),
    seed=0,
):
    """Draw predictions item by item and write results.json and predictions/.

    Every method is right on an item with probability 0.55 + skill + what the item, the experiment and the seed add;
    methods share the items' difficulty, as real ones do. Skill is the number in `methods`, or a function of
    (experiment, labels_per_class).
    """
    experiments = experiments if experiments is not None else {"toy-a-b": experiment()}
    rows, runs = [], []
    for name, facts in experiments.items():
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        label = rng.integers(facts["classes"], size=items)
        hard, level = rng.normal(0, 0.15, items), rng.normal(0, 0.05)
        for method, (_, skill) in methods.items():
            for s in range(seeds):
                arrays = {"label": label, "rows": np.arange(items)}
                if groups is not None:
                    arrays["group"] = np.arange(items) % groups
                luck = rng.normal(0, noise)
                for k in labels:
                    for way in evaluations:
                        if method == "raw_features" and way == "fine_tune":
                            continue
                        own = skill(name, k) if callable(skill) else skill
                        more = 0.0 if k is None else -0.25 / np.sqrt(k)
                        right = rng.random(items) < np.clip(0.55 + own + more + level + luck + hard, 0.02, 0.98)
                        wrong = (label + rng.integers(1, facts["classes"], size=items)) % facts["classes"]
                        predicted = np.where(right, label, wrong)
                        arrays[f"{way}@{'all' if k is None else k}"] = predicted
                        for metric, f in (("accuracy", accuracy), ("macro_f1", macro_f1)):
                            rows.append(
                                {"experiment": name, "method": method, "seed": s, "labels_per_class": k,
                                 "evaluation": way, "metric": metric, "value": float(f(predicted, label)),
                                 **{key: facts[key] for key in ("data", "source", "target", "track")}}
                            )  # fmt: skip
                path = folder / "predictions" / name / f"{method.replace('/', '_')}-{s}.npz"
                path.parent.mkdir(parents=True, exist_ok=True)
                np.savez_compressed(path, **arrays)
                cost = 1 + 10 * (zlib.crc32(method.encode()) % 7)
                runs.append(
                    {"experiment": name, "method": method, "seed": s, "status": "done", "reason": "",
                     "seconds": cost / 2 + 0.1 * s, "cpu_seconds": cost + 0.1 * s, "steps": 400}
                )  # fmt: skip
    results = {
        "kind": "bench", "title": "toy suite",
        "tracks": list(dict.fromkeys(e["track"] for e in experiments.values())),
        "methods": {m: {"role": role, "title": (titles or {}).get(m, f"{m}, a {role}"), "tuned": m in tuned}
                    for m, (role, _) in methods.items()},
        "experiments": experiments, "labels_per_class": list(labels), "evaluations": list(evaluations),
        "runs": runs, "rows": rows, "skipped": [], "complete": True, "missing": 0,
        "environment": {"command": "crossdistill bench toy.yaml", "crossdistill": "0.1.0", "started": "2026-03-01"},
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return results
