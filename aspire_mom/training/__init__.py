"""Encoders trained on examples, which start an inversion from its moments alone."""

from aspire_mom.training.encoder import StartEncoder
from aspire_mom.training.problems import Training
from aspire_mom.training.start import predict
from aspire_mom.training.training import TrainingStatus, train
from aspire_mom.training.weights import (
    how_trained,
    load_weights,
    pretrained,
    save_weights,
)

__all__ = [
    "StartEncoder",
    "Training",
    "TrainingStatus",
    "how_trained",
    "load_weights",
    "predict",
    "pretrained",
    "save_weights",
    "train",
]
