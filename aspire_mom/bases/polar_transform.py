"""Polar coefficients of images and sums of their products, by NumPy or torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from aspire_mom.threads import locked_lru_cache, one_blas_thread

# Number of lines and of rings per batched matrix product. Smaller matrices are padded
# with zeros; larger blocks mean fewer calls but more padding.
LINES_PER_BLOCK = 8
RINGS_PER_BLOCK = 4
# Orders multiplied in one call, on the rings where any of them is not 0.
ORDERS_PER_BLOCK = 12

Array = np.ndarray | torch.Tensor


class PolarTransform:
    """
    Compute c[m, r], the m-th coefficient in θ of an image's transform on ring r,

        F(r cos θ, r sin θ) = Σ_{x, y} f(x, y) exp(-2πi (x r cos θ + y r sin θ) / L).

    At the crossings of rings with a line of constant ky, the image's transform
    separates into a 1-D transform along y, shared by all rings, and a 1-D transform
    along x. Rows of the matrices then have O(L) entries instead of O(L²). Crossings
    with |ky| ≤ |kx| are used. The image mirrored in x = y has the crossings with lines
    of constant kx. Lines are so dense that neighbouring crossings on a ring are at most
    half a period of its highest order apart. They determine its coefficients, which a
    pseudo-inverse for each ring computes, exact to rounding. The work grows as L³.

    The square's symmetries save work. Images are split into parts even and odd in x and
    y, with a quarter of the pixels and real transforms (oe: odd in x, even in y):

        F = ee - oo - i (oe + eo),
        ee = 2 Σ Re c[m] cos mθ,  oo =  2 Σ Im c[m] sin mθ    over even m (m = 0 once),
        oe = -2 Σ Im c[m] cos mθ, eo = -2 Σ Re c[m] sin mθ    over odd m.

    Mirroring in x = y replaces θ by π/2 - θ. So sums and differences of ee or oo and
    its mirror image have every fourth order only, and the transform of the mirrored eo
    or oe on one octant is that of eo or oe itself on the other.

    :param L: Pixels along an image's edge.
    :param n_rings: Number of rings.
    :param max_order: Largest angular order.
    :param dtype: float32 or float64, of the images.
    :param device: Where to compute with torch; None for NumPy, on the CPU.
    """

    def __init__(
        self,
        L: int,
        n_rings: int,
        max_order: int,
        dtype: type | str,
        device: torch.device | None = None,
    ):
        self.L, self.n_rings, self.max_order = L, n_rings, max_order
        self.dtype, self.half = np.dtype(dtype), L // 2
        self.device = device
        self.xp, self.multiply = np, np.matmul
        # Pixels 0, -1, … -h of an axis; torch has no slices with negative steps.
        self.backwards = slice(self.half, None, -1)
        if device is not None:
            self.xp, self.multiply = torch, _multiply
            self.backwards = torch.arange(self.half, -1, -1, device=device)
        self.chunk = int(np.clip(2**19 // L**2, 16, 64))
        rings = np.arange(n_rings)
        # Pixels in the corners have the highest orders.
        corner = 2 * np.pi / L * np.sqrt(2) * self.half
        # Beyond these orders J_m(z) is below 1e-7 in single precision, 1e-15 in double.
        z, tail = corner * rings, 5 if self.dtype == np.float32 else 10
        reach = np.ceil(z + 4 + tail * np.cbrt(z)).astype(int)
        self.reach = np.minimum(reach, max_order)
        self.lines = _lines(reach)
        # One crossing beyond the octant avoids a gap at its end.
        crossings = np.searchsorted(self.lines, rings / np.sqrt(2)) + (rings > 0)
        crossings = np.minimum(crossings, len(self.lines))
        self.down = self._waves(self.lines)
        self.across, self.angular = [], []
        for start in range(0, len(self.lines), LINES_PER_BLOCK):
            lines = slice(start, min(start + LINES_PER_BLOCK, len(self.lines)))
            crossing = slice(int(np.argmax(crossings > start)), n_rings)
            kx = rings[crossing] ** 2 - self.lines[lines, None] ** 2
            waves = self._waves(np.sqrt(np.maximum(kx, 0)))
            self.across.append((lines, crossing, waves))
        for start in range(1, n_rings, RINGS_PER_BLOCK):
            own = rings[start : start + RINGS_PER_BLOCK]
            inverses = [
                _inverses(
                    np.arcsin(self.lines[: crossings[r]] / r), reach[r], max_order
                )
                for r in own
            ]
            matrices = [
                placed(_stacked(of_rings).astype(self.dtype), device)
                for of_rings in zip(*inverses, strict=True)
            ]
            self.angular.append((slice(own[0], own[-1] + 1), matrices))

    @one_blas_thread()
    def __call__(self, images: Array) -> Array:
        """
        :param images: Images (n, L, L) of the transform's type, on its device.
        :return: Real and imaginary parts (2, max_order + 1, n_rings, n), of that type.
        """
        n = len(images)
        c = _zeros((2, self.max_order + 1, self.n_rings, n), images)
        # A chunk fits into a CPU's cache; GPUs are faster with all images at once.
        chunk = self.chunk if self.device is None else n
        for start in range(0, n, chunk):
            own = images[start : start + chunk]
            if start == 0 or len(own) < chunk:
                parts, along_lines, crossings = self._workspace(own)
            self._split(own, parts)
            for odd_in_y in (0, 1):
                across = parts[odd_in_y].reshape(4, self.half + 1, -1)
                self.multiply(self.down[odd_in_y], across, out=along_lines)
                self._to_crossings(odd_in_y, along_lines, crossings)
            self._to_orders(crossings, c[..., start : start + chunk])
        c[0, 0, 0] = images.sum((1, 2))
        return c

    def _workspace(self, images: Array) -> tuple[Array, ...]:
        """Arrays for parts of n images (odd in y, [even in x, even in x, odd, odd], y,
        x, n), their transforms on lines (4, lines, x · n) and at crossings (of odd
        orders, which, rings, lines, odd in y, n)."""
        across, lines, n = self.half + 1, len(self.lines), len(images)
        shapes = (
            (2, 4, across, across, n),
            (4, lines, across * n),
            (2, 2, self.n_rings, lines, 2, n),
        )
        return tuple(_zeros(shape, images) for shape in shapes)

    def _split(self, images: Array, parts: Array) -> None:
        """Split images by symmetry in x and y, and in x = y."""
        L, h, n, xp = self.L, self.half, len(images), self.xp
        # Even sizes have a row and a column at -L/2 and none at L/2.
        pixels = _zeros((2 * h + 1, 2 * h + 1, n), images)
        pixels[:L, :L] = images.swapaxes(0, 1).swapaxes(1, 2)
        upwards = pixels[self.backwards]
        (ee, _, oe, _), (_, eo, oo, _) = parts
        for rows, even, odd in (
            (pixels[h:] + upwards, ee, oe),
            (pixels[h:] - upwards, eo, oo),
        ):
            leftwards = rows[:, self.backwards]
            xp.add(rows[:, h:], leftwards, out=even)
            xp.subtract(rows[:, h:], leftwards, out=odd)
            even[:, 0] /= 2
        for even in (ee, oe):
            even[0] /= 2
        parts[0, 3], parts[1, 0] = eo.swapaxes(0, 1), oe.swapaxes(0, 1)
        for one, other in (parts[0, :2], parts[1, 2:]):
            mirrored = one.swapaxes(0, 1)
            xp.subtract(one, mirrored, out=other)
            one[:] = one + mirrored

    def _to_crossings(
        self, odd_in_y: int, along_lines: Array, crossings: Array
    ) -> None:
        """Transform from lines to the rings' crossings with them."""
        n_lines, n = crossings.shape[3], crossings.shape[-1]
        by_column = along_lines.reshape(4, n_lines, self.half + 1, n)
        for lines, rings, waves in self.across:
            for odd_in_x in (0, 1):
                two = by_column[2 * odd_in_x : 2 * odd_in_x + 2, lines]
                out = crossings[odd_in_x ^ odd_in_y, :, rings, lines, odd_in_y]
                self.multiply(waves[odd_in_x], two, out=out.swapaxes(1, 2))

    def _to_orders(self, crossings: Array, c: Array) -> None:
        """Transform from crossings to angular coefficients, except of ring 0."""
        for rings, matrices in self.angular:
            n_rings, _, n_lines = matrices[0].shape
            even, odd = crossings[:, :, rings, :n_lines]
            odd = odd.reshape(2, n_rings, 2 * n_lines, -1)
            for matrix, values, part, first, step in zip(
                matrices,
                # ee + mirrored, ee - mirrored, oo - mirrored, oo + mirrored; oe, eo.
                (even[0, ..., 0, :], even[1, ..., 0, :])
                + (even[1, ..., 1, :], even[0, ..., 1, :])
                + (odd[0], odd[1]),
                (0, 0, 1, 1, 1, 0),
                (0, 2, 0, 2, 1, 1),
                (4, 4, 4, 4, 2, 2),
                strict=True,
            ):
                orders = slice(first, first + step * matrix.shape[1], step)
                self.multiply(matrix, values, out=c[part, orders, rings].swapaxes(0, 1))

    def _waves(self, k: np.ndarray) -> Array:
        """cos and sin of 2πkx/L, (2, …, L//2 + 1)."""
        angles = 2 * np.pi / self.L * k[..., None] * np.arange(self.half + 1)
        waves = np.stack((np.cos(angles), np.sin(angles)))
        return placed(waves.astype(self.dtype), self.device)


def placed(array: np.ndarray, device: torch.device | None) -> Array:
    """
    :param array: An array.
    :param device: A device; None for NumPy.
    :return: The array or a tensor of it on the device.
    """
    return array if device is None else torch.tensor(array, device=device)


def averaged_sums(parts: Array, reach: np.ndarray) -> tuple[Array, ...]:
    """
    Sum products of coefficients c[m, r], averaged over in-plane angles.

    :param parts: Real and imaginary parts of c, (2, orders, rings, n).
    :param reach: Largest order that is not 0 on each ring, growing with the ring.
    :return: Sums over images of c[0, r], complex128; of c[m, r] conj c[m, s], (orders,
        rings, rings), complex of the parts' precision; and of its squared modulus.
    """
    xp = np if isinstance(parts, np.ndarray) else torch
    zeroth = parts[:, 0].sum(-1, dtype=xp.float64)
    n_orders, n_rings = parts.shape[1:3]
    second, mixed, squares = _zeros((3, n_orders, n_rings, n_rings), parts)
    for start in range(0, n_orders, ORDERS_PER_BLOCK):
        orders = slice(start, start + ORDERS_PER_BLOCK)
        rings = slice(int(np.searchsorted(reach, start)), n_rings)
        re, im = parts[:, orders, rings]
        power = re**2
        power += im**2
        place = orders, rings, rings
        second[place] = re @ re.swapaxes(1, 2)
        second[place] += im @ im.swapaxes(1, 2)
        mixed[place] = im @ re.swapaxes(1, 2)
        squares[place] = power @ power.swapaxes(1, 2)
    return (
        zeroth[0] + 1j * zeroth[1],
        second + 1j * (mixed - mixed.swapaxes(1, 2)),
        squares,
    )


@contextmanager
def full_precision() -> Iterator[None]:
    """
    Multiply float32 on a GPU not in TF32, whose errors of 1e-3 do not average out.

    :yield: Nothing.
    """
    matmul, name, full = torch.backends.cuda.matmul, "fp32_precision", "ieee"
    if not hasattr(matmul, name):  # before torch 2.9
        name, full = "allow_tf32", False
    before = getattr(matmul, name)
    setattr(matmul, name, full)
    try:
        yield
    finally:
        setattr(matmul, name, before)


def _zeros(shape: tuple[int, ...], like: Array) -> Array:
    """Zeros of an array's type, on its device."""
    if isinstance(like, np.ndarray):
        return np.zeros(shape, like.dtype)
    return like.new_zeros(shape)


def _lines(reach: np.ndarray) -> np.ndarray:
    """Offsets ky of the lines, cycles per box. The ky axis is divided into steps across
    which no ring advances by more than half a period of its highest order, π /
    reach[r]. Lines lie at the middle of steps, the last one beyond the first octant."""
    rings, lines, edge = np.arange(len(reach)), [], 0.0
    while np.sqrt(2) * (lines[-1] if lines else 0) < rings[-1]:
        crossed = rings > np.sqrt(2) * edge
        crossed[-1] = True
        turns = np.sqrt(rings[crossed] ** 2 - edge**2) / reach[crossed]
        step = np.pi * turns.min()
        lines.append(edge + step / 2)
        edge += step
    return np.array(lines)


def _inverses(angles: np.ndarray, reach: int, max_order: int) -> list[np.ndarray]:
    """Matrices from values at a ring's crossings (at angles in the octant) to its
    coefficients: ee ± its mirror image to Re c[m], m = 0, 4, … or 2, 6, …; oo to Im
    c[m]; and for odd m, with two values for each crossing, oe to Im c[m] and eo to Re
    c[m]. Orders up to reach are solved for and those up to max_order are returned."""
    inverses = []
    for wave in (np.cos, np.sin):
        for first in (0, 2):
            m = np.arange(first, reach + 1, 4)
            waves = np.where(m == 0, 2, 4) * wave(np.outer(angles, m))
            # The column sin(0·θ) is zero and gets coefficient 0.
            inverses.append(np.linalg.pinv(waves, rcond=1e-8)[m <= max_order])
    m = np.arange(1, reach + 1, 2)
    sign = 2 - m % 4
    waves = np.cos(np.outer(angles, m)), sign * np.sin(np.outer(angles, m))
    both = -2 * np.stack(waves, 1).reshape(-1, len(m))
    inverse = np.linalg.pinv(both, rcond=1e-8)[m <= max_order]
    return [*inverses, inverse, sign[: len(inverse), None] * inverse]


def _multiply(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> None:
    """np.matmul for tensors whose `out` is a view of any strides."""
    out.copy_(left @ right)


def _stacked(matrices: tuple[np.ndarray, ...]) -> np.ndarray:
    """Matrices of several sizes in one array, padded with zeros."""
    rows, columns = np.max([m.shape for m in matrices], axis=0)
    sizes = (((0, rows - len(m)), (0, columns - m.shape[1])) for m in matrices)
    return np.stack(list(map(np.pad, matrices, sizes)))


#: Remembered transforms of the same arguments as :class:`PolarTransform`'s.
polar_transform = locked_lru_cache(PolarTransform)
