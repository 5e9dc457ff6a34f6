"""A suite's runs on a Ray cluster: the one that is there, or one of this machine alone.

The folder must be on a disk that all machines share, and the library installed on each.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from crossdistill.errors import ConfigError, Interrupted
from crossdistill.experiments.listening import LISTEN
from crossdistill.experiments.pool import WorkerLost, limit_threads

FOLDERS = ("CROSSDISTILL_DATA", "CROSSDISTILL_CACHE")
"""Variables that name folders, which workers get from who started the suite."""

RETRIES = 2
"""How often Ray tries a run again whose worker or machine is lost."""


class RayWorkers:
    """Ray tasks with the face of `Workers`; use it as a context.

    Args:
        make: As in `Workers`.
        arguments: As in `Workers`.
        jobs: How many are handed to Ray at once at most; it starts those that the cluster has room for.
        threads: Cores of each run.
        listen: Not told of steps: news of a run ends with its record.

    Raises:
        ConfigError: If Ray is not installed, or the cluster that RAY_ADDRESS names is not there.
    """

    def __init__(
        self, make: Callable[..., Any], arguments: tuple[Any, ...], *, jobs: int, threads: int, listen: LISTEN
    ) -> None:
        del listen
        self.make, self.arguments, self.threads = make, arguments, threads
        self.ray, self.most = connect(), jobs
        self.running: dict[Any, Any] = {}
        self.held: deque[Any] = deque()

    def __enter__(self) -> Self:
        resources: Mapping[str, float] = self.ray.cluster_resources()
        share = resources.get("GPU", 0.0) * self.threads / max(1.0, resources.get("CPU", 1.0))
        needs = {"num_cpus": self.threads, "num_gpus": round(min(1.0, share), 3), "max_retries": RETRIES}
        folders = {name: os.environ[name] for name in FOLDERS if name in os.environ}
        place = {"cwd": str(Path.cwd()), "path": list(sys.path), "folders": folders}
        remote = self.ray.remote(**needs)(_perform)
        setting = self.ray.put((self.make, self.arguments, self.threads, place))
        self.send: Callable[[Any], Any] = lambda task: remote.remote(setting, task)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if error is not None:
            for reference in self.running:
                with contextlib.suppress(Exception):  # whatever a cluster says that is being left
                    self.ray.cancel(reference)
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted("stopped; everything finished is kept") from None

    def submit(self, task: Any) -> None:
        """Hand a task over."""
        self.held.append(task)
        self._send_on()

    def finished(self) -> Iterator[tuple[Any, Any]]:
        """Give each task when it is done, until none is left; more may be submitted meanwhile."""
        while self.running:
            done, _ = self.ray.wait(list(self.running), num_returns=1, timeout=0.5)
            for reference in done:
                task = self.running.pop(reference)
                self._send_on()
                yield task, _Result(self.ray, reference)

    def _send_on(self) -> None:
        while self.held and len(self.running) < self.most:
            task = self.held.popleft()
            self.running[self.send(task)] = task


class _Result:
    """What became of a task."""

    def __init__(self, ray: Any, reference: Any) -> None:
        self.ray, self.reference = ray, reference

    def result(self) -> Any:
        """Give what the task gave.

        Raises:
            WorkerLost: If its worker was lost more often than Ray tries again.
        """
        try:
            return self.ray.get(self.reference)
        except self.ray.exceptions.RayTaskError as error:
            raise error.as_instanceof_cause() from None
        except self.ray.exceptions.RayError as error:
            reason = str(error).partition("\n")[0]
            raise WorkerLost(f"its worker was lost {RETRIES + 1} times: {reason}") from None


def connect() -> Any:
    """Join the cluster that RAY_ADDRESS names or that runs on this machine; start a local one where there is none."""
    try:
        import ray  # pyright: ignore[reportMissingImports] - an optional package
    except ImportError:
        raise ConfigError("--on ray needs Ray: pip install 'crossdistill[ray]'") from None
    library: Any = ray
    if library.is_initialized():
        return library
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    address = os.environ.get("RAY_ADDRESS")
    try:
        library.init(address=address or "auto", **quiet)
    except ConnectionError as error:
        if address:
            raise ConfigError(f"no Ray cluster answers at RAY_ADDRESS={address}: {error}") from None
        library.init(include_dashboard=False, **quiet)
    return library


def slots(threads: int) -> int:
    """Say how many runs of so many cores the cluster has room for at once."""
    return max(1, int(connect().cluster_resources().get("CPU", 1)) // threads)


_WORKERS: dict[int, Any] = {}
"""What does tasks in a worker of Ray's, which does many one after the other."""


def _perform(setting: tuple[Any, ...], task: Any) -> Any:
    make, arguments, threads, place = setting
    key = hash((str(arguments), str(place)))
    if key not in _WORKERS:
        os.chdir(place["cwd"])
        sys.path += [entry for entry in place["path"] if entry not in sys.path]
        os.environ.update(place["folders"])
        limit_threads(threads)
        _WORKERS[key] = make(*arguments, _silent, _never)
    return _WORKERS[key](task)


def _silent(word: str, facts: Mapping[str, Any]) -> None:
    del word, facts


def _never() -> bool:
    return False
