"""A learnable density: one probability per quadrature node."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from aspire_mom.checks import check_integer
from aspire_mom.rotations.harmonics import real_spherical_harmonics
from aspire_mom.rotations.so3 import SO3Quadrature


class DiscreteDensity(torch.nn.Module):
    """
    Learnable probabilities on the nodes of a quadrature: the paper's z_ρ (section 4.2)
    without an encoder. They are the softmax of logits and start equal.

    Without `degree` every node has a logit of its own. With it, the log-density is a
    smooth function of the viewing direction alone (in-plane angles uniform),
    log ρ(d) = Σ_{l=1}^{degree} Σ_m a_lm √(4π) Y_lm(d) + const, and :meth:`penalty` is
    the prior under which a_lm is normal of variance 1 / (2 l (l + 1)): views spread
    over the sphere, with a log-density whose variance is about 2 and falls with degree.
    The prior, not noise, then decides the part of the density that moments leave open.

    :param nodes: The quadrature, or the number of nodes where `degree` is None.
    :param degree: Largest degree of the log-density's spherical harmonics.
    :raises ValueError: Fewer than one node, a degree below 1, or a degree without a
        quadrature.
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
            raise ValueError(
                f"nodes is {nodes!r}; a smooth density needs an SO3Quadrature"
            )
        views = torch.from_numpy(np.ascontiguousarray(nodes.views))
        harmonics = torch.cat(list(real_spherical_harmonics(views, degree))[1:], dim=1)
        harmonics = harmonics.repeat_interleave(nodes.n_inplane, dim=0)
        l = torch.repeat_interleave(
            torch.arange(1, degree + 1), 2 * torch.arange(1, degree + 1) + 1
        )
        self.register_buffer("harmonics", (np.sqrt(4 * np.pi) * harmonics).float())
        self.register_buffer("precision", (2 * l * (l + 1)).float())
        self.coefficients = torch.nn.Parameter(torch.zeros(len(l)))

    @classmethod
    def from_probabilities(cls, probabilities: np.ndarray | Tensor) -> DiscreteDensity:
        """
        Make a density with a logit per node from given probabilities.

        :param probabilities: Non-negative values (n_nodes,), normalised here to sum to
            one. Zeros become the smallest positive number of their dtype, so that
            logits stay finite. The density takes their dtype and device.
        :return: The density.
        :raises ValueError: values are negative, not finite, or all zero.
        """
        p = torch.as_tensor(probabilities).detach()
        if p.ndim != 1 or not p.is_floating_point():
            raise ValueError(
                "probabilities must be one-dimensional and real floating-point, got "
                f"{p.dtype} of shape {tuple(p.shape)}"
            )
        if not (torch.isfinite(p).all() and (p >= 0).all() and p.sum() > 0):
            raise ValueError(
                "probabilities must be finite, non-negative and not all zero; their "
                f"minimum is {p.min():g} and their sum {p.sum():g}"
            )
        density = cls(len(p))
        logits = (p / p.sum()).clamp_min(torch.finfo(p.dtype).tiny).log()
        density.logits = torch.nn.Parameter(logits)
        return density

    def forward(self) -> Tensor:
        """
        :return: Probabilities (n_nodes,), non-negative, summing to one.
        """
        return torch.softmax(self._logits(), dim=0)

    def penalty(self) -> Tensor:
        """
        :return: Minus twice the log-prior of a smooth density, Σ 2 l (l + 1) a_lm², up
            to a constant; zero without `degree`.
        """
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
