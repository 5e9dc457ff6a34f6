"""The one training loop, on Lightning Fabric: any method, any data, stopped and resumed without a trace."""

from crossdistill.training.identity import code_of, weights_digest
from crossdistill.training.loop import fit
from crossdistill.training.product import finished, load_product
from crossdistill.training.protocols import Listener, Loader, TrainingData
from crossdistill.training.settings import Settings
from crossdistill.training.store import TeacherStore
from crossdistill.training.stored import StoredOutputs
from crossdistill.training.user import UserData

__all__ = [
    "Listener",
    "Loader",
    "Settings",
    "StoredOutputs",
    "TeacherStore",
    "TrainingData",
    "UserData",
    "code_of",
    "finished",
    "fit",
    "load_product",
    "weights_digest",
]
