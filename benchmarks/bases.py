"""
The polar and the Cartesian basis: do they agree, and what does each cost.

Agreement: moments of the same volume and density (a mixture of von Mises-Fisher
distributions on the views of the paper's 100-point design, in-plane angles uniform),
within the disc of `--rings` rings. Cartesian moments are sums over equally spaced
in-plane angles, raised until they no longer change; polar ones are averaged exactly.

Cost: seconds for one loss and gradient at n = 63 and the paper's 1,200 nodes. The
Cartesian loss is timed at two smaller numbers of nodes and continued linearly.

    python benchmarks/bases.py
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from aspire.volume import Volume

from aspire_mom import (
    CartesianBasis,
    DiscreteDensity,
    FourierNet,
    GaussianMixture,
    Moments,
    PolarBasis,
    SO3Quadrature,
    SphericalDesign,
    VonMisesFisherMixture,
)
from aspire_mom.inversion import MomentLoss, forward_model
from aspire_mom.phantoms import chain_phantom
from aspire_mom.volumes.grid import volume_at

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
MAPS = ("gpcr_gs_7cfn_63.mrc", "ribosome_70s_65.mrc")
PAPER_ANGLES = 12
N = 63


def maps() -> dict[str, Volume]:
    """Real maps where there are any, else a random chain of atoms; of unit norm."""
    found = {name: Volume.load(DATA / name) for name in MAPS if (DATA / name).is_file()}
    found = found or {"chain of 300 atoms": chain_phantom(N)}
    return {name: v / np.linalg.norm(v.asnumpy()) for name, v in found.items()}


def cartesian(
    volume: Volume, views: SO3Quadrature, p: np.ndarray, n_angles: int, rings: int
) -> tuple[np.ndarray, np.ndarray]:
    """Moments of the Fourier pixels within the disc, eq. 20, complex128."""
    L = volume.resolution
    axis = np.arange(-(L // 2), (L + 1) // 2)
    ky, kx = np.meshgrid(axis, axis, indexing="ij")
    pixels = np.stack((kx.ravel(), ky.ravel()), 1)
    pixels = pixels[np.linalg.norm(pixels, axis=1) < rings - 0.5]
    angles = 2 * np.pi * np.arange(n_angles) / n_angles
    c, s = np.cos(angles), np.sin(angles)
    inplane = np.stack((c, -s, 0 * c, s, c, 0 * c, 0 * c, 0 * c, 0 * c + 1), 1)
    inplane = inplane.reshape(-1, 3, 3)
    first, second = 0, 0
    for rotation, weight in zip(views.view_rotations, p, strict=True):
        turned = (rotation @ inplane)[:, :, :2].transpose(0, 2, 1)
        slices = volume_at(volume, pixels @ turned) / L
        first = first + weight * slices.mean(0)
        second = second + weight / n_angles * slices.T @ slices.conj()
    return first, second


def polar(
    volume: Volume, views: SO3Quadrature, p: np.ndarray, rings: int
) -> tuple[np.ndarray, np.ndarray, PolarBasis]:
    """Moments in the polar basis, averaged over in-plane angles."""
    basis = PolarBasis(volume.resolution, n_rings=rings)
    angles = 2 * np.pi * np.arange(2 * basis.n_angles) / (2 * basis.n_angles)
    plane = np.stack((np.cos(angles), np.sin(angles)))
    directions = (views.view_rotations[:, :, :2] @ plane).transpose(0, 2, 1)
    k = np.arange(rings)[:, None] * directions.reshape(-1, 1, 3)
    values = volume_at(volume, k)
    values = values.reshape(len(p), -1, rings) / volume.resolution
    c = np.fft.fft(values, axis=1)[:, : basis.max_order + 1] / values.shape[1]
    second = np.einsum("v,vmr,vms->mrs", p, c, c.conj(), optimize=True)
    return p @ c[:, 0], second, basis


def agreement(name: str, volume: Volume, rings: int) -> None:
    """Norms and losses in both bases, and the aliasing of the paper's 12 angles."""
    views = SO3Quadrature.product(SphericalDesign(13, n_points=100), 1)
    p = VonMisesFisherMixture.random(seed=1).on(views)
    other = Volume(np.ascontiguousarray(volume.asnumpy()[0].transpose(1, 0, 2)))
    n_angles, change, before = 4 * PAPER_ANGLES, 1.0, None
    while change > 1e-4:
        found = cartesian(volume, views, p, n_angles, rings)
        if before is not None:
            change = np.linalg.norm(found[1] - before[1]) / np.linalg.norm(found[1])
        before, n_angles = found, n_angles * 2
    n_angles //= 2
    print(f"{name}, {rings} rings, Cartesian with {n_angles} in-plane angles")
    second_volume = cartesian(other, views, p, n_angles, rings)
    mine, theirs = polar(volume, views, p, rings), polar(other, views, p, rings)
    basis = mine[2]
    for i, moment in enumerate(("first", "second")):
        weights = getattr(basis, f"{moment}_weights")

        def norm(x, weights=weights):
            return np.sqrt(np.sum(weights * np.abs(x) ** 2))

        pixels = np.linalg.norm(found[i])
        loss = np.linalg.norm(found[i] - second_volume[i]) / pixels
        polar_loss = norm(mine[i] - theirs[i]) / norm(mine[i])
        print(
            f"  {moment} moment: norms polar / Cartesian {norm(mine[i]) / pixels:.4f};"
            f" relative distance to another volume's: polar {polar_loss:.4f},"
            f" Cartesian {loss:.4f}, ratio {polar_loss / loss:.4f}"
        )
    coarse = cartesian(volume, views, p, PAPER_ANGLES, rings)
    error = np.linalg.norm(coarse[1] - found[1]) / np.linalg.norm(found[1])
    print(f"  {PAPER_ANGLES} in-plane angles: second moment off by {error:.2%}")


def seconds(evaluate: Callable[[], torch.Tensor], repeats: int) -> float:
    """Median time of a loss and its gradient, after one to warm up."""
    evaluate().backward()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        evaluate().backward()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def loss_of(basis, quadrature, volume, **cut) -> Callable[[], torch.Tensor]:
    """Eq. 28 between a model's moments and those of another, as a closure."""
    inner = basis.cut(**cut)
    forward = forward_model(inner, quadrature)
    density = DiscreteDensity(quadrature)
    truth = GaussianMixture(8, seed=5)
    whole = forward_model(basis, quadrature)
    with torch.no_grad():
        first, second = whole(truth, density())
    moments = Moments(
        first.numpy().astype(np.complex128), second.numpy().astype(np.complex128), basis
    )
    loss = MomentLoss(moments, inner, weighting="none")
    return lambda: loss(*forward(volume, density()))


def cost() -> None:
    """Seconds per loss and gradient, and their ratios."""
    network = FourierNet(N / 2)
    design = SphericalDesign(13, n_points=100)
    times = []
    # Enough nodes that layers are evaluated again for the gradient, as with 1,200, and
    # numbers of in-plane angles that share no values: eq. 20 as it is written.
    small = (120, 360)
    for n_nodes in small:
        quadrature = SO3Quadrature.product(SphericalDesign(5), n_nodes // 12)
        evaluate = loss_of(CartesianBasis(N), quadrature, network)
        times.append(seconds(evaluate, 1))
    slope = (times[1] - times[0]) / (small[1] - small[0])
    whole = times[1] + slope * (1200 - small[1])
    half_plane = N * N // 2 + 1
    print(
        f"Cartesian + FourierNet, n = {N}, Q = 1,200: {whole:.1f} s (from"
        f" {times[0]:.2f} s at {small[0]} and {times[1]:.2f} s at {small[1]} nodes;"
        f" {1200 * half_plane:,} network points)"
    )
    views = SO3Quadrature.product(design, 1)
    support = {"max_order": int(np.ceil(0.8 * np.pi * (N // 2)))}
    for label, volume, cut, repeats in (
        ("FourierNet, 32 rings", network, support, 1),
        ("16 Gaussians, 32 rings", GaussianMixture(16), support, 5),
        (
            "16 Gaussians, 12 rings (the default inversion's)",
            GaussianMixture(16),
            {"n_rings": 12, "max_order": 29},
            20,
        ),
    ):
        one = seconds(loss_of(PolarBasis(N), views, volume, **cut), repeats)
        print(f"polar + {label}: {one * 1e3:.1f} ms, {whole / one:,.0f} times cheaper")
    flops = 6 * 1200 * half_plane * sum(w.numel() for w in network.parameters())
    a = torch.randn(2048, 2048)
    start = time.perf_counter()
    for _ in range(5):
        a @ a
    peak = 5 * 2 * 2048**3 / (time.perf_counter() - start)
    print(
        f"limit: the Cartesian network's {flops:.1e} flops at the {peak / 1e9:.0f}"
        f" Gflop/s of a matrix product here take {flops / peak:.1f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rings", type=int, default=16)
    parser.add_argument("--only", choices=["agreement", "cost"])
    options = parser.parse_args()
    if options.only != "cost":
        for name, volume in maps().items():
            agreement(name, volume, options.rings)
    if options.only != "agreement":
        cost()


if __name__ == "__main__":
    main()
