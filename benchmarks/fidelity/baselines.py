"""The baselines beside CMCD on E2's digits; run it with `python -m benchmarks.fidelity.baselines [--seeds 5]`.

Data, teacher, start, steps and probe are those of `benchmarks.cmcd.e2`; the loss alone changes. Expected is what the
same protocol gave an earlier implementation of the same formulas: from scratch below self-supervision below all losses
between features, which lie close together, below the teacher. RKD's figure is of its distance part alone, and SP's is
at weight 1000. The controls are pairs that do not belong together and a teacher that was never trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from benchmarks.cmcd.e2 import BATCH, EPOCHS, SUMS, Digits
from benchmarks.cmcd.protocol import (
    augmented,
    encoder,
    fill_norms,
    from_scratch,
    probed,
    raw,
    self_supervised,
    settings,
)
from benchmarks.record import Check, Reference, at_least, difference, keep, mean, row, run_seeds, seeds_from
from torch import nn

from crossdistill.data import PairedDataset
from crossdistill.methods import Distillation
from crossdistill.objectives import L2, Cosine, CrossModalContrastive, Objective, SimilarityDistillation
from crossdistill.objectives.cc import CorrelationCongruence
from crossdistill.objectives.crd import ContrastiveRepresentation
from crossdistill.objectives.pkt import ProbabilisticTransfer
from crossdistill.objectives.rkd import RelationalDistillation
from crossdistill.objectives.seed import Seed
from crossdistill.objectives.sp import SimilarityPreserving
from crossdistill.objectives.vid import VariationalInformation
from crossdistill.training import fit

LOSSES: dict[str, Callable[[], Objective]] = {
    "RKD distance": lambda: RelationalDistillation(25.0, angle=0.0),
    "L2": L2,
    "SP": SimilarityPreserving,
    "cosine": Cosine,
    "PKT": ProbabilisticTransfer,
    "CMD 0.1": lambda: SimilarityDistillation(0.1, tau_student=0.1),
    "CMC 0.5": lambda: CrossModalContrastive(0.5),
    "CMC 0.1": lambda: CrossModalContrastive(0.1),
    "CRD in batch 0.1": lambda: ContrastiveRepresentation("batch", dim=32, tau=0.1),
    "CRD in batch 0.5": lambda: ContrastiveRepresentation("batch", dim=32, tau=0.5),
    "SEED anchor": lambda: Seed(0.1, tau_student=0.1, queue_size=0),
    "RKD, angles of 32": lambda: RelationalDistillation(vertices=32),
    "PKT, mean over entries": lambda: ProbabilisticTransfer("entries"),
    "CRD memory 0.5, 512 negatives": lambda: ContrastiveRepresentation("memory", tau=0.5, count=512),
    "SEED as released, queue 600": lambda: Seed(queue_size=600),
    "CC": CorrelationCongruence,
    "CC, unit length": lambda: CorrelationCongruence(normalise=True),
    "CC, embeddings of 128": lambda: CorrelationCongruence(width=128),
    "CCKD, unit length": lambda: CorrelationCongruence("kernel", normalise=True),
    "VID": VariationalInformation,
}
WEIGHTS = {"SP": 1000.0}
BRACES = ("RKD distance", "L2", "SP", "cosine", "PKT", "CMD 0.1", "CMC 0.5")
CONTROLLED = ("L2", "PKT", "CMD 0.1", "CMC 0.5")
REFERENCE = {
    "raw numbers": Reference(58.3, 3.4),
    "from scratch": Reference(55.4, 4.2),
    "untrained": Reference(53.8),
    "SSL on target": Reference(63.2, 1.6),
    "teacher on source": Reference(85.1, 3.4),
    "RKD distance": Reference(70.4),
    "L2": Reference(72.8, 2.2),
    "SP": Reference(73.3),
    "cosine": Reference(74.1, 2.5),
    "PKT": Reference(74.4, 1.6),
    "CMD 0.1": Reference(75.7, 1.0),
    "CMC 0.5": Reference(75.5, 1.7),
    "CMC 0.1": Reference(69.3, 1.1),
    "CRD in batch 0.1": Reference(64.8, 3.6),
    "CRD in batch 0.5": Reference(72.1, 1.2),
    "SEED anchor": Reference(73.6, 2.3),
    "shuffled pairs: L2": Reference(18.8),
    "shuffled pairs: PKT": Reference(36.7),
    "shuffled pairs: CMD 0.1": Reference(37.5),
    "shuffled pairs: CMC 0.5": Reference(24.0),
    "random teacher on source": Reference(75.7),
    "random teacher: L2": Reference(51.4),
    "random teacher: PKT": Reference(64.4),
    "random teacher: CMD 0.1": Reference(65.6),
    "random teacher: CMC 0.5": Reference(71.1),
}


def trained(digits: Digits, name: str, *, teacher: nn.Module | None = None, data: PairedDataset | None = None) -> float:
    """Distil by one loss, 480 steps of 150 pairs from the common start; give the student's linear evaluation, %."""
    method = Distillation(
        digits.start(),
        teacher=digits.teacher if teacher is None else teacher,
        objectives={"loss": LOSSES[name]()},
        source="image",
        target="sums",
        weights={"loss": WEIGHTS.get(name, 1.0)},
        projector="none",
    )
    data = digits.train if data is None else data
    fit(method, data, settings(EPOCHS, BATCH), seed=digits.seed, store=digits.store, accelerator="cpu")
    return digits.score(method.student("sums"))


def run(seed: int) -> dict[str, float]:
    """Run all rows for one seed; names to accuracies, %."""
    digits = Digits(seed)
    own = self_supervised(digits.start(), digits.train, "sums", epochs=EPOCHS, batch_size=BATCH, seed=seed)
    found = {
        "raw numbers": raw(digits.labelled, digits.test, "sums"),
        "from scratch": from_scratch(digits.start(), digits.labelled, digits.test, "sums", steps=60, seed=seed),
        "untrained": digits.score(digits.start()),
        "SSL on target": digits.score(own),
        "teacher on source": probed(digits.teacher, digits.labelled, digits.test, "image"),
    }
    found |= {name: trained(digits, name) for name in LOSSES}
    shuffled = augmented(digits.clean.shuffled("image", seed), {"sums": SUMS})
    random = fill_norms(encoder(digits.data, "image", 1000 * seed + 555), digits.clean, "image", BATCH)
    found["random teacher on source"] = probed(random, digits.labelled, digits.test, "image")
    for name in CONTROLLED:
        found[f"shuffled pairs: {name}"] = trained(digits, name, data=shuffled)
        found[f"random teacher: {name}"] = trained(digits, name, teacher=random)
    return found


def checks(found: Mapping[str, Sequence[float]]) -> list[Check]:
    """State the expected figures, on means over seeds."""

    def less(first: str, second: str, bar: float) -> Check:
        return at_least(f"{first} - {second}", difference(found, first, second), bar)

    means = [mean(found[name]) for name in BRACES]
    spread = max(means) - min(means)
    stated = [less("SSL on target", "from scratch", 0)]
    stated += [less(name, "SSL on target", 5) for name in BRACES]
    stated += [less("teacher on source", name, 0) for name in BRACES]
    stated.append(Check(f"{', '.join(BRACES)} lie within 6 points", f"{spread:.2f}", spread <= 6))
    stated += [less("untrained", f"shuffled pairs: {name}", 10) for name in CONTROLLED]
    stated += [less(name, f"random teacher: {name}", 0) for name in CONTROLLED]
    stated += [less(f"CMC {tau}", f"CRD in batch {tau}", 0) for tau in ("0.1", "0.5")]
    return stated


ABOUT = ["pkt", "sp", "rkd", "cc", "vid", "crd", "seed", "l2", "cosine", "similarity", "contrastive"]
"""On whose pages of the manual the table stands."""


def main() -> None:
    seeds = seeds_from(__doc__ or "", 5)
    found = run_seeds(run, seeds)
    rows = [row(name, values, REFERENCE.get(name)) for name, values in found.items()]
    keep("fidelity", "baselines", "Baselines on E2's digits; accuracy, %", seeds, rows, checks(found), about=ABOUT)


if __name__ == "__main__":
    main()
