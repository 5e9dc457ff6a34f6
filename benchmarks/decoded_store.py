"""What the store of decoded files saves: run it with `python benchmarks/decoded_store.py`.

A folder of PNG pictures in two modalities is loaded twice, each time by a new Python process: the first decodes every
file, the second maps the arrays that are there. An epoch of batches from the store is timed beside.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

LOAD = """
import sys, time, torch
from crossdistill.data import load
torch.set_num_threads(1)
wall, cpu = time.perf_counter(), time.process_time()
data = load(sys.argv[1])
print(f"{len(data)} pairs: {time.perf_counter() - wall:.2f} s, {time.process_time() - cpu:.2f} CPU s", end="; ")
wall = time.perf_counter()
for batch in data.loader({"photo": 1, "depth": 1}, batch_size=128, seed=0).epoch(0):
    pass
print(f"an epoch of batches {time.perf_counter() - wall:.2f} s")
"""


def write(folder: Path, pairs: int, side: int) -> None:
    """Write smooth random pictures, so that they compress about as photos do."""
    rng = np.random.default_rng(0)
    for modality, channels in (("photo", 3), ("depth", 1)):
        for i in range(pairs):
            place = folder / modality / str(i % 10)
            place.mkdir(parents=True, exist_ok=True)
            rough = rng.integers(0, 256, (side // 8, side // 8, channels)).astype(np.uint8)
            picture = Image.fromarray(rough.squeeze()).resize((side, side), Image.Resampling.BICUBIC)
            noise = rng.integers(0, 8, (side, side, channels)).squeeze()
            Image.fromarray((np.asarray(picture) // 2 + noise).astype(np.uint8)).save(place / f"{i}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--side", type=int, default=96, help="pixels")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as top:
        folder, cache = Path(top) / "pictures", Path(top) / "cache"
        write(folder, args.pairs, args.side)
        size = sum(path.stat().st_size for path in folder.rglob("*.png"))
        print(f"{2 * args.pairs} PNG files of {args.side} x {args.side}, {size / 1e6:.0f} MB")
        for turn in ("first load", "second load"):
            print(turn, end=": ", flush=True)
            environment = {**os.environ, "CROSSDISTILL_CACHE": str(cache)}
            subprocess.run([sys.executable, "-c", LOAD, str(folder)], env=environment, check=True)
        stored = sum(path.stat().st_size for path in cache.rglob("*"))
        print(f"store: {stored / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
