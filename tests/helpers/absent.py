"""A data set of which some pairs lack a modality, made of one that is whole."""

import numpy as np

from crossdistill.data import PairedDataset


def who_is_there(n, share=0.3, seed=0):
    """Of "rich" and "poor", `share` each is absent, never both."""
    drawn = np.random.default_rng(seed).random(n)
    return {"rich": drawn >= share, "poor": drawn < 1 - share}


def lacking(data, share=0.3, seed=0):
    """The same pairs, some of them with one modality; what is stored for the other is NaN."""
    present = who_is_there(len(data), share, seed)
    arrays = {name: array.copy() for name, array in data.columns.arrays.items()}
    for name, here in present.items():
        arrays[name][~here] = np.nan
    columns = data.columns
    return PairedDataset(
        arrays, columns.modalities, name="lacking", label=columns.label, split=columns.split, present=present
    )
