import numpy as np
import pytest
from aspire.utils import Rotation
from aspire.volume import Volume
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation as Rotations
from scipy.special import sph_harm_y

from aspire_mom.evaluation import register
from aspire_mom.evaluation.registration import (
    SEARCH_ANGLES,
    fourier_spline,
    half_ball,
    rotation_correlation,
    spline_values,
)
from aspire_mom.volumes.grid import mirror
from tests.evaluation.blobs import angle_between, blobs, motion_back
from tests.references.dft import volume_fourier_values


def random_rotations(n, seed):
    return Rotations.random(n, rng=np.random.default_rng(seed)).as_matrix()


@pytest.mark.parametrize(("L", "dtype"), [(32, np.float32), (33, np.float64)])
@pytest.mark.parametrize("mirrored", [False, True])
def test_rotations_and_hands_are_found(L, dtype, mirrored):
    rotation = random_rotations(1, seed=L)[0]
    volume = blobs(L, rotation=rotation, mirrored=mirrored, dtype=dtype)
    found = register(volume, blobs(L, dtype=dtype))
    back, _ = motion_back(rotation, mirrored)
    assert found.mirrored == mirrored
    assert found.rotation.dtype == dtype
    assert angle_between(found.rotation.matrices[0], back) < 0.1
    assert abs(found.shift).max() < 0.02


@pytest.mark.parametrize(("L", "mirrored"), [(32, True), (33, False)])
def test_shifts_are_found(L, mirrored):
    shift = np.random.default_rng(0).uniform(-1.1, 1.1, 3)
    rotation = random_rotations(1, seed=1)[0]
    motion = {"rotation": rotation, "mirrored": mirrored, "shift": shift}
    found = register(blobs(L, **motion), blobs(L))
    back, shift_back = motion_back(**motion)
    assert found.mirrored == mirrored
    assert angle_between(found.rotation.matrices[0], back) < 0.1
    np.testing.assert_allclose(found.shift, shift_back, atol=0.02)


@pytest.mark.parametrize(("voxels", "solvent"), [(3, 0.0), (5, -0.3)])
def test_large_shifts_are_found(voxels, solvent):
    """More than L/16 along each axis, of a turned and mirrored volume, exactly."""
    rotation = random_rotations(1, seed=3)[0]
    shift = voxels * np.array([1, -1, 1])
    volume = blobs(33, rotation=rotation, mirrored=True)
    rolled = np.roll(volume.asnumpy()[0], shift[::-1], (0, 1, 2)) + solvent
    reference = Volume(blobs(33).asnumpy() + solvent)
    found = register(Volume(rolled), reference)
    back, shift_back = motion_back(rotation, True, shift)
    assert found.mirrored
    assert angle_between(found.rotation.matrices[0], back) < 0.1
    np.testing.assert_allclose(found.shift, shift_back, atol=0.03)


def test_without_translation_only_the_rotation_is_found():
    rotation = random_rotations(1, seed=2)[0]
    volume = blobs(33, rotation=rotation, mirrored=True, shift=(0.3, 0, 0))
    found = register(volume, blobs(33), translate=False)
    np.testing.assert_array_equal(found.shift, 0)
    back, _ = motion_back(rotation, True)
    assert found.mirrored
    assert angle_between(found.rotation.matrices[0], back) < 2


@pytest.mark.parametrize(("L", "mirrored"), [(24, True), (25, False)])
def test_the_rotation_is_aspires(L, mirrored):
    """reference ≈ volume.rotate(rotation), mirrored first if so."""
    reference = blobs(L, pixel_size=2.0)
    rotation = Rotation(random_rotations(1, seed=3))
    volume = reference.rotate(rotation)
    volume = mirror(volume) if mirrored else volume
    found = register(volume, reference)
    assert found.mirrored == mirrored
    assert angle_between(found.rotation.matrices[0], rotation.invert()[0]) < 0.1
    by_hand = (mirror(volume) if mirrored else volume).rotate(found.rotation)
    scale = np.linalg.norm(reference.asnumpy())
    assert np.linalg.norm((by_hand - reference).asnumpy()) < 0.01 * scale
    applied = found.apply(volume)
    assert applied.pixel_size == 2
    assert applied.dtype == volume.dtype
    assert np.linalg.norm((applied - reference).asnumpy()) < 2e-3 * scale


@pytest.mark.parametrize("L", [24, 25])
def test_a_registration_moves_other_volumes(L):
    motion = {"rotation": random_rotations(1, 4)[0], "shift": (0.5, -1, 0.25)}
    found = register(blobs(L, mirrored=True, **motion), blobs(L))
    other = found.apply(blobs(L, seed=5, mirrored=True, **motion)).asnumpy()
    expected = blobs(L, seed=5).asnumpy()
    # `Volume.rotate` alone leaves 2 to 3 %, wrapped into the Fourier cube's corners.
    assert np.linalg.norm(other - expected) < 1e-3 * np.linalg.norm(expected)


def test_a_registration_moves_one_volume_at_a_time():
    found = register(blobs(9), blobs(9))
    with pytest.raises(ValueError, match=r"not a stack \(2,\)"):
        found.apply(Volume(np.ones((2, 9, 9, 9))))


@pytest.mark.parametrize("L", [24, 25])
def test_mirror_changes_the_sign_of_z(L):
    volume = blobs(L, shift=(1, 2, 0.5), pixel_size=3.0)
    expected = blobs(L, mirrored=True, shift=(1, 2, -0.5))
    np.testing.assert_allclose(
        mirror(volume).asnumpy()[:, 1:], expected.asnumpy()[:, 1:], atol=1e-12
    )
    np.testing.assert_array_equal(mirror(mirror(volume)).asnumpy(), volume.asnumpy())
    assert mirror(volume).pixel_size == 3


def test_reconstructions_good_to_few_shells_are_registered():
    """Signal falls and noise rises with frequency: FSC is about 0.5 at shell 5."""
    L, rng = 33, np.random.default_rng(6)
    k = np.fft.fftfreq(L, 1 / L)
    radius = np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k**2)
    shells = np.rint(radius).astype(int).ravel()
    keep = 1 / (1 + (radius / 5) ** 4)
    for seed, rotation in enumerate(random_rotations(2, seed=7)):
        mirrored = seed % 2 == 1
        signal = blobs(L, seed=seed, rotation=rotation, mirrored=mirrored)
        signal = np.fft.fftn(signal.asnumpy()[0])
        noise = np.fft.fftn(rng.normal(size=(L, L, L)))
        power = [np.bincount(shells, abs(v.ravel()) ** 2) for v in (signal, noise)]
        noise *= np.sqrt(power[0] / power[1])[shells].reshape(noise.shape)
        poor = keep * signal + np.sqrt(1 - keep**2) * noise
        found = register(Volume(np.fft.ifftn(poor).real), blobs(L, seed=seed))
        assert found.mirrored == mirrored
        # Of the order of the shells that are right: 1 / (2π · 5 · 0.2) radians is 9°.
        back, _ = motion_back(rotation, mirrored)
        assert angle_between(found.rotation.matrices[0], back) < 5


def test_registration_repeats_itself():
    volume, reference = blobs(16, rotation=random_rotations(1, 8)[0]), blobs(16)
    first, second = register(volume, reference), register(volume, reference)
    np.testing.assert_array_equal(first.rotation.matrices, second.rotation.matrices)
    np.testing.assert_array_equal(first.shift, second.shift)


def test_a_round_volume_is_registered_somehow():
    axis = np.arange(16) - 8
    r_squared = axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2
    ball = Volume(np.exp(-r_squared / 10))
    moved = register(ball, ball).apply(ball).asnumpy()
    np.testing.assert_allclose(moved, ball.asnumpy(), atol=2e-3)


@pytest.mark.parametrize("L", [12, 13])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fourier_values_are_the_transform(L, dtype):
    volume = blobs(L, dtype=dtype)
    k = half_ball(5)[::7] @ random_rotations(1, 9)[0]
    expected = volume_fourier_values(volume.asnumpy()[0], k)
    values = spline_values(fourier_spline(volume, 5), k)
    assert np.linalg.norm(values - expected) < 2e-3 * np.linalg.norm(expected)


def test_half_ball_has_one_of_each_pair():
    k = half_ball(3)
    both = {tuple(q) for q in np.concatenate([k, -k])}
    axis = range(-4, 5)
    ball = {
        (x, y, z)
        for x in axis
        for y in axis
        for z in axis
        if 0 < x * x + y * y + z * z < 3.5**2
    }
    assert both == ball
    assert len(k) == len(ball) / 2


@settings(max_examples=10)
@given(st.integers(0, 1000), st.tuples(*[st.integers(0, SEARCH_ANGLES // 2)] * 3))
def test_rotation_correlation_is_that_of_rotated_functions(seed, indices):
    """Against functions evaluated at rotated points and integrated by quadrature."""
    degrees = 5
    rng = np.random.default_rng(seed)
    l, m = np.array([(l, m) for l in range(degrees) for m in range(-l, l + 1)]).T
    a, b = np.zeros((2, 2, degrees, 2 * degrees - 1), dtype=complex)
    for values in (a, b):
        parts = rng.normal(size=(2, 2, len(l)))
        values[:, l, m] = parts[0] + 1j * parts[1]

    nodes, weights = np.polynomial.legendre.leggauss(degrees)
    phi = np.arange(2 * degrees) * np.pi / degrees
    cos, phi = (grid.ravel() for grid in np.meshgrid(nodes, phi, indexing="ij"))
    weights = np.repeat(weights, 2 * degrees) * np.pi / degrees
    sin = np.sqrt(1 - cos**2)
    n = np.stack([sin * np.cos(phi), sin * np.sin(phi), cos], -1)

    def evaluate(coefficients, points):
        theta = np.arccos(np.clip(points[:, 2], -1, 1))
        phi = np.arctan2(points[:, 1], points[:, 0])
        Y = sph_harm_y(l[:, None], m[:, None], theta, phi)
        return coefficients[:, l, m] @ Y

    angles = 2 * np.pi / SEARCH_ANGLES * np.array(indices)
    R = Rotations.from_euler("ZYZ", angles).as_matrix()
    expected = np.sum(weights * evaluate(a, n @ R) * evaluate(b, n).conj()).real
    assert rotation_correlation(a, b)[indices] == pytest.approx(expected, abs=1e-9)
