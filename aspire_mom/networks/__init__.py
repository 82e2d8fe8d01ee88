"""Encoders of moments, the paper's and trained ones, and their training."""

from aspire_mom.networks.moment_encoder import LatentEncoder, MomentEncoder
from aspire_mom.networks.problems import Training
from aspire_mom.networks.start_encoder import StartEncoder
from aspire_mom.networks.training import train
from aspire_mom.networks.weights import (
    how_trained,
    load_weights,
    pretrained,
    save_weights,
)

__all__ = [
    "LatentEncoder",
    "MomentEncoder",
    "StartEncoder",
    "Training",
    "how_trained",
    "load_weights",
    "pretrained",
    "save_weights",
    "train",
]
