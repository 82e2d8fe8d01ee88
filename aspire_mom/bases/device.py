"""Sums over a batch of images on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from aspire_mom.bases.bases import PolarBasis
from aspire_mom.bases.polar_transform import polar_transform
from aspire_mom.bases.products import averaged_sums


@contextmanager
def full_precision() -> Iterator[None]:
    """A GPU's products of float32 in float32, not in TF32, whose errors of 1e-3 are
    alike for all images and would not average out."""
    matmul, name, full = torch.backends.cuda.matmul, "fp32_precision", "ieee"
    if not hasattr(matmul, name):  # before torch 2.9
        name, full = "allow_tf32", False
    before = getattr(matmul, name)
    setattr(matmul, name, full)
    try:
        yield
    finally:
        setattr(matmul, name, before)


@full_precision()
def sums_on_device(
    basis: PolarBasis, images: np.ndarray, H: np.ndarray | None, device: torch.device
) -> tuple[np.ndarray, ...]:
    """
    What :meth:`PolarBasis.sums` returns, computed by torch: the same operations on the
    whole batch at once. All coefficients of a batch are in the device's memory.

    :param basis: An in-plane averaged basis.
    :param images: Finite images (n, L, L), float32 or float64.
    :param H: Radial factors (n, n_rings, 1), or None.
    :param device: Where to compute.
    :return: Sums over images, in the CPU's memory.
    :raises ValueError: the device has too little memory for so many images.
    """
    try:
        transform = polar_transform(basis, images.dtype.name, device)
        c = transform(torch.tensor(images, device=device))
        if H is not None:
            c *= torch.tensor(H[:, :, 0].T.astype(images.dtype), device=device)
        return tuple(s.cpu().numpy() for s in averaged_sums(c, transform.reach))
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"{device} has too little memory for {len(images)} images at once; pass a"
            " smaller batch_size"
        ) from error
