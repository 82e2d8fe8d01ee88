"""Quadrature on SO(3): viewing directions times in-plane angles."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from aspire.utils import Rotation

from aspire_mom.checks import check_integer, check_kind
from aspire_mom.files import contents_of, load_arrays, save_arrays
from aspire_mom.rotations.sphere import SphericalDesign

FORMAT = "aspire_mom.SO3Quadrature.1"
# Fields that are integers.
COUNTS = "degree", "n_inplane"


def viewing_rotations(
    directions: np.ndarray, in_plane: np.ndarray | float = 0.0
) -> np.ndarray:
    """
    :param directions: Unit vectors (n, 3): azimuths φ (0 at the poles), polar angles θ.
    :param in_plane: In-plane angles α, radians, (n,) or one for all.
    :return: R = Rz(φ) Ry(θ) Rz(α) (n, 3, 3), float64: R[:, 2] are the directions.
    """
    x, y, z = np.asarray(directions, dtype=np.float64).T
    polar, azimuth = np.arctan2(np.hypot(x, y), z), np.arctan2(y, x)
    angles = np.stack(np.broadcast_arrays(azimuth, polar, in_plane), axis=-1)
    return Rotation.from_euler(angles, dtype=np.float64).matrices


@dataclass(frozen=True, eq=False)
class SO3Quadrature:
    """
    Quadrature rule on SO(3), exact to `degree`: the weighted sum of any Wigner function
    D^l_mm', l ≤ `degree`, is its mean over SO(3) (section 5.2). Nodes are R(view)
    Rz(2πj / n_inplane), numbered view * n_inplane + j.

    :param rotations: Nodes, ASPIRE `Rotation` of n float64 matrices; R[:, 2] is the
        viewing direction, the in-plane rotation acts on the right.
    :param weights: Positive weights (n,), float64, summing to one.
    :param degree: Degree of exactness.
    :param n_inplane: Number of in-plane angles per view.
    :raises ValueError: the fields contradict each other or are not rotations.
    """

    rotations: Rotation
    weights: np.ndarray
    degree: int
    n_inplane: int

    def __post_init__(self):
        n, matrices = len(self.rotations), self.rotations.matrices
        if self.n_inplane < 1 or n % self.n_inplane:
            raise ValueError(f"{n} nodes are no multiple of n_inplane {self.n_inplane}")
        w = self.weights
        if w.shape != (n,) or not np.all(w > 0) or not np.isclose(w.sum(), 1):
            found = f"shape {w.shape}, minimum {w.min()} and sum {w.sum()}"
            raise ValueError(f"weights have {found}; not ({n},), positive, of sum one")
        views = matrices[:: self.n_inplane]
        squares = views @ views.transpose(0, 2, 1)
        proper = np.allclose(np.linalg.det(views), 1)
        if not proper or not np.allclose(squares, np.eye(3), atol=1e-10):
            raise ValueError("rotations must be orthogonal matrices of determinant 1")
        if not np.allclose(matrices, _with_inplane(views, self.n_inplane), atol=1e-10):
            raise ValueError("nodes must be R(view) Rz(2πj / n_inplane), j fastest")

    def __len__(self) -> int:
        return len(self.weights)

    @classmethod
    def product(cls, design: SphericalDesign, n_inplane: int) -> SO3Quadrature:
        """
        Pair all viewing directions of a design with equally spaced in-plane angles, all
        with equal weights (section 5.2; the paper has 100 × 12 nodes).

        Over the in-plane angles D^l_mm' sums to zero if 0 < |m'| < n_inplane. If m' = 0
        it is a spherical harmonic, which sums to zero over the design if 0 < l ≤ t. So
        the rule is exact up to the degree min(t, n_inplane - 1).

        :param design: Viewing directions.
        :param n_inplane: Number of in-plane angles in [0, 2π), the first one 0.
        :return: The quadrature.
        """
        check_kind("design", design, SphericalDesign)
        check_integer("n_inplane", n_inplane, 1)
        n = len(design) * n_inplane
        matrices = _with_inplane(viewing_rotations(design.points), n_inplane)
        rotations = Rotation(matrices, gimble_lock_warnings=False)
        degree = min(design.degree, n_inplane - 1)
        return cls(rotations, np.full(n, 1 / n), degree, n_inplane)

    @property
    def view_rotations(self) -> np.ndarray:
        """Rotations (n_views, 3, 3) of in-plane angle 0."""
        return self.rotations.matrices[:: self.n_inplane]

    @property
    def views(self) -> np.ndarray:
        """Viewing directions (n_views, 3): unit vectors R[:, 2]."""
        return self.view_rotations[:, :, 2]

    @property
    def view_weights(self) -> np.ndarray:
        """Weights (n_views,) of the viewing directions, summing to one."""
        return self.weights.reshape(-1, self.n_inplane).sum(axis=1)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """All fields as arrays, by name."""
        counts = {name: np.array(getattr(self, name)) for name in COUNTS}
        return {"rotations": self.rotations.matrices, "weights": self.weights, **counts}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> SO3Quadrature:
        """
        :param arrays: :attr:`arrays` of a quadrature; other names are ignored.
        :return: The quadrature.
        """
        rotations = Rotation(arrays["rotations"], gimble_lock_warnings=False)
        return cls(rotations, arrays["weights"], *(int(arrays[k]) for k in COUNTS))

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """
        :param path: File to write (.npz).
        :param overwrite: Replace an existing file.
        """
        save_arrays(path, FORMAT, self.arrays, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | Path) -> SO3Quadrature:
        """
        :param path: A file that :meth:`save` has written.
        :return: The quadrature.
        """
        arrays, _ = load_arrays(path, FORMAT)
        with contents_of(path):
            return cls.from_arrays(arrays)


def _with_inplane(views: np.ndarray, n_inplane: int) -> np.ndarray:
    """All products R(view) Rz(2πj / n_inplane) (n_views * n_inplane, 3, 3)."""
    angles = 2 * np.pi * np.arange(n_inplane) / n_inplane
    in_plane = Rotation.about_axis("z", angles, dtype=np.float64).matrices
    return (views[:, None] @ in_plane).reshape(-1, 3, 3)
