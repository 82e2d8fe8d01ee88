"""A free density: one probability per quadrature node."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from aspire_mom.quadrature import SO3Quadrature


class DiscreteDensity(torch.nn.Module):
    """
    Learnable probabilities on the nodes of a quadrature, the softmax of free logits:
    the paper's z_ρ (section 4.2) without an encoder. Starts with all nodes equal.

    :param nodes: The quadrature, or the number of nodes (for a density of viewing
        directions only, the number of views).
    :raises ValueError: If there is not at least one node.
    """

    def __init__(self, nodes: int | SO3Quadrature):
        super().__init__()
        n_nodes = len(nodes) if isinstance(nodes, SO3Quadrature) else nodes
        if n_nodes < 1:
            raise ValueError(f"a density needs at least one node, got {n_nodes}")
        self.logits = torch.nn.Parameter(torch.zeros(n_nodes))

    @classmethod
    def from_probabilities(cls, probabilities: np.ndarray | Tensor) -> DiscreteDensity:
        """
        A density that starts from given probabilities.

        :param probabilities: Non-negative values (n_nodes,), normalised here to sum to
            one. Zeros become the smallest positive number of their dtype, so that
            logits stay finite. The density takes their dtype and device.
        :return: The density.
        :raises ValueError: If values are negative, not finite, or all zero.
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
        return torch.softmax(self.logits, dim=0)

    @property
    def probabilities(self) -> np.ndarray:
        """Probabilities (n_nodes,), NumPy float64, without gradient."""
        return torch.softmax(self.logits.detach().double(), dim=0).cpu().numpy()
