"""Supervised training of encoders."""

import math

from torch import Tensor

from aspire_mom.networks.errors import InvariantErrors
from aspire_mom.networks.exact import ExactMoments
from aspire_mom.networks.problems import (
    STANDARDISATION,
    TRAINING,
    VALIDATION,
    Training,
    draw_problems,
)
from aspire_mom.networks.start_encoder import StartEncoder
from aspire_mom.training import train_network


def train(
    encoder: StartEncoder, training: Training, *, device: str = "cpu", **options
) -> float:
    """
    Minimise the errors of volumes and densities (see :class:`InvariantErrors`) over an
    encoder's parameters, as :func:`~aspire_mom.training.train_network` does.

    :param encoder: The encoder.
    :param training: Settings.
    :param device: Torch device.
    :param options: `checkpoint`, and `status`, which gets the errors "volume", the mean
        squared error of Fourier values over their power, and "density", the mean
        Kullback-Leibler divergence in nats.
    :return: The best validation loss, the sum of the two.
    """
    # Degrees that an object within 0.4 boxes has; directions that separate harmonics.
    reach = math.ceil(0.8 * math.pi * (encoder.n_rings - 1))
    exact = ExactMoments(
        encoder.n_rings,
        encoder.max_order,
        degree=max(reach, encoder.max_order + 2),
        design_degree=max(17, 2 * encoder.degree),
    ).to(device)
    errors = InvariantErrors(encoder.n_rings, exact.points, encoder.degree).to(device)
    encoder.to(device)
    sample = draw_problems(
        training, training.validation_size, (STANDARDISATION,), exact
    )
    encoder.standardise(*sample.moments)
    validation = draw_problems(training, training.validation_size, (VALIDATION,), exact)

    def loss(step: int) -> Tensor:
        problems = draw_problems(training, training.batch_size, (TRAINING, step), exact)
        volume, density = errors(problems.truth, encoder(*problems.moments))
        return (volume + density).mean()

    def validate() -> tuple[float, dict[str, float]]:
        found = errors(validation.truth, encoder(*validation.moments))
        volume, density = (error.mean().item() for error in found)
        return volume + density, {"volume": volume, "density": density}

    return train_network(encoder, training, loss, validate, **options)
