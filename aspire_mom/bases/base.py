"""The interface of all bases, and what they share."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch

from aspire_mom.bases.information import divide, multiply
from aspire_mom.checks import check_integer

MIN_SIZE = 4


class Basis(ABC):
    """
    A linear map from real images to coefficients f, of moments E f and E f f*.

    Coefficients belong to n *frequencies*: Fourier pixels, or rings. A polar basis has
    *orders* m ≥ 0 at each, where m > 0 stands for -m too; a Cartesian basis has one.

    CTFs are corrected for by least squares, entry by entry. An image with CTF H has the
    coefficients g = H f + noise. On average, with sums over images,

        Σ H(k) g(k)              = Σ H(k)²         E f(k)
        Σ H(k) H(k') g(k) g(k')* = Σ H(k)² H(k')² E f(k) f(k')* + noise.

    The factors before E are called *information* here. That of the first moment has
    the shape (n,). That of the second is stored as its Fourier coefficients of order
    0, 2, … in the angle between k and k', (n_harmonics, n, n), one if H are radial.
    """

    #: Pixels along an image's edge.
    L: int
    #: Rings of radius 0, 1, … cycles per box, within Nyquist.
    n_rings: int
    #: Largest angular order; 0 for a Cartesian basis.
    max_order: int
    #: Whether moments are averaged over in-plane angles.
    inplane_average: bool
    #: Name of a frequency in figures.
    frequency_name: str
    #: Shape of first moments.
    first_shape: tuple[int, ...]
    #: Shape of second moments.
    second_shape: tuple[int, ...]
    #: The ring that each frequency is on or nearest to, (n,).
    rings: np.ndarray
    #: Area in Fourier space that each frequency stands for, (n,) or (1,).
    areas: np.ndarray
    #: Mask (n,), False on the Nyquist row and column of even sizes.
    off_nyquist: np.ndarray
    #: Mask of the entries of :meth:`equal_order_blocks` in which an object of radius
    #: 0.4 box lengths has significant power.
    order_support: np.ndarray
    #: Whether the basis can correct CTFs that vary along rings.
    corrects_astigmatism: bool
    #: Largest n_harmonics that the basis can use; 1 if it needs no angular orders.
    max_harmonics: int

    @property
    def n_frequencies(self) -> int:
        """Number n of frequencies."""
        return len(self.rings)

    @property
    def power_shape(self) -> tuple[int, int]:
        """Shape of :meth:`diagonal_power`."""
        return self.max_order + 1, self.n_frequencies

    @property
    def block_multiplicity(self) -> np.ndarray:
        """2 for orders of :meth:`equal_order_blocks` that stand for ±m, else 1."""
        return np.where(np.arange(self.max_order + 1) == 0, 1.0, 2.0)

    @property
    def first_multiplicity(self) -> np.ndarray:
        """The same for entries of the first moment, of a shape that broadcasts."""
        one_order = len(self.first_shape) == 1
        return np.ones(1) if one_order else self.block_multiplicity[:, None]

    @property
    def second_multiplicity(self) -> np.ndarray:
        """The same for entries of the second moment, of a shape that broadcasts."""
        return self.block_multiplicity.reshape(-1, *[1] * (len(self.second_shape) - 1))

    @property
    def first_weights(self) -> np.ndarray:
        """Weights of the first moment's entries in the norms of eq. 22 and 28."""
        return self.first_multiplicity * self.areas

    @property
    def second_weights(self) -> np.ndarray:
        """Weights of the second moment's entries in the norms of eq. 22 and 28."""
        pairs = np.outer(self.areas, self.areas)
        return self.second_multiplicity * self.expand(pairs[None])

    # Parts of moments

    def order_zero(self, first: np.ndarray) -> np.ndarray:
        """
        :param first: First moment, or its errors.
        :return: Its part of order 0, (n,).
        """
        return np.atleast_2d(first)[0]

    def image(self, first: np.ndarray) -> np.ndarray | None:
        """
        :param first: First moment.
        :return: Its values on the Fourier pixels (L, L); None for a polar basis.
        """
        return None

    @abstractmethod
    def equal_order_blocks(self, second: np.ndarray) -> np.ndarray:
        """
        :param second: Second moment, or its errors.
        :return: Its entries of equal orders, (max_order + 1, n, n).
        """

    @abstractmethod
    def cut(self, n_rings: int | None = None, max_order: int | None = None) -> Basis:
        """
        :param n_rings: Number of rings to keep at most; None for all.
        :param max_order: Largest order to keep at most; None for all.
        :return: The basis with these rings and orders; a Cartesian basis is not cut.
        """

    @abstractmethod
    def cut_array(self, array: np.ndarray, to: Basis) -> np.ndarray:
        """
        :param array: First or second moment, or what broadcasts to it.
        :param to: A basis that :meth:`cut` returned.
        :return: The part of the array in that basis.
        """

    def diagonal_power(self, second: np.ndarray) -> np.ndarray:
        """
        :param second: Second moment, or its errors.
        :return: E |f|² of single coefficients, (max_order + 1, n), float64.
        """
        return np.einsum("mrr->mr", self.equal_order_blocks(second)).real

    # Rings

    def ring_sum(self, values: np.ndarray) -> np.ndarray:
        """
        :param values: A real value for each frequency, (n,).
        :return: Their sums over rings.
        """
        return np.bincount(self.rings, values)

    def ring_mean(self, values: np.ndarray) -> np.ndarray:
        """
        :param values: A real value for each frequency, (n,).
        :return: Their means over rings.
        """
        return self.ring_sum(values) / np.bincount(self.rings)

    def ring_error(self, errors: np.ndarray) -> np.ndarray:
        """
        :param errors: Independent standard errors of values, (n,).
        :return: Standard errors of their :meth:`ring_mean`.
        """
        return np.sqrt(self.ring_sum(errors**2)) / np.bincount(self.rings)

    def ring_power(self, power: np.ndarray) -> np.ndarray:
        """
        :param power: What :meth:`diagonal_power` returns.
        :return: Σ E|c[m, r]|² over all ±m, or the mean of E|f|² over nearest pixels.
        """
        return self.ring_mean(self.block_multiplicity @ power)

    def ring_power_error(self, error: np.ndarray) -> np.ndarray:
        """
        :param error: Standard errors of the second moment, independent save for ±k.
        :return: Standard errors of :meth:`ring_power`.
        """
        own = self.block_multiplicity[:, None] * self.diagonal_power(error)
        return self.ring_error(np.sqrt((own**2).sum(0)))

    @abstractmethod
    def entry_scales(self, rms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        :param rms: Square roots of :meth:`ring_power`.
        :return: The RMS to expect in each entry of the first and second moment.
        """

    # Sums over images

    @abstractmethod
    def coefficients(
        self, images: np.ndarray, H: np.ndarray | None = None
    ) -> np.ndarray:
        """
        :param images: Images (n, L, L), real.
        :param H: As for :meth:`sums`.
        :return: Coefficients of each, complex of the images' precision.
        :raises ValueError: Wrong shape or values that are not finite.
        """

    @abstractmethod
    def sums(
        self,
        images: np.ndarray,
        H: np.ndarray | None = None,
        device: torch.device | None = None,
    ) -> tuple[np.ndarray, ...]:
        """
        Compute what :meth:`finish` needs, summed over images.

        :param images: Images (n, L, L), real; not checked where a device is given.
        :param H: Real, even functions that multiply the images' transforms, as
            :meth:`filter_values` returns them; radial ones where a device is given.
        :param device: Where torch computes; only moments averaged over in-plane angles.
        :return: Sums, to be added over batches in double precision.
        :raises ValueError: Wrong images, or more than fit into the device's memory.
        """

    @abstractmethod
    def finish(self, sums: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        """
        :param sums: What :meth:`sums` returned, added over batches.
        :return: Sums over images of f, f f* and |entries of f f*|².
        """

    # Noise

    @abstractmethod
    def noise_second(self, nyquist: bool = True) -> np.ndarray:
        """
        Return the second moment of white noise of unit variance per pixel.

        :param nyquist: False for even-sized images whose Nyquist row and column are 0:
            the other frequencies then hold the whole variance.
        :return: Array of the second moment's shape, perhaps read-only.
        """

    @abstractmethod
    def stationary_noise_second(
        self, spectrum: np.ndarray, nyquist: bool = True
    ) -> np.ndarray:
        """
        Return the second moment of stationary noise, Σ_ω S(ω) a(ω) a(ω)* / n², with
        a(ω) the coefficients of the wave exp(iω·x), cut to the image.

        :param spectrum: Power spectrum S (n, n), [ωy, ωx], zero frequency at n // 2; 1
            for white noise of unit variance. n = 2L - 1 for covariances of all pixels,
            or n = L for noise that is periodic, as filters leave it.
        :param nyquist: False for even-sized images whose Nyquist row and column are 0.
        :return: Array of the second moment's shape, complex128.
        """

    # CTFs

    @abstractmethod
    def filter_points(self, n_angles: int) -> np.ndarray:
        """
        :param n_angles: Number of angles on half a ring; Cartesian bases ignore it.
        :return: Frequencies (2, points) where filters are evaluated, radians per pixel.
        """

    @abstractmethod
    def filter_values(self, values: np.ndarray) -> np.ndarray:
        """
        :param values: Values of filters at :meth:`filter_points`, (points, images).
        :return: The same as :meth:`sums` takes them: (images, L, L); or, for polar
            bases, (images, n_rings, n_angles), at angles πj/n_angles, n_angles odd.
        """

    @abstractmethod
    def information_sums(
        self, H: np.ndarray, n_harmonics: int
    ) -> dict[str, np.ndarray]:
        """
        :param H: Transfer functions as :meth:`filter_values` returns them.
        :param n_harmonics: Number of even orders that their squares have along rings.
        :return: Sums over images: "first_information", Σ H², (n,), and (·, n, n),
            "noise_information", Σ H H', and "second_information", Σ H² H'².
        """

    def expand(self, information: np.ndarray) -> np.ndarray:
        """
        :param information: Information of pairs of frequencies, (·, n, n).
        :return: Its mean over the angle between both; it broadcasts to second moments.
        """
        return self._aligned(information)[0].real

    def multiply(self, second: np.ndarray, information: np.ndarray) -> np.ndarray:
        """
        :param second: Second moment of the signal or of noise.
        :param information: Information of pairs of frequencies, (·, n, n).
        :return: Their product at every pair of frequencies.
        """
        return multiply(second, self._aligned(information))

    def divide(
        self, second: np.ndarray, information: np.ndarray, n_images: int
    ) -> np.ndarray:
        """
        Undo :meth:`multiply`: solve the normal equation of each entry.

        :param second: Second moments times information, summed over images.
        :param information: Information of pairs, (·, n, n), summed over images.
        :param n_images: Number of images.
        :return: The second moment; 0 where information is less than 1e-8 of the images.
        """
        return divide(second, self._aligned(information), n_images)

    def _aligned(self, information: np.ndarray) -> np.ndarray:
        """Reshape information (·, n, n) to broadcast to second moments."""
        return information

    def _set_integers(self, **least: int) -> None:
        """Make fields plain integers of at least the given values."""
        for name, smallest in least.items():
            value = check_integer(name, getattr(self, name), smallest)
            object.__setattr__(self, name, value)
