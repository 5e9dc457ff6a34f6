"""Work shared among processes: each sets itself up once, does task after task, tells its news, stops with all."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from multiprocessing.managers import SyncManager
from typing import Any, Self

import torch
from threadpoolctl import threadpool_limits

from crossdistill.errors import Interrupted, TrainingError
from crossdistill.experiments.listening import LISTEN


class WorkerLost(TrainingError):
    """The worker that did one task is gone; the others are not."""


class Workers:
    """Processes that do tasks; use it as a context.

    Args:
        make: A function of a module, called once in each process with `arguments`, a listener and a question whether to
            stop; it gives what does a task.
        arguments: Of `make`, picklable.
        jobs: Processes.
        threads: Of each of them.
        listen: Told here what the processes tell there.

    Raises:
        TrainingError: If a process dies, from within `finished`.
        Interrupted: If the user stops it, from within `finished`.
    """

    def __init__(
        self, make: Callable[..., Any], arguments: tuple[Any, ...], *, jobs: int, threads: int, listen: LISTEN
    ) -> None:
        self.make, self.arguments, self.jobs, self.threads, self.listen = make, arguments, jobs, threads, listen
        self.running: dict[Future[Any], Any] = {}

    def __enter__(self) -> Self:
        context = multiprocessing.get_context("spawn")
        self.manager = SyncManager(ctx=context)
        try:
            with _deaf_children():
                self.manager.start(_serve)
            self.news, self.stop = self.manager.Queue(), self.manager.Event()
        except _GONE:
            raise _killed() from None
        setting = (self.make, self.arguments, self.threads, self.news, self.stop)
        self.pool = ProcessPoolExecutor(self.jobs, mp_context=context, initializer=_enter, initargs=setting)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        try:
            if error is not None:
                with contextlib.suppress(*_GONE):  # the manager may be what was killed
                    self.stop.set()
            self.pool.shutdown(wait=True, cancel_futures=error is not None)
        finally:
            self.manager.shutdown()
        if isinstance(error, BrokenProcessPool):
            raise _killed() from None
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted("stopped; everything finished is kept") from None

    def submit(self, task: Any) -> None:
        """Hand a task over."""
        with _deaf_children():  # the pool may start a process now
            self.running[self.pool.submit(_perform, task)] = task

    def finished(self) -> Iterator[tuple[Any, Future[Any]]]:
        """Give each task when it is done, until none is left; more may be submitted meanwhile."""
        while self.running:
            done, _ = wait(self.running, timeout=0.2, return_when=FIRST_COMPLETED)
            self._pass_on()
            for future in done:
                yield self.running.pop(future), future

    def _pass_on(self) -> None:
        """Tell the news that there are."""
        while (found := self._next()) is not None:
            self.listen(*found)

    def _next(self) -> tuple[str, Mapping[str, Any]] | None:
        try:
            return None if self.news.empty() else self.news.get()
        except _GONE:
            raise _killed() from None


_GONE = (EOFError, ConnectionError)
"""What speaking to the manager raises when it is gone."""


def _killed() -> TrainingError:
    return TrainingError("a process was killed, perhaps for want of memory; start again with fewer --jobs, it goes on")


@contextlib.contextmanager
def _deaf_children() -> Generator[None]:
    """Hold Ctrl-C, and the closing of a terminal, back while processes start, Python's tracker of resources too.

    They inherit that, and the parent, which gets it after, answers it.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        resource_tracker.ensure_running()  # its start lets Ctrl-C through again
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


GRACE = 60.0
"""Seconds that a worker has to save before a further SIGTERM ends it."""

_WORKER: dict[str, Any] = {}
"""A worker process keeps what does its tasks here; pools have no other place."""


def _end_with_parent() -> None:
    """End this process when its parent is gone, killed perhaps: nobody would gather what it makes.

    What is half done stays on disk as a checkpoint, and the next start goes on from it.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    handle = parent.sentinel

    def watch() -> None:
        multiprocessing.connection.wait([handle])
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent").start()


def _serve() -> None:
    """Set the manager's process up: it ends with its parent, and not before, when a whole group is told to stop.

    What goes wrong in it those hear who ask it; where nobody is left to ask, nobody needs to hear.
    """
    _end_with_parent()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - for as long as it lives


def _enter(make: Callable[..., Any], arguments: tuple[Any, ...], threads: int, news: Any, stop: Any) -> None:
    """Set a worker process up: its share of the cores, and deaf to Ctrl-C, which the parent answers."""
    _end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _terminate)
    limit_threads(threads)

    def tell(word: str, facts: Mapping[str, Any]) -> None:
        with _or_end():
            news.put((word, dict(facts)))

    def asked() -> bool:
        with _or_end():
            return stop.is_set()

    _WORKER["do"] = make(*arguments, tell, asked)


@contextlib.contextmanager
def _or_end() -> Generator[None]:
    """End this process where the manager is gone: a run that cannot be stopped is not one that failed."""
    try:
        yield
    except _GONE:
        os._exit(1)


def usable_cores() -> int:
    """Count the cores that this process may use: a scheduler may have given it fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def shared_out(jobs: int | None, threads: int | None, tasks: int) -> tuple[int, int]:
    """Say how many processes there are, and how many threads each has, by what is asked for and what there is.

    Sums, and so the last bits of what a CPU computes, depend on the number of threads, which therefore must not depend
    on that of processes: it is one where nothing is said. Beside an accelerator, which promises no bits, processes
    share the cores.

    Args:
        jobs: Processes; None takes as many as there are cores for.
        threads: Of each of them.
        tasks: How many there are to do; more processes would have nothing to do.
    """
    cores = usable_cores()
    jobs = min(jobs or max(1, cores // (threads or 1)), max(1, tasks))
    accelerated = torch.cuda.is_available() or torch.backends.mps.is_available()
    return jobs, threads or (max(1, cores // jobs) if accelerated else 1)


def limit_threads(threads: int) -> None:
    """Let this process use so many cores: torch, and numpy's and scipy's libraries, which have threads of their own."""
    torch.set_num_threads(threads)
    threadpool_limits(threads)


@contextlib.contextmanager
def limited_threads(threads: int) -> Generator[None]:
    """Let this process use so many cores inside, and as many as before after."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with threadpool_limits(threads):
            yield
    finally:
        torch.set_num_threads(before)


def _terminate(number: int, frame: object) -> None:
    """Answer SIGTERM, which schedulers send to all processes: training saves before it ends, all else ends at once.

    A second one, which the pool sends to all when the first of them is gone, must not end a process that still saves.
    """
    del frame
    if (since := _WORKER.get("ends")) is not None:
        if time.monotonic() - since > GRACE:  # something has swallowed the first
            os._exit(128 + number)
        return
    if "task" not in _WORKER:
        os._exit(128 + number)
    _WORKER["ends"] = time.monotonic()
    raise KeyboardInterrupt


def _perform(task: Any) -> Any:
    _WORKER["task"] = task
    try:
        return _WORKER["do"](task)
    except (KeyboardInterrupt, Interrupted):
        if "ends" in _WORKER:  # to the parent this process is lost, whatever it had saved
            os._exit(128 + signal.SIGTERM)
        raise
    finally:
        del _WORKER["task"]
