"""Real spherical harmonics, for densities and volumes alike."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor


def real_spherical_harmonics(directions: Tensor, degree: int) -> Iterator[Tensor]:
    """
    Evaluate orthonormal real spherical harmonics, degree by degree, by the three-term
    recurrence of the associated Legendre functions in float64. No Condon-Shortley
    sign: Y_1 = √(3/4π) (y, z, x).

    :param directions: Unit vectors (..., 3), xyz order.
    :param degree: Largest degree.
    :yield: Y_l (..., 2l + 1) for l = 0, …, degree, m from -l (sines) to l (cosines),
        float64.
    """
    x, y, z = directions.double()[..., None, :].unbind(-1)
    waves = torch.complex(x, y).expand(*x.shape[:-1], degree).cumprod(-1) * np.sqrt(2)
    cosines, sines = waves.real.contiguous(), waves.imag.contiguous()
    before = torch.zeros_like(z[..., :0])  # Legendre functions / sin^m of degree l - 2
    legendre = torch.full_like(z, np.sqrt(1 / (4 * np.pi)))
    for l in range(degree + 1):
        if l:
            m = torch.arange(l, dtype=z.dtype, device=z.device)
            a = ((4 * l**2 - 1) / (l**2 - m**2)).sqrt()
            b = (((l - 1) ** 2 - m**2).clamp(min=0) / (4 * (l - 1) ** 2 - 1)).sqrt()
            diagonal = legendre[..., -1:] * np.sqrt((2 * l + 1) / (2 * l))
            previous = torch.nn.functional.pad(before, (0, 1))
            before, legendre = legendre, a * (z * legendre - b * previous)
            legendre = torch.cat((legendre, diagonal), -1)
        zonal, rest = legendre[..., :1], legendre[..., 1:]
        negative = (rest * sines[..., :l]).flip(-1)
        yield torch.cat((negative, zonal, rest * cosines[..., :l]), -1)
