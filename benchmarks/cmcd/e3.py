"""E3 of CMCD: what total variation foretells; run it with `python -m benchmarks.cmcd.e3 [--seeds 3]`.

The world of E1 at six shares rho of the latent that the target sees. TV between the student's and the teacher's
kernels follows the student's accuracy, and not what distillation gains: with everything shared the target can learn by
itself. Checked besides: that the kernels' errors differ by no more than TV (true of any two kernels, without
assumptions), and that telling the two modalities' features apart is always easy, so that a two-sample test says
nothing.
"""

from __future__ import annotations

import numpy as np
from benchmarks.cmcd.e1 import World, objectives
from benchmarks.cmcd.protocol import features, groups, labels, total_variation, vote_errors
from benchmarks.record import Check, Reference, at_least, keep, mean, row, run_seeds, seeds_from
from scipy.stats import spearmanr

from crossdistill.evaluation import accuracy, linear_probe

SHARES = (0.0, 0.3, 0.5, 0.7, 0.85, 1.0)
# the reference figures are of one seed
TV = dict(zip(SHARES, (0.784, 0.688, 0.558, 0.466, 0.413, 0.356), strict=True))
CMD = dict(zip(SHARES, (10.4, 36.7, 59.3, 69.2, 74.1, 79.0), strict=True))
SSL = dict(zip(SHARES, (9.9, 12.5, 30.1, 53.4, 65.1, 76.6), strict=True))


def told_apart(first: np.ndarray, second: np.ndarray) -> float:
    """Two-sample test: accuracy of a linear classifier between unit features of two modalities, on the other half."""
    half = len(first) // 2
    which = np.repeat([0, 1], half)
    probe = linear_probe(np.concatenate([first[:half], second[:half]]), which)
    rest = np.concatenate([first[half : 2 * half], second[half : 2 * half]])
    return accuracy(which, probe.predict(rest))


def run(seed: int) -> dict[str, float]:
    """Run all shares for one seed."""
    found: dict[str, float] = {}
    excess, apart = -1.0, 1.0
    for rho in SHARES:
        world = World(rho, seed)
        ssl, student = world.ssl(), world.distil(objectives()["CMD 0.1"])
        z, t = features(student, world.test, "b"), features(world.teacher, world.test, "a")
        found[f"CMD 0.1 at {rho:g}"], found[f"SSL on target at {rho:g}"] = world.score(student), world.score(ssl)
        found[f"gain at {rho:g}"] = found[f"CMD 0.1 at {rho:g}"] - found[f"SSL on target at {rho:g}"]
        found[f"TV at {rho:g}"] = total_variation(z, t)
        y = labels(world.test)
        each = [total_variation(s.numpy(), g.numpy()) for s, g in groups(z, t)]
        differences = np.abs(np.subtract(vote_errors(z, y), vote_errors(t, y))) - each
        excess, apart = max(excess, float(differences.max())), min(apart, told_apart(z, t))
    tv, acc, gain = ([found[f"{what} at {rho:g}"] for rho in SHARES] for what in ("TV", "CMD 0.1", "gain"))
    found["rank correlation of TV and accuracy"] = float(spearmanr(tv, acc).statistic)
    found["rank correlation of TV and gain"] = float(spearmanr(tv, gain).statistic)
    return found | {"largest excess over the bound": excess, "least accuracy of telling apart": apart}


def main() -> None:
    seeds = seeds_from(__doc__ or "", 3)
    found = run_seeds(run, seeds)
    reference = {f"{what} at {rho:g}": Reference(values[rho], seeds=1) for rho in SHARES
                 for what, values in (("TV", TV), ("CMD 0.1", CMD), ("SSL on target", SSL))}  # fmt: skip

    def pooled(what: str) -> np.ndarray:
        return np.concatenate([found[f"{what} at {rho:g}"] for rho in SHARES])

    follows = float(spearmanr(pooled("TV"), pooled("CMD 0.1")).statistic)
    foretells = float(spearmanr(pooled("TV"), pooled("gain")).statistic)
    gains = [mean(found[f"gain at {rho:g}"]) for rho in SHARES]
    best = int(np.argmax(gains))
    checks = [
        Check("rank correlation of TV and accuracy below -0.9", f"{follows:.3f}", follows < -0.9),
        Check("rank correlation of TV and gain within 0.6 of 0", f"{foretells:.3f}", abs(foretells) < 0.6),
        Check("the largest gain is at an interior rho", f"{SHARES[best]:g}", 0 < best < len(SHARES) - 1),
        Check("errors differ by no more than TV in every group, up to rounding",
              f"{max(found['largest excess over the bound']):.3f} at most",
              max(found["largest excess over the bound"]) <= 1e-6),
        at_least("least accuracy of telling the modalities apart", found["least accuracy of telling apart"], 0.99),
    ]  # fmt: skip
    rows = [row(name, values, reference.get(name)) for name, values in found.items()]
    title = "E3: synthetic world at six shares rho; accuracy and gain, %, TV, rank correlations"
    keep("cmcd", "e3", title, seeds, rows, checks, pooled={"TV and accuracy": follows, "TV and gain": foretells})


if __name__ == "__main__":
    main()
