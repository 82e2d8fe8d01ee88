import dataclasses
import json

import numpy as np
import pytest

from aspire_mom.bases import CartesianBasis, PolarBasis
from aspire_mom.files import load_arrays
from aspire_mom.moments import MomentEstimator, Moments, Noise
from aspire_mom.moments.moments import FORMAT
from tests.moments.sources import array_source, noise_images

BASES = [
    CartesianBasis(8),
    PolarBasis(9),
    PolarBasis(8, n_rings=3, max_order=4, inplane_average=False),
]


def some_moments(basis=BASES[1], **changes):
    images = noise_images(10, basis.L, dtype=np.float64)
    moments = MomentEstimator(array_source(images), basis, noise=Noise(variance=0.5))
    return dataclasses.replace(moments.estimate(), **changes)


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"first_error": None, "second_error": None, "pixel_size": None, "n_images": 0},
        {"nyquist": False},
    ],
)
def test_saved_and_loaded(basis, changes, tmp_path):
    moments = some_moments(basis, **changes)
    moments.save(tmp_path / "moments.npz")
    loaded = Moments.load(tmp_path / "moments.npz")
    for field in dataclasses.fields(Moments):
        value, expected = getattr(loaded, field.name), getattr(moments, field.name)
        assert type(value) is type(expected)
        if isinstance(value, np.ndarray):
            assert value.dtype == expected.dtype
            np.testing.assert_array_equal(value, expected)
        else:
            assert value == expected
    assert [path.name for path in tmp_path.iterdir()] == ["moments.npz"]


def test_saving_does_not_overwrite_unasked(tmp_path):
    path = tmp_path / "moments.npz"
    some_moments(n_images=1).save(path)
    with pytest.raises(FileExistsError, match=r"moments\.npz exists; pass overwrite"):
        some_moments(n_images=2).save(path)
    assert Moments.load(path).n_images == 1
    some_moments(n_images=3).save(str(path), overwrite=True)
    assert Moments.load(path).n_images == 3


def test_unusable_paths_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"moments\.mrc: the file's name must end in"):
        some_moments().save(tmp_path / "moments.mrc")
    with pytest.raises(ValueError, match=r"moments: the file's name must end in \.npz"):
        some_moments().save(tmp_path / "moments")
    with pytest.raises(FileNotFoundError, match="absent: no such folder"):
        some_moments().save(tmp_path / "absent" / "moments.npz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("interruption", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("existing", [True, False])
def test_failed_writes_leave_what_was_there(
    tmp_path, monkeypatch, interruption, existing
):
    path = tmp_path / "moments.npz"
    if existing:
        some_moments(n_images=7).save(path)

    def fail_midway(file, **fields):
        file.write(b"PK half of a file")
        raise interruption

    monkeypatch.setattr(np, "savez", fail_midway)
    with pytest.raises(type(interruption)):
        some_moments().save(path, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == (["moments.npz"] * existing)
    if existing:
        assert Moments.load(path).n_images == 7


def test_absent_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.npz: no such file"):
        Moments.load(tmp_path / "absent.npz")


def test_damaged_and_foreign_files(tmp_path):
    path = tmp_path / "moments.npz"
    some_moments().save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"moments\.npz is damaged"):
        Moments.load(path)
    for version in (2, 99):
        np.savez(path, format=f"aspire_mom.Moments.{version}", first=np.ones(3))
        message = (
            rf"it holds aspire_mom\.Moments\.{version}, and aspire_mom\.Moments\.4"
        )
        with pytest.raises(
            ValueError, match=rf"moments\.npz cannot be used: {message}"
        ):
            Moments.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"second": None}, "damaged or incomplete"),
        ({"corrections": None}, "lacks 'corrections'"),
        ({"corrections": {"source": None, "hand": 1}}, "damaged or incomplete"),
        ({"n_images": "many"}, "n_images is 'many'"),
        (
            {"basis": {"kind": "FFBBasis2D"}},
            "its basis is 'FFBBasis2D'; known are Cart",
        ),
        ({"basis": {"kind": "PolarBasis", "L": 3}}, "cannot be used: L is 3"),
        ({"first": np.ones(3)}, r"cannot be used: first has shape \(3,\)"),
    ],
)
def test_files_with_wrong_fields(tmp_path, change, message):
    path = tmp_path / "moments.npz"
    some_moments().save(path)
    arrays, settings = load_arrays(path, FORMAT)
    for name, value in change.items():
        fields = arrays if name in arrays else settings
        fields[name] = value
        if value is None:
            del fields[name]
    np.savez(path, format=FORMAT, settings=json.dumps(settings), **arrays)
    with pytest.raises(ValueError, match=rf"moments\.npz .*{message}"):
        Moments.load(path)


@pytest.mark.parametrize("name", ["first", "second", "first_error", "second_error"])
def test_wrong_arrays_are_named(name):
    moments = some_moments()
    with pytest.raises(ValueError, match=rf"{name} has shape \(2,\); PolarBasis"):
        dataclasses.replace(moments, **{name: np.zeros(2)})
    values = getattr(moments, name).copy()
    values.flat[-1] = np.nan
    with pytest.raises(ValueError, match=f"{name} has values that are NaN"):
        dataclasses.replace(moments, **{name: values})


def test_relative_error_is_equation_22():
    """‖M - A‖ / ‖A‖, in the Frobenius norm for the Cartesian basis."""
    moments, estimate = some_moments(BASES[0]), some_moments(BASES[0])
    rng = np.random.default_rng(0)
    estimate = dataclasses.replace(
        estimate,
        first=estimate.first + rng.standard_normal(64),
        second=2 * estimate.second,
    )
    errors = moments.relative_error(estimate)
    first = np.linalg.norm(moments.first - estimate.first)
    assert errors[0] == pytest.approx(first / np.linalg.norm(estimate.first))
    assert errors[1] == pytest.approx(0.5)
    assert moments.relative_error(moments) == (0, 0)


@pytest.mark.parametrize("basis", BASES[1:])
def test_relative_error_weighs_rings_and_orders(basis):
    """By ring areas 2πr, 2π/12 for ring 0, and twice for orders that stand for ±m."""
    moments = some_moments(basis)
    for order in (0, 2):
        change = np.zeros(basis.second_shape)
        change[(order, 2, 0) if basis.inplane_average else (order, 2, 1, 0)] = 3.0
        changed = dataclasses.replace(moments, second=moments.second + change)
        twice = 2 if order else 1
        expected = 3 * np.sqrt(twice * (2 * np.pi * 2) * (2 * np.pi / 12))
        expected /= norm(changed)
        assert moments.relative_error(changed)[1] == pytest.approx(expected)


def norm(moments):
    """The second moment's norm over all orders and both signs, entry by entry."""
    areas = 2 * np.pi * np.array([1 / 12, *range(1, moments.basis.n_rings)])
    total = 0
    for index, value in np.ndenumerate(moments.second):
        twice = 2 if index[0] else 1
        total += twice * areas[index[1]] * areas[index[-1]] * abs(value) ** 2
    return np.sqrt(total)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (some_moments(BASES[0]), "different bases: PolarBasis.* and CartesianBasis"),
        (some_moments(pixel_size=2.1), r"pixel sizes differ: 2\.0 and 2\.1 Å"),
        (some_moments(pixel_size=None), r"pixel sizes differ: 2\.0 and None Å"),
        (some_moments(nyquist=False), "only one of the two .* Nyquist"),
        (some_moments(n_images=0), "n_images is 10 and 0; only moments estimated"),
    ],
)
def test_what_cannot_be_merged(other, message):
    with pytest.raises(ValueError, match=message):
        some_moments().merge(other)


@pytest.mark.parametrize("use", [Moments.merge, Moments.relative_error])
def test_what_are_no_moments(use):
    with pytest.raises(TypeError, match="other is a str, not a Moments"):
        use(some_moments(), "x")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"n_images": -1}, ValueError, "n_images is -1; it must be an integer"),
        ({"n_images": 2.5}, ValueError, r"n_images is 2\.5; it must be an integer"),
        ({"corrections": "CTF"}, TypeError, "corrections is a str, not"),
        ({"pixel_size": 0}, ValueError, "pixel_size is 0; it must be a positive"),
        ({"first": [1.0] * 5}, TypeError, "first is a list, not a ndarray"),
        ({"second": None}, TypeError, "second is a NoneType, not"),
        ({"second_error": [1.0]}, TypeError, "second_error is a list, not"),
        ({"basis": "polar"}, TypeError, "basis is a str, not a Basis"),
    ],
)
def test_wrong_fields_are_named(change, error, message):
    with pytest.raises(error, match=message):
        dataclasses.replace(some_moments(), **change)


@pytest.mark.parametrize("value", [-1, np.nan])
def test_wrong_corrections_are_named(value):
    for name in ("noise_variance", "shift_std"):
        with pytest.raises(ValueError, match=f"{name} is {value};"):
            some_moments().with_corrections(**{name: value})


def test_merging_without_errors_or_with_a_rounded_pixel_size():
    merged = some_moments().merge(
        some_moments(first_error=None, pixel_size=float(np.float32(2.00001)))
    )
    assert merged.first_error is None
    assert merged.pixel_size == 2.0
    np.testing.assert_allclose(merged.second, some_moments().second)
    # Twice the same images: twice the scatter, 90 e², over 20 · 19 instead of 10 · 9.
    np.testing.assert_allclose(
        merged.second_error, some_moments().second_error * np.sqrt(180 / 380)
    )


def test_relative_error_of_another_basis_is_refused():
    with pytest.raises(ValueError, match="different bases"):
        some_moments().relative_error(some_moments(BASES[0]))


def test_printed_briefly():
    text = str(some_moments())
    assert text.startswith("Moments of 10 images in PolarBasis(L=9")
    assert "noise variance 0.5, pixel size 2.0 Å" in text
