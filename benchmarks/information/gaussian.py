"""CCH's linear Gaussian world in closed form and simulated; run it with `python -m benchmarks.information.gaussian`.

Six teachers of a student with 40 labels and 10 columns: a good one, the labels, one that follows their noise, noise, a
constant, and a good one on the wrong scale. Each is distilled with five weights; the excess
risk over 4000 draws of labels is held against the closed form, and the gap I(teacher; student) - I(student; label) of
20,000 pairs against its own. A seed is another set of draws; it takes some five seconds of one core.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from benchmarks.record import Check, Reference, keep, mean, row, run_seeds, seeds_from

from crossdistill.diagnostics.complementary import complementarity
from crossdistill.diagnostics.gaussian_risk import GaussianTeacher, gaussian_gap

COLUMNS, LABELS, DRAWS, PAIRS = 10, 40, 4000, 20_000
EXPLAINED, NOISE = 0.3, 0.7  # of the label, by the student's columns and by nothing it sees
WEIGHTS = (0.0, 0.1, 0.3, 1.0, 3.0)
DERIVED = "closed form, rounded"


class Case(NamedTuple):
    """A teacher: its direction as a multiple of the label's, its noise and what that has in common with the label's.

    `gap` and `risks` are the figures expected: the risks at `WEIGHTS`.
    """

    scale: float
    noise: float
    common: float
    gap: float | None
    risks: tuple[float, ...]


CASES = {
    "A good": Case(1.0, 0.1, 0.1, 0.52, (0.241, 0.206, 0.157, 0.086, 0.047)),
    "B the labels": Case(1.0, NOISE, NOISE, 0.0, (0.241, 0.241, 0.241, 0.241, 0.241)),
    "C follows label noise": Case(1.0, 1.3, 0.9, -0.07, (0.241, 0.255, 0.277, 0.328, 0.384)),
    "D noise": Case(0.0, 1.0, 0.0, -0.18, (0.241, 0.205, 0.177, 0.222, 0.378)),
    "E a constant": Case(0.0, 0.0, 0.0, None, (0.241, 0.202, 0.159, 0.135, 0.184)),
    "F wrong scale": Case(3.0, 0.1, 0.1, 1.49, (0.241, 0.215, 0.221, 0.386, 0.722)),
}


def world(case: Case, rows: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw what the student sees (rows, d), labels (rows,) and what the teacher says (rows,)."""
    x = rng.normal(size=(rows, COLUMNS))
    best = x[:, 0] * EXPLAINED**0.5
    e, free = rng.normal(size=(2, rows))
    slope = case.common / NOISE
    h = slope * NOISE**0.5 * e + max(0.0, case.noise - slope * case.common) ** 0.5 * free
    return x, best + NOISE**0.5 * e, case.scale * best + h


def risks(case: Case, rng: np.random.Generator) -> list[float]:
    """Give the excess risk for each weight, a mean over draws of the labels."""
    best = np.zeros(COLUMNS)
    best[0] = EXPLAINED**0.5
    total = np.zeros(len(WEIGHTS))
    for _ in range(DRAWS):
        x, y, t = world(case, LABELS, rng)
        own, taught = np.linalg.lstsq(x, np.stack([y, t], axis=1), rcond=None)[0].T
        for i, weight in enumerate(WEIGHTS):
            share = weight / (1 + weight)
            total[i] += (((1 - share) * own + share * taught - best) ** 2).sum()
    return (total / DRAWS).tolist()


def closed(case: Case) -> GaussianTeacher:
    """Give the closed form of a case."""
    return GaussianTeacher(
        n=LABELS,
        d=COLUMNS,
        label_noise=NOISE,
        teacher_noise=case.noise,
        common_noise=case.common,
        bias=(case.scale - 1) ** 2 * EXPLAINED,
    )


def run(seed: int) -> dict[str, float]:
    """Run all cases; names to excess risks, gaps in nats, and the largest share by which a risk is off."""
    found: dict[str, float] = {}
    off = 0.0
    for number, (name, case) in enumerate(CASES.items()):
        rng = np.random.default_rng([seed, number])
        for weight, risk in zip(WEIGHTS, risks(case, rng), strict=True):
            found[f"{name}, weight {weight:g}"] = risk
            off = max(off, abs(risk / closed(case).risk(weight / (1 + weight)) - 1))
        if case.gap is not None:
            x, y, t = world(case, PAIRS, rng)
            found[f"{name}, gap"] = complementarity(t, x, y, draws=5, seed=seed).gap.value
    return found | {"largest excess over the closed form, share": off}


def main() -> None:
    seeds = seeds_from(__doc__ or "", 3)
    found = run_seeds(run, seeds)
    known: dict[str, Reference] = {}
    checks: list[Check] = []
    for name, case in CASES.items():
        here = closed(case)
        exact = [here.risk(weight / (1 + weight)) for weight in WEIGHTS]
        known |= {
            f"{name}, weight {w:g}": Reference(r, source=DERIVED) for w, r in zip(WEIGHTS, case.risks, strict=True)
        }
        worst = float(np.abs(np.subtract(exact, case.risks)).max())
        checks.append(Check(f"{name}: closed form within .0006 of the figures", f"{worst:.5f}", worst <= 0.0006))
        if case.gap is not None:
            known[f"{name}, gap"] = Reference(case.gap, source=DERIVED)
            gap = gaussian_gap(case.scale**2 * EXPLAINED, case.noise, EXPLAINED, NOISE)
            measured = mean(found[f"{name}, gap"])
            checks.append(Check(f"{name}: gap within .02 of {gap:.3f}", f"{measured:.3f}", abs(measured - gap) <= 0.02))
    flat = [mean(found[f"B the labels, weight {weight:g}"]) for weight in WEIGHTS]
    off = max(found["largest excess over the closed form, share"])
    gains = {name: found[f"{name}, weight 0"][0] - found[f"{name}, weight 1"][0] for name in CASES}
    checks += [
        Check("simulation within 4 % of the closed form", f"{100 * off:.2f} % at most", off <= 0.04),
        Check("B: the same at every weight", f"from {min(flat):.4f} to {max(flat):.4f}", max(flat) - min(flat) <= 1e-9),
        Check("at weight 1, A and E help, C and F hurt", str({n: round(g, 3) for n, g in gains.items()}),
              min(gains[n] for n in ("A good", "E a constant")) > 0
              > max(gains[n] for n in ("C follows label noise", "F wrong scale"))),
    ]  # fmt: skip
    rows = [row(name, values, known.get(name)) for name, values in found.items()]
    keep("information", "gaussian", "CCH, linear Gaussian world: excess risk, and gap in nats", seeds, rows, checks)


if __name__ == "__main__":
    main()
