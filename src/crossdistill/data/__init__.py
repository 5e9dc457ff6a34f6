"""Data: modalities, pairs, splits and their checks, paired transforms, named sets, and worlds with known truth."""

from crossdistill.data.dataset import SPLITS, PairedDataset
from crossdistill.data.draws import Draws, normal, permutation, uniform
from crossdistill.data.load import load
from crossdistill.data.loader import Loader
from crossdistill.data.modality import Modality
from crossdistill.data.named import SetFacts, available_sets
from crossdistill.data.synthetic import digits_views, shared_latent
from crossdistill.data.transforms import Transform, available_transforms, build_transforms

__all__ = [
    "SPLITS",
    "Draws",
    "Loader",
    "Modality",
    "PairedDataset",
    "SetFacts",
    "Transform",
    "available_sets",
    "available_transforms",
    "build_transforms",
    "digits_views",
    "load",
    "normal",
    "permutation",
    "shared_latent",
    "uniform",
]
