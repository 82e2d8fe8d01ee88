"""What all bases have in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
import torch

from aspire_mom.bases.information import divide, multiply, solve_entries
from aspire_mom.checks import check_integer

MIN_SIZE = 4


class Basis(ABC):
    """
    A linear map from real images to coefficients f, whose moments E f and E f f* are
    estimated and matched.

    Coefficients belong to n *frequencies*: Fourier pixels, or rings. A polar basis has
    several *orders* m ≥ 0 at each, where m > 0 stands for -m too; a Cartesian basis has
    one.

    What CTFs let through is *information*, summed over images with factors H: Σ H² of
    every frequency, (n,), and Σ H² H'² of every pair, (·, n, n), as even orders 0, 2, …
    of its dependence on the angle between them; order 0 alone where H is radial. Least
    squares are then solved entry by entry,

        Σ H(k) f(k)              = Σ H(k)²         E c(k)
        Σ H(k) H(k') f(k) f(k')* = Σ H(k)² H(k')² E c(k) c(k')* + noise,

    so one pass does, whether images share a CTF or each has its own.

    :param L: Pixels along an image's edge.
    :param n_rings: Rings of radius 0, 1, … cycles per box, within Nyquist.
    :param max_order: Largest angular order; 0 for a Cartesian basis.
    :param inplane_average: Whether moments are averaged over in-plane angles.
    """

    L: int
    n_rings: int
    max_order: int
    inplane_average: bool
    #: What the frequencies are, for labels.
    frequency_name: str

    @property
    @abstractmethod
    def first_shape(self) -> tuple[int, ...]:
        """Shape of first moments."""

    @property
    @abstractmethod
    def second_shape(self) -> tuple[int, ...]:
        """Shape of second moments."""

    @property
    @abstractmethod
    def rings(self) -> np.ndarray:
        """The ring that each frequency is on or nearest to, (n,)."""

    @property
    @abstractmethod
    def areas(self) -> np.ndarray:
        """Area in Fourier space that each frequency stands for, (n,) or (1,)."""

    @property
    @abstractmethod
    def resolved(self) -> np.ndarray:
        """False on the Nyquist row and column of even sizes, which have no signal."""

    @property
    @abstractmethod
    def within_object(self) -> np.ndarray:
        """Entries of :meth:`blocks` that an object within 0.4 of the box has."""

    @property
    @abstractmethod
    def runs_on_devices(self) -> bool:
        """Whether :meth:`sums` computes on other devices than the CPU."""

    @property
    @abstractmethod
    def corrects_astigmatism(self) -> bool:
        """Whether filters may vary along rings."""

    @property
    @abstractmethod
    def largest_frequency(self) -> float:
        """The largest frequency in use, cycles per box."""

    @property
    @abstractmethod
    def max_harmonics(self) -> int:
        """Even angular orders of filters that matter; 1 where they are not used."""

    @property
    def n_frequencies(self) -> int:
        """Number n of frequencies."""
        return len(self.rings)

    @property
    def zero_frequency(self) -> int:
        """Index of the frequency 0."""
        return int(np.argmin(self.rings))

    @property
    def power_shape(self) -> tuple[int, int]:
        """Shape of :meth:`own_power`."""
        return self.max_order + 1, self.n_frequencies

    @property
    def block_multiplicity(self) -> np.ndarray:
        """2 for orders of :meth:`blocks` that stand for ±m, else 1."""
        return np.where(np.arange(self.max_order + 1) == 0, 1.0, 2.0)

    @property
    def first_multiplicity(self) -> np.ndarray:
        """2 for entries of the first moment that stand for orders ±m, else 1."""
        has_orders = len(self.first_shape) > 1
        return self.block_multiplicity[:, None] if has_orders else np.ones(1)

    @property
    def second_multiplicity(self) -> np.ndarray:
        """2 for entries of the second moment that stand for orders ±m, else 1."""
        return self.block_multiplicity.reshape(-1, *[1] * (len(self.second_shape) - 1))

    @property
    def first_weights(self) -> np.ndarray:
        """Weights of ‖·‖² in eq. 22 and 28 of the first moment's entries."""
        return self.first_multiplicity * self.areas

    @property
    def second_weights(self) -> np.ndarray:
        """Weights of ‖·‖² in eq. 22 and 28 of the second moment's entries."""
        pairs = np.outer(self.areas, self.areas)
        return self.second_multiplicity * self.expand(pairs[None])

    # Parts of moments

    @abstractmethod
    def zeroth(self, first: np.ndarray) -> np.ndarray:
        """
        :param first: First moment, or its errors.
        :return: Its part of order 0, (n,).
        """

    @abstractmethod
    def blocks(self, second: np.ndarray) -> np.ndarray:
        """
        :param second: Second moment, or its errors.
        :return: Its entries of equal orders, (max_order + 1, n, n).
        """

    @abstractmethod
    def cut(self, n_rings: int | None = None, max_order: int | None = None) -> Basis:
        """
        :param n_rings: Number of innermost rings to keep at most; None for all.
        :param max_order: Largest order to keep at most; None for all.
        :return: The basis of these; a Cartesian basis keeps everything.
        """

    @abstractmethod
    def cut_array(self, array: np.ndarray, to: Basis) -> np.ndarray:
        """
        :param array: First or second moment, or what broadcasts to it.
        :param to: A basis that :meth:`cut` returned.
        :return: The part of the array in that basis.
        """

    def own_power(self, second: np.ndarray) -> np.ndarray:
        """
        :param second: Second moment, or its errors.
        :return: E |f|² of single coefficients, (max_order + 1, n), float64.
        """
        return np.einsum("mrr->mr", self.blocks(second)).real

    def first_power(self, second: np.ndarray) -> np.ndarray:
        """
        :param second: Second moment, or its errors.
        :return: E |f|² of the first moment's entries, of its shape.
        """
        own = self.own_power(second).ravel()
        return own[: math.prod(self.first_shape)].reshape(self.first_shape)

    # Rings

    def ring_sum(self, values: np.ndarray) -> np.ndarray:
        """
        :param values: Real values of each frequency, (n,).
        :return: Their sums over rings.
        """
        return np.bincount(self.rings, values)

    def ring_mean(self, values: np.ndarray) -> np.ndarray:
        """
        :param values: Real values of each frequency, (n,).
        :return: Their means over rings.
        """
        return self.ring_sum(values) / np.bincount(self.rings)

    def ring_error(self, errors: np.ndarray) -> np.ndarray:
        """
        :param errors: Independent standard errors of each frequency's value, (n,).
        :return: Standard errors of :meth:`ring_mean`.
        """
        return np.sqrt(self.ring_sum(errors**2)) / np.bincount(self.rings)

    def ring_power(self, power: np.ndarray) -> np.ndarray:
        """
        :param power: What :meth:`own_power` returns.
        :return: For each ring, Σ_m E|c[m, r]|² over all orders m and -m, or the mean of
            E|f|² over the pixels nearest to it.
        """
        return self.ring_mean(self.block_multiplicity @ power)

    @abstractmethod
    def ring_power_error(self, error: np.ndarray) -> np.ndarray:
        """
        Standard error of :meth:`ring_power` if errors of different orders, or of pixels
        that are not each other's opposites, are independent, as those of noise are.

        :param error: Standard errors of the second moment's entries.
        :return: One for each ring.
        """

    @abstractmethod
    def entry_scales(self, rms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        :param rms: Roots of :meth:`ring_power`.
        :return: RMS that these alone would give to entries of the first and the second
            moment, of their shapes.
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
        :raises ValueError: wrong shape or values that are not finite.
        """

    @abstractmethod
    def sums(
        self,
        images: np.ndarray,
        H: np.ndarray | None = None,
        device: torch.device | None = None,
    ) -> tuple[np.ndarray, ...]:
        """
        What :meth:`finish` needs of images, summed over them.

        :param images: Images (n, L, L), real.
        :param H: Real and even functions to multiply the images' transforms by, as
            :meth:`filter_values` has them.
        :param device: Where torch computes, if the basis `runs_on_devices`; None for
            NumPy.
        :return: Sums, to be added over batches in double precision.
        :raises ValueError: wrong images, or more than fit into the device's memory.
        """

    @abstractmethod
    def finish(self, sums: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        """
        :param sums: What :meth:`sums` returned, added over batches.
        :return: Sums over images of f, of f f* and of the squared modulus of f f*'s
            entries, of the moments' shapes.
        """

    # Noise

    @abstractmethod
    def noise_second(self, nyquist: bool = True) -> np.ndarray:
        """
        Second moment of white noise of unit variance per pixel.

        :param nyquist: False for even-sized images whose Nyquist row and column are 0:
            the same variance then lies within the other frequencies.
        :return: Array of the second moment's shape, perhaps read-only.
        """

    @abstractmethod
    def stationary_noise_second(
        self, spectrum: np.ndarray, nyquist: bool = True
    ) -> np.ndarray:
        """
        Second moment of stationary noise: waves exp(iω·x) of random amplitude, cut to
        the image, Σ_ω S(ω) a(ω) a(ω)* / (2L - 1)², a(ω) the coefficients of a wave.

        :param spectrum: Power spectrum S (2L - 1, 2L - 1), [ωy, ωx], zero frequency in
            the middle, which is enough for the covariances of all pixels of an image.
            S = 1 is white noise of unit variance.
        :param nyquist: False for even-sized images whose Nyquist row and column are 0.
        :return: Array of the second moment's shape, complex128.
        """

    # Filters, CTFs

    @abstractmethod
    def filter_points(self, n_angles: int) -> np.ndarray:
        """
        :param n_angles: Number of angles on half a ring; ignored by Cartesian bases.
        :return: Frequencies (2, points) to evaluate filters at, radians per pixel.
        """

    @abstractmethod
    def filter_values(self, values: np.ndarray) -> np.ndarray:
        """
        :param values: Values of filters at :meth:`filter_points`, (points, images).
        :return: The same as :meth:`sums` takes them: (images, n_rings, n_angles),
            images next to one another in memory, or (images, L, L).
        """

    @abstractmethod
    def information_sums(
        self, H: np.ndarray, n_harmonics: int
    ) -> dict[str, np.ndarray]:
        """
        :param H: Transfer functions as :meth:`filter_values` has them.
        :param n_harmonics: Even orders that their squares have along rings.
        :return: Sums over images: "first_information", Σ H², (n,);
            "noise_information", Σ H H', and "second_information", Σ H² H'², both (·, n,
            n).
        """

    def expand(self, information: np.ndarray) -> np.ndarray:
        """
        :param information: Of pairs of frequencies, (·, n, n).
        :return: Its mean over angles between them, broadcast to the second moment.
        """
        return information[0].real

    def multiply(self, second: np.ndarray, information: np.ndarray) -> np.ndarray:
        """
        :param second: Second moment, or the noise's.
        :param information: Of pairs of frequencies, (·, n, n).
        :return: Their product, at every pair of frequencies.
        """
        if len(information) == 1:
            return second * self.expand(information)
        return multiply(second, information)

    def divide(
        self, second: np.ndarray, information: np.ndarray, n_images: int
    ) -> np.ndarray:
        """
        Undo :meth:`multiply`: solve each entry's normal equation.

        :param second: Second moments times information, summed over images.
        :param information: Of pairs of frequencies, (·, n, n), summed over images.
        :param n_images: Number of images.
        :return: The second moment; 0 where information is less than 1e-8 of the images.
        """
        if len(information) == 1:
            return solve_entries(second, self.expand(information), n_images)
        return divide(second, information, n_images)

    def _set_integers(self, **least: int) -> None:
        """Make fields plain integers of at least the given values."""
        for name, smallest in least.items():
            value = check_integer(name, getattr(self, name), smallest)
            object.__setattr__(self, name, value)


def squared_modulus(values: np.ndarray) -> np.ndarray:
    """
    :param values: Complex values.
    :return: |values|², without the square root that np.abs takes.
    """
    parts = values.view(values.real.dtype) if values.flags.c_contiguous else None
    if parts is None:
        return values.real**2 + values.imag**2
    squares = np.square(parts)
    return squares[..., ::2] + squares[..., 1::2]
