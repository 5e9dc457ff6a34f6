"""E2 of CMCD: real digits, and the controls; run it with `python -m benchmarks.cmcd.e2 [--seeds 5]`.

Scikit-learn's digits: the source is the 8 x 8 picture, the target its noisy column and row sums. 900 unlabelled pairs
teach, 256 are held out to measure TV, 3 labels a class are given (scores are means over ten draws), 641 digits test.
The controls are pairs that do not belong together, a teacher that was never trained, fewer pairs at equal steps, and
fine-tuning instead of a probe.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from benchmarks.cmcd.protocol import (
    DRAWS,
    augmented,
    distilled,
    encoder,
    features,
    fill_norms,
    from_scratch,
    labels,
    probed,
    raw,
    self_supervised,
    total_variation,
    tuned,
)
from benchmarks.record import Check, Reference, at_least, difference, keep, row, run_seeds, seeds_from
from torch import nn

from crossdistill.data import PairedDataset, digits_views
from crossdistill.evaluation import few_labels
from crossdistill.objectives import L2, Cosine, CrossModalContrastive, Objective, SimilarityDistillation
from crossdistill.training import TeacherStore

PICTURE = [
    {"affine": {"rotation": math.degrees(0.2), "scale": 0.1, "shift": 0.075, "distribution": "normal"}},
    {"noise": {"std": 0.1}},
]  # a shift of 0.15 where the picture is [-1, 1] is a share of 0.075
SUMS = [{"noise": {"std": 0.15}}]
BATCH, EPOCHS, PAIRS = 150, 80, 900
REFERENCE = {
    "raw numbers": Reference(58.3, 3.4),
    "from scratch": Reference(55.4, 4.2),
    "untrained": Reference(53.8),
    "SSL on target": Reference(63.2, 1.6),
    "teacher on source": Reference(85.1, 3.4),
    "L2": Reference(72.8, 2.2),
    "cosine": Reference(74.1, 2.5),
    "SEED anchor": Reference(73.6, 2.3),
    "CMD 0.1": Reference(75.7, 1.0),
    "CMC 0.1": Reference(69.3, 1.1),
    "CMC 0.5": Reference(75.5, 1.7),
    "CMD 0.1 + CMC 0.5": Reference(75.5, 2.0),
    "CMD 0.05": Reference(74.5),
    "CMD 0.2": Reference(75.5),
    "CMD 0.5": Reference(75.0),
    "shuffled pairs: L2": Reference(18.8),
    "shuffled pairs: CMD 0.1": Reference(37.5),
    "shuffled pairs: CMC 0.5": Reference(24.0),
    "random teacher on source": Reference(75.7),
    "random teacher: L2": Reference(51.4),
    "random teacher: CMD 0.1": Reference(65.6),
    "random teacher: CMC 0.5": Reference(71.1),
    "150 pairs: CMD 0.1": Reference(66.8),
    "300 pairs: CMD 0.1": Reference(71.1),
    "600 pairs: CMD 0.1": Reference(75.7),
    "150 pairs: L2": Reference(66.1),
    "300 pairs: L2": Reference(70.2),
    "600 pairs: L2": Reference(71.6),
    "150 pairs: CMC 0.5": Reference(68.5),
    "300 pairs: CMC 0.5": Reference(71.0),
    "600 pairs: CMC 0.5": Reference(74.2),
    "TV SSL on target": Reference(0.548),
    "TV L2": Reference(0.447),
    "TV cosine": Reference(0.446),
    "TV SEED anchor": Reference(0.525),
    "TV CMD 0.1": Reference(0.457),
    "TV CMC 0.1": Reference(0.574),
    "TV CMC 0.5": Reference(0.505),
    "TV CMD 0.1 + CMC 0.5": Reference(0.446),
}
CONTROLLED = ("L2", "CMD 0.1", "CMC 0.5")


def cmd(tau: float, target: str = "within") -> SimilarityDistillation:
    """Similarity distillation with one temperature on both sides."""
    return SimilarityDistillation(tau, tau_student=tau, target="anchor" if target == "anchor" else "within")


def objectives() -> dict[str, dict[str, Objective]]:
    """Give the losses that are compared."""
    losses: dict[str, dict[str, Objective]] = {
        "L2": {"l2": L2()},
        "cosine": {"cosine": Cosine()},
        "SEED anchor": {"anchor": cmd(0.1, "anchor")},
        "CMC 0.1": {"cmc": CrossModalContrastive(0.1)},
        "CMC 0.5": {"cmc": CrossModalContrastive(0.5)},
        "CMD 0.1 + CMC 0.5": {"cmd": cmd(0.1), "cmc": CrossModalContrastive(0.5)},
    }
    for tau in (0.1, 0.05, 0.2, 0.5):
        losses[f"CMD {tau:g}"] = {"cmd": cmd(tau)}
    return losses


class Digits:
    """The data, the teacher and the common start of one seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.data = digits_views(n_pairs=PAIRS, n_validation=256, seed=seed)
        self.clean = self.data.split("train")
        self.train = augmented(self.clean, {"sums": SUMS})
        self.held_out, self.test = self.data.split("validation"), self.data.split("test")
        y = labels(self.clean)
        self.labelled = [self.clean.subset(few_labels(y, 3, DRAWS * seed + k)) for k in range(DRAWS)]
        self.teacher = self_supervised(
            encoder(self.data, "image", 1000 * seed + 77),
            augmented(self.clean, {"image": PICTURE}),
            "image",
            epochs=60,
            batch_size=BATCH,
            seed=seed,
        )
        self.store = TeacherStore()

    def start(self) -> nn.Module:
        """Give a new student, from the same weights each time."""
        return encoder(self.data, "sums", 1000 * self.seed + 1)

    def distil(
        self,
        name: str,
        *,
        teacher: nn.Module | None = None,
        data: PairedDataset | None = None,
    ) -> nn.Module:
        """Train the student by one loss: always 480 steps of 150 pairs."""
        data = self.train if data is None else data
        return distilled(
            self.start(),
            self.teacher if teacher is None else teacher,
            data,
            objectives()[name],
            source="image",
            target="sums",
            epochs=EPOCHS * PAIRS // len(data),
            batch_size=BATCH,
            seed=self.seed,
            store=self.store,
        )

    def score(self, net: nn.Module) -> float:
        """Linear evaluation of a student, %."""
        return probed(net, self.labelled, self.test, "sums")

    def distance(self, net: nn.Module) -> float:
        """TV between a student's and the teacher's kernels on held-out pairs."""
        return total_variation(features(net, self.held_out, "sums"), features(self.teacher, self.held_out, "image"))


def main_rows(digits: Digits) -> dict[str, float]:
    """Compare the losses, with and without a teacher."""
    students = {
        "SSL on target": self_supervised(
            digits.start(), digits.train, "sums", epochs=EPOCHS, batch_size=BATCH, seed=digits.seed
        )
    }
    students |= {name: digits.distil(name) for name in objectives()}
    found = {
        "raw numbers": raw(digits.labelled, digits.test, "sums"),
        "from scratch": from_scratch(digits.start(), digits.labelled, digits.test, "sums", steps=60, seed=digits.seed),
        "untrained": digits.score(digits.start()),
    }
    found |= {name: digits.score(net) for name, net in students.items()}
    found["teacher on source"] = probed(digits.teacher, digits.labelled, digits.test, "image")
    for name in ("SSL on target", *CONTROLLED):
        found[f"{name}, fine-tuned"] = tuned(students[name], digits.labelled, digits.test, "sums", seed=digits.seed)
    return found | {f"TV {name}": digits.distance(net) for name, net in students.items()}


def control_rows(digits: Digits) -> dict[str, float]:
    """Break the pairing, spare the teacher its training, take pairs away; the steps stay as many."""
    seed = digits.seed
    shuffled = augmented(digits.clean.shuffled("image", seed), {"sums": SUMS})
    random = fill_norms(encoder(digits.data, "image", 1000 * seed + 555), digits.clean, "image", BATCH)
    found = {"random teacher on source": probed(random, digits.labelled, digits.test, "image")}
    for name in CONTROLLED:
        found[f"shuffled pairs: {name}"] = digits.score(digits.distil(name, data=shuffled))
        found[f"random teacher: {name}"] = digits.score(digits.distil(name, teacher=random))
        for pairs in (150, 300, 600):
            few = augmented(digits.clean.subset(np.arange(pairs)), {"sums": SUMS})
            found[f"{pairs} pairs: {name}"] = digits.score(digits.distil(name, data=few))
    return found


def run(seed: int) -> dict[str, float]:
    """Run all rows for one seed; names to accuracies in % and, with "TV ", to distances of kernels."""
    digits = Digits(seed)
    return main_rows(digits) | control_rows(digits)


def checks(found: Mapping[str, Sequence[float]]) -> list[Check]:
    """State the expected figures, on means over seeds."""

    def less(first: str, second: str, bar: float) -> Check:
        return at_least(f"{first} - {second}", difference(found, first, second), bar)

    stated = [
        less("CMD 0.1", "SSL on target", 7),
        less("CMD 0.1", "L2", -1),
        less("CMC 0.5", "CMC 0.1", 3),
    ]
    for name in CONTROLLED:
        rows = [f"{pairs} pairs: {name}" for pairs in (150, 300, 600)] + [name]
        stated += [less(more, fewer, -2) for fewer, more in pairwise(rows)]
    stated += [less(name, f"{name}, fine-tuned", 0) for name in ("SSL on target", *CONTROLLED)]
    stated += [less("untrained", f"shuffled pairs: {name}", 10) for name in CONTROLLED]
    stated.append(less("CMD 0.1", "random teacher: CMD 0.1", 3))
    owed = {name: difference(found, name, f"random teacher: {name}") for name in ("CMD 0.1", "CMC 0.5")}
    words = "what CMD 0.1 owes the teacher's training, less what CMC 0.5 does"
    stated.append(at_least(words, owed["CMD 0.1"] - owed["CMC 0.5"], 0))
    return stated


def main() -> None:
    seeds = seeds_from(__doc__ or "", 5)
    found = run_seeds(run, seeds)
    rows = [row(name, values, REFERENCE.get(name)) for name, values in found.items()]
    keep("cmcd", "e2", "E2: digits, pictures teach sums; accuracy, %, and held-out TV", seeds, rows, checks(found))


if __name__ == "__main__":
    main()
