"""Data files with something broken in them: run it with `python benchmarks/reliability/fuzz_data.py --count 1000`.

Each mutant is a good data set of 24 pairs, of which one file has bytes changed, removed, added or cut off, or is of
another kind altogether, drawn from its number. It is loaded as an experiment loads it, in a process of bounded memory,
and must be taken or refused in lines that name the file. Anything else is a failure and is printed with its number.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import csv
import io
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
from benchmarks.reliability.fuzz import LONGEST, MOST_MEMORY, Outcome, limited
from PIL import Image

from crossdistill.data import load
from crossdistill.errors import CrossDistillError

PAIRS = 24
SPLITS = ("train", "train", "train", "validation", "test", "train")


def write_archive(folder: Path) -> list[Path]:
    """Write pairs.npz."""
    draw, names = np.random.default_rng(0), np.array([SPLITS[i // 2 % 6] for i in range(PAIRS)])
    views = {
        "a": draw.normal(size=(PAIRS, 6)).astype("float32"),
        "b": draw.normal(size=(PAIRS, 3, 9)).astype("float32"),
    }
    np.savez(folder / "pairs.npz", a=views["a"], b=views["b"], label=np.arange(PAIRS) % 2, split=names)
    return [folder / "pairs.npz"]


def write_manifest(folder: Path) -> list[Path]:
    """Write pairs.csv, pictures (PNG and JPEG), arrays (NPY) and sounds (WAV)."""
    draw = np.random.default_rng(1)
    for i in range(PAIRS):
        picture = Image.fromarray(draw.integers(0, 256, (12, 12), dtype=np.uint8))
        picture.save(folder / f"{i}.{'jpg' if i % 2 else 'png'}")
        np.save(folder / f"{i}.npy", draw.normal(size=7).astype(np.float32))
        with wave.open(str(folder / f"{i}.wav"), "wb") as file:
            file.setparams((1, 2, 8000, 400, "NONE", ""))
            file.writeframes(draw.integers(-3000, 3000, 400, dtype=np.int16).tobytes())
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["picture", "array", "sound", "label", "split"])
    for i in range(PAIRS):
        row = [f"{i}.{'jpg' if i % 2 else 'png'}", f"{i}.npy", f"{i}.wav", f"c{i % 2}", SPLITS[i // 2 % 6]]
        writer.writerow(row)
    (folder / "pairs.csv").write_text(text.getvalue())
    return [folder / "pairs.csv", *sorted(folder.glob("[0-9]*"))]


SETS: tuple[Callable[[Path], list[Path]], ...] = (write_archive, write_manifest, write_manifest)


def broken(number: int, content: bytes, others: list[Path]) -> bytes:
    """Give the mutant of a file's content with that number."""
    draw = random.Random(number)
    for _ in range(draw.choice((1, 1, 2, 5))):
        spot, how = draw.randrange(len(content) + 1), draw.randrange(8)
        if how < 3 and content:  # near the front more often: that is where sizes and types stand
            spot = min(spot, draw.randrange(len(content))) if how else min(draw.randrange(160), len(content) - 1)
            content = (
                content[:spot]
                + bytes([draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))])
                + content[spot + 1 :]
            )
        elif how == 3:
            content = content[:spot]
        elif how == 4:
            content = content[:spot] + draw.randbytes(draw.randrange(1, 40)) + content[spot:]
        elif how == 5:
            content = content[:spot] + content[spot + draw.randrange(1, 40) :]
        elif how == 6:
            content = draw.choice((b"", b"\0" * 64, b"PK\x03\x04", content * 2, draw.choice(others).read_bytes()))
        else:
            old, new = draw.choice((b"float32", b"<f4", b"(7,)", b"(24,", b",", b"\n", b".")), draw.randbytes(3)
            large = (
                b"<f8",
                b"|O8",
                b"<c16",
                b"<U9",
                b"(9999999999,)",
                b"(0,)",
                b"(-1,)",
                b"\n\n",
                b'"',
                b"../../x",
                new,
            )
            content = content.replace(old, draw.choice(large), 1)
    return content


def outcome_of(number: int, folder: Path) -> Outcome:
    """Write the data set, break one file by its number, and load it; the folder is empty and stays so."""
    files = SETS[number % len(SETS)](folder)
    draw = random.Random(number)
    victim = files[0] if draw.random() < 0.5 else draw.choice(files)
    victim.write_bytes(broken(number, victim.read_bytes(), files))
    try:
        with limited(LONGEST), warnings.catch_warnings(action="ignore"):
            load(str(files[0]))
    except CrossDistillError as error:
        named = any(path.name in str(error) for path in (files[0], victim)) or "row" in str(error) or "'" in str(error)
        return Outcome("refused" if named else "failed", str(error))
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return Outcome("failed", f"{victim.name}: {''.join(traceback.format_exception(error)[-4:])}")
    finally:
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return Outcome("taken")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    args = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    counts: collections.Counter[str] = collections.Counter()
    started = time.process_time()
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory() as cache, contextlib.chdir(name):
        os.environ["CROSSDISTILL_CACHE"] = cache
        for number in range(args.first, args.first + args.count):
            found = outcome_of(number, Path(name))
            counts[found.kind] += 1
            if found.kind == "failed":
                print(f"--- {number}\n{found.said}", flush=True)
    print(
        f"{args.count} data sets: {counts['taken']} taken, {counts['refused']} refused, {counts['failed']} failed; "
        f"{time.process_time() - started:.0f} CPU s"
    )
    sys.exit(1 if counts["failed"] else 0)


if __name__ == "__main__":
    main()
