"""Fourier shell correlation, shell by shell, from the definition."""

import numpy as np


def fsc_by_definition(a, b):
    """FSC of two real arrays [z, y, x] on shells 0 to (L - 1)//2, float64."""
    L = len(a)
    x = np.arange(L) - L // 2
    # Frequencies of the definition, without -L/2.
    k = np.arange(-((L - 1) // 2), (L + 1) // 2)
    waves = np.exp(-2j * np.pi * np.outer(k, x) / L)
    A, B = (
        np.einsum("az,by,cx,zyx->abc", waves, waves, waves, v, optimize=True)
        for v in (a.astype(np.float64), b.astype(np.float64))
    )
    kz, ky, kx = np.meshgrid(k, k, k, indexing="ij")
    radius = np.sqrt(kx**2 + ky**2 + kz**2)
    curve = []
    for s in range((L - 1) // 2 + 1):
        on_shell = (radius >= s - 0.5) & (radius < s + 0.5)
        cross = np.sum(A[on_shell] * B[on_shell].conj()).real
        power = np.sum(abs(A[on_shell]) ** 2) * np.sum(abs(B[on_shell]) ** 2)
        curve.append(cross / np.sqrt(power))
    return np.array(curve)
