"""Mixtures of von Mises-Fisher distributions of viewing directions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from aspire.utils import Rotation
from scipy.special import exprel
from scipy.stats import uniform_direction, vonmises_fisher

from aspire_mom.checks import check_integer
from aspire_mom.rotations.so3 import SO3Quadrature, viewing_rotations

# SciPy cannot sample a concentration of 0, and near it its formula cancels; below this
# one the distribution is within 1e-6 of uniform in total variation.
UNIFORM_BELOW = 1e-6


@dataclass(frozen=True, eq=False)
class VonMisesFisherMixture:
    """
    Density of rotations: viewing directions R[:, 2] from a mixture of von Mises-Fisher
    distributions, in-plane angles uniform and independent of them (section 5.2, which
    has 8 components).

    :param means: Mean directions (n_components, 3), xyz order; normalised here.
    :param concentrations: Concentrations κ ≥ 0 (n_components,); 0 is uniform.
    :param weights: Positive weights (n_components,); normalised to sum to one.
    :raises ValueError: shapes disagree, a mean is zero, or a value is out of range.
    """

    means: np.ndarray
    concentrations: np.ndarray
    weights: np.ndarray

    def __post_init__(self):
        means, concentrations, weights = (
            np.array(values, dtype=np.float64)
            for values in (self.means, self.concentrations, self.weights)
        )
        n = len(weights) if weights.ndim == 1 else 0
        if n == 0 or means.shape != (n, 3) or concentrations.shape != (n,):
            raise ValueError(
                "means, concentrations and weights must have shapes (n, 3), (n,) and "
                f"(n,), got {means.shape}, {concentrations.shape} and {weights.shape}"
            )
        norms = np.linalg.norm(means, axis=1)
        if not np.all(np.isfinite(norms) & (norms > 0)):
            raise ValueError(f"means must be finite and not zero, got {means.tolist()}")
        if not np.all(np.isfinite(concentrations) & (concentrations >= 0)):
            raise ValueError(
                "concentrations must be finite and not negative, got "
                f"{concentrations.tolist()}"
            )
        if not np.all(np.isfinite(weights) & (weights > 0)):
            raise ValueError(
                f"weights must be finite and positive, got {weights.tolist()}"
            )
        object.__setattr__(self, "means", means / norms[:, None])
        object.__setattr__(self, "concentrations", concentrations)
        object.__setattr__(self, "weights", weights / weights.sum())

    @classmethod
    def random(cls, n_components: int = 8, *, seed: int = 0) -> VonMisesFisherMixture:
        """
        Draw a mixture that is clearly not uniform: means uniform on the sphere,
        concentrations uniform in [2, 10] (wide enough for eight components to cover the
        sphere), weights Dirichlet(5, …, 5), so that none is negligible.

        :param n_components: Number of components; the paper has 8.
        :param seed: Seed of the draw.
        :return: The mixture.
        :raises ValueError: `n_components` is less than 1.
        """
        check_integer("n_components", n_components, 1)
        rng = np.random.default_rng(seed)
        return cls(
            means=uniform_direction(3).rvs(n_components, random_state=rng),
            concentrations=rng.uniform(2, 10, n_components),
            weights=rng.dirichlet(np.full(n_components, 5.0)),
        )

    def pdf(self, directions: np.ndarray) -> np.ndarray:
        """
        Evaluate the density of viewing directions per steradian, as
        `scipy.stats.vonmises_fisher` does, by Σ w exp(κ (μ·x - 1)) κ / (2π (1 -
        exp(-2κ))), which holds for every κ ≥ 0.

        :param directions: Unit vectors (..., 3), xyz order.
        :return: Density (...), float64, per steradian.
        :raises ValueError: directions are not unit vectors.
        """
        directions = np.asarray(directions, dtype=np.float64)
        if directions.shape[-1:] != (3,):
            raise ValueError(f"directions must be (..., 3), got {directions.shape}")
        if not np.allclose(np.linalg.norm(directions, axis=-1), 1, atol=1e-5):
            raise ValueError("directions must be unit vectors")
        kappa = self.concentrations
        peaks = self.weights / (4 * np.pi * exprel(-2 * kappa))
        return np.exp(kappa * (directions @ self.means.T - 1)) @ peaks

    def sample(self, n: int, *, seed: int = 0) -> Rotation:
        """
        Draw rotations; concentrations below 1e-6 are drawn as uniform.

        :param n: Number of rotations.
        :param seed: Seed of the draw.
        :return: ASPIRE `Rotation` of n independent draws, float64. Its `.angles` are
            what `Simulation(angles=...)` takes.
        """
        rng = np.random.default_rng(seed)
        component = rng.choice(len(self.weights), size=n, p=self.weights)
        directions = np.empty((n, 3))
        for k, (mean, kappa) in enumerate(
            zip(self.means, self.concentrations, strict=True)
        ):
            chosen = component == k
            distribution = (
                uniform_direction(3)
                if kappa < UNIFORM_BELOW
                else vonmises_fisher(mean, kappa)
            )
            directions[chosen] = distribution.rvs(chosen.sum(), random_state=rng)
        in_plane = rng.uniform(0, 2 * np.pi, n)
        return Rotation(
            viewing_rotations(directions, in_plane), gimble_lock_warnings=False
        )

    def on(self, quadrature: SO3Quadrature) -> np.ndarray:
        """
        Evaluate the probabilities of a quadrature's nodes: weight times density,
        normalised. These are the paper's z_ρ (section 4.2, eq. 20) for this density.

        :param quadrature: The quadrature.
        :return: Probabilities (n_nodes,), float64, summing to one.
        :raises ValueError: the density is zero on every node (κ far too large).
        """
        density = np.repeat(self.pdf(quadrature.views), quadrature.n_inplane)
        probabilities = quadrature.weights * density
        total = probabilities.sum()
        if not total > 0:
            raise ValueError(
                f"the density vanishes on all {len(quadrature)} nodes: concentrations "
                f"up to {self.concentrations.max():g} are too narrow for them"
            )
        return probabilities / total
