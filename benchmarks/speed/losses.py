"""Losses over large batches, beside those of peers: run it with `python -m benchmarks.speed.losses contrast`.

Peers are installed into an environment of their own; see `requirements.txt` beside this file. One process, one thread,
the same float32 inputs of width 128; a loss and its gradient with respect to the student, by turns, CPU seconds. Losses
are compared in value, and gradients too, before anything is timed.

contrast    b pairs, both directions, the teacher frozen: open_clip's ClipLoss; pytorch-metric-learning's SupConLoss,
            once in each direction (its NTXentLoss, equal in value, makes tensors of b x b^2 entries: 4 GB at b = 1024)
nt_xent     b rows, two views of b / 2 samples: lightly's NTXentLoss; pytorch-metric-learning's SupConLoss
similarity  b pairs: no peer has it, so our full form, which is what one would write
pkt         b pairs, the mean over entries: torchdistill's PKTLoss
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from benchmarks.record import Check
from benchmarks.speed.measure import ROUNDS, by_turns, bytes_kept, keep, ratio, said, seconds_of
from torch import Tensor
from torch.nn import functional as F

from crossdistill.objectives import cross_modal_contrastive, nt_xent, similarity_distillation, tiles
from crossdistill.objectives.pkt import probabilistic_transfer

WIDTH, TAU = 128, 0.1
OURS, FULL = "ours", "ours, full matrix"
NAMES = ("contrast", "nt_xent", "similarity", "pkt")
LARGE = 8192
"""Rows from which on only the fastest other takes turns with ours: the rest run once, and above it not at all, as they
would take minutes and 10 GB."""

Loss = Callable[[Tensor, Tensor], Tensor]


def in_tiles(loss: Loss) -> Loss:
    def tiled(s: Tensor, t: Tensor) -> Tensor:
        with tiles("always"):
            return loss(s, t)

    return tiled


def in_full(loss: Loss) -> Loss:
    def full(s: Tensor, t: Tensor) -> Tensor:
        with tiles("never"):
            return loss(s, t)

    return full


def chunk_loop(s: Tensor, t: Tensor) -> Tensor:
    """The contrast in chunks of rows and nothing else: autograd keeps each chunk."""
    u, w = F.normalize(s, dim=1), F.normalize(t, dim=1)
    partner = torch.arange(len(u))
    parts = [
        F.cross_entropy(x[k : k + 512] @ y.T / TAU, partner[k : k + 512], reduction="sum")
        for x, y in ((u, w), (w, u))
        for k in range(0, len(u), 512)
    ]
    return torch.stack(parts).sum() / (2 * len(u))


def peers() -> dict[str, dict[str, Loss]]:
    """Give the peers' forms of each loss."""
    from lightly.loss import NTXentLoss
    from open_clip.loss import ClipLoss
    from pytorch_metric_learning.losses import SupConLoss
    from torchdistill.losses.mid_level import PKTLoss

    pkt = PKTLoss(".", "output", ".", "output")
    clip, ntxent, supcon = ClipLoss(), NTXentLoss(temperature=TAU), SupConLoss(temperature=TAU)
    scale = torch.tensor(1 / TAU)

    def open_clip(s: Tensor, t: Tensor) -> Tensor:
        return clip(F.normalize(s, dim=1), F.normalize(t, dim=1), scale)

    def metric_both(s: Tensor, t: Tensor) -> Tensor:
        mine, theirs = torch.arange(len(s)), torch.arange(len(s))  # were they one object, the diagonal would not count
        return (supcon(s, mine, ref_emb=t, ref_labels=theirs) + supcon(t, mine, ref_emb=s, ref_labels=theirs)) / 2

    def metric_views(s: Tensor, t: Tensor) -> Tensor:
        return supcon(s, torch.arange(len(s) // 2).repeat(2))

    def lightly(s: Tensor, t: Tensor) -> Tensor:
        return ntxent(*s.chunk(2))

    return {
        "contrast": {"open_clip": open_clip, "pytorch-metric-learning": metric_both},
        "nt_xent": {"lightly": lightly, "pytorch-metric-learning": metric_views},
        "similarity": {},
        "pkt": {"torchdistill": pkt.cosine_similarity_loss},
    }


def ours() -> dict[str, Loss]:
    return {
        "contrast": lambda s, t: cross_modal_contrastive(s, t, tau=TAU),
        "nt_xent": lambda s, t: nt_xent(*s.chunk(2), tau=TAU),
        "similarity": similarity_distillation,
        "pkt": lambda s, t: probabilistic_transfer(s, t, average="entries"),
    }


def inputs(b: int) -> tuple[Tensor, Tensor]:
    """Draw student and teacher whose partners resemble each other."""
    generator = torch.Generator().manual_seed(b)
    t = torch.randn(b, WIDTH, generator=generator)
    return (t + 2 * torch.randn(b, WIDTH, generator=generator)).requires_grad_(), t


def check_equal(name: str, forms: dict[str, Loss]) -> list[Check]:
    """Compare values and gradients of all forms on a small batch."""
    s, t = inputs(512)
    found = {}
    for who, form in forms.items():
        value = form(s, t)
        found[who] = value.detach(), *torch.autograd.grad(value, s)
    value, slope = found[FULL]
    checks = []
    for who, (other, gradient) in found.items():
        if who != FULL:
            off, tilt = abs(float(other / value) - 1), float((gradient - slope).norm() / slope.norm())
            says = f"{name}, {who}: loss within 1e-6 of our full form, gradient within 1e-5"
            checks.append(Check(says, f"{off:.1e}, {tilt:.1e}", off <= 1e-6 and tilt <= 1e-5))
    return checks


def at_size(name: str, b: int, forms: dict[str, Loss], turns: Sequence[str], rounds: int) -> dict[str, Any]:
    """Count and time all forms at one size; those that take no turns run once."""
    s, t = inputs(b)
    kept: dict[str, int] = {}
    seconds: dict[str, list[float]] = {}

    def count(who: str) -> None:
        kept[who], value = bytes_kept(lambda: forms[who](s, t), (s, t))
        torch.autograd.grad(value, s)

    def step(who: str) -> None:
        torch.autograd.grad(forms[who](s, t), s)

    for who in forms:  # counting is the first run of each, and so its warm-up
        seconds[who] = [seconds_of(lambda who=who: count(who))]
    seconds |= by_turns({who: lambda who=who: step(who) for who in turns}, rounds)
    ratios = {who: ratio(seconds[OURS], seconds[who]) for who in turns if who != OURS}
    print(f"{name}, b = {b}")
    for who, taken in seconds.items():
        spread = f"; ours / it {said(ratios[who])}" if who in ratios else ""
        mib = kept[who] / 2**20
        print(f"  {who:26s} {statistics.median(taken):8.3f} CPU s, kept {mib:9.2f} MiB{spread}", flush=True)
    rounded = {who: [round(x, 4) for x in taken] for who, taken in seconds.items()}
    return {"loss": name, "b": b, "bytes_kept": kept, "cpu_seconds": rounded, "ours / it": ratios}


def beside(name: str, forms: dict[str, Loss], sizes: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """Measure a loss at all sizes, rising."""
    rows: list[dict[str, Any]] = []
    turns = list(forms)
    for b in sorted(sizes):
        if b >= LARGE and rows:
            last = rows[-1]["ours / it"]
            turns = [OURS, max(last, key=lambda who: last[who]["median"])]
        some = forms if b <= LARGE else {who: forms[who] for who in turns}
        rows.append(at_size(name, b, some, turns, rounds))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("loss", choices=NAMES)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 2048, 4096, 8192, 16384])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    loss = ours()[args.loss]
    forms = {OURS: in_tiles(loss), **peers()[args.loss], FULL: in_full(loss)}
    checks = check_equal(args.loss, forms)
    rows = beside(args.loss, forms, args.sizes, args.rounds)
    s, t = inputs(2048)
    naive, _ = bytes_kept(lambda: chunk_loop(s, t), (s, t))
    says = "a loop over chunks without recompute keeps 2 b^2 floats, and is caught"
    checks.append(Check(says, f"{naive / 2**20:.0f} MiB at b = 2048", naive >= 2 * 2048**2 * 4))
    b, largest = rows[-1]["b"], rows[-1]
    share = b * b * 4 / largest["bytes_kept"][OURS]
    checks.append(Check(f"b = {b}: at most 1/20 of the bytes of one full matrix", f"1/{share:.0f}", share >= 20))
    fastest = max(largest["ours / it"].values(), key=lambda found: found["median"])
    checks.append(Check(f"b = {b}: at most 1.1 x the fastest other", said(fastest), fastest["median"] <= 1.1))
    title = f"{args.loss}: a loss and its gradient over large batches"
    packages = ("pytorch-metric-learning", "lightly", "open_clip_torch", "torchdistill")
    keep("losses", title, rows, checks, peers=packages, part=args.loss)


if __name__ == "__main__":
    main()
