"""One stage, from its first hook to its product."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from crossdistill.data.moving import fetched
from crossdistill.errors import DataError, Interrupted, TrainingError, told
from crossdistill.methods.base import Method, Separable
from crossdistill.objectives.gather import alone
from crossdistill.training.checkpoint import (
    Progress,
    kept_random,
    random_state,
    read_checkpoint,
    remove_checkpoint,
    restore_random,
    save_checkpoint,
)
from crossdistill.training.compiled import compiled, is_compilers
from crossdistill.training.cut import size_of
from crossdistill.training.feed import Feed
from crossdistill.training.log import MetricsLog
from crossdistill.training.meter import Meter, NotFinite
from crossdistill.training.norms import shared_norms
from crossdistill.training.optimiser import align_state, build, learning_rate
from crossdistill.training.processes import Processes
from crossdistill.training.product import save_product
from crossdistill.training.protocols import Listener, Loader, TrainingData
from crossdistill.training.settings import Settings
from crossdistill.training.shards import Shards
from crossdistill.training.state import load_state, state_of, teacher_digests
from crossdistill.training.step import Stepper
from crossdistill.training.store import TeacherStore
from crossdistill.training.suspects import suspects
from crossdistill.training.watch import (
    Teller,
    check_unchanged,
    check_weights,
    held_out_means,
    keep_best,
    no_memory,
)

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Stage:
    """A method on its device, its data, and how far it has come; `fit` documents the arguments."""

    def __init__(
        self,
        fabric: Fabric,
        method: Method,
        data: TrainingData,
        settings: Settings,
        *,
        seed: int,
        labels: bool,
        folder: Path | None,
        identity: Mapping[str, Any],
        name: str,
        processes: Processes,
    ) -> None:
        self.fabric, self.method, self.data, self.settings = fabric, method, data, settings
        self.seed, self.labels, self.folder = seed, labels, folder
        self.identity, self.name, self.processes = identity, name, processes
        self.device: torch.device = fabric.device
        self.checkpoint = None if folder is None else folder / "checkpoint.pt"
        self.meter = Meter(waits=self.device.type != "cpu")
        self.progress = Progress()
        self.shards: Shards | None = None

    def prepare(self, store: TeacherStore | None, held_out: TrainingData | None) -> None:
        """Bring about all that the first step needs, and what a checkpoint says has happened since.

        `before_stage` runs in a resumed stage as well, on the same weights and random numbers as the first time: it may
        have made modules and buffers that the checkpoint is then poured into.
        """
        saved = None if self.checkpoint is None else read_checkpoint(self.checkpoint, self.identity)
        self.feed = self._feed(self.data, store)  # several processes share the pass of a teacher that is stored
        self.held_out = None if held_out is None else self._feed(held_out, store)
        if self.held_out is not None:
            self.held_out_loader = self.held_out.loader(self.settings, self.seed, training=False)
        self.loader: Loader = self.feed.loader(self.settings, self.seed, training=True)
        self.batches = len(self.loader)
        if not self.batches:
            raise DataError(f"{len(self.data)} samples do not fill one batch of {self.settings.batch_size}")
        steps = math.ceil(self.batches / self.settings.accumulate)
        self.epochs = self.settings.passes(steps)
        self.feed.epochs, self.feed.steps_per_epoch = self.epochs, steps
        self.teachers = teacher_digests(self.method)
        torch.manual_seed(self.seed)
        self.method.eval()
        with alone():
            self.method.before_stage(self.feed)
        self.method.to(self.device)
        if saved is not None:
            self._restore_method(saved)
        self.processes.check_same(self.method, self.progress.step, self._place())
        if self.settings.shard and self.processes.count > 1:
            self.shards = Shards(self.method, self.device)
            self.method = self.shards.method
        self.optimizer = build(self.method, self.settings, self.shards)
        self.total = self.epochs * steps
        self.stepper = Stepper(
            self.fabric,
            self.method,
            self.optimizer,
            settings=self.settings,
            total=self.total,
            meter=self.meter,
            processes=self.processes,
            shards=self.shards,
        )
        if saved is not None:
            self._restore(saved)
        self.log = MetricsLog(None if self.processes.rank else self.folder, self.progress.records)

    def run(self, listener: Listener | None, stop: Callable[[], bool]) -> None:
        """Train to the end, and save the product."""
        progress = self.progress
        if listener is not None:
            listener.started(self.total, progress.step)
        with shared_norms(self.method), compiled(self.method, self.settings.compile):
            while progress.epoch < self.epochs:
                self._epoch(listener, stop)
        if self.settings.keep == "best" and progress.best is None:
            raise TrainingError(
                f'keep is "best", and no epoch of {self.name or "the stage"} had a finite held-out loss'
            )
        learnt = None if progress.best is None else progress.best["state"]
        if self.shards is not None:
            learnt = learnt or state_of(self.method)
            self.method = self.shards.put_back()
        if learnt is not None:
            load_state(self.method, learnt, extra=False, where="what was learnt")
        self.method.eval()
        with alone():
            self.method.after_stage(self.feed)
        check_unchanged(self.method, self.teachers)
        self.processes.check_same(self.method, progress.step, f"the end of {self.name or 'the stage'}")
        if self.folder is not None and not self.processes.rank:
            self._finish(self.folder)
        self.processes.wait()  # whoever looks into the folder next finds the product there
        if listener is not None:
            listener.finished()

    def _feed(self, data: TrainingData, store: TeacherStore | None) -> Feed:
        return Feed(
            self.method,
            data,
            device=self.device,
            labels=self.labels,
            batch_size=self.settings.batch_size,
            store=store,
            seed=self.seed,
            share=(self.processes.rank, self.processes.count),
        )

    # The epoch -------------------------------------------------------------------------------------------------------

    def _epoch(self, listener: Listener | None, stop: Callable[[], bool]) -> None:
        """Run an epoch, or the rest of one, and log it."""
        progress, every = self.progress, self.settings.checkpoint_every
        if not progress.batch:
            self.meter.clear()
            progress.samples, progress.running, progress.waited = 0, 0.0, 0.0
            self.method.eval()
            with alone():
                self.method.before_epoch(self.feed, progress.epoch)
        self.method.train()
        for _ in self._steps(Teller(listener, progress)):
            if self.processes.any(stop()):
                self._stop()
            if every and progress.step % every == 0 and progress.batch < self.batches:
                self._save()
        self._end_epoch(listener)
        if every is None or progress.step % every == 0:
            self._save()

    def _steps(self, teller: Teller) -> Iterator[None]:
        """Take the steps of an epoch; pauses after each."""
        progress, take, accumulate = self.progress, self.stepper.take, self.settings.accumulate
        number, batches = progress.batch, self.feed.epoch(self.loader, progress.epoch, progress.batch)
        share, clock = 1, time.perf_counter
        started = clock()
        for batch in batches:
            loaded = clock()
            place = number % accumulate
            if not place:
                share = min(accumulate, self.batches - number)
                self.stepper.begin(progress.step)
            number += 1
            try:
                take(batch, share=share, last=place + 1 == share)
            except NotFinite as error:
                raise self._placed(error, f" ({suspects(batch, self.data)})") from None
            except (MemoryError, RuntimeError) as error:
                if no_memory(error):
                    raise self._too_large(error) from None
                if is_compilers(error):
                    raise TrainingError(
                        f"{self._place()}: torch cannot compile the networks with {self.settings.compile} "
                        f"({told(error)}); leave compile out"
                    ) from error
                raise
            progress.samples += size_of(batch) * self.processes.count
            now = clock()
            progress.running += now - started
            progress.waited += loaded - started
            started = now
            if place + 1 == share:
                progress.batch = number
                progress.step += 1
                if teller.due(now):
                    self._flush()
                    teller.tell(now, self.meter.latest, progress)
                yield
                started = clock()
        if number != self.batches:
            raise DataError(f"the loader said {self.batches} batches an epoch, but gave {number}")

    def _end_epoch(self, listener: Listener | None) -> None:
        progress = self.progress
        self._flush()
        check_weights(self.method, self._place())
        progress.epoch, progress.batch = progress.epoch + 1, 0
        progress.seconds += progress.running
        means = self.processes.means(self.meter.means())
        record: dict[str, Any] = {"epoch": progress.epoch, "step": progress.step, **means}
        record["lr"] = learning_rate(progress.step - 1, self.total, self.settings)
        record["seconds"] = progress.running
        record["samples_per_second"] = progress.samples / max(progress.running, 1e-9)
        record["data_wait"] = progress.waited / max(progress.running, 1e-9)
        if self.held_out is not None:
            self.method.eval()
            with kept_random(self.device), torch.no_grad(), alone():
                scores = held_out_means(self.method, self.held_out, self.held_out_loader, self.stepper.autocast)
            scores = self.processes.told(scores)
            record |= {f"held_out/{name}": value for name, value in scores.items()}
            if self.settings.keep == "best":
                keep_best(self.method, progress, scores)
        record = {name: value if math.isfinite(value) else None for name, value in record.items()}
        self.log.add(record)
        if listener is not None:
            listener.epoch_ended(record)

    # Saving ----------------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        if self.checkpoint is None:
            return
        self._flush()
        check_weights(self.method, self._place())
        self.processes.check_same(self.method, self.progress.step, self._place())
        self.meter.average(self.processes.means)
        if self.processes.rank and self.shards is None:
            return
        optimizer = self.optimizer
        content = {
            "method": state_of(self.method),
            "optimizer": fetched(optimizer.state_dict() if self.shards is None else self.shards.whole_state(optimizer)),
            "precision": self.fabric.strategy.precision.state_dict(),
            "random": random_state(self.device),
            "meter": self.meter.state_dict(),
            "progress": self.progress.to_dict(),
        }
        if not self.processes.rank:
            save_checkpoint(self.checkpoint, self.identity, content)

    def _restore_method(self, saved: dict[str, Any]) -> None:
        load_state(self.method, saved["method"], extra=False, where=str(self.checkpoint))
        for name, value in saved["progress"].items():
            setattr(self.progress, name, value)

    def _restore(self, saved: dict[str, Any]) -> None:
        if self.shards is None:
            self.optimizer.load_state_dict(saved["optimizer"])
        else:
            self.shards.load_state(self.optimizer, saved["optimizer"])
        align_state(self.optimizer)
        self.fabric.strategy.precision.load_state_dict(saved["precision"])
        self.meter.load_state_dict(saved["meter"])
        restore_random(saved["random"], self.device)

    def _stop(self) -> None:
        self._save()
        done = f"step {self.progress.step} of {self.total}"
        raise Interrupted(
            f"stopped at {done}; the same call goes on from {self.checkpoint}"
            if self.checkpoint
            else f"stopped at {done}; nothing is saved, as no folder was given"
        )

    def _finish(self, folder: Path) -> None:
        progress = self.progress
        record = {
            "key": self.identity["key"],
            "identity": self.identity,
            "seconds": progress.seconds,
            "steps": progress.step,
            "best_epoch": None if progress.best is None else progress.best["epoch"],
            "device": str(self.device),
            "data": self.identity["data"],
            "teachers": self.teachers,
            "settings": self.settings.to_json(),
            "history": progress.records,
        }
        save_product(self.method, folder, record)
        assert self.checkpoint is not None
        remove_checkpoint(self.checkpoint)

    def _flush(self) -> None:
        try:
            self.meter.flush()
        except NotFinite as error:
            raise self._placed(error) from None

    def _place(self) -> str:
        stage = f" of {self.name}" if self.name else ""
        upto = "up to " if self.meter.waits else ""  # an accelerator is asked a few times a second only
        return f"epoch {self.progress.epoch + 1}, step {upto}{self.progress.step + 1}{stage}"

    def _too_large(self, error: Exception) -> TrainingError:
        size = self.settings.batch_size
        held = self.settings.micro_batch or size
        less = (
            f"micro_batch={max(1, held // 2)}"
            if isinstance(self.method, Separable)
            else f"batch_size={max(1, size // 2)}"
        )
        return TrainingError(
            f"{self._place()}: out of memory on {self.device} with batch_size {size} ({told(error)}); set e.g. {less}, "
            "or on an accelerator precision=bf16-mixed; what was saved is kept"
        )

    def _placed(self, error: NotFinite, samples: str = "") -> TrainingError:
        """Say where it happened and what to try."""
        check_weights(self.method, f"{self._place()}: {error}")
        return TrainingError(
            f"{self._place()}: {error}{samples}. Look at what that term is computed from (NaN in the data, a "
            "temperature too low); or lower lr, or set clip or warmup"
        )
