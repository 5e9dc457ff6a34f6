"""Time and error of the estimators of information; run it with `python -m benchmarks.information.speed [--seeds 3]`.

Seconds are CPU seconds of one thread, error bars included. The latent estimate is of 1000 rows of 64 columns that show
two latents each, correlated by 0.8 (1.02 nats); KSG of 10,000 rows of 8 + 8 columns. latentmi 0.1.3 took 82 CPU seconds
for such data on one machine and 22 on another, at most 60 epochs; where its package is installed, with a NumPy it
imports with, `--peer` runs it on the same rows.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
from benchmarks.record import Check, Reference, keep, mean, row, run_seeds, seeds_from

from crossdistill.diagnostics.information import mutual_information

LATENT_TRUTH = -float(np.log(1 - 0.8**2))
PEER = "latentmi 0.1.3"


def latent_pairs(seed: int, rows: int = 1000, columns: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Draw two views that show two latents each, linearly and without noise."""
    rng = np.random.default_rng(seed)
    first, noise = rng.normal(size=(2, rows, 2))
    shown = rng.normal(size=(2, 2, columns))
    return first @ shown[0], (0.8 * first + 0.6 * noise) @ shown[1]


def dense_pairs(seed: int, rows: int, columns: int, truth: float) -> tuple[np.ndarray, np.ndarray]:
    """Draw Gaussians whose columns are all equally correlated with their partners."""
    rng = np.random.default_rng(seed)
    x, noise = rng.normal(size=(2, rows, columns))
    r = (-np.expm1(-2 * truth / columns)) ** 0.5
    return x, r * x + (1 - r * r) ** 0.5 * noise


def timed(ask: Callable[[], float]) -> tuple[float, float]:
    """Give the answer, and the CPU seconds it took."""
    started = time.process_time()
    return ask(), time.process_time() - started


def run(seed: int, peer: bool) -> dict[str, float]:
    """Time all; names to nats and seconds."""
    found: dict[str, float] = {}

    def note(name: str, ask: Callable[[], float]) -> None:
        found[name], found[f"{name}, seconds"] = timed(ask)

    x, y = latent_pairs(seed)
    mutual_information(x[:100], y[:100], estimator="latent")  # what a first call loads is not counted
    note("latent, 1000 x 64, nats", lambda: mutual_information(x, y, estimator="latent", seed=seed).value)
    if peer:
        note(f"{PEER}, 1000 x 64, nats", lambda: peer_estimate(x, y))
    for truth in (0.0, 1.0, 3.0):
        a, b = dense_pairs(seed, 2000, 10, truth)
        note(
            f"latent, 2000 x 10, truth {truth:g}, nats",
            lambda a=a, b=b: mutual_information(a, b, estimator="latent").value,
        )
    a, b = dense_pairs(seed, 10_000, 8, 2.0)
    note("KSG, 10,000 x 8, nats", lambda: mutual_information(a, b, estimator="ksg").value)
    a, b = dense_pairs(seed, 5000, 512, 2.0)
    note("gaussian, 5000 x 512, nats", lambda: mutual_information(a, b, estimator="gaussian").value)
    a, b = dense_pairs(seed, 2000, 10, 1.0)
    note("infonce, 2000 x 10, nats", lambda: mutual_information(a, b, estimator="infonce").value)
    return found


def peer_estimate(x: np.ndarray, y: np.ndarray) -> float:
    """Ask latentmi: point-wise bits, not a number for the rows it trained on."""
    if not hasattr(np, "NaN"):
        np.NaN = np.nan  # noqa: NPY201 - the name it uses
    from latentmi import lmi

    return float(np.nanmean(lmi.estimate(x, y, quiet=True, epochs=60)[0]) * np.log(2))


def main() -> None:
    peer = "--peer" in sys.argv
    if peer:
        sys.argv.remove("--peer")
    seeds = seeds_from(__doc__ or "", 3)
    found = run_seeds(lambda seed: run(seed, peer), seeds)
    latent, ours = found["latent, 1000 x 64, nats"], mean(found["latent, 1000 x 64, nats, seconds"])
    error = float(np.mean(np.abs(np.subtract(latent, LATENT_TRUTH))))
    checks = [
        Check("latent, 1000 x 64: at most a twentieth of 82 CPU seconds", f"{ours:.2f} s", ours <= 82 / 20),
        Check("latent, 1000 x 64: error at most .04, that of latentmi", f"{error:.3f}", error <= 0.04),
        Check("KSG on 10,000 x 8 in under 5 CPU seconds", f"{mean(found['KSG, 10,000 x 8, nats, seconds']):.2f} s",
              mean(found["KSG, 10,000 x 8, nats, seconds"]) < 5),
    ]  # fmt: skip
    if peer:
        theirs = mean(found[f"{PEER}, 1000 x 64, nats, seconds"])
        off = float(np.mean(np.abs(np.subtract(found[f"{PEER}, 1000 x 64, nats"], LATENT_TRUTH))))
        checks += [
            Check(f"20 times cheaper than {PEER} here", f"{theirs:.1f} / {ours:.2f} s", theirs >= 20 * ours),
            Check(f"error no larger than that of {PEER} here", f"{error:.3f} and {off:.3f}", error <= off),
        ]
    known = {
        "latent, 1000 x 64, nats": Reference(LATENT_TRUTH, source="truth"),
        f"{PEER}, 1000 x 64, nats": Reference(LATENT_TRUTH, source="truth"),
        **{f"latent, 2000 x 10, truth {t:g}, nats": Reference(t, source="truth") for t in (0.0, 1.0, 3.0)},
        "KSG, 10,000 x 8, nats": Reference(2.0, source="truth"),
        "gaussian, 5000 x 512, nats": Reference(2.0, source="truth"),
        "infonce, 2000 x 10, nats": Reference(1.0, source="truth"),
    }
    rows = [row(name, values, known.get(name)) for name, values in found.items()]
    keep("information", "speed", "Estimators of information: nats, and CPU seconds", seeds, rows, checks)


if __name__ == "__main__":
    main()
