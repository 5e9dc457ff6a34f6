"""Make the shipped set `omniglot-small` from `omniglot`: CROSSDISTILL_DATA=... python make_omniglot_small.py."""

import os
import sys
from pathlib import Path

import numpy as np

from crossdistill.data.archive import read_archive
from crossdistill.data.omniglot import small_arrays
from crossdistill.files import whole_file

SETS = Path(__file__).parents[2] / "src" / "crossdistill" / "data" / "sets"


def main() -> None:
    if "CROSSDISTILL_DATA" not in os.environ:
        sys.exit("set CROSSDISTILL_DATA to the folder that holds omniglot/omniglot.npz")
    folder = Path(os.environ["CROSSDISTILL_DATA"]) / "omniglot"
    arrays = small_arrays(read_archive(folder / "omniglot.npz"))
    target = SETS / "omniglot-small.npz"
    with whole_file(target) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
    (SETS / "omniglot-small.LICENSE.txt").write_bytes((folder / "LICENSE.txt").read_bytes())
    print(f"{target}: {len(arrays['image'])} pairs, {target.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
