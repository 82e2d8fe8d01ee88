"""Encoders of moments, the paper's and trained ones, and their training."""

from aspire_mom.networks.moment_encoder import LatentEncoder, MomentEncoder
from aspire_mom.networks.start_encoder import StartEncoder, pretrained
from aspire_mom.networks.training import Training, train

__all__ = [
    "LatentEncoder",
    "MomentEncoder",
    "StartEncoder",
    "Training",
    "pretrained",
    "train",
]
