"""Densities of rotations: learnable probabilities, and von Mises-Fisher mixtures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from aspire.utils import Rotation
from scipy.special import exprel
from scipy.stats import uniform_direction, vonmises_fisher
from torch import Tensor

from aspire_mom.checks import check_integer
from aspire_mom.rotations.so3 import SO3Quadrature, viewing_rotations
from aspire_mom.rotations.sphere import real_spherical_harmonics

# Concentrations below this are sampled as uniform, with an error in total variation
# below 1e-6: SciPy rejects 0, and near 0 its formula loses precision.
UNIFORM_BELOW = 1e-6


class DiscreteDensity(torch.nn.Module):
    """
    Learnable probabilities on the nodes of a quadrature: the paper's z_ρ (section 4.2)
    without an encoder. They are the softmax of logits and start equal.

    Without `degree` every node has a logit of its own. With `degree` the density is
    smooth in the viewing direction d, and in-plane angles are uniform:
    log ρ(d) = Σ_{l=1}^{degree} Σ_m a_lm √(4π) Y_lm(d) + const. :meth:`penalty` is the
    prior under which a_lm is normal of variance 1 / (2 l (l + 1)), a regularisation.

    :param nodes: A quadrature, or without `degree` its number of nodes. With `degree`,
        its weights must be equal, as those of `SO3Quadrature.product` are.
    :param degree: Largest degree of the log-density's spherical harmonics.
    :raises ValueError: nodes or degree below 1, or a degree without a quadrature.
    """

    harmonics: Tensor
    precision: Tensor

    def __init__(self, nodes: int | SO3Quadrature, *, degree: int | None = None):
        super().__init__()
        n_nodes = len(nodes) if isinstance(nodes, SO3Quadrature) else nodes
        check_integer("nodes", n_nodes, 1)
        if degree is None:
            self.logits = torch.nn.Parameter(torch.zeros(n_nodes))
            self.coefficients = None
            return
        check_integer("degree", degree, 1)
        if not isinstance(nodes, SO3Quadrature):
            found = f"nodes is {nodes!r}"
            raise ValueError(f"{found}; a smooth density needs an SO3Quadrature")
        harmonics = log_density_harmonics(nodes.views, degree).float()
        l = torch.arange(1, degree + 1)
        l = l.repeat_interleave(2 * l + 1)
        harmonics = harmonics.repeat_interleave(nodes.n_inplane, dim=0)
        self.register_buffer("harmonics", harmonics)
        self.register_buffer("precision", (2 * l * (l + 1)).float())
        self.coefficients = torch.nn.Parameter(torch.zeros(len(l)))

    @classmethod
    def from_probabilities(cls, probabilities: np.ndarray | Tensor) -> DiscreteDensity:
        """
        :param probabilities: Non-negative values (n_nodes,), normalised here. Zeros
            become the dtype's smallest positive number, to keep logits finite.
        :return: The density with these probabilities, of the same dtype and device.
        :raises ValueError: values are negative, not finite, or all zero.
        """
        p = torch.as_tensor(probabilities).detach()
        if p.ndim != 1 or not p.is_floating_point():
            found = f"{p.dtype} of shape {tuple(p.shape)}"
            raise ValueError(f"probabilities are {found}; they must be real and (n,)")
        if not (torch.isfinite(p).all() and (p >= 0).all() and p.sum() > 0):
            found = f"a minimum of {p.min():g} and a sum of {p.sum():g}"
            raise ValueError(f"probabilities have {found}; they must be ≥ 0, not all 0")
        density = cls(len(p))
        logits = (p / p.sum()).clamp_min(torch.finfo(p.dtype).tiny).log()
        density.logits = torch.nn.Parameter(logits)
        return density

    def forward(self) -> Tensor:
        """:return: Probabilities (n_nodes,), non-negative, summing to one."""
        return torch.softmax(self._logits(), dim=0)

    def penalty(self) -> Tensor:
        """:return: Minus twice the log-prior, Σ 2 l (l + 1) a_lm²; 0 without degree."""
        if self.coefficients is None:
            return self.logits.new_zeros(())
        return (self.precision * self.coefficients**2).sum()

    @property
    def probabilities(self) -> np.ndarray:
        """Probabilities (n_nodes,), NumPy float64, without gradient."""
        return torch.softmax(self._logits().detach().double(), dim=0).cpu().numpy()

    def _logits(self) -> Tensor:
        if self.coefficients is None:
            return self.logits
        return self.harmonics @ self.coefficients


def log_density_harmonics(directions: np.ndarray, degree: int) -> Tensor:
    """
    :param directions: Unit vectors (n, 3), xyz order.
    :param degree: Largest degree.
    :return: √(4π) Y_lm of `DiscreteDensity`, l = 1 … degree, (n, (degree + 1)² - 1).
    """
    harmonics = list(real_spherical_harmonics(torch.tensor(directions), degree))[1:]
    return np.sqrt(4 * np.pi) * torch.cat(harmonics, 1)


@dataclass(frozen=True, eq=False)
class VonMisesFisherMixture:
    """
    Density of rotations: viewing directions R[:, 2] from a mixture of von Mises-Fisher
    distributions (section 5.2 has 8), in-plane angles uniform and independent of them.

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
        for name, values, valid, accepted in (
            ("means", means, norms > 0, "not zero"),
            ("concentrations", concentrations, concentrations >= 0, "not negative"),
            ("weights", weights, weights > 0, "positive"),
        ):
            if not (np.isfinite(values).all() and valid.all()):
                raise ValueError(
                    f"{name} must be finite and {accepted}, got {values.tolist()}"
                )
        object.__setattr__(self, "means", means / norms[:, None])
        object.__setattr__(self, "concentrations", concentrations)
        object.__setattr__(self, "weights", weights / weights.sum())

    @classmethod
    def random(cls, n_components: int = 8, *, seed: int = 0) -> VonMisesFisherMixture:
        """
        :param n_components: Number of components.
        :param seed: Seed of the draw.
        :return: A mixture that is clearly not uniform: means uniform on the sphere,
            concentrations uniform in [2, 10], weights Dirichlet(5, …, 5).
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
        Evaluate the density of viewing directions, Σ w exp(κ (μ·x - 1)) κ / (2π (1 -
        exp(-2κ))), where κ = 0 gives the limit w / 4π.

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
        :param n: Number of rotations.
        :param seed: Seed of the draw.
        :return: ASPIRE `Rotation`, float64; its `angles` suit `Simulation`.
        """
        rng = np.random.default_rng(seed)
        component = rng.choice(len(self.weights), size=n, p=self.weights)
        directions, means = np.empty((n, 3)), self.means
        for k, kappa in enumerate(self.concentrations):
            chosen, drawn = component == k, uniform_direction(3)
            if kappa >= UNIFORM_BELOW:
                drawn = vonmises_fisher(means[k], kappa)
            directions[chosen] = drawn.rvs(chosen.sum(), random_state=rng)
        rotations = viewing_rotations(directions, rng.uniform(0, 2 * np.pi, n))
        return Rotation(rotations, gimble_lock_warnings=False)

    def on(self, quadrature: SO3Quadrature) -> np.ndarray:
        """
        :param quadrature: The quadrature.
        :return: Weight times density at each node (n_nodes,), float64, normalised to
            sum to one: the paper's z_ρ (section 4.2, eq. 20).
        :raises ValueError: the density is zero on every node (κ far too large).
        """
        density = np.repeat(self.pdf(quadrature.views), quadrature.n_inplane)
        probabilities = quadrature.weights * density
        total = probabilities.sum()
        if not total > 0:
            raise ValueError(
                f"the density is zero at all {len(quadrature)} nodes: concentrations up"
                f" to {self.concentrations.max():g} are too large for this quadrature"
            )
        return probabilities / total
