"""How long the command line takes to answer: run it with `python benchmarks/start_up.py`.

Each line is the median wall time of new Python processes, which take turns; the first round is not counted.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

CLI = "from crossdistill.cli import main; main()"
COMMANDS = {
    "python, doing nothing": ["-c", "pass"],
    "crossdistill --help": ["-c", CLI, "--help"],
    "crossdistill list": ["-c", CLI, "list"],
    "import crossdistill": ["-c", "import crossdistill"],
    "import torch": ["-c", "import torch"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=9)
    args = parser.parse_args()
    found: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for repetition in range(args.repetitions + 1):
        for name, words in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
            if repetition:
                found[name].append(time.perf_counter() - started)
    for name, seconds in found.items():
        print(f"{name}: median {statistics.median(seconds):.2f} s, from {min(seconds):.2f} to {max(seconds):.2f}")


if __name__ == "__main__":
    main()
