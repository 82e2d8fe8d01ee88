import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aspire_mom.bases import CartesianBasis, PolarBasis
from aspire_mom.moments import MomentEstimator, Moments, Noise, ThirdMomentBasis
from aspire_mom.moments.compression import estimated_noise_second
from aspire_mom.moments.moments import weighted_norm
from tests.moments.sources import (
    COLOURED,
    array_source,
    coloured_source,
    largest_difference,
    noise_images,
)
from tests.references import moments as reference
from tests.references import third as slow

SIZES = pytest.mark.parametrize("L", [12, 13])
DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])
few = settings(max_examples=10)


def small_basis(L, max_order=7):
    return PolarBasis(L, n_rings=5, max_order=max_order)


def signal(L, n, seed=0, dtype=np.float64):
    """Images of three blobs each at random places, large beside unit noise."""
    rng = np.random.default_rng(seed)
    axis = np.arange(L) - L // 2
    points = rng.uniform(-L / 5, L / 5, (n, 3, 2))
    x, y = (np.exp(-((axis - points[..., [i]]) ** 2) / 6) for i in range(2))
    return np.einsum("g,ngy,ngx->nyx", [3.0, 6.0, 4.5], y, x).astype(dtype)


def unitary_vectors(basis, counts, seed=0):
    """Any complex vectors, real for order 0."""
    rng = np.random.default_rng(seed)
    roots = np.sqrt(basis.areas)[:, None]
    vectors = []
    for m, q in enumerate(counts):
        shape = (basis.n_rings, basis.n_rings)
        A = rng.standard_normal(shape) + 1j * (m > 0) * rng.standard_normal(shape)
        vectors.append(roots * np.linalg.qr(A)[0][:, :q])
    return tuple(vectors)


def compressions(basis):
    """Without and with compression; one with gaps."""
    return [
        ThirdMomentBasis.rings(basis, 4, max_order=6),
        ThirdMomentBasis(basis, unitary_vectors(basis, (3, 2, 4, 1, 0, 2, 1))),
    ]


def estimate(kept, images, noise_second=0.0, weights=None, **options):
    """All at once, from the images' coefficients."""
    c = kept.basis.coefficients(images)
    return finish(kept, c if weights is None else c * weights[:, None], noise_second)


def finish(kept, c, noise_second=0.0, weights=None, **options):
    noise_second = noise_second + np.zeros(kept.basis.second_shape)
    sums = kept.sums(c, weights)
    return kept.finish(sums, len(c), noise_second, **options)


def moments_with_third(images, kept, variance=1.0):
    source = array_source(images)
    moments = MomentEstimator(
        source, kept.basis, noise=Noise(variance=variance)
    ).estimate()
    third, error = estimate(kept, images, variance * kept.basis.noise_second())
    return dataclasses.replace(
        moments, third=third, third_error=error, third_basis=kept
    )


@SIZES
@DTYPES
@pytest.mark.parametrize("which", [0, 1])
def test_third_moment_is_the_defining_sum(L, dtype, which):
    basis = small_basis(L)
    kept, images = compressions(basis)[which], signal(L, 6, dtype=dtype)
    third, _ = estimate(kept, images)
    assert third.dtype == np.complex128
    assert third.shape == (kept.size,)
    assert third.nbytes == kept.nbytes
    of_all = slow.third_moment(images, 5, 7)
    close = 1e-5 if dtype == np.float32 else 1e-10
    expected = slow.compressed(of_all, kept.vectors, kept.pairs)
    assert largest_difference(third, expected) < close
    m1, m2 = 1, 2
    U = kept.vectors
    block = np.einsum(
        "ijk,ia,jb,kc->abc", of_all[m1, m2], U[m1].conj(), U[m2].conj(), U[m1 + m2]
    )
    assert largest_difference(kept.block(third, m1, m2), block) < close


@SIZES
def test_pairs_of_other_signs_follow(L):
    """By conjugation and permutation, as the docstring of ThirdMomentBasis says."""
    T = slow.third_moment(signal(L, 3), 5, 5)
    for (m1, m2), block in T.items():
        a, b, c = m1, m2, -m1 - m2  # of Σ c[a] c[b] c[c], up to (-1)^c
        if sum(m < 0 for m in (a, b, c)) == 2:
            a, b, c = -a, -b, -c
        # Two that are not negative first, the smaller one before the other.
        axes = sorted(range(3), key=lambda i: ((a, b, c)[i] < 0, (a, b, c)[i]))
        low, high = sorted((a, b, c))[1:] if min(a, b, c) < 0 else (0, 0)
        expected = T[low, high].transpose(np.argsort(axes))
        if (a, b, c) != (m1, m2, -m1 - m2):
            expected = expected.conj()
        sign = (-1.0) ** (m1 + m2 + low + high)
        assert 0 <= low <= high <= low + high <= 5
        assert np.abs(block - sign * expected).max() < 1e-9 * np.abs(block).max()


def test_weights_make_the_norm_that_of_all_signs():
    basis = PolarBasis(13, n_rings=3, max_order=6)
    roots = np.diag(np.sqrt(basis.areas))
    images = signal(13, 4)
    kept = ThirdMomentBasis(basis, (roots,) * 7)
    expected = slow.norm(slow.third_moment(images, 3, 6), basis.areas)
    assert weighted_norm(estimate(kept, images)[0], kept.weights) == pytest.approx(
        expected
    )


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_quarter_turns_change_nothing(which, turns):
    kept, images = compressions(small_basis(13))[which], signal(13, 5)
    images += noise_images(5, 13, dtype=np.float64)
    turned = np.rot90(images, turns, axes=(2, 1))
    assert largest_difference(*(estimate(kept, i)[0] for i in (turned, images))) < 1e-10


@pytest.mark.parametrize("which", [0, 1])
@few
@given(seed=st.integers(0, 1000))
def test_turns_by_any_angle_change_nothing(which, seed):
    kept = compressions(small_basis(12))[which]
    c = kept.basis.coefficients(signal(12, 5))
    angles = np.random.default_rng(seed).uniform(0, 2 * np.pi, (5, 1, 1))
    turned = c * np.exp(-1j * np.arange(8)[:, None] * angles)
    assert largest_difference(finish(kept, turned)[0], finish(kept, c)[0]) < 1e-12


def test_mirror_images_have_the_conjugate():
    kept, images = compressions(small_basis(13))[0], signal(13, 5)
    third, mirrored = (estimate(kept, i)[0] for i in (images, images[:, ::-1]))
    assert largest_difference(mirrored, third.conj()) < 1e-10
    assert largest_difference(mirrored, third) > 1e-3


def exactly_noisy(L, n_groups=1):
    """
    Coefficients of clean images turned to 24 angles each, so that the mean of orders
    below 24 but 0 is none, and of the same with coloured noise of no symmetry added in
    all ways whose mean over polynomials of degree 3 is the expectation.

    :return: Clean (n, …), noisy (n, …), the group of each, noise's second moment.
    """
    basis = small_basis(L)
    rng = np.random.default_rng(5)
    noise = slow.sigma_points(np.eye(L**2) + 0.1 * rng.standard_normal((L**2, L**2)))
    x = basis.coefficients(noise)
    angles = 2 * np.pi * np.arange(24) / 24
    phases = np.exp(-1j * np.outer(angles, np.arange(8)))[:, :, None]
    clean = (basis.coefficients(signal(L, 2))[:, None] * phases).reshape(48, 8, 5)
    second = np.einsum("nmr,nms->mrs", x, x.conj()) / len(x)
    return basis, clean, x, second


@SIZES
@pytest.mark.parametrize("which", [0, 1])
def test_noise_bias_is_that_of_gaussian_noise_exactly(L, which):
    basis, clean, x, second = exactly_noisy(L)
    kept = compressions(basis)[which]
    noisy = (clean[:, None] + x[None]).reshape(-1, 8, 5)
    expected, _ = finish(kept, clean)
    third, _ = finish(kept, noisy, second)
    raw, _ = finish(kept, noisy)
    scale = np.abs(expected).max()
    assert np.abs(third - expected).max() < 1e-9 * scale
    assert np.abs(raw - expected).max() > 0.01 * scale


@SIZES
def test_weighted_least_squares_is_exact_too(L):
    """Three CTFs, one with a zero, each applied to clean images and again to noisy."""
    basis, clean, x, second = exactly_noisy(L)
    kept = compressions(basis)[0]
    H = np.array(
        [
            [0.1, 0.5, 0.9, 0.0, -0.8],
            [0.1, 0.6, 0.7, -0.5, -1.0],
            [0.2, 0.3, 1.0, 0.6, -0.3],
        ]
    )
    factor = H[:, None, None, None]
    noisy = factor * (factor * clean[:, None] + x)
    noisy = noisy.reshape(-1, 8, 5)
    factors = np.repeat(H, len(noisy) // 3, axis=0)
    expected, _ = finish(kept, clean)
    third, error = finish(kept, noisy, second, factors)
    assert largest_difference(third, expected) < 1e-8
    assert error.shape == third.shape
    biased, _ = finish(kept, noisy, 0, factors)
    assert largest_difference(biased, expected) > 0.01


def test_factors_of_one_are_no_factors():
    kept, images = compressions(small_basis(12))[0], signal(12, 7)
    c, second = kept.basis.coefficients(images), kept.basis.noise_second()
    third, _ = finish(kept, c, second, np.ones((7, 5)))
    assert largest_difference(third, finish(kept, c, second)[0]) < 1e-12


def test_rings_that_no_image_has_are_drawn_to_zero():
    kept = compressions(small_basis(12))[0]
    c = kept.basis.coefficients(signal(12, 7))
    H = np.ones((7, 5))
    H[:, 2] = 1e-9
    third, _ = finish(kept, c * H[:, None] ** 2, weights=H)
    block, of_all = (kept.block(t, 1, 2) for t in (third, finish(kept, c)[0]))
    rings = kept.ring_indices
    seen = np.ix_(*(rings[m] != 2 for m in (1, 2, 3)))
    assert largest_difference(block[seen], of_all[seen]) < 1e-12
    assert np.abs(block[rings[1] == 2]).max() < 1e-9 * np.abs(of_all).max()


@SIZES
def test_noise_bias_is_removed_from_random_noise(L):
    """
    Of 20,000 images of one round blob and noise, only scatter is left: entries are as
    far from zero as their standard errors say. Over draws the mean square of z scatters
    by 4 % for m1 > 0 and 13 % for m1 = 0 (measured): tolerances are three times that.
    """
    basis, n = small_basis(L), 20_000
    blob = np.exp(-((np.arange(L) - L // 2) ** 2) / 4)
    blob = np.outer(blob, blob)[None]
    kept = ThirdMomentBasis.rings(basis)
    images = noise_images(n, L, seed=3) + blob.astype(np.float32)
    third, error = estimate(kept, images, basis.noise_second())
    clean, _ = estimate(kept, blob)
    raw, _ = estimate(kept, images)
    z, bias = (np.abs(t - clean) ** 2 / error**2 for t in (third, raw))
    zeroth = of_zeroth_order(kept)
    assert np.mean(z[~zeroth]) == pytest.approx(1, abs=0.15)
    assert np.mean(z[zeroth]) == pytest.approx(1, abs=0.4)
    assert np.mean(bias[zeroth]) > 30


def of_zeroth_order(kept):
    """Which entries have m1 = 0."""
    flags = np.zeros(kept.size, bool)
    for m1, m2 in kept.pairs:
        kept.block(flags, m1, m2)[:] = m1 == 0
    return flags


@pytest.mark.parametrize("which", [0, 1])
def test_standard_errors_are_the_scatter_of_repeated_draws(which):
    """
    400 draws of 40 noisy images of one round blob, so that all scatter is the noise's:
    the scatter of each entry is known to 5 % or a little worse, products of three
    having longer tails than a Gaussian, that of their sum better.
    """
    kept = compressions(small_basis(9))[which]
    second = kept.basis.noise_second()
    blob = 3 * np.exp(-((np.arange(9) - 4) ** 2) / 4)
    clean = np.outer(blob, blob)
    draws = [
        estimate(kept, clean + noise_images(40, 9, seed=seed, dtype=float), second)
        for seed in range(400)
    ]
    scatter = np.var([third for third, _ in draws], axis=0)
    stated = np.mean([error**2 for _, error in draws], axis=0)
    for entries in (of_zeroth_order(kept), ~of_zeroth_order(kept)):
        ratio = np.sqrt(stated[entries] / scatter[entries])
        assert np.median(ratio) == pytest.approx(1, abs=0.05)
        assert np.percentile(ratio, [2, 98]) == pytest.approx([1, 1], abs=0.3)


def test_error_falls_as_the_root_of_the_number_of_images():
    basis = small_basis(9, max_order=5)
    kept, second = ThirdMomentBasis.rings(basis), basis.noise_second()
    errors = []
    for n in (400, 6400):
        draws = [
            estimate(kept, noise_images(n, 9, seed=seed), second)[0]
            for seed in range(n, n + 6)
        ]
        errors.append(np.sqrt(np.mean(np.abs(draws) ** 2)))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)


def test_leading_eigenvectors_hold_what_there_is():
    """Nearly all of the third moment of clean images in a quarter of the memory."""
    basis, images = PolarBasis(13), signal(13, 400)
    moments = MomentEstimator(
        array_source(images), basis, noise=Noise(variance=0)
    ).estimate()
    whole = ThirdMomentBasis.from_moments(moments, budget_bytes=10**9)
    norms = []
    for share in (1, 4, 16):
        kept = ThirdMomentBasis.from_moments(
            moments, budget_bytes=whole.nbytes // share
        )
        assert kept.nbytes <= whole.nbytes / share
        assert kept.ring_indices is None
        norms.append(weighted_norm(estimate(kept, images)[0], kept.weights))
    everything = slow.norm(
        slow.third_moment(images[:1], basis.n_rings, basis.max_order),
        basis.areas,
    )
    one = weighted_norm(estimate(whole, images[:1])[0], whole.weights)
    assert one == pytest.approx(everything, rel=1e-6)
    assert norms[1] > 0.9999 * norms[0]
    assert 0.9 * norms[0] < norms[2] < norms[1]


def test_eigenvectors_are_orthonormal_and_the_largest():
    basis = small_basis(13)
    moments = MomentEstimator(
        array_source(signal(13, 50)), basis, noise=Noise(variance=0)
    ).estimate()
    kept = ThirdMomentBasis.from_moments(moments, budget_bytes=4000)
    roots = np.sqrt(basis.areas)[:, None]
    least, values = np.inf, []
    for m, U in enumerate(kept.vectors):
        V = U / roots
        np.testing.assert_allclose(V.conj().T @ V, np.eye(U.shape[1]), atol=1e-12)
        S = roots * moments.second[m] * roots.T
        of_kept = np.sort(np.linalg.eigvalsh(V.conj().T @ S @ V))
        of_all = np.linalg.eigvalsh(S)
        np.testing.assert_allclose(of_kept, of_all[len(of_all) - U.shape[1] :])
        least = min([least, *of_kept])
        values += list(of_all[: len(of_all) - U.shape[1]])
    assert max(values) < least


@pytest.mark.parametrize("seed", range(5))
def test_noise_is_not_taken_for_signal(seed):
    images, basis = noise_images(2000, 17, seed=seed), PolarBasis(17)
    moments = MomentEstimator(
        array_source(images), basis, noise=Noise(variance=1)
    ).estimate()
    with pytest.raises(
        ValueError, match="no eigenvalues above its noise .* more images"
    ):
        ThirdMomentBasis.from_moments(moments)
    with pytest.raises(ValueError, match="no eigenvalues above its noise"):
        ThirdMomentBasis.from_moments(
            dataclasses.replace(moments, noise_power=2 * moments.noise_power)
        )
    wave = np.cos(2 * np.pi / 17 * 2 * (np.arange(17) - 8))
    amplitudes = np.random.default_rng(seed).standard_normal((2000, 1, 1))
    moments = MomentEstimator(
        array_source((images + 0.5 * amplitudes * wave).astype(np.float32)),
        basis,
        noise=Noise(variance=1),
    ).estimate()
    kept = ThirdMomentBasis.from_moments(moments)
    assert np.all(kept.counts <= 2)
    # A cosine has even orders only, most on the ring of its frequency.
    assert not kept.counts[1::2].any()
    assert np.argmax(np.abs(kept.vectors[0][:, 0])) == 2


@pytest.mark.parametrize("noise", ["corners", "given"])
def test_coloured_noise_is_not_taken_for_signal(noise):
    """Noise that falls by a factor of 11, some of whose eigenvalues would pass for
    signal if it were white; what its true second moment says is met within 7 %."""
    basis = PolarBasis(17)
    moments = MomentEstimator(
        coloured_source(2000, 17),
        basis,
        noise=Noise(spectrum=COLOURED if noise == "given" else noise),
    ).estimate()
    true = basis.stationary_noise_second(COLOURED.evaluate_grid(33, dtype=np.float64))
    found = estimated_noise_second(moments)
    assert np.linalg.norm(found - true) < 0.07 * np.linalg.norm(true)
    with pytest.raises(ValueError, match="no eigenvalues above its noise"):
        ThirdMomentBasis.from_moments(moments)
    as_white = dataclasses.replace(moments, noise_power=None)
    assert ThirdMomentBasis.from_moments(as_white).counts.any()


def test_innermost_rings_are_kept():
    basis = PolarBasis(63)
    kept = ThirdMomentBasis.rings(basis)
    assert kept.n_rings == 8
    assert kept.nbytes < 0.27e6
    assert ThirdMomentBasis.rings(PolarBasis(12)).n_rings == 6
    assert ThirdMomentBasis.rings(PolarBasis(12, n_rings=1)).size == 1
    roots = np.sqrt(basis.areas)
    for m, (U, rings) in enumerate(zip(kept.vectors, kept.ring_indices, strict=True)):
        assert rings[0] == np.ceil(max(m - 1, 0) / np.pi) or rings[0] == np.ceil(
            m / np.pi
        )
        assert np.ceil(np.pi * rings[0]) >= m
        np.testing.assert_array_equal(U[rings].diagonal(), roots[rings])
        assert np.count_nonzero(U) == len(rings)


@DTYPES
@pytest.mark.parametrize("which", [0, 1])
def test_model_of_clean_views_is_the_estimate(dtype, which):
    kept, images = compressions(small_basis(13))[which], signal(13, 6, dtype=dtype)
    images = images[[0, 1, 2, 3, 4, 5, 5, 5]]
    c = kept.basis.coefficients(images)
    views = torch.from_numpy(c[:6].transpose(1, 2, 0))
    p = torch.tensor([1, 1, 1, 1, 1, 3], dtype=views.real.dtype) / 8
    third = kept.of_views(views, p)
    assert third.dtype == views.dtype
    close = 1e-5 if dtype == np.float32 else 1e-12
    assert largest_difference(third.numpy(), finish(kept, c)[0]) < close


def test_model_is_differentiable():
    kept = ThirdMomentBasis(
        small_basis(12, 2), unitary_vectors(small_basis(12, 2), (2, 1, 1))
    )
    generator = torch.Generator().manual_seed(0)
    c = torch.randn(3, 5, 2, dtype=torch.complex128, generator=generator)
    p = torch.rand(2, dtype=torch.float64, generator=generator)
    assert torch.autograd.gradcheck(
        kept.of_views, (c.requires_grad_(), p.requires_grad_())
    )


@few
@given(split=st.integers(1, 29), weighted=st.booleans())
def test_sums_add_over_batches(split, weighted):
    kept, images = compressions(small_basis(12))[0], signal(12, 30)
    second = kept.basis.noise_second()
    c = kept.basis.coefficients(images)
    H = np.random.default_rng(0).uniform(0.2, 1, (30, 5)) if weighted else None
    parts = [
        kept.sums(c[i], None if H is None else H[i])
        for i in (slice(None, split), slice(split, None))
    ]
    assert all(key == "third" or key.startswith("third_") for key in parts[0])
    total = {key: parts[0][key] + parts[1][key] for key in parts[0]}
    for value, expected in zip(
        kept.finish(total, 30, second), finish(kept, c, second, H), strict=True
    ):
        assert largest_difference(value, expected) < 1e-10


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("split", [1, 20, 39])
def test_merged_is_all_at_once(which, split):
    kept = compressions(small_basis(13))[which]
    images = signal(13, 40) + noise_images(40, 13, dtype=np.float64)
    parts = [moments_with_third(i, kept) for i in (images[:split], images[split:])]
    merged, whole = parts[0].merge(parts[1]), moments_with_third(images, kept)
    assert largest_difference(merged.third, whole.third) < 1e-10
    assert largest_difference(merged.third_error, whole.third_error) < 1e-6


def test_merging_unlike_noise_subtracts_each_ones_own():
    kept = compressions(small_basis(13))[0]
    parts = [
        moments_with_third(signal(13, 8, seed), kept, 1.0 + seed) for seed in (0, 1)
    ]
    merged = parts[0].merge(parts[1])
    expected = (parts[0].third + parts[1].third) / 2
    np.testing.assert_allclose(merged.third, expected)
    without = dataclasses.replace(parts[1], third_error=None)
    assert parts[0].merge(without).third_error is None


def test_merging_third_moments_in_other_bases_is_refused():
    basis = small_basis(13)
    parts = [moments_with_third(signal(13, 8), kept) for kept in compressions(basis)]
    message = "the two third moments are in different bases, or one is missing"
    with pytest.raises(ValueError, match=message):
        parts[0].merge(parts[1])
    bare = dataclasses.replace(parts[0], third=None, third_error=None, third_basis=None)
    with pytest.raises(ValueError, match=message):
        bare.merge(parts[0])


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("error", [True, False])
def test_saved_and_loaded(which, error, tmp_path):
    kept = compressions(small_basis(12))[which]
    moments = moments_with_third(signal(12, 8), kept)
    if not error:
        moments = dataclasses.replace(moments, third_error=None)
    moments.save(tmp_path / "moments.npz")
    loaded = Moments.load(tmp_path / "moments.npz")
    assert loaded.third_basis == kept
    assert loaded.third_basis != compressions(small_basis(12))[1 - which]
    np.testing.assert_array_equal(loaded.third, moments.third)
    assert (loaded.third_error is None) != error
    np.testing.assert_array_equal(loaded.third_error, moments.third_error)


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "moments.npz"
    moments_with_third(signal(12, 8), compressions(small_basis(12))[1]).save(path)
    with np.load(path) as file:
        fields = dict(file)
    for change, message in (
        ({"third_counts": None}, "lacks 'third_counts'"),
        ({"third_counts": np.array([1.5])}, "cannot be used"),
        ({"third_counts": np.ones(13, int)}, "vectors of 13 orders"),
        ({"third_vectors": np.ones(3)}, r"third_vectors has shape \(3,\)"),
        ({"third": np.ones(3)}, r"third has shape \(3,\)"),
    ):
        changed = {k: v for k, v in (fields | change).items() if v is not None}
        np.savez(path, **changed)
        with pytest.raises(ValueError, match=rf"moments\.npz .*{message}"):
            Moments.load(path)


def test_wrong_fields_of_moments_are_named():
    kept, images = compressions(small_basis(12))[0], signal(12, 8)
    moments = moments_with_third(images, kept)
    other = compressions(small_basis(13))[0]
    for change, error, message in (
        ({"third_basis": None}, ValueError, "third and third_basis belong together"),
        ({"third_basis": 3}, TypeError, "third_basis is a int"),
        ({"third_basis": other}, ValueError, "third_basis is for PolarBasis.*L=13"),
        ({"third": moments.third[1:]}, ValueError, "third has shape"),
        ({"third": None}, ValueError, "third and third_basis belong together"),
        ({"third_error": moments.third.real * np.nan}, ValueError, "third_error has"),
        ({"third_information": np.ones(3)}, ValueError, "third_information has shape"),
    ):
        with pytest.raises(error, match=message):
            dataclasses.replace(moments, **change)


def test_wrong_settings_are_named():
    basis = small_basis(12)
    moments = MomentEstimator(array_source(signal(12, 8)), basis).estimate()
    general = PolarBasis(12, inplane_average=False)
    make, roots = ThirdMomentBasis, np.eye(5)
    for call, error, message in (
        (lambda: make.from_moments(3), TypeError, "basis is a NoneType, not a Basis"),
        (
            lambda: make.rings(CartesianBasis(12)),
            ValueError,
            r"basis is CartesianBasis\(L=12\)",
        ),
        (lambda: make.rings(general), ValueError, "averaged over in-plane angles"),
        (lambda: make.from_moments(moments, budget_bytes=15), ValueError, "is 15;"),
        (lambda: make.rings(basis, 6), ValueError, "6 rings .* has fewer"),
        (lambda: make.rings(basis, 0), ValueError, "n_rings is 0"),
        (lambda: make.rings(basis, max_order=8), ValueError, "orders up to 8"),
        (lambda: make(basis, ()), ValueError, "vectors of 0 orders"),
        (lambda: make(basis, (roots,) * 9), ValueError, "vectors of 9 orders"),
        (lambda: make(basis, (roots[1:],)), ValueError, r"order 0 have shape \(4, 5\)"),
        (lambda: make(basis, (roots, roots / 0 * 0)), ValueError, "order 1 .*finite"),
        (lambda: make(basis, (1j * roots,)), ValueError, "order 0 are complex"),
        (lambda: make(basis, (roots[:, :0],)), ValueError, "leave no entry"),
    ):
        with pytest.raises(error, match=message), np.errstate(all="ignore"):
            call()


def test_one_image_has_no_standard_error():
    kept, images = compressions(small_basis(12))[0], signal(12, 1)
    assert estimate(kept, images)[1] is None


def test_printed_briefly():
    kept = compressions(small_basis(12))[1]
    assert str(kept).startswith("ThirdMomentBasis of 13 numbers of orders up to 6, ")
    assert kept != "a"
    assert kept == compressions(small_basis(12))[1]


def test_reference_of_noise_has_the_moments_it_says():
    root = np.random.default_rng(0).standard_normal((16, 16))
    points = slow.sigma_points(root).reshape(32, 16)
    np.testing.assert_allclose(points.T @ points / 32, root @ root.T)
    assert np.abs(np.einsum("ni,nj,nk->ijk", points, points, points)).max() < 1e-9
    assert reference.noise_second(small_basis(12)).shape == (8, 5, 5)
