"""In-plane averaged third moments of polar coefficients, compressed ring by ring."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from aspire_mom.bases import PolarBasis
from aspire_mom.moments.compression import (
    BYTES,
    check_basis,
    leading_eigenvectors,
    order_pairs,
    ring_vectors,
    third_size,
)
from aspire_mom.moments.streaming import Sums

# Bytes of a third moment unless asked otherwise: a million complex numbers.
BUDGET = 16 * 10**6
# Lower bound on the denominators Σ H² H² H², relative to the largest.
FLOOR = 1e-8


@dataclass(frozen=True, eq=False)
class ThirdMomentBasis:
    """
    The third moment's entries, and how they are estimated. Make one by `from_moments`,
    compressed to leading eigenvectors, or by `rings`, of the innermost rings.

    The orders m ≥ 0 of an image are reduced to a few numbers a[m] = U[m]* c[m], and

        T[m1, m2](i, j, k) = E a[m1, i] a[m2, j] conj a[m1 + m2, k]

    is kept for all 0 ≤ m1 ≤ m2 with m1 + m2 ≤ max_order (the bispectrum), in one flat
    array of complex128, block after block in the order of `pairs`.

    Other pairs follow. Turning an image by α multiplies a[m1] a[m2] a[m3] by
    exp(-i(m1 + m2 + m3)α), so its in-plane average is 0 unless the orders add up to 0.
    Then two have one sign, made positive by conjugation: c[-m] = (-1)^m conj c[m].

    With `weights`, ‖T‖ is the Cartesian norm of the moment that it stands for.

    :param basis: In-plane averaged `PolarBasis` of the coefficients.
    :param vectors: U[m], (n_rings, q[m]) for m = 0 … max_order, of orthonormal columns
        times the roots of the rings' areas: ‖a‖ ≤ ‖c‖ in the basis's metric.
    :raises TypeError: `basis` is no basis.
    :raises ValueError: it is not in-plane averaged, or vectors are not of its rings and
        orders, not finite, complex at order 0, or leave no third moment.
    """

    basis: PolarBasis
    vectors: tuple[np.ndarray, ...]

    def __post_init__(self):
        check_basis(self.basis)
        vectors = [np.asarray(U) for U in self.vectors]
        rings, orders = self.basis.n_rings, self.basis.max_order + 1
        if not 0 < len(vectors) <= orders:
            raise ValueError(
                f"there are vectors of {len(vectors)} orders; {self.basis} has {orders}"
            )
        for m, U in enumerate(vectors):
            if U.ndim != 2 or len(U) != rings or not np.isfinite(U).all():
                raise ValueError(
                    f"vectors of order {m} have shape {U.shape}; they must be finite,"
                    f" ({rings}, q)"
                )
        if np.any(vectors[0].imag):
            raise ValueError("vectors of order 0 are complex; c[0] is real")
        vectors[0] = vectors[0].real
        object.__setattr__(self, "vectors", tuple(vectors))
        if self.size == 0:
            raise ValueError("the vectors leave no entry of the third moment")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ThirdMomentBasis):
            return NotImplemented
        same = self.basis == other.basis and len(self.vectors) == len(other.vectors)
        return same and all(map(np.array_equal, self.vectors, other.vectors))

    def __repr__(self):
        return (
            f"ThirdMomentBasis of {self.counts.sum()} numbers of orders up to"
            f" {self.max_order}, {self.nbytes / 1e6:.3g} MB, in {self.basis}"
        )

    @classmethod
    def from_moments(
        cls, moments: object, *, budget_bytes: int = BUDGET
    ) -> ThirdMomentBasis:
        """
        Compress to the eigenvectors of second moments, in the rings' metric, that
        belong to the largest eigenvalues of all orders together, as many as fit.
        Eigenvalues that noise of the power `moments.noise_power`, correlated between
        rings like white noise, could produce are left out.

        :param moments: In-plane averaged polar `Moments`, of a few thousand images.
        :param budget_bytes: Largest size of the third moment.
        :return: The basis.
        :raises TypeError: no moments in a polar basis.
        :raises ValueError: moments that are not in-plane averaged, a budget too small
            for one entry, or no eigenvalue above the noise.
        """
        check_basis(getattr(moments, "basis", None))
        return cls(moments.basis, leading_eigenvectors(moments, budget_bytes))

    @classmethod
    def rings(
        cls,
        basis: PolarBasis,
        n_rings: int | None = None,
        *,
        max_order: int | None = None,
    ) -> ThirdMomentBasis:
        """
        Keep the innermost rings themselves, times the roots of their areas. Ring r
        keeps the orders m ≤ ⌈πr⌉, which an object within the inscribed disc has there.

        :param basis: In-plane averaged polar basis.
        :param n_rings: Rings to keep; by default 8, or all if there are fewer.
        :param max_order: Largest order to keep; by default all on those rings.
        :return: The basis.
        :raises TypeError: `basis` is no polar basis.
        :raises ValueError: it is not in-plane averaged, or has fewer rings or orders.
        """
        check_basis(basis)
        return cls(basis, ring_vectors(basis, n_rings, max_order))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """:return: Arrays for a file: the vectors side by side, and their numbers."""
        vectors = np.concatenate(self.vectors, axis=1)
        return {"third_vectors": vectors, "third_counts": self.counts}

    @classmethod
    def from_arrays(
        cls, basis: PolarBasis, arrays: dict[str, np.ndarray]
    ) -> ThirdMomentBasis:
        """
        :param basis: The polar basis.
        :param arrays: What :meth:`to_arrays` returned, among others.
        :return: The basis of third moments.
        :raises ValueError: arrays that do not fit each other.
        """
        vectors, ends = arrays["third_vectors"], np.cumsum(arrays["third_counts"])
        if vectors.ndim != 2 or vectors.shape[1] != ends[-1]:
            raise ValueError(
                f"third_vectors has shape {vectors.shape}; third_counts asks for"
                f" {ends[-1]} columns"
            )
        return cls(basis, tuple(np.split(vectors, ends[:-1], axis=1)))

    @property
    def max_order(self) -> int:
        """Highest order kept."""
        return len(self.vectors) - 1

    @cached_property
    def n_rings(self) -> int:
        """:return: Number of innermost rings that the vectors are not all zero on."""
        used = np.any([U.any(1) for U in self.vectors], axis=0)
        return int(np.flatnonzero(used)[-1]) + 1

    @cached_property
    def counts(self) -> np.ndarray:
        """:return: Numbers q kept per order, (max_order + 1,)."""
        return np.array([U.shape[1] for U in self.vectors])

    @cached_property
    def ring_indices(self) -> tuple[np.ndarray, ...] | None:
        """:return: The ring of each number, per order; None where compressed."""
        if any((np.count_nonzero(U, axis=0) != 1).any() for U in self.vectors):
            return None
        return tuple(np.argmax(U != 0, axis=0) for U in self.vectors)

    @cached_property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """:return: Orders (m1, m2) of the blocks that have entries."""
        return order_pairs(self.counts)

    @cached_property
    def size(self) -> int:
        """:return: Number of entries."""
        return third_size(self.counts)

    @property
    def nbytes(self) -> int:
        """Bytes of a third moment."""
        return BYTES * self.size

    @cached_property
    def weights(self) -> np.ndarray:
        """
        :return: Weights of ‖·‖² over all signs and permutations of orders, (size,):
            12 for 0 < m1 < m2, half where m1 = m2 or m1 = 0, 1 where both are 0.
        """
        weights = np.empty(self.size)
        for m1, m2 in self.pairs:
            weight = 12 / ((1 + (m1 == m2)) * (1 + (m1 == 0)))
            self.block(weights, m1, m2)[:] = weight if m2 else 1
        return weights

    @cached_property
    def _slices(self) -> dict[tuple[int, int], tuple[slice, tuple[int, int, int]]]:
        """Where in the flat array a block lies, and its shape there: j, k, i."""
        slices, start, q = {}, 0, self.counts
        for m1, m2 in self.pairs:
            shape = (q[m2], q[m1 + m2], q[m1])
            stop = start + math.prod(shape)
            slices[m1, m2], start = (slice(start, stop), shape), stop
        return slices

    def block(self, third: np.ndarray, m1: int, m2: int) -> np.ndarray:
        """
        :param third: A third moment (size,).
        :param m1: Order of the first factor.
        :param m2: Order of the second factor, at least m1.
        :return: Its block T[m1, m2], (q[m1], q[m2], q[m1 + m2]), a view.
        """
        where, shape = self._slices[m1, m2]
        return np.moveaxis(third[where].reshape(shape), -1, 0)

    def sums(self, c: np.ndarray, H: np.ndarray | None = None) -> Sums:
        """
        Sums over images, to be added over batches in double precision.

        :param c: Coefficients (n, ≥ max_order + 1, ≥ n_rings), times H where given.
        :param H: Real factors (n, ≥ n_rings) on each image's rings (a CTF), once in
            formation and once since, for least squares: c = H (H f + noise). They need
            `ring_indices`: eigenvectors mix rings of unlike factors.
        :return: `third`, Σ a a conj a, and `third_first`, Σ a[0]. With H, `third_first`
            is Σ a[0, r] H[s] H[t] and there is `third_information`, Σ H²[r] H²[s]
            H²[t], both (n_rings,)³. For errors, `third_squares`, Σ |a a conj a|², and
            without H `third_zeroth`, Σ a[0] a[0], and `third_cross`, Σ a[0]² a[m] conj
            a[m].
        """
        R = self.n_rings
        rows = c[:, : self.max_order + 1, :R].transpose(1, 2, 0)
        pairs = zip(self.vectors, np.ascontiguousarray(rows), strict=True)
        parts = [U[:R].conj().T.astype(c.dtype) @ row for U, row in pairs]
        conjugates, zeroth = [a.conj() for a in parts], parts[0].real
        moduli = [a.real**2 + a.imag**2 for a in parts]
        sums = {
            "third": np.concatenate([*self._products(parts, conjugates)]),
            "third_squares": np.concatenate([*self._products(moduli, moduli)]),
        }
        if H is not None:
            return sums | self._information_sums(zeroth, H[:, :R])
        cross = self._products(parts, conjugates, [parts[0] ** 2])
        return sums | {
            "third_first": zeroth.sum(1, dtype=np.float64),
            "third_zeroth": zeroth @ zeroth.T,
            "third_cross": np.concatenate([*cross]),
        }

    def finish(
        self, sums: Sums, n_images: int, noise_second: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """
        Remove the noise's share from the third moment. Noise x is additive, independent
        of the clean coefficients s, and has zero mean and zero third moment. Then

            E c c conj c = E s s conj s + E s[m1] E x[m2] conj x[m3]
                         + E s[m2] E x[m1] conj x[m3] + conj E s[m3] E x[m1] x[m2],

        m3 = m1 + m2. If in-plane angles are uniform, only E s[0], the mean of the
        images, is not 0: m1 = 0 has the first of the three terms, m1 = m2 = 0 all, and
        the result is exact for any noise. If they are not, it is the moment of the
        images turned by every angle, exact for noise of a radial spectrum.

        With H, entries are least-squares solutions, and the noise's share is the mean
        over images of a[0, r] H[s] H[t] times that of the noise in H f + noise.

        :param sums: What :meth:`sums` returned, added over batches, perhaps with more.
        :param n_images: Number of images.
        :param noise_second: Second moment of the noise of f (of H f + noise, with H).
        :return: The third moment (size,), complex128, and its standard error, float64,
            or None for one image. The error takes the noise as known. With H it also
            neglects the signal and the removed bias: if noise prevails it is right for
            m1 > 0 and up to 60 % too large for m1 = 0. Entries of small H shrink to 0.
        """
        weighted = "third_information" in sums
        scale = np.float64(n_images)
        if weighted:
            scale = self.denominators(sums["third_information"])
        pairs = zip(self.vectors, noise_second, strict=False)
        noise = [U.conj().T @ second @ U for U, second in pairs]  # of a[m]
        third = (sums["third"] - self._noise_share(sums["third_first"], noise)) / scale
        if n_images < 2:
            return third, None
        if weighted:
            return third, np.sqrt(sums["third_squares"]) / scale
        variance = self._squares(sums, noise) / n_images - np.abs(third) ** 2
        return third, np.sqrt(np.maximum(variance, 0) / (n_images - 1))

    def denominators(self, information: np.ndarray) -> np.ndarray:
        """
        :param information: Σ H²[r] H²[s] H²[t], (n_rings, n_rings, n_rings).
        :return: What sums over images are divided by, (size,): 1e-8 of the largest, or
            the information if it is more.
        """
        scale = self._by_rings(information)
        return np.maximum(scale, FLOOR * scale.max())

    def of_views(self, c: Tensor, probabilities: Tensor) -> Tensor:
        """
        The third moment of a model's clean images, differentiable.

        :param c: Coefficients (≥ max_order + 1, n_rings, n_views), complex.
        :param probabilities: Weights of the views (n_views,), real.
        :return: The third moment (size,), of `c`'s precision.
        """
        parts = [
            torch.as_tensor(U.conj().T, dtype=c.dtype, device=c.device) @ row
            for U, row in zip(self.vectors, c, strict=False)
        ]
        weighted = [a * probabilities for a in parts]
        conjugates = [a.conj() for a in parts]
        return torch.cat([*self._products(parts, conjugates, weighted)])

    def _products(
        self, parts: Sequence, conjugates: Sequence, firsts: Sequence | None = None
    ) -> Iterator:
        """Flat blocks Σ a[m1] a[m2] conj a[m1 + m2] over the last axis, of NumPy arrays
        or tensors. `firsts` replace a[m1], which ends at their highest order."""
        firsts = parts if firsts is None else firsts
        for m1, m2 in self.pairs:
            if m1 >= len(firsts):
                break
            # The higher orders have the fewest numbers: their products fit into cache.
            rows = parts[m2][:, None] * conjugates[m1 + m2]
            rows = rows.reshape(-1, rows.shape[-1])
            yield (rows @ firsts[m1].T).reshape(-1)

    def _information_sums(self, a: np.ndarray, H: np.ndarray) -> Sums:
        """Sums of H for least squares, and of a[0] (q[0], n) H H for its noise."""
        n, rings = H.shape
        H = H.astype(a.dtype)
        of_ring = np.zeros((rings, n), a.dtype)
        of_ring[self.ring_indices[0]] = a
        products = (H[:, :, None] * H[:, None]).reshape(n, -1)
        return {
            "third_first": (of_ring @ products).reshape(3 * (rings,)),
            "third_information": ((H**2).T @ products**2).reshape(3 * (rings,)),
        }

    def _by_rings(self, values: np.ndarray) -> np.ndarray:
        """Flat array of an array over three rings, (n_rings,)³."""
        flat, rings = np.empty(self.size), self.ring_indices
        for m1, m2 in self.pairs:
            block = values[np.ix_(rings[m1], rings[m2], rings[m1 + m2])]
            self.block(flat, m1, m2)[:] = block
        return flat

    def _noise_share(self, mean: np.ndarray, noise: list[np.ndarray]) -> np.ndarray:
        """Noise terms of :meth:`finish`, for means of a[0] or of a[0, r] H[s] H[t]."""
        share, rings = np.zeros(self.size, np.complex128), self.ring_indices
        for m in self._zeroth_orders:
            factor = mean[:, None, None]
            if mean.ndim == 3:
                factor = mean[np.ix_(rings[0], rings[m], rings[m])]
            term = factor * noise[m]
            self.block(share, 0, m)[:] = term if m else _any_first(term)
        return share

    def _squares(self, sums: Sums, noise: list[np.ndarray]) -> np.ndarray:
        """Σ |p - b|² over images, for p = a a conj a and its noise's share b."""
        squares = sums["third_squares"].astype(np.float64)
        of_zeroth = sums["third_zeroth"]
        for m in self._zeroth_orders:
            N, cross = noise[m], self.block(sums["third_cross"], 0, m)
            change = (np.abs(N) ** 2) * of_zeroth.diagonal()[:, None, None]
            change = change - 2 * (cross * N.conj()).real
            if m == 0:
                N = N.real
                change += 2 * N[:, :, None] * N[:, None] * of_zeroth
                change = _any_first(change)
            self.block(squares, 0, m)[:] += change
        return squares

    @property
    def _zeroth_orders(self) -> list[int]:
        """Orders m2 of the blocks with m1 = 0."""
        return [m2 for m1, m2 in self.pairs if m1 == 0]


def _any_first(term: np.ndarray) -> np.ndarray:
    """Sum of an array (i, j, k), symmetric in j and k, over which index comes first."""
    return term + term.transpose(1, 0, 2) + term.transpose(1, 2, 0)
