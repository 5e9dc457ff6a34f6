# ruff: noqa: D102 - the methods are those of the protocols, documented there
"""An epoch of distillation beside torchdistill's: run it with `python -m benchmarks.speed.epoch`.

torchdistill is installed into an environment of its own; see `requirements.txt` beside this file. A frozen ResNet-18
(torchvision's, random weights) of colour pictures teaches a small CNN of depth maps of the same size by the squared
distance of features, with SGD. Both libraries are given the same networks, the same loss, the same batches in the same
order, by the same loader; the students are compared after an epoch. By turns, in one process on one thread, CPU seconds
of an epoch: those with a live teacher run one each turn, the others four, of which the first, on cold caches after the
teacher's run, does not count. With --device cuda everything is on the GPU, and seconds are the wall's;
--precision bf16-mixed lets all but torchdistill, which has no such option and is left out, compute in bfloat16.

torchdistill     its DistillationBox, which runs the teacher on every batch
ours, live       the same with our loop
ours, stored     the teacher's outputs from the store on disk; the one pass that fills it is told apart
alone            our loop, and targets that are simply there: what a student costs without a teacher
alone, by hand   the same without our loop: no logs, no watch for NaN
"""

from __future__ import annotations

import argparse
import copy
import logging
import math
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from benchmarks.record import Check
from benchmarks.speed.measure import CPU, ROUNDS, called, chosen, keep, now, ratio, said, seconds_of
from torch import Tensor, nn
from torch.nn import functional as F

from crossdistill.data import PairedDataset
from crossdistill.data.modality import Modality
from crossdistill.evaluation import embed
from crossdistill.methods import Batch, Distillation, Losses, Method, index_of
from crossdistill.networks import CNN
from crossdistill.objectives.regression import L2
from crossdistill.registry import Facts
from crossdistill.training import Settings, TeacherStore, fit

SEED, RATE, EPOCHS = 0, 0.01, 4
PEER, LIVE, STORED, ALONE, BY_HAND = "torchdistill", "ours, live", "ours, stored", "alone", "alone, by hand"


def pairs(n: int, side: int) -> PairedDataset:
    """Draw pictures and depth maps; what they show makes no difference to the time."""
    rng = np.random.default_rng(SEED)
    shapes = {"image": (3, side, side), "depth": (1, side, side)}
    arrays = {name: rng.normal(size=(n, *shape)).astype(np.float32) for name, shape in shapes.items()}
    modalities = {name: Modality(name=name, kind="image", shape=shape) for name, shape in shapes.items()}
    return PairedDataset(arrays, modalities, name="drawn", split=np.zeros(n, dtype=np.uint8))


class Alone(Method):
    """The same student and loss on targets that are simply there."""

    facts: ClassVar[Facts] = Facts(name="alone", title="for the measurement", paper="ours")

    def __init__(self, student: nn.Module, targets: Tensor) -> None:
        super().__init__()
        self.net, self.targets = student, targets

    def inputs(self) -> Mapping[str, int]:
        return {"depth": 1}

    def student(self, modality: str) -> nn.Module:
        return self.net

    def training_step(self, batch: Batch) -> Losses:
        return Losses(
            {"l2": F.mse_loss(self.net(batch["depth"]), self.targets[index_of(batch, "depth").to(self.targets.device)])}
        )


class EpochClock:
    """Gives the seconds of each epoch that our loop runs, without what comes before and after."""

    def __init__(self, device: torch.device = CPU) -> None:
        self.device = device

    def started(self, total_steps: int, first_step: int) -> None:
        self.taken: list[float] = []
        self.clock = now(self.device)

    def stepped(self, step: int, loss: float, rate: float, data_wait: float) -> None:
        pass

    def epoch_ended(self, record: Mapping[str, Any]) -> None:
        ended = now(self.device)
        self.taken.append(ended - self.clock)
        self.clock = ended

    def finished(self) -> None:
        pass


class Pick(nn.Module):
    """A network that takes its modality out of the batch, as torchdistill gives teacher and student the same one."""

    def __init__(self, net: nn.Module, modality: str) -> None:
        super().__init__()
        self.net, self.modality = net, modality

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        return self.net(batch[self.modality])


class Sides:
    """The five ways to train an epoch; each gives its seconds and the student."""

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        data: PairedDataset,
        batch_size: int,
        device: torch.device,
        precision: str,
    ) -> None:
        self.teacher, self.start, self.data, self.device = teacher.to(device), student.to(device), data, device
        self.settings = Settings(
            epochs=1,
            batch_size=batch_size,
            optimizer="sgd",
            lr=RATE,
            momentum=0.9,
            weight_decay=0,
            schedule="constant",
            precision=precision,
        )
        self.targets = torch.from_numpy(embed(teacher, data.samples("image"))).to(device)

    def _fit(self, method: Method, store: TeacherStore | None, epochs: int) -> float:
        clock, settings = EpochClock(self.device), replace(self.settings, epochs=epochs)
        fit(method, self.data, settings, seed=SEED, listener=clock, store=store, accelerator=self.device.type)
        return warm(clock.taken)

    def _loader(self, *modalities: str) -> Any:
        return self.data.loader(dict.fromkeys(modalities, 1), batch_size=self.settings.batch_size, seed=SEED).to(
            self.device
        )

    def distilled(self, store: TeacherStore | None, epochs: int = 1) -> tuple[float, nn.Module]:
        student = copy.deepcopy(self.start)
        method = Distillation(student, teacher=self.teacher, objectives={"l2": L2()}, source="image", target="depth")
        return self._fit(method, store, epochs), student

    def alone(self, epochs: int = 1) -> tuple[float, nn.Module]:
        student = copy.deepcopy(self.start)
        return self._fit(Alone(student, self.targets), None, epochs), student

    def _autocast(self) -> torch.autocast:
        mixed = self.settings.precision == "bf16-mixed"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=mixed, cache_enabled=mixed)

    def by_hand(self, epochs: int = 1) -> tuple[float, nn.Module]:
        student = copy.deepcopy(self.start).train()
        optimizer = torch.optim.SGD(student.parameters(), lr=RATE, momentum=0.9, fused=True)

        loader = self._loader("depth")

        def epoch(number: int) -> None:
            for batch in loader.epoch(number):
                with self._autocast():
                    loss = F.mse_loss(student(batch["depth"]), self.targets[batch["index"].to(self.device)])
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()

        return warm([seconds_of(lambda k=k: epoch(k), self.device) for k in range(epochs)]), student

    def torchdistill(self) -> tuple[float, nn.Module]:
        from torchdistill.core.distillation import get_distillation_box

        student = copy.deepcopy(self.start)
        output = {"module_path": ".", "io": "output"}
        wrapper = {
            "key": "SimpleLossWrapper",
            "kwargs": {
                "input": {"is_from_teacher": False, **output},
                "target": {"is_from_teacher": True, **output},
            },
        }
        term = {"criterion": {"key": "MSELoss", "kwargs": {}}, "criterion_wrapper": wrapper, "weight": 1.0}
        config = {
            "num_epochs": 1,
            "teacher": {"requires_grad": False, "forward_proc": "forward_batch_only"},
            "student": {"requires_grad": True, "forward_proc": "forward_batch_only"},
            "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"l2": term}}},
            "optimizer": {"key": "SGD", "kwargs": {"lr": RATE, "momentum": 0.9}},
        }
        networks = Pick(self.teacher, "image").eval(), Pick(student, "depth")
        box = get_distillation_box(*networks, {}, config, self.device, None, False, 1)

        def epoch() -> None:
            box.pre_epoch_process(epoch=0)
            for batch in self._loader("image", "depth").epoch(0):
                loss = box.forward_process(batch, targets=None, supp_dict=None)
                box.post_forward_process(loss=loss)
            box.post_epoch_process()

        return seconds_of(epoch, self.device), student


def warm(epochs: Sequence[float]) -> float:
    """Give the median of all epochs but the first; of the first where it is the only one."""
    return statistics.median(epochs[1:] or epochs)


def apart(first: nn.Module, second: nn.Module, start: nn.Module) -> float:
    """Give the distance of two students' parameters, of the way that the second has gone from the start."""
    a, b, c = (torch.cat([p.detach().reshape(-1) for p in net.parameters()]) for net in (first, second, start))
    return float((a - b).norm() / (b - c).norm())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=320)
    parser.add_argument("--side", type=int, default=96, help="pixels a side, of both modalities")
    parser.add_argument("--width", type=int, default=16, help="channels of the student's first stage")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--precision", default="32-true", help="32-true or bf16-mixed")
    args = parser.parse_args()
    device, mixed = chosen(parser, args.device), args.precision != "32-true"
    torch.set_num_threads(1)
    from torchvision.models import resnet18

    logging.disable(logging.INFO)
    torch.manual_seed(SEED)
    teacher = resnet18(weights=None)
    teacher.fc = nn.Identity()
    teacher.eval().requires_grad_(False)
    student = CNN((1, args.side, args.side), width=args.width, dim=512)
    data = pairs(args.pairs, args.side)
    sides = Sides(teacher, student, data, args.batch_size, device, args.precision)
    with tempfile.TemporaryDirectory() as folder:
        filled = seconds_of(lambda: TeacherStore(Path(folder)).outputs(teacher, data, "image", device=device), device)
        works: dict[str, Callable[[int], tuple[float, nn.Module]]] = {
            PEER: lambda epochs: sides.torchdistill(),
            LIVE: lambda epochs: sides.distilled(None),
            STORED: lambda epochs: sides.distilled(TeacherStore(Path(folder)), epochs),
            ALONE: sides.alone,
            BY_HAND: sides.by_hand,
        }
        if mixed:
            del works[PEER]
        students = {name: work(1)[1] for name, work in works.items()}  # and not timed: a first run is slower
        seconds: dict[str, list[float]] = {name: [] for name in works}
        for number in range(args.rounds):
            names = list(works)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                seconds[name].append(works[name](EPOCHS)[0])
    rows = []
    for name, taken in seconds.items():
        each = 1e3 * statistics.median(taken) / (args.pairs // args.batch_size * args.batch_size)
        rows.append({"row": name, "ms_a_sample": round(each, 4), "seconds": [round(x, 4) for x in taken]})
        print(f"{name:15s} {each:8.3f} ms a sample", flush=True)
    print(f"the store was filled in {filled:.2f} s, {1e3 * filled / args.pairs:.3f} ms a sample, once")
    pairs_of_sides = ((PEER, STORED), (PEER, LIVE), (LIVE, STORED), (STORED, ALONE), (STORED, BY_HAND))
    ratios = {f"{a} / {b}": ratio(seconds[a], seconds[b]) for a, b in pairs_of_sides if a in seconds}
    for name, found in ratios.items():
        print(f"{name}: {said(found)}")
    live = LIVE if mixed else PEER
    ten = statistics.median(seconds[live]) * 10 / (filled + 10 * statistics.median(seconds[STORED]))
    print(f"ten epochs, the store's one pass included: {live} / {STORED} {ten:.2f}")
    rows += [{"row": name, **found} for name, found in ratios.items()]
    rows += [{"row": "the store's one pass", "seconds": [round(filled, 4)]}, {"row": "ten epochs", "median": ten}]
    like = BY_HAND if mixed else PEER
    near = 1e-3 if device == CPU else 0.05  # a GPU adds up in any order, and convolutions round to TF32 there
    told = [name for name in students if name != like and not (mixed and name == LIVE)]  # a teacher in bfloat16
    off = {name: apart(students[name], students[like], student) for name in told}
    checks = [
        Check(f"{name}: the student is that of {like}, to {near:g} of the way it went", f"{value:.1e}", value <= near)
        for name, value in off.items()
    ]
    bars = {
        f"{PEER} / {STORED}": (3, math.inf),
        f"{STORED} / {ALONE}": (0, 1.05),
        f"{STORED} / {BY_HAND}": (0, 1.05),
    }
    for name, (least, most) in bars.items():
        if name in ratios:
            measured = ratios[name]["median"]
            bar = f"at least {least}" if least else f"at most {most}"
            checks.append(Check(f"{name} is {bar}", f"{measured:.3f}", least <= measured <= most))
    part = called(device) + "-bf16" * mixed
    title = f"An epoch of distillation from a ResNet-18 on {called(device) or 'the CPU'}"
    keep("epoch", title, rows, checks, peers=() if mixed else ("torchdistill", "torchvision"), part=part.strip("-"))


if __name__ == "__main__":
    main()
