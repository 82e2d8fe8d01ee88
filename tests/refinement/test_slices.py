import numpy as np
import pytest
from aspire.utils import Rotation
from aspire.volume import Volume

from aspire_mom import PolarBasis, SphericalDesign
from aspire_mom.evaluation.fsc import fourier_shell_correlation
from aspire_mom.phantoms import chain_phantom, gaussian_phantom
from aspire_mom.refinement.slices import slices, volume_from_slices
from aspire_mom.refinement.views import largest_order
from aspire_mom.rotations import viewing_rotations


@pytest.mark.parametrize("L", [25, 24])
def test_slices_are_those_of_projections(L):
    volume = gaussian_phantom(L, seed=1)
    directions, R = SphericalDesign(5).points, 9
    found = slices(volume.asnumpy()[0], directions, R, L)
    rotations = Rotation(viewing_rotations(directions).astype(np.float32))
    basis = PolarBasis(L, R, largest_order(R - 1))
    expected = basis.coefficients(volume.project(rotations).asnumpy())
    scale = abs(expected).max()
    np.testing.assert_allclose(found / scale, expected / scale, atol=2e-3)


@pytest.mark.parametrize("n", [25, 24])
def test_slices_determine_the_volume(n):
    volume = chain_phantom(n, seed=2)
    directions, R = SphericalDesign(35).points, 11
    c = slices(volume.asnumpy()[0], directions, R, n)
    rng = np.random.default_rng(0)
    information = rng.uniform(0.5, 2, (len(directions), R))
    found = volume_from_slices(
        c * information[:, None],
        information,
        directions,
        2 * np.pi * np.maximum(np.arange(R), 1 / 12),
        np.full(R, 0.01),
        n=n,
        L=n,
        support_radius=0.49,
    )
    fsc = fourier_shell_correlation(Volume(found), volume)
    assert fsc[1 : R - 1].min() > 0.995


def test_volume_agrees_with_dense_least_squares():
    n, R, L, radius = 9, 4, 12, 0.45
    rng = np.random.default_rng(1)
    directions = SphericalDesign(3).points
    M = largest_order(R - 1)
    sums = rng.normal(size=(2, len(directions), M + 1, R))
    sums = (sums[0] + 1j * sums[1]).astype(np.complex64)
    sums[:, 0] = sums[:, 0].real
    information = rng.uniform(1, 2, (len(directions), R))
    weights, prior = rng.uniform(1, 2, R), np.array([3.0, 2.0, 2.0, 5.0])
    found = volume_from_slices(
        sums, information, directions, weights, prior,
        n=n, L=L, support_radius=radius,
    )  # fmt: skip
    # Slices of each voxel in the ball, by the sum that defines them.
    axis = np.arange(n) - n // 2
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    inside = np.sqrt(x**2 + y**2 + z**2) <= radius * n
    voxels = np.stack((x[inside], y[inside], z[inside]))
    n_angles = 64
    theta = 2 * np.pi * np.arange(n_angles) / n_angles
    circle = np.stack((np.cos(theta), np.sin(theta), 0 * theta))
    k = np.einsum("vij,jt->vti", viewing_rotations(directions), circle)
    rings = np.arange(R)[:, None, None] * k[:, None]
    values = np.exp(-2j * np.pi / n * (rings @ voxels)) / L
    orders = np.arange(-M, M + 1)
    c = np.exp(-1j * np.outer(orders, theta)) @ values / n_angles
    signs = (-1.0) ** np.arange(1, M + 1)[:, None]
    negative = (signs * sums[:, 1:].conj())[:, ::-1]
    full = np.concatenate((negative, sums), 1).transpose(0, 2, 1)
    # Orders beyond those of the sums count in the model, so take whole circles for it.
    w = weights * information
    normal = np.einsum("vr,vrti,vrtj->ij", w / n_angles, values.conj(), values).real
    right = np.einsum("r,vrmi,vrm->i", weights, c.conj(), full).real
    q = np.fft.fftfreq(n, 1 / n)
    frequencies = np.stack(np.meshgrid(q, q, q, indexing="ij"), -1).reshape(-1, 3)
    shells = np.linalg.norm(frequencies, axis=1)
    waves = np.exp(-2j * np.pi / n * frequencies[:, ::-1] @ voxels)
    levels = np.interp(shells, np.arange(R), prior) / L**2
    normal += np.einsum("k,ki,kj->ij", levels, waves.conj(), waves).real
    expected = np.linalg.solve(normal, right)
    assert not found[~inside].any()
    np.testing.assert_allclose(
        found[inside], expected, atol=5e-3 * abs(expected).max(), rtol=0
    )
