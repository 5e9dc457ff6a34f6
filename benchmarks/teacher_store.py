"""What the teacher store saves: run it with `python benchmarks/teacher_store.py`.

Students of pen movements are distilled from a frozen teacher of pictures on Omniglot-small: with the teacher run on
every batch, with its outputs from the store (the first student pays the one pass over the pictures), and with the same
outputs given as a plain tensor, which is what a student alone costs. CPU seconds on one core.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from crossdistill.data import load
from crossdistill.evaluation import embed
from crossdistill.methods import Batch, Distillation, Losses, Method, index_of
from crossdistill.networks import CNN, Network, TemporalCNN
from crossdistill.objectives import SimilarityDistillation
from crossdistill.registry import Facts
from crossdistill.training import Settings, TeacherStore, fit


class Alone(Method):
    """The same student and loss on targets that are simply there."""

    facts: ClassVar[Facts] = Facts(name="alone", title="for the measurement", paper="ours")

    def __init__(self, net: nn.Module, targets: Tensor) -> None:
        super().__init__()
        self.network, self.objective, self.targets = Network(net), SimilarityDistillation(), targets

    def inputs(self) -> Mapping[str, int]:
        """The target alone."""
        return {"pen": 1}

    def student(self, modality: str) -> nn.Module:
        """Give the encoder."""
        return self.network.encoder

    def training_step(self, batch: Batch) -> Losses:
        """The same objective, with the teacher's rows looked up."""
        teacher = self.targets[index_of(batch, "pen")]
        return Losses({"similarity": self.objective(self.network(batch["pen"]).features, teacher)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--students", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--width", type=int, default=32, help="channels of the teacher's first stage")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = load("omniglot-small").split("train")
    torch.manual_seed(0)
    teacher = CNN(data.modality("image").shape, width=args.width).eval().requires_grad_(False)
    settings = Settings(epochs=args.epochs, batch_size=128)

    def net() -> nn.Module:
        torch.manual_seed(1)
        return TemporalCNN(data.modality("pen").shape)

    def distilled(store: TeacherStore | None) -> Distillation:
        method = Distillation(
            net(), teacher=teacher, objectives={"cmd": SimilarityDistillation()}, source="image", target="pen"
        )
        fit(method, data, settings, seed=0, store=store, accelerator="cpu")
        return method

    def spent(what: str, work: Callable[[], object]) -> float:
        started = time.process_time()
        for _ in range(args.students):
            work()
        seconds = time.process_time() - started
        print(f"{what}: {seconds:.1f} CPU s, {seconds / args.students:.2f} a student", flush=True)
        return seconds

    started = time.process_time()
    targets = torch.from_numpy(embed(teacher, data.samples("image")))
    once = time.process_time() - started
    print(f"{len(data)} pairs, {args.epochs} epochs; one pass of the teacher over the pictures: {once:.1f} CPU s")
    distilled(TeacherStore())  # not counted: the first training of a process is slower
    alone = spent("student alone", lambda: fit(Alone(net(), targets), data, settings, seed=0, accelerator="cpu"))
    live = spent("teacher live", lambda: distilled(None))
    with tempfile.TemporaryDirectory() as folder:
        first = spent("teacher from the store, first time", lambda: distilled(TeacherStore(Path(folder))))
        again = spent("teacher from the store, as it is there", lambda: distilled(TeacherStore(Path(folder))))
        same = [
            torch.allclose(a, b, rtol=1e-3, atol=1e-4)
            for a, b in zip(
                distilled(None).student("pen").parameters(),
                distilled(TeacherStore(Path(folder))).student("pen").parameters(),
                strict=True,
            )
        ]
    print(f"live / store: {live / first:.2f} with the pass, {live / again:.2f} without")
    print(f"store / student alone: {again / alone:.3f}")
    print(f"students of store and live teacher have the same weights to 1e-3: {all(same)}")


if __name__ == "__main__":
    main()
