"""crossdistill: cross-modal knowledge distillation.

Will it help, do it, did it help. Names are imported when they are first used, so that the command line starts at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from crossdistill._version import __version__

if TYPE_CHECKING:
    from crossdistill.api import distill
    from crossdistill.data import PairedDataset, load
    from crossdistill.errors import CrossDistillError
    from crossdistill.experiments import load_student, read_experiment, run_experiment
    from crossdistill.methods import Distillation, SimCLR, Supervised
    from crossdistill.objectives import CrossModalContrastive, SimilarityDistillation
    from crossdistill.report import write_report
    from crossdistill.training import Settings, fit

__all__ = [
    "CrossDistillError",
    "CrossModalContrastive",
    "Distillation",
    "PairedDataset",
    "Settings",
    "SimCLR",
    "SimilarityDistillation",
    "Supervised",
    "__version__",
    "distill",
    "fit",
    "load",
    "load_student",
    "read_experiment",
    "run_experiment",
    "write_report",
]

_HOME = {
    "CrossDistillError": "errors",
    "CrossModalContrastive": "objectives",
    "Distillation": "methods",
    "PairedDataset": "data",
    "Settings": "training",
    "SimCLR": "methods",
    "SimilarityDistillation": "objectives",
    "Supervised": "methods",
    "distill": "api",
    "fit": "training",
    "load": "data",
    "load_student": "experiments",
    "read_experiment": "experiments",
    "run_experiment": "experiments",
    "write_report": "report",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'crossdistill' has no attribute '{name}'")
    return getattr(importlib.import_module(f"crossdistill.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
