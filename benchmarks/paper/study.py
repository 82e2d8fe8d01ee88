"""
What the paper leaves open in its configuration, varied one at a time: λ, the width of
the network and ω. On phantoms that are reported nowhere (seeds from 50), with exact
moments in the polar basis, which is the same loss for in-plane uniform views at a
fraction of the cost, and ten times the paper's learning rates for a tenth of the
epochs or less. Prints the errors of both moments and the resolution at the end.

    python benchmarks/paper/study.py --epochs 600
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from aspire_mom import (
    FourierNet,
    LossOptions,
    MomentEncoder,
    MomentInversion,
    Moments,
    PolarBasis,
    SearchOptions,
    SO3Quadrature,
    SphericalDesign,
    VonMisesFisherMixture,
    compare,
)
from aspire_mom.phantoms import gaussian_phantom
from aspire_mom.volumes.grid import volume_at

L, RINGS, ORDERS = 25, 9, 22
DEFAULT = {"lam": 1.0, "hidden": 128, "omega": 5.0}
VARIED = {"lam": (0.3, 3.0), "hidden": (64,), "omega": (2.5, 10.0)}
LEARNING_RATES = (1e-4, 1e-5)


def exact_moments(seed: int) -> tuple:
    """A phantom, and its moments over the vMF views, on the design's own nodes."""
    volume = gaussian_phantom(L, seed=seed)
    views = SO3Quadrature.product(SphericalDesign(31), 1)
    p = VonMisesFisherMixture.random(8, seed=seed + 1000).on(views)
    basis = PolarBasis(L, n_rings=RINGS, max_order=ORDERS)
    angles = 2 * np.pi * np.arange(64) / 64
    plane = np.stack((np.cos(angles), np.sin(angles)))
    directions = (views.view_rotations[:, :, :2] @ plane).transpose(0, 2, 1)
    k = np.arange(RINGS)[:, None] * directions.reshape(-1, 1, 3)
    values = volume_at(volume, k)
    values = values.reshape(len(p), -1, RINGS) / L
    c = np.fft.fft(values, axis=1)[:, : ORDERS + 1] / values.shape[1]
    second = np.einsum("v,vmr,vms->mrs", p, c, c.conj(), optimize=True)
    return volume, Moments(p @ c[:, 0], second, basis, pixel_size=1.0)


def run(seed: int, epochs: int, lam: float, hidden: int, omega: float) -> str:
    """One setting on one phantom; errors and resolution as text."""
    volume, moments = exact_moments(seed)
    quadrature = SO3Quadrature.product(SphericalDesign(13, n_points=100), 1)
    scale = L * float(abs(moments.first[0]))
    start = time.perf_counter()
    inversion = MomentInversion(
        moments,
        FourierNet(L / 2, hidden=hidden, omega=omega, scale=scale),
        MomentEncoder.polar(ORDERS + 1, RINGS, len(quadrature)),
        quadrature,
        n_rings=RINGS,
        loss=LossOptions(lam=lam),
        search=SearchOptions(n_steps=epochs, learning_rates=LEARNING_RATES),
    )
    found = inversion.estimate()
    errors, found = found.moment_errors, compare(found.volume, volume)
    return (
        f"errors {errors[0]:.4f} {errors[1]:.4f}, {found.resolution(0.5):5.2f} Å,"
        f" correlation {found.correlation:.3f}, {time.perf_counter() - start:.0f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[50, 51])
    options = parser.parse_args()
    settings = [{}] + [{name: v} for name, values in VARIED.items() for v in values]
    for setting in settings:
        for seed in options.seeds:
            label = ", ".join(f"{k} = {v}" for k, v in setting.items()) or "default"
            result = run(seed, options.epochs, **{**DEFAULT, **setting})
            print(f"{label:14} phantom {seed}: {result}", flush=True)


if __name__ == "__main__":
    main()
