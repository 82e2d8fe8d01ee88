"""Reduction of rings for third moments: a few of them, or leading eigenvectors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from aspire_mom.bases import Basis, PolarBasis
from aspire_mom.checks import check_integer

BYTES = np.dtype(np.complex128).itemsize
# Share of the largest eigenvalue below which others are rounding.
ROUNDING = 1e-10

# Vectors U[m], (n_rings, q[m]), that orders m = 0, 1, … are reduced by: a = U* c.
Vectors = tuple[np.ndarray, ...]


@dataclass(frozen=True, eq=False)
class RadialCompression:
    """
    Reduce the rings of every order m ≥ 0 to a few numbers, a[m] = U[m]* c[m].

    Columns of U[m] are orthonormal vectors times the roots of the rings' areas, so that
    norms of a are at most those of c in the basis's metric.

    :param basis: In-plane averaged `PolarBasis` of the coefficients.
    :param vectors: U[m], (n_rings, q[m]) for m = 0 … max_order, real or complex.
    :raises TypeError: `basis` is no basis.
    :raises ValueError: it is not in-plane averaged, or vectors are not of its rings and
        orders, not finite, complex at order 0, or leave no third moment.
    """

    basis: PolarBasis
    vectors: Vectors

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
        if third_size(self.counts) == 0:
            raise ValueError("the vectors leave no entry of the third moment")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, type(self)):
            return NotImplemented
        same = self.basis == other.basis and len(self.vectors) == len(other.vectors)
        return same and all(map(np.array_equal, self.vectors, other.vectors))

    __hash__ = None

    @property
    def max_order(self) -> int:
        """Highest order kept."""
        return len(self.vectors) - 1

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

    def compressed(self, c: np.ndarray) -> list[np.ndarray]:
        """
        :param c: Coefficients (n, ≥ max_order + 1, n_rings).
        :return: a[m], (q[m], n), complex of their precision.
        :raises ValueError: wrong shape, or values that are not finite.
        """
        c = np.asarray(c)
        self.check_shape(c.shape[1:], c.shape)
        rows = np.ascontiguousarray(c[:, : self.max_order + 1].transpose(1, 2, 0))
        pairs = zip(self.vectors, rows, strict=True)
        parts = [U.conj().T.astype(c.dtype) @ row for U, row in pairs]
        if not all(np.isfinite(a).all() for a in parts):
            raise ValueError("coefficients have values that are NaN or infinite")
        return parts

    def check_shape(self, rows: tuple[int, ...], shape: tuple[int, ...]) -> None:
        """
        :param rows: Numbers of orders and rings of coefficients.
        :param shape: Their whole shape, for the error message.
        :raises ValueError: too few orders, or not the basis's rings.
        """
        rings = self.basis.n_rings
        if len(shape) != 3 or rows[0] <= self.max_order or rows[1] != rings:
            raise ValueError(
                f"coefficients have shape {shape}; {self.max_order + 1} orders or more"
                f" of {rings} rings are needed"
            )

    def to_arrays(self) -> dict[str, np.ndarray]:
        """:return: Arrays for a file: the vectors side by side, and their numbers."""
        vectors = np.concatenate(self.vectors, axis=1)
        return {"third_vectors": vectors, "third_counts": self.counts}

    @classmethod
    def from_arrays(cls, basis: PolarBasis, arrays: dict[str, np.ndarray]):
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


def check_basis(basis: Basis) -> None:
    """
    :param basis: What should be an in-plane averaged polar basis.
    :raises TypeError: it is no basis.
    :raises ValueError: it is another one.
    """
    if not isinstance(basis, Basis):
        raise TypeError(
            f"basis is a {type(basis).__name__}; third moments are of a PolarBasis"
        )
    if not basis.inplane_average:
        raise ValueError(
            f"basis is {basis}; third moments are averaged over in-plane angles, of a"
            " PolarBasis with inplane_average=True"
        )


def order_pairs(counts: np.ndarray) -> tuple[tuple[int, int], ...]:
    """
    :param counts: Numbers q kept per order.
    :return: Orders m1 ≤ m2 with something kept of m1, m2 and m1 + m2.
    """
    M = len(counts) - 1
    return tuple(
        (m1, m2)
        for m1 in range(M // 2 + 1)
        for m2 in range(m1, M - m1 + 1)
        if counts[m1] and counts[m2] and counts[m1 + m2]
    )


def third_size(counts: np.ndarray) -> int:
    """
    :param counts: Numbers q kept per order.
    :return: Number of entries of their third moment.
    """
    q = [int(count) for count in counts]
    return sum(q[m1] * q[m2] * q[m1 + m2] for m1, m2 in order_pairs(counts))


def ring_vectors(
    basis: Basis, n_rings: int | None, max_order: int | None, budget_bytes: int
) -> Vectors:
    """
    The innermost rings themselves, times the roots of their areas. Ring r keeps the
    orders m ≤ ⌈πr⌉, which an object within the inscribed disc has there.

    :param basis: In-plane averaged polar basis.
    :param n_rings: Rings to keep; by default as many as fit into `budget_bytes`.
    :param max_order: Largest order to keep; by default all on those rings.
    :param budget_bytes: Largest size of the third moment.
    :return: The vectors.
    :raises ValueError: more rings or orders than the basis has, or rings that do not
        fit into the budget.
    """
    check_integer("budget_bytes", budget_bytes, BYTES)
    limit = basis.max_order if max_order is None else max_order
    check_integer("max_order", limit, 0)

    # How many of the rings have an order, per order.
    def counts(n_rings: int) -> np.ndarray:
        highest = np.ceil(np.pi * np.arange(n_rings)).astype(int)
        orders = np.arange(min(limit, highest[-1]) + 1)
        return np.count_nonzero(highest >= orders[:, None], axis=1)

    def size(n_rings: int) -> int:
        return BYTES * third_size(counts(n_rings))

    if n_rings is None:
        falling = range(basis.n_rings, 1, -1)
        n_rings = next((n for n in falling if size(n) <= budget_bytes), 1)
    check_integer("n_rings", n_rings, 1)
    if n_rings > basis.n_rings or limit > basis.max_order:
        raise ValueError(
            f"{n_rings} rings and orders up to {limit} are asked for; {basis} has fewer"
        )
    if size(n_rings) > budget_bytes:
        raise ValueError(
            f"the third moment of {n_rings} rings takes {size(n_rings)} bytes;"
            f" budget_bytes is {budget_bytes}"
        )
    roots = np.diag(np.sqrt(basis.areas))
    return tuple(roots[:, n_rings - q : n_rings] for q in counts(n_rings))


def leading_eigenvectors(
    basis: Basis,
    second: np.ndarray,
    noise_second: np.ndarray,
    n_images: int,
    budget_bytes: int,
) -> Vectors:
    """
    Eigenvectors of second moments, in the rings' metric, that belong to the largest
    eigenvalues of all orders together. An eigenvalue counts only if it exceeds what the
    scatter of noise alone would give it.

    :param basis: In-plane averaged polar basis.
    :param second: Second moment with the noise removed.
    :param noise_second: Second moment of the noise.
    :param n_images: Number of images; 0 for exact moments.
    :param budget_bytes: Largest size of the third moment.
    :return: The vectors, as many as fit.
    :raises ValueError: a budget too small for one entry, or no eigenvalue above the
        noise.
    """
    check_integer("budget_bytes", budget_bytes, BYTES)
    roots = np.sqrt(basis.areas)
    scaled = roots[:, None] * second * roots
    scaled = (scaled + scaled.conj().swapaxes(1, 2)) / 2
    values, vectors = np.linalg.eigh(scaled)
    # Coefficients of order 0 are real.
    values[0], vectors[0] = np.linalg.eigh(scaled[0].real)
    values, vectors = values[:, ::-1], roots[:, None] * vectors[:, :, ::-1]
    least = ROUNDING * values.max()
    if n_images:
        level = (vectors.conj() * (noise_second @ vectors)).sum(1).real
        least = np.maximum(least, _largest_excess(basis.n_rings, n_images) * level)
    orders, ranks = np.nonzero(values > least)
    orders = orders[np.argsort(-values[orders, ranks], kind="stable")]
    # The largest number of eigenvalues that fits, by bisection.
    fits, too_many = 0, len(orders) + 1
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if BYTES * third_size(np.bincount(orders[:middle])) <= budget_bytes:
            fits = middle
        else:
            too_many = middle
    counts = np.bincount(orders[:fits], minlength=1)
    if third_size(counts) == 0:
        raise ValueError(
            "the second moment has no eigenvalues above its noise of which a third"
            f" moment of {budget_bytes} bytes could be made; take more images"
        )
    return tuple(U[:, :q] for U, q in zip(vectors, counts, strict=False))


def scaled_white_noise(
    basis: Basis, nyquist: bool, noise_power: np.ndarray
) -> np.ndarray:
    """
    Scale white noise's second moment on both sides to the power that the noise had:
    right for smooth spectra, since only neighbouring rings overlap.

    :param basis: In-plane averaged polar basis.
    :param nyquist: As in `Basis.noise_second`.
    :param noise_power: Power of the noise, as `Basis.diagonal_power` has it.
    :return: Second moment of the noise.
    """
    white = basis.noise_second(nyquist)
    own = basis.diagonal_power(white)
    ratio = np.divide(noise_power, own, where=own > 0, out=np.zeros_like(own))
    roots = np.sqrt(np.maximum(ratio, 0))
    return roots[:, :, None] * white * roots[:, None]


def _largest_excess(n_rings: int, n_images: int) -> float:
    """
    How far the largest eigenvalue of a sample covariance is above 1, for R numbers of
    variance 1 in N images: (1 + √γ)² - 1, γ = R/N (Marchenko and Pastur), and twice the
    scale of its scatter (Tracy and Widom), which one order in 10⁴ exceeds.
    """
    root = np.sqrt(n_rings / n_images)
    scatter = n_images ** (-2 / 3) * root ** (-1 / 3) * (1 + root) ** (4 / 3)
    return 2 * root + root**2 + 2 * scatter
