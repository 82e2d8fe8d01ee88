"""Checks of what an estimator of moments is given, with a sentence for each."""

from __future__ import annotations

import logging

import numpy as np
import torch
from aspire.source import ImageSource

from aspire_mom.bases import Basis
from aspire_mom.checks import check_kind
from aspire_mom.moments.ctf import TransferFunctions
from aspire_mom.moments.third import ThirdMomentBasis

logger = logging.getLogger(__name__)


def check_match(source: ImageSource, basis: Basis) -> None:
    """
    :param source: Source of the images.
    :param basis: Basis of the moments.
    :raises TypeError: one of them is of another kind.
    :raises ValueError: no images, or images of another size.
    """
    check_kind("source", source, ImageSource)
    check_kind("basis", basis, Basis)
    if source.n < 1:
        raise ValueError("the source has 0 images; at least 1 is needed")
    if source.L != basis.L:
        raise ValueError(
            f"the source's images have {source.L} pixels along an edge, the basis"
            f" is for {basis.L}"
        )


def check_astigmatism(transfer: TransferFunctions | None, basis: Basis) -> None:
    """
    :param transfer: CTFs to correct for, if any.
    :param basis: Basis of the moments.
    :raises ValueError: CTFs are astigmatic and the basis cannot correct for that.
    """
    if transfer is None:
        return
    if not basis.corrects_astigmatism and not transfer.radial:
        raise ValueError(
            "the source has astigmatic CTFs, which a polar basis corrects for only"
            " where it averages over in-plane angles; pass inplane_average=True or a"
            " CartesianBasis"
        )


def check_third(
    third: ThirdMomentBasis | None, basis: Basis, transfer: TransferFunctions | None
) -> None:
    """
    :param third: Basis of third moments, if any.
    :param basis: Basis of the other moments.
    :param transfer: CTFs to correct for, if any.
    :raises TypeError: `third` is of another kind.
    :raises ValueError: the bases differ, or third moments cannot be corrected for
        these CTFs.
    """
    if third is None:
        return
    check_kind("third", third, ThirdMomentBasis)
    if third.basis != basis:
        raise ValueError(f"third moments are in {third.basis}, the others in {basis}")
    if transfer is None:
        return
    if third.ring_indices is None:
        raise ValueError(
            "third moments of images with CTFs cannot be compressed; pass"
            " third=ThirdMomentBasis.rings(basis, n_rings)"
        )
    if not transfer.radial:
        raise ValueError(
            "third moments of images with astigmatic CTFs are not corrected for; leave"
            " them out or pass ctf=False"
        )


def check_covered(
    device: torch.device,
    basis: Basis,
    transfer: TransferFunctions | None,
    third: ThirdMomentBasis | None,
) -> None:
    """
    :param device: Device to average on.
    :param basis: Basis of the moments.
    :param transfer: CTFs to correct for, if any.
    :param third: Basis of third moments, if any.
    :raises ValueError: these averages are not computed on that device.
    """
    if device.type == "cpu":
        return
    missing = None
    if device.type != "cuda":
        missing = "averages are computed on cpu or cuda"
    elif not basis.runs_on_devices:
        missing = "only polar bases averaged over in-plane angles are averaged there"
    elif transfer is not None and not transfer.radial:
        missing = "astigmatic CTFs are corrected for on the CPU only"
    elif third is not None:
        missing = "third moments are averaged on the CPU only"
    if missing:
        raise ValueError(f'device is {device}; {missing}; pass device="cpu"')


def known_offsets(source: ImageSource) -> np.ndarray | None:
    """
    :param source: Source of the images.
    :return: Shifts (n, 2) in pixels, None where there are none.
    :raises ValueError: shifts that are not finite.
    """
    if source.pixel_size is None:
        return None
    offsets = np.asarray(source.offsets, dtype=float)
    if not np.isfinite(offsets).all():
        raise ValueError("the source has shifts that are NaN or infinite")
    return np.broadcast_to(offsets, (source.n, 2)) if offsets.any() else None


def mention_amplitudes(source: ImageSource) -> None:
    """
    Warn if amplitudes vary.

    :param source: Source of the images.
    """
    amplitudes = source.amplitudes
    if np.ptp(amplitudes) > 0:
        logger.warning(
            f"The images' amplitudes vary from {amplitudes.min():.3g} to"
            f" {amplitudes.max():.3g}; pass"
            " CorrectionOptions(amplitude_std=…) to correct the second moment"
        )
