"""Data: modalities, pairs, splits and their checks, paired transforms, named sets, and worlds with known truth."""

from crossdistill.data.dataset import SPLITS, PairedDataset
from crossdistill.data.draws import Draws, normal, permutation, uniform
from crossdistill.data.loader import Loader
from crossdistill.data.modality import Modality
from crossdistill.data.transforms import Transform, available_transforms, build_transforms

__all__ = [
    "SPLITS",
    "Draws",
    "Loader",
    "Modality",
    "PairedDataset",
    "Transform",
    "available_transforms",
    "build_transforms",
    "normal",
    "permutation",
    "uniform",
]
