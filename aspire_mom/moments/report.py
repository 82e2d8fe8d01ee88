"""Signal and noise of moments, ring by ring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aspire_mom.bases import Basis
from aspire_mom.moments.moments import Moments

# Reduced χ² (see `RingReport`) above which a ring carries signal.
SIGNIFICANT = 1.5
# Rings weaker than this, relative to the strongest, count as empty in exact moments.
NEGLIGIBLE = 1e-4
# Errors that are estimated from fewer images are too uncertain themselves.
FEW = 100


@dataclass(frozen=True, eq=False)
class RingReport:
    """
    Signal and noise of moments on each ring within Nyquist, (n_rings,), None where
    unknown. Powers are those of `Basis.ring_power`.

    :param moments: The moments reported on.
    :param signal: Power less that of the noise.
    :param noise: Power of the noise that was removed, after CTFs are undone.
    :param error: Standard error of `signal`, with orders taken as independent.
    :param reduced_chi2: Mean of |second moment|² / (standard error)² over the entries
        that pair this ring with any ring: about 1 for pure noise.
    :param agreement: Correlation of the second moments of two halves of the data.
    :param effective: Images without a CTF that would determine the power as well.
    """

    moments: Moments
    signal: np.ndarray
    noise: np.ndarray | None = None
    error: np.ndarray | None = None
    reduced_chi2: np.ndarray | None = None
    agreement: np.ndarray | None = None
    effective: np.ndarray | None = None

    @classmethod
    def of(
        cls, moments: Moments, halves: Sequence[Moments] | None = None
    ) -> RingReport:
        """
        :param moments: Moments in any basis.
        :param halves: Moments of two disjoint halves of their images, if there are any.
        :return: The report.
        :raises TypeError: a half is no `Moments`.
        :raises ValueError: the halves are of different bases.
        """
        basis = moments.basis
        columns = {"signal": ring_power(moments), "reduced_chi2": _ring_chi2(moments)}
        if moments.noise_power is not None:
            columns["noise"] = basis.ring_power(moments.noise_power)
        if moments.second_error is not None:
            columns["error"] = basis.ring_power_error(moments.second_error)
        if halves is not None:
            columns["agreement"] = ring_agreement(*halves)
        if moments.second_information is not None:
            own = np.diagonal(moments.effective_images)
            columns["effective"] = basis.ring_mean(own)
        within = {k: v[: basis.n_rings] for k, v in columns.items() if v is not None}
        return cls(moments, **within)

    @property
    def signal_to_error(self) -> np.ndarray | None:
        """Ratio of the signal power to its standard error; infinite if that is 0."""
        if self.error is None:
            return None
        exact = np.full(len(self.signal), np.inf)
        return np.divide(self.signal, self.error, where=self.error > 0, out=exact)

    @property
    def supported(self) -> np.ndarray:
        """Whether χ² is above 1.5 and power above 0; if exact, power above rounding."""
        if self.reduced_chi2 is not None:
            return (self.reduced_chi2 > SIGNIFICANT) & (self.signal > 0)
        return self.signal > NEGLIGIBLE**2 * self.signal.max()

    @property
    def last_ring(self) -> int | None:
        """The last ring with signal, up to which the data support a model."""
        return max(map(int, np.flatnonzero(self.supported)), default=None)

    @property
    def angstrom(self) -> np.ndarray | None:
        """Resolution of each ring, Å, infinite for ring 0; None if unknown."""
        size, L = self.moments.pixel_size, self.moments.basis.L
        if size is None:
            return None
        with np.errstate(divide="ignore"):
            return L * size / np.arange(len(self.signal))

    def summary(self) -> dict:
        """:return: All figures, ready for JSON; None if infinite or unknown."""
        moments, last, angstrom = self.moments, self.last_ring, self.angstrom
        known = angstrom is not None and last
        rings = {
            "ring_angstrom": angstrom,
            "signal_power": self.signal,
            "signal_error": self.error,
            "noise_power": self.noise,
            "snr": self.signal_to_error,
            "evidence": self.reduced_chi2,
            "half_set_correlation": self.agreement,
            "effective_images": self.effective,
        }
        return {
            "n_images": moments.n_images,
            "basis": repr(moments.basis),
            "box": moments.basis.L,
            "pixel_size": moments.pixel_size,
            "nyquist_angstrom": None if angstrom is None else 2 * moments.pixel_size,
            "noise_variance": moments.noise_variance,
            "third_moment": moments.third is not None,
            "treatment": str(moments.corrections),
            "last_ring": last,
            "last_ring_angstrom": float(angstrom[last]) if known else None,
            **{
                k: v if v is None else [float(x) if np.isfinite(x) else None for x in v]
                for k, v in rings.items()
            },
            "supported": self.supported.tolist(),
        }

    def table(self) -> str:
        """:return: One line on the whole, one for each ring, and the verdict."""
        columns = {"ring": [str(ring) for ring in range(len(self.signal))]}
        if self.angstrom is not None:
            columns["Å"] = [f"{a:.1f}" for a in self.angstrom]
        numbers = {
            "signal": self.signal,
            "noise": self.noise,
            "signal/error": self.signal_to_error,
            "halves": self.agreement,
            "images": self.effective,
        }
        for name, values in numbers.items():
            if values is not None:
                columns[name] = [f"{value:.3g}" for value in values]
        columns["supported"] = ["yes" if yes else "no" for yes in self.supported]
        widths = {name: max(map(len, [name, *v])) for name, v in columns.items()}
        rows = [columns, *zip(*columns.values(), strict=True)]
        lines = [
            "  ".join(v.rjust(w) for v, w in zip(row, widths.values(), strict=True))
            for row in rows
        ]
        return "\n".join([self._head(), *lines, self.verdict()])

    def _head(self) -> str:
        moments = self.moments
        images = f"{moments.n_images:,} images" if moments.n_images else "exact moments"
        box = f"{moments.basis.L} x {moments.basis.L} pixels"
        if moments.pixel_size is not None:
            size = moments.pixel_size
            box += f" of {size:.5g} Å (Nyquist {2 * size:.5g} Å)"
        third = ", with third moments" if moments.third is not None else ""
        variance = f"noise variance {moments.noise_variance:.6g}"
        head = f"{images} of {box}, {moments.basis}{third}, {variance}"
        return "; ".join(filter(None, [head, str(moments.corrections)]))

    def verdict(self) -> str:
        """:return: Up to which ring the data support a model, in one sentence."""
        last, n = self.last_ring, self.moments.n_images
        if 0 < n < FEW:
            return (
                f"{n} images are too few (at least {FEW} are needed) to tell which"
                " rings have significant signal"
            )
        if last is None:
            return "the data show no signal on any ring"
        where = f"ring {last}"
        if self.angstrom is not None and last > 0:
            where += f", {self.angstrom[last]:.1f} Å"
        return f"the data support a model up to {where}"


def ring_rms(moments: Moments) -> np.ndarray:
    """
    :param moments: Moments in any basis.
    :return: Root of the signal power on each ring, float64; 0 where it is negative.
    """
    return np.sqrt(np.maximum(ring_power(moments), 0))


def second_residual(
    model: Moments, estimate: Moments, to: Basis | None = None
) -> np.ndarray | None:
    """
    Compare second moments on each order and ring.

    :param model: The model's moments.
    :param estimate: Estimated ones in the same basis.
    :param to: A basis that `Basis.cut` returned, for some rings and orders only.
    :return: Root mean squares of the differences in standard errors of the estimate,
        over the entries that pair a ring with any ring, so that noise alone leaves
        about 1, (n_orders, n_rings), float64; 0 where there are no entries. None if the
        errors are unknown.
    :raises TypeError: no moments.
    :raises ValueError: another basis.
    """
    model.check_same_basis(estimate)
    if estimate.second_error is None:
        return None
    basis = estimate.basis
    to = basis if to is None else to
    difference = basis.cut_array(model.second - estimate.second, to)
    error = basis.cut_array(estimate.second_error, to)
    total, count = _chi2(difference, error, to)
    return np.sqrt(total / np.maximum(count, 1))[:, : to.n_rings]


def informative_rings(moments: Moments) -> int:
    """
    Number of rings, from the centre, that the data support: up to two beyond the last
    ring of reduced χ² above 1.5 (for exact moments, up to the last ring whose RMS is at
    least 1e-4 of the largest).

    :param moments: Moments in any basis.
    :return: A number, at least 4 if there are so many; all if the basis is not cut.
    """
    chi2 = _ring_chi2(moments)
    if chi2 is None:
        rms = ring_rms(moments)
        strong, beyond = np.flatnonzero(rms >= NEGLIGIBLE * rms.max()), 1
    else:
        strong, beyond = np.flatnonzero(chi2 > SIGNIFICANT), 3
    last = int(strong[-1]) if len(strong) else 0
    return moments.basis.cut(n_rings=max(last + beyond, 4)).n_rings


def ring_agreement(one: Moments, other: Moments) -> np.ndarray:
    """
    Correlate second moments of two halves of the data, over the entries that pair a
    ring with any ring: 0 on average for noise alone, like an FSC of half maps.

    :param one: Moments of some images.
    :param other: Moments of others in the same basis.
    :return: (n_rings,), float64; 0 on rings without any power.
    :raises TypeError: no moments.
    :raises ValueError: another basis.
    """
    one.check_same_basis(other)
    basis = one.basis
    a, b = basis.equal_order_blocks(one.second), basis.equal_order_blocks(other.second)
    weights = basis.block_multiplicity[:, None, None]

    def total(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return basis.ring_sum((weights * (a * b.conj()).real).sum((0, 2)))

    norm = np.sqrt(total(a, a) * total(b, b))
    return np.divide(total(a, b), norm, where=norm > 0, out=np.zeros_like(norm))


def ring_power(moments: Moments) -> np.ndarray:
    """
    :param moments: Moments in any basis.
    :return: Signal power on each ring, float64; negative where noise removal left it
        so.
    """
    return moments.basis.ring_power(moments.basis.diagonal_power(moments.second))


def _ring_chi2(moments: Moments) -> np.ndarray | None:
    """Reduced χ² of each ring (see `RingReport`); None where errors are unknown."""
    if moments.second_error is None:
        return None
    sums = _chi2(moments.second, moments.second_error, moments.basis)
    total, count = (part.sum(0) for part in sums)
    return total / np.maximum(count, 1)


def _chi2(
    second: np.ndarray, error: np.ndarray, basis: Basis
) -> tuple[np.ndarray, np.ndarray]:
    """Sums of |value|² / (standard error)² over the entries of a second moment that
    pair a ring with any ring, and their number, for each order and ring."""
    value, error = map(basis.equal_order_blocks, (second, error))
    seen = basis.order_support & (error > 0)
    square = value.real**2 + value.imag**2
    ratio = np.divide(square, error**2, where=seen, out=np.zeros_like(square))
    total, count = (
        np.stack([basis.ring_sum(row) for row in a.sum(2)]) for a in (ratio, seen)
    )
    return total, count
