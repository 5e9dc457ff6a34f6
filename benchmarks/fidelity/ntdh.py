"""NTDH: do gains rise as non-target classes agree more? Run it with `python -m benchmarks.fidelity.ntdh [--seeds 10]`.

Fifty informative columns, four classes. The student sees columns 0 to 19 and noise elsewhere, the teacher 20 columns of
which k are the student's too. The divergence is measured between the teacher and a student trained alone, before any
distillation, so that it could foretell the gain. The reference gains are two runs of the authors' code on one data set,
whose networks are far from trained after its 1000 slow steps; ours are trained with Adam, on a data set a seed.
"""

from __future__ import annotations

import numpy as np
import torch
from benchmarks.record import CODE, Check, Reference, at_least, difference, keep, row, run_seeds, seeds_from
from scipy.stats import spearmanr
from sklearn.datasets import make_classification
from torch import Tensor, nn
from torch.nn import functional as F

from crossdistill.objectives.kd import distillation_kl
from crossdistill.objectives.ntdh import nontarget_divergence

SHARED = (20, 15, 10, 5, 0)
GAINS = dict(zip(SHARED, (0.39, 0.69, -0.14, -0.61, -0.74), strict=True))
STEPS, RATE, TRAIN = 300, 0.01, 6000


def kept(x: np.ndarray, first: int, rng: np.random.Generator) -> Tensor:
    """Keep 20 columns from `first` on, and put noise in the place of all others."""
    view = rng.normal(size=x.shape)
    view[:, first : first + 20] = x[:, first : first + 20]
    return torch.from_numpy(view).float()


def trained(x: Tensor, y: Tensor, seed: int, teacher: Tensor | None = None) -> nn.Module:
    """Train 50-16-16-4 on labels and, if there are any, a teacher's logits; one start a seed for all students."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(50, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    optimiser = torch.optim.Adam(net.parameters(), lr=RATE)
    for _ in range(STEPS):
        z = net(x)
        loss = F.cross_entropy(z, y) + (0.0 if teacher is None else distillation_kl(z, teacher, tau=1.0))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return net.eval()


@torch.no_grad()
def logits(net: nn.Module, x: Tensor) -> Tensor:
    """Give a network's logits."""
    return net(x)


def percent(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Give the accuracy, %."""
    return 100 * float((logits(net, x).argmax(1) == y).float().mean())


def run(seed: int) -> dict[str, float]:
    """Run all shares on one data set."""
    x, label = make_classification(10000, 50, n_informative=50, n_redundant=0, n_classes=4, n_clusters_per_class=1,
                                   random_state=42 + seed)  # fmt: skip
    rng, y = np.random.default_rng(seed), torch.from_numpy(label)
    x = (x - x.mean(0)) / x.std(0)
    train, test = slice(0, TRAIN), slice(TRAIN, None)
    seen = kept(x, 0, rng)
    alone = trained(seen[train], y[train], seed)
    found = {"student alone": percent(alone, seen[test], y[test])}
    for k in SHARED:
        rich = kept(x, 20 - k, rng)
        teacher = trained(rich[train], y[train], 1000 + seed)
        student = trained(seen[train], y[train], seed, logits(teacher, rich[train]))
        found[f"teacher, {k} shared"] = percent(teacher, rich[test], y[test])
        found[f"gain, {k} shared"] = percent(student, seen[test], y[test]) - found["student alone"]
        apart = nontarget_divergence(logits(alone, seen[test]), logits(teacher, rich[test]), y[test], kind="js")
        found[f"1000 x non-target JS, {k} shared"] = 1000 * float(apart)
    return found


def main() -> None:
    """Run all seeds, print and keep."""
    seeds = seeds_from(__doc__ or "", 10)
    found = run_seeds(run, seeds)
    means = {
        what: [float(np.mean(found[f"{what}, {k} shared"])) for k in SHARED]
        for what in ("gain", "1000 x non-target JS")
    }
    follows = float(spearmanr(means["gain"], means["1000 x non-target JS"]).statistic)
    checks = [
        at_least("gain with all shared - gain with none", difference(found, "gain, 20 shared", "gain, 0 shared"), 0),
        at_least("divergence with none shared - with all",
                 difference(found, "1000 x non-target JS, 0 shared", "1000 x non-target JS, 20 shared"), 0),
        Check("the shares' gains fall as their divergences rise: rank correlation < -0.8", f"{follows:.2f}",
              follows < -0.8),
    ]  # fmt: skip
    references = {f"gain, {k} shared": Reference(GAINS[k], None, 2, CODE) for k in SHARED}
    rows = [row(name, values, references.get(name)) for name, values in found.items()]
    title = "NTDH: four classes, 20 columns each, k shared; accuracy, %, gains in points"
    keep("fidelity", "ntdh", title, seeds, rows, checks)


if __name__ == "__main__":
    main()
