"""Volumes and quadratures that the tests of this folder share."""

import numpy as np
import torch
from aspire.utils import Rotation

from aspire_mom.inversion import forward_model
from aspire_mom.moments import Moments
from aspire_mom.rotations import SO3Quadrature
from aspire_mom.volumes import GaussianMixture
from aspire_mom.volumes.base import FourierVolume
from tests.references import forward as reference


class GridVolume(FourierVolume):
    """Voxels [z, y, x], transformed by the defining sum."""

    def __init__(self, voxels):
        super().__init__()
        self.voxels = torch.nn.Parameter(torch.as_tensor(voxels))
        L = len(voxels)
        z, y, x = torch.meshgrid([torch.arange(L) - L // 2] * 3, indexing="ij")
        self.positions = torch.stack((x, y, z), -1).reshape(-1, 3).double() / L

    def forward(self, k):
        waves = torch.exp(-2j * torch.pi * (k @ self.positions.to(k).T))
        return waves @ self.voxels.ravel().to(waves.dtype)


def mixture(n=3, *, seed=0, dtype=torch.float64, sigma=0.06, total=20.0, radius=0.25):
    """
    A molecule of n Gaussians of different widths and masses. Within a quarter of the
    box, aliases of the orders for which rings are sampled are below 1e-9.
    """
    model = GaussianMixture(
        n, support_radius=radius, sigma=sigma, total=total, seed=seed
    )
    with torch.no_grad():
        model.log_sigmas += torch.linspace(0.7, 1.3, n).log()
        model.weight_parameters += torch.linspace(-0.5, 1, n)
    return model.to(dtype)


def closed_form(model):
    parts = (model.centres, model.sigmas, model.weights)
    return reference.gaussian_transform(*(p.detach().double().numpy() for p in parts))


def moved(model, matrix):
    """The mixture with its centres multiplied by an orthogonal matrix."""
    other = GaussianMixture(
        len(model), support_radius=model.support_radius, signed=model.signed
    )
    other.to(model.log_sigmas)
    other.load_state_dict(model.state_dict())
    other.scale = model.scale
    other.centre_parameters.data @= torch.from_numpy(matrix.T).to(model.log_sigmas)
    return other


def quadrature_of(rotations, n_inplane=1, weights=None):
    """Given view rotations (n, 3, 3) times in-plane angles."""
    angles = 2 * np.pi * np.arange(n_inplane) / n_inplane
    inplane = Rotation.about_axis("z", angles, dtype=np.float64).matrices
    nodes = (rotations[:, None] @ inplane).reshape(-1, 3, 3)
    n = len(nodes)
    return SO3Quadrature(
        rotations=Rotation(nodes, gimble_lock_warnings=False),
        weights=np.full(n, 1 / n) if weights is None else weights,
        degree=0,
        n_inplane=n_inplane,
    )


def random_rotations(n, seed=0):
    return Rotation.generate_random_rotations(n, seed=seed, dtype=np.float64).matrices


def random_probabilities(n, seed=0):
    """Far from equal: exponentially distributed before scaling."""
    p = np.random.default_rng(seed).exponential(size=n)
    return p / p.sum()


def exact_moments(model, probabilities, quadrature, basis, **options):
    """`Moments` of a model, by the package's own forward model."""
    with torch.no_grad():
        p = torch.as_tensor(probabilities)
        first, second = forward_model(basis, quadrature)(model, p)
    first, second = (m.to(torch.complex128).numpy() for m in (first, second))
    return Moments(first, second, basis, **options)


def largest_difference(values, expected):
    """Relative to the largest expected value, which must not be zero."""
    values, expected = (
        v.detach().numpy() if isinstance(v, torch.Tensor) else v
        for v in (values, expected)
    )
    assert values.shape == expected.shape
    return np.abs(values - expected).max() / np.abs(expected).max()
