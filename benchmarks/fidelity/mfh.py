"""The Modality Focusing Hypothesis on Gaussian data; run it with `python -m benchmarks.fidelity.mfh [--seeds 40]`.

Two sweeps of the authors' synthetic experiments, rebuilt from their description. Linear teacher and student, two
classes, 200 pairs; labels and divergence with weights 1 and 1, the latter "elementwise" as in the released code.

E1: more of the latents that decide the label are in both modalities (gamma), and distillation goes from harm to help,
while the teacher's accuracy stays where it is. E2: the teacher sees ever more that the student cannot (alpha); it gets
far better, and what distillation gains gets smaller.

All seeds and points of a sweep are trained at once, as one batched product. Reference figures: the released code on the
same 40 seeds, run by us; data are drawn in its order, so they are nearly the same, initial weights are not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from benchmarks.record import CODE, Check, Reference, difference, keep, mean, row, seeds_from
from scipy.stats import spearmanr
from threadpoolctl import threadpool_limits
from torch import Tensor

from crossdistill.objectives.labels import labelled_cross_entropy
from crossdistill.objectives.mfh import crossmodal_kd

OVERLAPS = {0: 0.0, 2: 0.11, 4: 0.25, 6: 0.43, 8: 0.67, 10: 1.0}
SPECIFIC = {0: 0.0, 10: 0.5, 20: 0.67, 30: 0.75, 40: 0.8}
PAIRS, TESTS, STEPS, RATE = 200, 1000, 1000, 0.1
World = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Teacher's and student's inputs and labels of a draw."""

# of 40 seeds: teacher, distilled student, its gain and the gain's standard error
E1 = {
    0.0: (71.17, 66.68, -1.28, 0.20), 0.11: (70.45, 67.27, -0.69, 0.16), 0.25: (69.99, 68.01, 0.06, 0.21),
    0.43: (70.46, 68.45, 0.49, 0.20), 0.67: (71.35, 69.36, 1.41, 0.17), 1.0: (71.03, 70.33, 2.37, 0.16),
}  # fmt: skip
E2 = {
    0.0: (57.05, 57.91, 1.37, 0.13), 0.5: (63.95, 57.62, 1.08, 0.14), 0.67: (70.76, 57.32, 0.77, 0.14),
    0.75: (79.25, 57.00, 0.45, 0.09), 0.8: (89.79, 56.71, 0.16, 0.05),
}  # fmt: skip
NO_KD = {"E1": 67.96, "E2": 56.54}


def overlapping(random: np.random.RandomState, a: np.ndarray, rows: int, shared: int) -> World:
    """Draw E1's pairs: ten latents in each modality, `shared` of them the same; some that decide are in neither."""
    latent = random.randn(rows, 20)
    student, teacher = random.randn(rows, 50), random.randn(rows, 25)
    student[:, :10], teacher[:, :10] = latent[:, :10], latent[:, 10 - shared : 20 - shared]
    return teacher, student, (latent @ a[:20] > 0).astype(np.int64)


def exceeding(random: np.random.RandomState, a: np.ndarray, rows: int, specific: int) -> World:
    """Draw E2's pairs: the student sees ten of fifty deciding latents, the teacher these and `specific` more."""
    latent = random.randn(rows, 50)
    student, teacher = random.randn(rows, 50), random.randn(rows, 50)
    student[:, :10], teacher[:, : specific + 10] = latent[:, :10], latent[:, : specific + 10]
    return teacher, student, (latent @ a[:50] > 0).astype(np.int64)


def worlds(draw: Callable[..., World], points: Sequence[Any], seeds: Sequence[int]) -> list[list[Tensor]]:
    """Draw training and test pairs of all points and seeds: (teacher, student, label) with worlds first, twice."""
    drawn: list[list[World]] = [[], []]
    for point in points:
        for seed in seeds:
            random = np.random.RandomState(seed)
            a = random.randn(500)
            drawn[0].append(draw(random, a, PAIRS, point))
            drawn[1].append(draw(np.random.RandomState(seed + 1), a, TESTS, point))
    return [
        [torch.from_numpy(np.stack(part)) for part in (zip(*half, strict=True))] for half in drawn
    ]  # float64 until they are used


class Linears:
    """One linear network d to 2 for each world, with torch's default initialisation, seeded by the world's seed."""

    def __init__(self, width: int, seeds: Sequence[int], points: int) -> None:
        drawn = []
        for seed in seeds:
            torch.manual_seed(seed)
            layer = torch.nn.Linear(width, 2)
            drawn.append(torch.cat([layer.weight, layer.bias[:, None]], dim=1).detach())
        self.weight = torch.stack(drawn * points).requires_grad_()

    def __call__(self, x: Tensor) -> Tensor:
        """Give logits (worlds, n, 2) of (worlds, n, d)."""
        return torch.baddbmm(self.weight[:, None, :, -1], x, self.weight[:, :, :-1].transpose(1, 2))

    def fit(self, x: Tensor, label: Tensor, teacher: Tensor | None = None) -> Linears:
        """Train by full-batch gradient descent, on labels and on a teacher's logits (worlds, n, 2) if there are any."""
        optimiser, y = torch.optim.SGD([self.weight], lr=RATE), label.flatten()
        for _ in range(STEPS):
            logits = self(x).flatten(0, 1)
            if teacher is None:
                loss = labelled_cross_entropy(logits, y)
            else:  # twice rho = 1/2: weights 1 and 1
                parts = crossmodal_kd(logits, teacher.flatten(0, 1), y, rho=0.5, reduction="elementwise")
                loss = 2 * sum(parts.values(), torch.zeros(()))
            optimiser.zero_grad()
            (len(x) * loss).backward()  # the mean is over all worlds, each of which is trained by itself
            optimiser.step()
        return self

    @torch.no_grad()
    def accuracy(self, x: Tensor, label: Tensor) -> np.ndarray:
        """Give each world's accuracy, %."""
        return 100 * (self(x).argmax(dim=2) == label).double().mean(dim=1).numpy()


def sweep(
    name: str, draw: Callable[..., World], points: dict[int, float], seeds: Sequence[int]
) -> dict[str, list[float]]:
    """Train teachers, students without and with them at all points, and give their accuracies by row."""
    (x_t, x_s, y), (test_t, test_s, test_y) = worlds(draw, list(points), seeds)
    x_t, x_s, test_t, test_s = (part.float() for part in (x_t, x_s, test_t, test_s))
    teacher = Linears(x_t.shape[2], seeds, len(points)).fit(x_t, y)
    one = len(seeds)  # the student's data are those of the first point at all: it is enough to train it there
    alone = Linears(x_s.shape[2], seeds, 1).fit(x_s[:one], y[:one]).accuracy(test_s[:one], test_y[:one])
    with torch.no_grad():
        logits = teacher(x_t)
    taught = Linears(x_s.shape[2], seeds, len(points)).fit(x_s, y, logits).accuracy(test_s, test_y)
    good = teacher.accuracy(test_t, test_y)
    found = {f"{name} no KD": list(alone)}
    for i, value in enumerate(points.values()):
        mine = slice(i * one, (i + 1) * one)
        found[f"{name} teacher at {value:g}"] = list(good[mine])
        found[f"{name} KD at {value:g}"] = list(taught[mine])
        found[f"{name} gain at {value:g}"] = list(taught[mine] - alone)
    return found


def references(name: str) -> dict[str, Reference]:
    """Give the released code's figures of a sweep by row."""
    known = {f"{name} no KD": Reference(NO_KD[name], None, 40, CODE)}
    for at, (teacher, student, gain, error) in (E1 if name == "E1" else E2).items():
        known[f"{name} teacher at {at:g}"] = Reference(teacher, None, 40, CODE)
        known[f"{name} KD at {at:g}"] = Reference(student, None, 40, CODE)
        known[f"{name} gain at {at:g}"] = Reference(gain, error * 40**0.5, 40, CODE)
    return known


def gamma_checks(found: dict[str, list[float]]) -> list[Check]:
    """Compare E1 with the expected figures; ranges are about three standard errors of 40 seeds."""
    gains = [mean(found[f"E1 gain at {at:g}"]) for at in E1]
    rises = float(spearmanr(list(E1), gains).statistic)
    whole = mean(difference(found, "E1 gain at 1", "E1 gain at 0"))
    alone = mean(found["E1 no KD"])
    return [
        Check("E1: mean gain rises with gamma, one adjacent swap at most", f"{rises:.3f}", rises > 0.94),
        Check("E1: gain at gamma 0 in [-2.0, -0.6]", f"{gains[0]:.2f}", -2.0 <= gains[0] <= -0.6),
        Check("E1: gain at gamma 1 in [1.8, 3.0]", f"{gains[-1]:.2f}", 1.8 <= gains[-1] <= 3.0),
        Check("E1: their difference within 3.65 +- 0.75", f"{whole:.2f}", abs(whole - 3.65) <= 0.75),
        Check("E1: student without teacher within 68.0 +- 0.6", f"{alone:.2f}", abs(alone - 68.0) <= 0.6),
    ]


def alpha_checks(found: dict[str, list[float]]) -> list[Check]:
    """Compare E2 with the expected figures."""
    gains = [mean(found[f"E2 gain at {at:g}"]) for at in E2]
    falls = float(spearmanr(list(E2), gains).statistic)
    gap = np.concatenate([difference(found, f"E2 teacher at {at:g}", "E2 no KD") for at in E2])
    each = np.concatenate([found[f"E2 gain at {at:g}"] for at in E2])
    follows = float(spearmanr(gap, each).statistic)
    low, high = mean(found["E2 teacher at 0"]), mean(found["E2 teacher at 0.8"])
    return [
        Check("E2: the teacher goes from 57 to 90, +- 2", f"{low:.2f} to {high:.2f}",
              abs(low - 57) <= 2 and abs(high - 90) <= 2),
        Check("E2: mean gain falls with alpha, one adjacent swap at most", f"{falls:.3f}", falls <= -0.9),
        Check("E2: gain from +1.4 to +0.2, +- 0.4", f"{gains[0]:.2f} to {gains[-1]:.2f}",
              abs(gains[0] - 1.4) <= 0.4 and abs(gains[-1] - 0.2) <= 0.4),
        Check("E2: rank correlation of the teacher's lead and the gain, run by run, below -0.3", f"{follows:.3f}",
              follows < -0.3),
    ]  # fmt: skip


def main() -> None:
    seeds = seeds_from(__doc__ or "", 40)
    torch.set_num_threads(1)
    with threadpool_limits(1):
        found = sweep("E1", overlapping, OVERLAPS, seeds) | sweep("E2", exceeding, SPECIFIC, seeds)
    known = references("E1") | references("E2")
    rows = [row(name, values, known.get(name)) for name, values in found.items()]
    keep("fidelity", "mfh", "MFH: Gaussian sweeps of gamma (E1) and alpha (E2); accuracy, %", seeds, rows,
         gamma_checks(found) + alpha_checks(found), about=["kd"])  # fmt: skip


if __name__ == "__main__":
    main()
