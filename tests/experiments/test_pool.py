"""How many processes there are and how many threads each has."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from commands import environment

from crossdistill.errors import TrainingError
from crossdistill.experiments import pool


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ((None, None, 99), (8, 1)),
        ((None, None, 3), (3, 1)),
        ((1, None, 99), (1, 1)),  # the number of processes does not change that of threads, nor the bits of a sum
        ((2, None, 99), (2, 1)),
        ((None, 4, 99), (2, 4)),
        ((None, 16, 99), (1, 16)),
        ((3, 4, 0), (1, 4)),
    ],
)
def test_threads_do_not_depend_on_processes_on_a_cpu(asked, given, monkeypatch):
    monkeypatch.setattr(pool, "usable_cores", lambda: 8)
    for name in ("cuda", "backends.mps"):
        monkeypatch.setattr(f"torch.{name}.is_available", lambda: False)
    assert pool.shared_out(*asked) == given


def test_threads_share_the_cores_beside_an_accelerator(monkeypatch):
    monkeypatch.setattr(pool, "usable_cores", lambda: 8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pool.shared_out(2, None, 99) == (2, 4)
    assert pool.shared_out(None, None, 2) == (2, 4)
    assert pool.shared_out(2, 3, 99) == (2, 3)


def saver(folder, tell, stop):
    """Make what a worker does here: it waits until it is told to end, takes so many seconds to save, and has saved."""
    del tell, stop

    def do(seconds):
        try:
            (folder / f"{seconds}.pid").write_text(str(os.getpid()))
            time.sleep(100)
        except KeyboardInterrupt:
            time.sleep(seconds)
            (folder / f"{seconds}.saved").touch()
            raise

    return do


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="Windows ends processes without asking")
def test_the_first_worker_to_end_does_not_cut_the_others_off_while_they_save(tmp_path):
    with (
        pytest.raises(TrainingError, match="a process was killed"),
        pool.Workers(saver, (tmp_path,), jobs=2, threads=1, listen=lambda *_: None) as workers,
    ):
        workers.submit(0)
        workers.submit(3)
        for _ in range(6000):
            if all(
                (tmp_path / f"{seconds}.pid").exists() and (tmp_path / f"{seconds}.pid").stat().st_size
                for seconds in (0, 3)
            ):
                break
            time.sleep(0.01)
        for seconds in (0, 3):
            os.kill(int((tmp_path / f"{seconds}.pid").read_text()), signal.SIGTERM)
        for _, future in workers.finished():
            future.result()
    assert (tmp_path / "0.saved").exists()
    assert (tmp_path / "3.saved").exists()


def asker(folder, tell, stop):
    """Make what a worker does here: it asks and tells until it is stopped."""

    def do(name):
        (folder / name).touch()
        while not stop():
            tell("news", {})
            time.sleep(0.01)

    return do


def test_a_manager_that_is_killed_is_a_process_that_was_killed(tmp_path, monkeypatch):
    with pytest.raises(TrainingError, match="a process was killed"):  # and no EOFError
        killed_at_work(tmp_path)

    def start(*_):
        raise EOFError

    monkeypatch.setattr(pool.SyncManager, "start", start)
    with pytest.raises(TrainingError, match="a process was killed"):
        killed_at_work(tmp_path)


def killed_at_work(folder):
    with pool.Workers(asker, (folder,), jobs=1, threads=1, listen=lambda *_: None) as workers:
        workers.submit("begun")
        while not (folder / "begun").exists():
            time.sleep(0.01)
        workers.manager._process.kill()
        list(workers.finished())


START = """
import signal
from multiprocessing import util
from pathlib import Path

from crossdistill.experiments import pool

spawn = util.spawnv_passfds


def seen(*arguments):
    process = spawn(*arguments)
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    print(int(fields["SigBlk"], 16) >> (signal.SIGINT - 1) & 1, flush=True)
    return process


if __name__ == "__main__":
    util.spawnv_passfds = seen
    with pool.Workers(print, (), jobs=1, threads=1, listen=print):
        pass
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="what a process blocks is read there")
def test_processes_are_deaf_to_ctrl_c_from_the_first(tmp_path):
    (tmp_path / "start.py").write_text(START)
    command = [sys.executable, "start.py"]
    ended = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.split() == ["1", "1"]  # Python's keeper of semaphores, and the manager


def failing(tell, stop):
    del tell, stop

    def do(task):
        raise EOFError(task)

    return do


def test_what_a_task_raises_is_its_own():
    with pool.Workers(failing, (), jobs=1, threads=1, listen=lambda *_: None) as workers:
        workers.submit("of the task")
        for _, future in workers.finished():
            with pytest.raises(EOFError, match="of the task"):
                future.result()
