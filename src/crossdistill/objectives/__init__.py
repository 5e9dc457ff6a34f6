"""Losses, each usable alone in any training loop: tensors in, a scalar out.

Every class here with `facts` is a choice of the experiment file by its facts' name; a new one is a new file in this
folder.
"""

from crossdistill.objectives._graph import generic_features
from crossdistill.objectives.base import Context, Objective, unit
from crossdistill.objectives.cmcd import (
    CrossModalContrastive,
    SimilarityDistillation,
    anchored_distillation,
    cross_modal_contrastive,
    kernel_distances,
    similarity_distillation,
)
from crossdistill.objectives.gather import gather_rows
from crossdistill.objectives.ntxent import nt_xent
from crossdistill.objectives.regression import L2, Cosine
from crossdistill.objectives.smoothed import SmoothedTarget
from crossdistill.objectives.tiled import tiles
from crossdistill.registry import Facts

__all__ = [
    "L2",
    "Context",
    "Cosine",
    "CrossModalContrastive",
    "Facts",
    "Objective",
    "SimilarityDistillation",
    "SmoothedTarget",
    "anchored_distillation",
    "cross_modal_contrastive",
    "gather_rows",
    "generic_features",
    "kernel_distances",
    "nt_xent",
    "similarity_distillation",
    "tiles",
    "unit",
]
