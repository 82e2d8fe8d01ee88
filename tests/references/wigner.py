"""Wigner D-functions from the angular momentum matrices."""

from __future__ import annotations

import numpy as np


def wigner_d(l: int, beta: np.ndarray) -> np.ndarray:
    """
    Small Wigner matrices exp(-iβ J_y), by the eigenvectors of J_y, whose eigenvalues
    are the integers -l … l.

    :param l: Degree.
    :param beta: Angles (n,), radians.
    :return: d^l_mm'(β) (n, 2l + 1, 2l + 1), orders ascending from -l.
    """
    m = np.arange(-l, l)
    raising = np.diag(np.sqrt((l - m) * (l + m + 1.0)), -1)
    _, vectors = np.linalg.eigh((raising - raising.T) / 2j)
    phases = np.exp(-1j * beta[:, None] * np.arange(-l, l + 1))
    return np.einsum("ik,nk,jk->nij", vectors, phases, vectors.conj()).real


def wigner_D(l: int, rotations: np.ndarray) -> np.ndarray:
    """
    Wigner D-functions exp(-imφ) d^l_mm'(θ) exp(-im'α) of R = Rz(φ) Ry(θ) Rz(α).

    :param l: Degree.
    :param rotations: Rotation matrices (n, 3, 3), none with R[2, 2] = ±1.
    :return: D^l_mm'(R) (n, 2l + 1, 2l + 1), complex128, orders ascending from -l.
    """
    R = rotations
    phi = np.arctan2(R[:, 1, 2], R[:, 0, 2])
    theta = np.arctan2(np.hypot(R[:, 0, 2], R[:, 1, 2]), R[:, 2, 2])
    alpha = np.arctan2(R[:, 2, 1], -R[:, 2, 0])
    m = np.arange(-l, l + 1)
    left, right = np.exp(-1j * np.outer(phi, m)), np.exp(-1j * np.outer(alpha, m))
    return left[:, :, None] * wigner_d(l, theta) * right[:, None, :]
