"""Systems of the literature, one file each; `base` is their contract with the loop."""

from crossdistill.methods.base import (
    Batch,
    Losses,
    Method,
    Separable,
    StageData,
    freeze,
    index_of,
    label_of,
    modality_of,
    view,
)
from crossdistill.methods.distillation import Distillation
from crossdistill.methods.simclr import SimCLR
from crossdistill.methods.supervised import Supervised

__all__ = [
    "Batch",
    "Distillation",
    "Losses",
    "Method",
    "Separable",
    "SimCLR",
    "StageData",
    "Supervised",
    "freeze",
    "index_of",
    "label_of",
    "modality_of",
    "view",
]
