"""Encoders, projectors and heads, taps on any submodule by dotted path, and how a network is built from its name."""

from crossdistill.networks.audio import SpectrogramCNN
from crossdistill.networks.base import Encoder, Network, Outputs, as_outputs
from crossdistill.networks.build import build_encoder
from crossdistill.networks.cnn import CNN
from crossdistill.networks.mlp import MLP
from crossdistill.networks.projector import Projector
from crossdistill.networks.tapped import Tapped
from crossdistill.networks.taps import Mapped, Maps, Taps
from crossdistill.networks.temporal import TemporalCNN
from crossdistill.networks.vit import ViT
from crossdistill.networks.weights import WeightDifference, load_weights

__all__ = [
    "CNN",
    "MLP",
    "Encoder",
    "Mapped",
    "Maps",
    "Network",
    "Outputs",
    "Projector",
    "SpectrogramCNN",
    "Tapped",
    "Taps",
    "TemporalCNN",
    "ViT",
    "WeightDifference",
    "as_outputs",
    "build_encoder",
    "load_weights",
]
