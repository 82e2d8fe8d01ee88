"""Image → coefficient maps whose first two moments are estimated and matched."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.fft
from aspire.numeric import fft

from aspire_mom.bases.noise import white_noise_second
from aspire_mom.bases.polar_transform import polar_transform
from aspire_mom.bases.products import averaged_sums
from aspire_mom.bases.ring_filter import ring_filter
from aspire_mom.checks import check_images, check_integer

MIN_SIZE = 4


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
        _set_integers(self, L=MIN_SIZE)

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

    def sums(
        self, images: np.ndarray, H: np.ndarray | None = None
    ) -> tuple[np.ndarray, ...]:
        """
        What :meth:`finish` needs of images, summed over them. The sum of f f* is left
        in pixels, x xᵀ, where it is real and takes no transform per batch; squared
        moduli |f|² of real images are needed on half of the frequencies only.

        :param images: Images (n, L, L), real.
        :param H: Real and even functions (n, L, L) to multiply the images' transforms
            by.
        :return: Sums, to be added over batches in double precision.
        """
        images = check_images(images, self.L)
        if H is not None:
            filtered = fft.centered_fft2(images) * H.astype(images.dtype)
            images = fft.centered_ifft2(filtered).real
        pixels = images.reshape(len(images), -1)
        half_planes = scipy.fft.rfft2(images).reshape(len(images), -1)
        power = _squared_modulus(half_planes)
        return images.sum(0, dtype=np.float64), pixels.T @ pixels, power.T @ power

    def finish(self, sums: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        """
        :param sums: What :meth:`sums` returned, added over batches.
        :return: Sums over images of f (L²,), of f f* (L², L²) and of the squared
            modulus of f f*'s entries (L², L²).
        """
        L = self.L
        image, gram, power = sums
        first = fft.centered_fft2(image).ravel()
        half = fft.centered_fft2(gram.reshape(L, L, L, L))
        np.conjugate(half, out=half)
        second = fft.centered_fft2(half, axes=(0, 1)).reshape(L**2, L**2)
        # The frequency ±(kx, ky) of each pixel that rfft2 has.
        kx, ky = self.frequencies.T
        sign = np.where(kx < 0, -1, 1)
        half_plane = (sign * ky) % L * (L // 2 + 1) + sign * kx
        return first, second, power[np.ix_(half_plane, half_plane)]

    def power(self, second: np.ndarray) -> np.ndarray:
        """
        :param second: E f f*, (L², L²).
        :return: Its diagonal E |f|², (L²,).
        """
        return second.diagonal().real

    def noise_second(self, nyquist: bool = True) -> np.ndarray:
        """
        Second moment of white noise of unit variance per pixel: L² I (eq. 30 has I, its
        transform being unitary).

        :param nyquist: False for even-sized images whose Nyquist row and column are 0:
            the same variance then lies within the other frequencies.
        :return: (L², L²), float64.
        """
        diagonal = np.full((self.L, self.L), float(self.L**2))
        if not nyquist:
            diagonal *= self.L**2 / (self.L - 1) ** 2
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
        _set_integers(self, L=MIN_SIZE)
        most = (self.L + 1) // 2
        if self.n_rings is None:
            object.__setattr__(self, "n_rings", most)
        _set_integers(self, n_rings=1)
        if self.n_rings > most:
            raise ValueError(
                f"n_rings is {self.n_rings}; at L = {self.L} there are 1 to {most}"
                " rings within Nyquist"
            )
        if self.max_order is None:
            order = math.ceil(math.pi * (self.n_rings - 1))
            object.__setattr__(self, "max_order", order)
        _set_integers(self, max_order=0)

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
        about 2πrd/L; with this many, even the corners' leave no alias above 1e-10.
        """
        corner = math.sqrt(2) * math.pi * (self.n_rings - 1)
        return math.ceil((self.max_order + corner + 4 + 7 * corner ** (1 / 3)) / 2)

    @property
    def half_rings(self) -> tuple[np.ndarray, np.ndarray]:
        """Frequencies kx and ky, radians per pixel, ordered ring, angle."""
        angles = np.pi * np.arange(self.n_angles) / self.n_angles
        radii = 2 * np.pi / self.L * np.arange(self.n_rings)
        kx, ky = np.outer(radii, np.cos(angles)), np.outer(radii, np.sin(angles))
        return kx.ravel(), ky.ravel()

    def coefficients(
        self, images: np.ndarray, H: np.ndarray | None = None
    ) -> np.ndarray:
        """
        :param images: Images (n, L, L), real.
        :param H: Real and even functions to multiply the images' transforms by, at
            angles πj/K on the rings: (n, n_rings, K), K odd, which hold their orders
            0, 2 … K - 1; (n, n_rings, 1) for radial ones.
        :return: Coefficients c (n, max_order + 1, n_rings), complex of the images'
            precision; the images lie next to one another in memory, as products of
            :meth:`factors` want them.
        :raises ValueError: wrong shape or values that are not finite.
        """
        parts, _ = self._parts(images, H)
        by_order = np.empty(parts.shape[1:], np.result_type(parts, np.complex64))
        by_order.real, by_order.imag = parts
        return by_order.transpose(2, 0, 1)

    def _parts(
        self, images: np.ndarray, H: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        Real and imaginary parts of coefficients, (2, max_order + 1, n_rings, n), and
        the largest order of each ring that is not 0.
        """
        images = check_images(images, self.L)
        if H is not None and H.shape[-1] > 1:
            multiply = ring_filter(self, H.shape[-1], images.dtype.name)
            return multiply(images, H), multiply.reach
        transform = polar_transform(self, images.dtype.name)
        c = transform(images)
        if H is not None:
            c *= H[:, :, 0].T.astype(images.dtype)
        return c, transform.reach

    def orders(self, half: np.ndarray) -> np.ndarray:
        """
        Fourier coefficients in angle, the other half of a ring being the conjugate.

        :param half: Half rings (n, n_rings, n_angles) of Fourier values / (2 n_angles).
        :return: Coefficients c (n, max_order + 1, n_rings).
        """
        rings = np.concatenate((half, half.conj()), axis=-1)
        orders = scipy.fft.fft(rings, overwrite_x=True)
        return orders[..., : self.max_order + 1].transpose(0, 2, 1)

    def sums(
        self, images: np.ndarray, H: np.ndarray | None = None
    ) -> tuple[np.ndarray, ...]:
        """
        Sums over images of f, f f* and the squared modulus of f f*'s entries, averaged
        over in-plane angles where the basis is.

        :param images: Images (n, L, L), real.
        :param H: As in :meth:`coefficients`.
        :return: Sums, to be added over batches in double precision.
        """
        if self.inplane_average:
            return averaged_sums(*self._parts(images, H))
        return self.coefficient_sums(self.coefficients(images, H))

    def coefficient_sums(self, c: np.ndarray) -> tuple[np.ndarray, ...]:
        """
        :param c: Coefficients (n, max_order + 1, n_rings) of images.
        :return: What :meth:`sums` returns of the images.
        """
        if self.inplane_average:
            by_order = c.transpose(1, 2, 0)
            parts = np.stack((by_order.real, by_order.imag))
            return averaged_sums(parts, np.full(self.n_rings, self.max_order))
        first = c.sum(0, dtype=np.complex128)
        left, right = self.factors(c)
        squares = self.product(_squared_modulus(left), _squared_modulus(right))
        return first, self.product(left, right), squares

    def finish(self, sums: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        """
        :param sums: What :meth:`sums` returned, added over batches.
        :return: The same: sums over images of f, of the first moment's shape, of f f*
            and of the squared modulus of f f*'s entries, of the second's.
        """
        return sums

    def power(self, second: np.ndarray) -> np.ndarray:
        """
        :param second: E f f*, of the second moment's shape.
        :return: E |f|² of the first moment's entries, of its shape.
        """
        if self.inplane_average:
            return second[0].diagonal().real
        return np.einsum("mrmr->mr", second[:, :, self.max_order :]).real

    def factors(self, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        :param c: Coefficients (n, max_order + 1, n_rings).
        :return: Factors (…, rows, n) and (…, columns, n) of their second moment.
        """
        if self.inplane_average:
            by_order = np.ascontiguousarray(c.transpose(1, 2, 0))
            return by_order, by_order
        n = len(c)
        return c.reshape(n, -1).T, signed_orders(c).reshape(n, -1).T

    def product(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """
        :param left: First of :meth:`factors`.
        :param right: The second.
        :return: Sum over images of f f*, of the second moment's shape.
        """
        return (left @ right.conj().swapaxes(-1, -2)).reshape(self.second_shape)

    def noise_second(self, nyquist: bool = True) -> np.ndarray:
        """
        Second moment of white noise of unit variance per pixel, AA* for coefficients
        A·image: not diagonal, since rings overlap. Remembered, so read-only.

        :param nyquist: False for even-sized images whose Nyquist row and column are 0:
            the same variance then lies within the other frequencies.
        :return: Array of the second moment's shape, complex128.
        """
        return white_noise_second(self, nyquist)


def signed_orders(c: np.ndarray) -> np.ndarray:
    """
    :param c: Polar coefficients (n, max_order + 1, n_rings) of real images.
    :return: The same for m = -max_order … max_order: (n, 2 max_order + 1, n_rings).
    """
    signs = (-1.0) ** np.arange(1, c.shape[1])
    negative = (signs[:, None] * c[:, 1:].conj()).astype(c.dtype)
    return np.concatenate((negative[:, ::-1], c), axis=1)


def _squared_modulus(values: np.ndarray) -> np.ndarray:
    """|values|², without the square root that np.abs takes."""
    parts = values.view(values.real.dtype) if values.flags.c_contiguous else None
    if parts is None:
        return values.real**2 + values.imag**2
    squares = np.square(parts)
    return squares[..., ::2] + squares[..., 1::2]


def _set_integers(basis: Basis, **least: int) -> None:
    """Make fields of a basis plain integers of at least the given values."""
    for name, smallest in least.items():
        value = check_integer(name, getattr(basis, name), smallest)
        object.__setattr__(basis, name, value)


Basis = CartesianBasis | PolarBasis
