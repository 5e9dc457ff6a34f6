"""What DisCoM-KD's losses do to the parts; run it with `python -m benchmarks.fidelity.discomkd [--seeds 8]`.

Synthetic and unpaired: of 6 classes each modality has shared prototypes (8), its own (4) and nuisance (6, sd 2), mixed
linearly into tanh: 24 dimensions with noise 0.8 for A, 20 with noise 1.2 for B, each with a draw of labels of its own.
240 samples a modality, parts of 32, 600 steps of Adam at 1e-3 on batches of 64. A linear probe (least squares, fitted
to one half of 3000 + 3000 new samples and judged on the other) tells the modality from each part.

Accuracies are not checked: none gains by more than one standard deviation, and that is the finding. Scales of the
prototypes, the mixing and the encoders' hidden width were not kept with the reference figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from benchmarks.cmcd.protocol import drawn_from
from benchmarks.record import Check, Reference, add_difference, keep, mean, row, run_seeds, seeds_from
from torch import Tensor

from crossdistill.evaluation import accuracy
from crossdistill.methods.discomkd import Branch, DisCoMKD, Parts
from crossdistill.networks import MLP

CLASSES, SAMPLES, STEPS, BATCH, NEW = 6, 240, 600, 64, 3000
SHAPES = {"A": (24, 0.8), "B": (20, 1.2)}  # width and noise
ALONE, OWN = "L_cl only", "+ L_aux + L_ort"
RELEASED, INTENDED = "+ as released L_adv, L_mod", "+ intended L_adv, L_mod"
VARIANTS: dict[str, dict[str, Any]] = {
    ALONE: {"adversarial": 0.0, "modal": 0.0, "auxiliary": 0.0, "orthogonal": 0.0},
    OWN: {"adversarial": 0.0, "modal": 0.0},
    RELEASED: {"modality_targets": "as_released"},
    INTENDED: {},
}
# accuracies of A and B with standard deviations where kept, cos(inf, irr), probe on z_inv
FIGURES = {
    ALONE: ((76.2, 0.9), (60.3, 1.0), 0.44, 66.7),
    OWN: ((77.3, None), (59.7, 1.8), 0.0, 86.4),
    RELEASED: ((77.1, None), (59.0, 1.8), 0.0, 85.2),
    INTENDED: ((77.0, None), (59.6, 1.2), 0.0, 67.9),
}
NOTE = (
    "Accuracies lie lower than our prototype's, by 10 points (A) and 17 (B): the scales of its world and the width of "
    "its encoders were not kept, and here both classifiers have the harder task. What the losses do to the parts and "
    "to accuracy, less the variant before them on the same seed, is compared by rows of its own."
)
STEPS_UP = ((OWN, ALONE), (RELEASED, OWN), (INTENDED, OWN))
"""Variants, each with the one that it is compared with."""


class World:
    """The two modalities of one seed."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        shared = self.rng.normal(size=(CLASSES, 8))
        self.prototypes = {m: np.hstack([shared, self.rng.normal(size=(CLASSES, 4))]) for m in SHAPES}
        self.mixing = {m: self.rng.normal(size=(18, width)) / 18**0.5 for m, (width, _) in SHAPES.items()}

    def draw(self, modality: str, count: int) -> tuple[Tensor, Tensor]:
        """Draw samples (count, width) and labels (count,)."""
        width, noise = SHAPES[modality]
        y = self.rng.integers(0, CLASSES, count)
        latent = np.hstack([self.prototypes[modality][y], 2 * self.rng.normal(size=(count, 6))])
        x = np.tanh(latent @ self.mixing[modality]) + noise * self.rng.normal(size=(count, width))
        return torch.from_numpy(x.astype("float32")), torch.from_numpy(y)


def train(options: Mapping[str, Any], data: Mapping[str, tuple[Tensor, Tensor]], seed: int) -> DisCoMKD:
    """Train on two streams that are shuffled each for itself."""
    with drawn_from(seed):
        encoders = {m: MLP((width,), hidden=(128,), dim=64, norm=False) for m, (width, _) in SHAPES.items()}
        method = DisCoMKD(encoders, classes=CLASSES, **options).train()
        streams = {m: _shuffled(*xy) for m, xy in data.items()}
        optimizer = torch.optim.Adam(method.parameters(), lr=1e-3)
        for _ in range(STEPS):
            rows = {m: next(stream) for m, stream in streams.items()}
            batch = {m: x for m, (x, _) in rows.items()} | {"label": {m: y for m, (_, y) in rows.items()}}
            optimizer.zero_grad()
            method.training_step(batch).total.backward()
            optimizer.step()
    return method.eval()


def _shuffled(x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        order = torch.randperm(len(x))
        for start in range(0, len(x) - BATCH + 1, BATCH):
            rows = order[start : start + BATCH]
            yield x[rows], y[rows]


def told_apart(first: Tensor, second: Tensor) -> float:
    """Give the accuracy of a least-squares probe between two modalities' parts, on the other half, %."""
    z = torch.cat([first, second]).double()
    z = torch.cat([z, z.new_ones(len(z), 1)], dim=1).numpy()
    side = np.repeat([-1.0, 1.0], [len(first), len(second)])
    fitted = np.arange(len(z)) % 2 == 0
    weight = np.linalg.lstsq(z[fitted], side[fitted], rcond=None)[0]
    return 100 * float(np.mean((z[~fitted] @ weight > 0) == (side[~fitted] > 0)))


@torch.no_grad()
def run(seed: int) -> dict[str, float]:
    """Run the four variants for one seed."""
    world = World(seed)
    data, new = ({m: world.draw(m, count) for m in SHAPES} for count in (SAMPLES, NEW))
    found: dict[str, float] = {}
    for name, options in VARIANTS.items():
        with torch.enable_grad():
            method = train(options, data, seed)
        parts: dict[str, Parts] = {}
        for m, (x, y) in new.items():
            network = method.as_teacher(m)
            found[f"accuracy {m}, {name}"] = 100 * accuracy(y.numpy(), network(x).logits.argmax(dim=1).numpy())
            branch = method.student(m)
            assert isinstance(branch, Branch)
            parts[m] = branch.parts(x)
        cosines = [torch.cosine_similarity(p.informative, p.irrelevant).mean().item() for p in parts.values()]
        found[f"100 cos(inf, irr), {name}"] = 100 * float(np.mean(cosines))
        for part in Parts._fields:
            found[f"probe on {part}, {name}"] = told_apart(*(getattr(p, part) for p in parts.values()))
    return found


def main() -> None:
    seeds = seeds_from(__doc__ or "", 8)
    found = run_seeds(run, seeds)
    reference: dict[str, Reference] = {}
    for name, (a, b, cosine, probe) in FIGURES.items():
        reference[f"accuracy A, {name}"], reference[f"accuracy B, {name}"] = Reference(*a, 4), Reference(*b, 4)
        reference[f"100 cos(inf, irr), {name}"] = Reference(100 * cosine, None, 4)
        reference[f"probe on invariant, {name}"] = Reference(probe, None, 4)
    for name, before in STEPS_UP:
        for what in ("accuracy A", "accuracy B", "probe on invariant"):
            add_difference(found, reference, f"{what}, {name}", f"{what}, {before}", f"{what}: {name} less {before}")
    own, released, intended = (mean(found[f"probe on invariant, {name}"]) for name in (OWN, RELEASED, INTENDED))
    cosine = mean(found[f"100 cos(inf, irr), {INTENDED}"])
    seen = {part: mean(found[f"probe on {part}, {INTENDED}"]) for part in ("informative", "irrelevant")}
    checks = [
        Check("cos(inf, irr) < 0.02 with all losses", f"{cosine / 100:.4f}", cosine < 2),
        Check("probe on z_inv falls by >= 10 with intended targets", f"{own - intended:.1f}", own - intended >= 10),
        Check("probe on z_inv falls by < 5 with those as released", f"{own - released:.1f}", own - released < 5),
        *(Check(f"probe on z_{part} about 100 (>= 98)", f"{v:.1f}", v >= 98) for part, v in seen.items()),
    ]
    rows = [row(name, values, reference.get(name)) for name, values in found.items()]
    title = "DisCoM-KD: parts of two unpaired synthetic modalities; accuracies and modality probes, %, cosines"
    keep("fidelity", "discomkd", title, seeds, rows, checks, note=NOTE)


if __name__ == "__main__":
    main()
