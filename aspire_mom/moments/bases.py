"""Image → coefficient maps whose first two moments are estimated and matched."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import scipy.fft
from aspire.numeric import fft
from finufft import Plan
from scipy.linalg import blas

IMPULSES_PER_BATCH = 256


def check_images(images: np.ndarray, L: int) -> np.ndarray:
    """
    :param images: Images (n, L, L), real, [row = y, column = x].
    :param L: Pixels along an edge that the basis was made for.
    :return: The images as a contiguous float32 or float64 array.
    :raises ValueError: wrong shape, or a value that is not finite.
    """
    images = np.asarray(images)
    if images.ndim != 3 or images.shape[1:] != (L, L):
        raise ValueError(
            f"images have shape {images.shape}; this basis takes (n, {L}, {L})"
        )
    dtype = np.float64 if images.dtype == np.float64 else np.float32
    images = np.ascontiguousarray(images, dtype=dtype)
    finite = np.isfinite(images.reshape(len(images), -1).sum(axis=1))
    if not finite.all():
        raise ValueError(
            f"image {int(np.argmin(finite))} of this batch has values that are NaN or"
            " infinite; only finite images can be averaged"
        )
    return images


def zero_nyquist(images: np.ndarray) -> np.ndarray:
    """
    Images of even size without their Nyquist row and column, as ASPIRE's
    `downsample` leaves them.

    :param images: Images (n, L, L), real.
    :return: Images (n, L, L), same dtype.
    """
    transform = fft.centered_fft2(images)
    transform[:, 0], transform[:, :, 0] = 0, 0
    return fft.centered_ifft2(transform).real.astype(images.dtype)


@dataclass(frozen=True)
class CartesianBasis:
    """
    All n² Fourier pixels (the paper's K₂, eq. 13), right for any density of rotations.

    Coefficients are `centered_fft2(image).ravel()`, scale 1: rows ky, columns kx, zero
    frequency at L//2. ASPIRE divides projections by L, so a coefficient of a clean
    image is V(R (kx, ky, 0)ᵀ) / L. First moment (L²,), second (L², L²) = E f f*.

    :param L: Pixels along an image's edge.
    """

    L: int

    def __post_init__(self):
        check_size(self.L)

    @property
    def first_shape(self) -> tuple[int, ...]:
        return (self.L**2,)

    @property
    def second_shape(self) -> tuple[int, ...]:
        return (self.L**2, self.L**2)

    @property
    def first_weights(self) -> np.ndarray:
        """Weights of ‖·‖² in eq. 22 and 28: one for every entry."""
        return np.ones(1)

    @property
    def second_weights(self) -> np.ndarray:
        """Weights of ‖·‖² in eq. 22 and 28: one for every entry."""
        return np.ones((1, 1))

    @cached_property
    def frequencies(self) -> np.ndarray:
        """In-plane frequencies (L², 2) as (kx, ky), cycles per box."""
        axis = np.arange(self.L) - self.L // 2
        ky, kx = np.meshgrid(axis, axis, indexing="ij")
        return np.stack((kx.ravel(), ky.ravel()), axis=1)

    def coefficients(self, images: np.ndarray) -> np.ndarray:
        """
        :param images: Images (n, L, L), real.
        :return: Coefficients (n, L²), complex of the images' precision.
        :raises ValueError: wrong shape or values that are not finite.
        """
        images = check_images(images, self.L)
        return fft.centered_fft2(images).reshape(len(images), -1)

    def sums(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """
        Sums over images of f, f f* and the squared modulus of f f*'s entries. The
        second is formed as x xᵀ on real pixels, a quarter of the complex product's
        work, and transformed once.

        :param images: Images (n, L, L), real.
        :return: (L²,), (L², L²) complex128, (L², L²) float64.
        """
        coefficients = self.coefficients(images)
        pixels = np.asarray(images, dtype=coefficients.real.dtype)
        gram = _symmetric_product(pixels.reshape(len(images), -1))
        L = self.L
        rows = fft.centered_fft2(gram.astype(np.float64).reshape(L**2, L, L))
        columns = fft.centered_fft2(rows.reshape(L**2, L**2).T.conj().reshape(-1, L, L))
        second = columns.reshape(L**2, L**2).T.conj()
        squares = _symmetric_product(np.abs(coefficients) ** 2).astype(np.float64)
        return coefficients.sum(0, dtype=np.complex128), second, squares

    def noise_second(self, nyquist: bool = True) -> np.ndarray:
        """
        Second moment of white noise of unit variance: L² I (eq. 30 has I, its transform
        being unitary).

        :param nyquist: False for even-sized images whose Nyquist row and column are 0.
        :return: (L², L²), float64.
        """
        diagonal = np.full((self.L, self.L), float(self.L**2))
        if not nyquist:
            diagonal[0], diagonal[:, 0] = 0, 0
        return np.diag(diagonal.ravel())


@dataclass(frozen=True)
class PolarBasis:
    """
    Rings × angular orders: c[m, r] is the m-th angular Fourier coefficient of an
    image's Fourier transform (`centered_fft2`'s, scale 1) on the ring of radius r
    cycles per box, r = 0, 1, …, n_rings - 1. Turning an image by α multiplies c[m, r]
    by exp(-imα); c[-m, r] = (-1)^m conj c[m, r] for real images, so m ≥ 0 is stored.

    In-plane averaged (the default), moments are those of the data turned by every
    in-plane angle: the first is E c[0, r], (n_rings,), the second one block per order,
    (max_order + 1, n_rings, n_rings) = E c[m, r] conj c[m, r']. Otherwise the first is
    (max_order + 1, n_rings) and the second (max_order + 1, n_rings, 2 max_order + 1,
    n_rings), the third axis running over m' = -max_order … max_order.

    Coefficients carry no weights. `first_weights` and `second_weights` make ‖·‖² equal
    to the Cartesian one over the disc: 2πr per ring (2π/12 for ring 0), twice for
    orders that stand for ±m.

    :param L: Pixels along an image's edge.
    :param n_rings: Number of rings; by default all within Nyquist, (L + 1)//2.
    :param max_order: Largest angular order; by default ⌈π (n_rings - 1)⌉, all that an
        object within the inscribed disc has.
    :param inplane_average: Average over in-plane angles.
    """

    L: int
    n_rings: int | None = None
    max_order: int | None = None
    inplane_average: bool = True

    def __post_init__(self):
        check_size(self.L)
        most = (self.L + 1) // 2
        if self.n_rings is None:
            object.__setattr__(self, "n_rings", most)
        if not 1 <= self.n_rings <= most:
            raise ValueError(
                f"n_rings is {self.n_rings}; at L = {self.L} there are 1 to {most} rings"
                " within Nyquist"
            )
        if self.max_order is None:
            order = math.ceil(math.pi * (self.n_rings - 1))
            object.__setattr__(self, "max_order", order)
        if self.max_order < 0:
            raise ValueError(f"max_order is {self.max_order}; it must be 0 or more")

    @property
    def first_shape(self) -> tuple[int, ...]:
        orders = () if self.inplane_average else (self.max_order + 1,)
        return (*orders, self.n_rings)

    @property
    def second_shape(self) -> tuple[int, ...]:
        M, R = self.max_order, self.n_rings
        return (M + 1, R, R) if self.inplane_average else (M + 1, R, 2 * M + 1, R)

    @cached_property
    def ring_weights(self) -> np.ndarray:
        """Area 2πr of each ring (n_rings,), 2π/12 for ring 0."""
        radii = np.arange(self.n_rings, dtype=float)
        radii[0] = 1 / 12
        return 2 * np.pi * radii

    @property
    def first_weights(self) -> np.ndarray:
        """Weights of ‖·‖² in eq. 22 and 28, of the first moment's shape."""
        if self.inplane_average:
            return self.ring_weights
        return self._multiplicity[:, None] * self.ring_weights

    @property
    def second_weights(self) -> np.ndarray:
        """Weights of ‖·‖² in eq. 22 and 28, broadcast to the second moment's shape."""
        w = self.ring_weights
        if self.inplane_average:
            return self._multiplicity[:, None, None] * np.outer(w, w)
        return (
            self._multiplicity[:, None, None, None] * w[:, None, None] * w[None, None]
        )

    @property
    def _multiplicity(self) -> np.ndarray:
        return np.where(np.arange(self.max_order + 1) == 0, 1.0, 2.0)

    @cached_property
    def n_angles(self) -> int:
        """
        Samples on half a ring. A pixel at distance d from the centre has orders up to
        2πrd/L, so this many leave no alias from the corners above 1e-9.
        """
        corner = math.sqrt(2) * math.pi * (self.n_rings - 1)
        margin = 12 + 4 * corner ** (1 / 3)
        return math.ceil((self.max_order + corner + margin) / 2)

    def coefficients(self, images: np.ndarray) -> np.ndarray:
        """
        :param images: Images (n, L, L), real.
        :return: Coefficients c (n, max_order + 1, n_rings), complex of the images'
            precision.
        :raises ValueError: wrong shape or values that are not finite.
        """
        images = check_images(images, self.L)
        plan = _ring_plan(self, len(images), images.dtype.str)
        values = plan.execute(images.astype(plan.dtype))
        half = values.reshape(len(images), self.n_rings, self.n_angles)
        ring = np.concatenate((half, half.conj()), axis=-1)
        orders = scipy.fft.fft(ring, workers=-1, overwrite_x=True)
        orders = orders[..., : self.max_order + 1] / (2 * self.n_angles)
        return orders.transpose(0, 2, 1)

    def sums(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """
        Sums over images of f, f f* and the squared modulus of f f*'s entries, averaged
        over in-plane angles where the basis is.

        :param images: Images (n, L, L), real.
        :return: Arrays of the first moment's shape and the second's (twice), complex128,
            complex128, float64.
        """
        c = self.coefficients(images)
        if self.inplane_average:
            by_order = np.ascontiguousarray(c.transpose(1, 2, 0))
            second = by_order @ by_order.conj().transpose(0, 2, 1)
            power = np.abs(by_order) ** 2
            squares = power @ power.transpose(0, 2, 1)
            first = c[:, 0].sum(0, dtype=np.complex128)
            return first, second.astype(np.complex128), squares.astype(np.float64)
        both = signed_orders(c).reshape(len(c), -1)
        flat = c.reshape(len(c), -1)
        second = (flat.T @ both.conj()).reshape(self.second_shape)
        squares = (np.abs(flat.T) ** 2 @ np.abs(both) ** 2).reshape(self.second_shape)
        first = c.sum(0, dtype=np.complex128)
        return first, second.astype(np.complex128), squares.astype(np.float64)

    def noise_second(self, nyquist: bool = True) -> np.ndarray:
        """
        Second moment of white noise of unit variance, AA* for coefficients A·image: not
        diagonal, since rings overlap. Summed over all unit impulses, so that it is that
        of the very transform used.

        :param nyquist: False for even-sized images whose Nyquist row and column are 0.
        :return: Array of the second moment's shape, complex128.
        """
        return _noise_second(self, nyquist)


def signed_orders(c: np.ndarray) -> np.ndarray:
    """
    :param c: Polar coefficients (n, max_order + 1, n_rings) of real images.
    :return: The same for m = -max_order … max_order: (n, 2 max_order + 1, n_rings).
    """
    signs = (-1.0) ** np.arange(1, c.shape[1])
    negative = (signs[:, None] * c[:, 1:].conj()).astype(c.dtype)
    return np.concatenate((negative[:, ::-1], c), axis=1)


def check_size(L: int) -> None:
    """
    :raises ValueError: unless L is an integer of at least 4 pixels.
    """
    if int(L) != L or L < 4:
        raise ValueError(f"L is {L}; it must be an integer of at least 4 pixels")


def _symmetric_product(rows: np.ndarray) -> np.ndarray:
    """rowsᵀ rows for real (n, p) rows, by BLAS syrk: (p, p)."""
    syrk = blas.ssyrk if rows.dtype == np.float32 else blas.dsyrk
    upper = syrk(1.0, rows.T)
    return np.triu(upper) + np.triu(upper, 1).T


@lru_cache(maxsize=4)
def _ring_plan(basis: PolarBasis, n_images: int, dtype: str) -> Plan:
    """A NUFFT plan from n_images images to half rings, points ordered ring, angle."""
    angles = np.pi * np.arange(basis.n_angles) / basis.n_angles
    radii = 2 * np.pi / basis.L * np.arange(basis.n_rings)
    double = np.dtype(dtype) == np.float64
    precision = np.float64 if double else np.float32
    plan = Plan(
        2,
        (basis.L, basis.L),
        n_trans=n_images,
        eps=1e-12 if double else 1e-6,
        isign=-1,
        dtype=np.result_type(precision, np.complex64),
    )
    x, y = np.outer(radii, np.cos(angles)), np.outer(radii, np.sin(angles))
    # Images are [y, x], and finufft's first mode axis goes with its first coordinate.
    plan.setpts(y.ravel().astype(precision), x.ravel().astype(precision))
    return plan


@lru_cache(maxsize=4)
def _noise_second(basis: PolarBasis, nyquist: bool) -> np.ndarray:
    n_pixels = basis.L**2
    total = np.zeros(basis.second_shape, dtype=np.complex128)
    for start in range(0, n_pixels, IMPULSES_PER_BATCH):
        pixels = np.arange(start, min(start + IMPULSES_PER_BATCH, n_pixels))
        impulses = np.zeros((len(pixels), n_pixels))
        impulses[np.arange(len(pixels)), pixels] = 1
        impulses = impulses.reshape(-1, basis.L, basis.L)
        total += basis.sums(impulses if nyquist else zero_nyquist(impulses))[1]
    total.setflags(write=False)
    return total


Basis = CartesianBasis | PolarBasis
