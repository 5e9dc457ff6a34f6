"""E1 of CMCD: distillation in a world of known truth; run it with `python -m benchmarks.cmcd.e1 [--seeds 3]`.

Two modalities of 64 numbers each see one latent of 8 dimensions; the target sees a share rho of it, under more noise.
4000 unlabelled pairs teach, 50 random labels are given (scores are means over ten draws), 2000 samples test. At
rho = 0.8 distillation helps much; at rho = 0 nothing is shared, and whatever still "helps" leaks labels.
"""

from __future__ import annotations

import numpy as np
from benchmarks.cmcd.protocol import (
    DRAWS,
    augmented,
    distilled,
    encoder,
    features,
    from_scratch,
    probed,
    raw,
    self_supervised,
    total_variation,
    tuned,
)
from benchmarks.record import Check, Reference, at_least, difference, keep, mean, row, run_seeds, seeds_from
from torch import nn

from crossdistill.data import shared_latent
from crossdistill.objectives import L2, CrossModalContrastive, Objective, SimilarityDistillation
from crossdistill.training import TeacherStore

AUGMENT = [{"noise": {"std": 0.5}}, {"dropout": {"share": 0.2}}]
BATCH = 250
REFERENCE = {
    "raw numbers": Reference(52.7, 5.9),
    "from scratch": Reference(55.6, 4.8),
    "SSL on target": Reference(60.4, 4.5),
    "L2": Reference(74.1, seeds=2),
    "CMD 0.1": Reference(75.1, seeds=2),
    "CMC 0.1": Reference(69.3, seeds=2),
    "CMC 0.5": Reference(74.0, seeds=2),
    "CMD 0.1 + CMC 0.3": Reference(74.1, seeds=2),
    "teacher on source": Reference(82.3, 1.8),
}
CHANCE = Reference(10.0, 0.67)  # of ten classes, and what 2000 test samples leave to luck


def objectives() -> dict[str, dict[str, Objective]]:
    """Give the losses that are compared."""
    return {
        "L2": {"l2": L2()},
        "CMD 0.1": {"cmd": SimilarityDistillation(0.1, tau_student=0.1)},
        "CMC 0.1": {"cmc": CrossModalContrastive(0.1)},
        "CMC 0.5": {"cmc": CrossModalContrastive(0.5)},
        "CMD 0.1 + CMC 0.3": {
            "cmd": SimilarityDistillation(0.1, tau_student=0.1),
            "cmc": CrossModalContrastive(0.3),
        },
    }


class World:
    """The data, the teacher and the common start of one (rho, seed)."""

    def __init__(self, rho: float, seed: int) -> None:
        self.seed = seed
        data = shared_latent(rho=rho, seed=seed)
        self.train = augmented(data.split("train"), {"b": AUGMENT})
        self.test = data.split("test")
        pool = data.split("validation")  # labels of samples that no stage has trained on
        order = np.random.default_rng(seed).permutation(len(pool))
        self.labelled = [pool.subset(order[50 * k : 50 * k + 50]) for k in range(DRAWS)]
        sources = augmented(data.split("train"), {"a": AUGMENT})
        self.teacher = self_supervised(
            encoder(data, "a", 1000 * seed + 77), sources, "a", epochs=15, batch_size=BATCH, seed=seed
        )
        self.store = TeacherStore()

    def start(self) -> nn.Module:
        """Give a new student, from the same weights each time."""
        return encoder(self.train, "b", 1000 * self.seed + 1)

    def ssl(self) -> nn.Module:
        """Train the student without a teacher."""
        return self_supervised(self.start(), self.train, "b", epochs=20, batch_size=BATCH, seed=self.seed)

    def distil(self, losses: dict[str, Objective]) -> nn.Module:
        """Train the student with the teacher."""
        return distilled(
            self.start(),
            self.teacher,
            self.train,
            losses,
            source="a",
            target="b",
            epochs=20,
            batch_size=BATCH,
            seed=self.seed,
            store=self.store,
        )

    def score(self, net: nn.Module) -> float:
        """Linear evaluation of a student, %."""
        return probed(net, self.labelled, self.test, "b")


def run(rho: float, seed: int) -> dict[str, float]:
    """Run all rows for one world; names to accuracies in % and, with "TV ", to distances of kernels."""
    world = World(rho, seed)
    labelled = [augmented(draw, {"b": AUGMENT}) for draw in world.labelled]
    found = {
        "raw numbers": raw(world.labelled, world.test, "b"),
        "from scratch": from_scratch(world.start(), labelled, world.test, "b", steps=200, seed=seed),
        "untrained": world.score(world.start()),
    }
    teacher_test = features(world.teacher, world.test, "a")
    students = {"SSL on target": world.ssl()}
    students |= {name: world.distil(losses) for name, losses in objectives().items()}
    found |= {name: world.score(net) for name, net in students.items()}
    found["CMD 0.1, fine-tuned"] = tuned(students["CMD 0.1"], world.labelled, world.test, "b", seed=seed)
    found["teacher on source"] = probed(world.teacher, world.labelled, world.test, "a")
    tv = {name: total_variation(features(net, world.test, "b"), teacher_test) for name, net in students.items()}
    return found | {f"TV {name}": value for name, value in tv.items()}


def main() -> None:
    seeds = seeds_from(__doc__ or "", 3)
    close = run_seeds(lambda seed: run(0.8, seed), seeds)
    apart = run_seeds(lambda seed: run(0.0, seed), seeds)
    sighted = ("teacher on source",)  # the teacher sees the classes: rho is the target's share
    blind = {n: mean(v) for n, v in apart.items() if not n.startswith("TV") and n not in sighted}
    worst = max(blind, key=lambda name: abs(blind[name] - 10))
    checks = [
        at_least("rho 0.8: CMD 0.1 - SSL on target", difference(close, "CMD 0.1", "SSL on target"), 8),
        at_least("rho 0.8: teacher on source - CMD 0.1", difference(close, "teacher on source", "CMD 0.1"), 3),
        at_least("rho 0.8: CMC 0.5 - CMC 0.1", difference(close, "CMC 0.5", "CMC 0.1"), 2),
        Check("rho 0: every row of the target within 3 of 10", f"{worst} {blind[worst]:.2f} is farthest",
              abs(blind[worst] - 10) <= 3),
    ]  # fmt: skip
    rows = [row(name, values, REFERENCE.get(name)) for name, values in close.items()]
    rows += [
        row(f"rho 0: {name}", values, CHANCE if name in blind else None)
        for name, values in apart.items()
        if not name.startswith("TV")
    ]
    keep("cmcd", "e1", "E1: synthetic world, rho 0.8 (and rho 0 where said); accuracy, %, and TV", seeds, rows, checks)


if __name__ == "__main__":
    main()
