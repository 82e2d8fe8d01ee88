"""What was corrected for, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aspire_mom.checks import spread
from aspire_mom.moments.checks import known_offsets
from aspire_mom.moments.ctf import TransferFunctions

if TYPE_CHECKING:
    from aspire_mom.moments.estimator import MomentEstimator


def treatment_of(estimator: MomentEstimator, transfer: TransferFunctions) -> str:
    """
    What an estimator's moments are corrected for and what they leave out, in one line.

    :param estimator: The estimator.
    :param transfer: The source's transfer functions, in use or not.
    :return: Words, parted by semicolons.
    """
    used = estimator.transfer
    if used is not None:
        kind = "" if used.radial else "astigmatic "
        flipped = ", phases flipped" if used.phase_flipped else ""
        parts = [f"corrected for {len(used.filters)} {kind}filter(s){flipped}"]
    else:
        parts = ["no CTF" if transfer.flat else "CTFs ignored"]
    if estimator.offsets is not None:
        parts.append(f"centred by shifts of up to {abs(estimator.offsets).max():.3g}")
    elif known_offsets(estimator.source) is not None:
        parts.append("known shifts ignored")
    if estimator.shift_std != 0:
        parts.append(f"residual shifts of {spread(estimator.shift_std)} modelled")
    if estimator.noise_seen:
        parts.append("noise of the spectrum in the corners")
    else:
        white = estimator.noise_spectrum is None
        parts.append("white noise" if white else "noise of a given spectrum")
    return "; ".join(parts)
