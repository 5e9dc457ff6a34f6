"""Kills at moments drawn by chance, in short; runs and suites are killed in tests/cli and tests/experiments."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import crossdistill

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_store_and_a_diagnosis_that_are_killed_end_as_if_they_were_not():
    command = [sys.executable, ROOT / "benchmarks/reliability/kill.py", "--times", "1", "--most", "2", "--fresh", "0"]
    ended = subprocess.run(
        [*command, "--commands", "store", "diagnose"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(crossdistill.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    lines = [re.fullmatch(r"(.*): 1 trials of \d+ CPU s, (\d) kills .*; 0 wrong", x) for x in ended.stdout.splitlines()]
    assert [(line[1], line[2] > "0") for line in lines] == [("store", True), ("diagnose", True)]
