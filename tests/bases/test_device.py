"""Sums that torch computes, on the CPU and on a GPU if there is one, are NumPy's."""

import numpy as np
import pytest
import torch
from aspire.operators import CTFFilter, RadialCTFFilter

from aspire_mom.bases import CartesianBasis, PolarBasis, polar
from aspire_mom.bases.polar_transform import full_precision
from aspire_mom.moments import MomentEstimator, StreamingOptions, ThirdMomentBasis
from aspire_mom.moments.options import default_third
from tests.moments.sources import (
    DEVICES,
    array_source,
    largest_difference,
    noise_images,
    simulation,
)
from tests.moments.streams import Killed

devices = pytest.mark.parametrize("device", DEVICES, ids=str)
ARRAYS = ("first", "second", "first_error", "second_error")


def ctfs(astigmatism=0):
    return [
        CTFFilter(voltage=200, defocus_u=d + astigmatism, defocus_v=d, Cs=2, alpha=0.1)
        for d in (12_000, 18_000)
    ]


def estimator(source, device=None, **options):
    """One whose sums are computed by torch on a device, which on the CPU only tests do;
    by NumPy without one."""
    streaming = StreamingOptions(batch_size=16, **options)
    basis = PolarBasis(source.L)
    made = MomentEstimator(source, basis, third=None, streaming=streaming)
    made.device = device
    return made


def assert_close(found, expected, tolerance):
    for name in ARRAYS:
        value, wanted = getattr(found, name), getattr(expected, name)
        assert value.dtype == wanted.dtype
        assert largest_difference(value, wanted) < tolerance


@devices
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("seen_through", ["nothing", "radial factors"])
@pytest.mark.parametrize(
    ("L", "n_rings", "max_order"),
    [(4, None, None), (5, 1, 0), (32, None, None), (33, None, None), (33, 7, 60)],
)
def test_sums_are_numpys(device, dtype, seen_through, L, n_rings, max_order):
    """The same types, and more images than NumPy takes at once; read-only, as ASPIRE
    gives them."""
    basis, images, H = PolarBasis(L, n_rings, max_order), noise_images(70, L), None
    images = images.astype(dtype)
    images.setflags(write=False)
    if seen_through != "nothing":
        H = np.random.default_rng(0).uniform(-1, 1, (70, basis.n_rings, 1))
    sums = basis.sums(images, H, device)
    for found, expected in zip(sums, basis.sums(images, H), strict=True):
        assert isinstance(found, np.ndarray)
        assert found.dtype == expected.dtype
        tolerance = 2e-6 if dtype == np.float32 else 1e-14
        assert largest_difference(found, expected) < tolerance


@devices
@pytest.mark.parametrize("L", [16, 17])
@pytest.mark.parametrize("filters", [None, ctfs()])
def test_moments_are_numpys(device, L, filters):
    """Of all images and of halves of them."""
    source = simulation(L, n=70, unique_filters=filters)
    halves = estimator(source, device).estimate_with_halves()
    expected = estimator(source).estimate_with_halves()
    for found, wanted in zip(halves, expected, strict=True):
        assert found.corrections.difference(wanted.corrections) is None
        assert_close(found, wanted, 1e-5)


@devices
def test_a_checkpoint_of_the_cpu_goes_on(tmp_path, monkeypatch, device):
    options = {"checkpoint": tmp_path / "sums", "checkpoint_seconds": 0}
    source, starts = array_source(noise_images(60, 12)), []
    killed = estimator(source, **options)
    of_batch = killed._batch_sums

    def until_killed(images, start):
        if start == 32:
            raise Killed
        return of_batch(images, start)

    killed._batch_sums = until_killed
    with pytest.raises(Killed):
        killed.estimate()
    resumed = estimator(source, device, **options)
    read = resumed._images
    resumed._images = lambda start, stop: starts.append(start) or read(start, stop)
    assert_close(resumed.estimate(), estimator(source).estimate(), 1e-5)
    assert starts == [32, 48]


def test_too_little_memory_is_told(monkeypatch):
    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")

    monkeypatch.setattr(polar, "averaged_sums", full)
    made = estimator(array_source(noise_images(20, 9)), DEVICES[0])
    with pytest.raises(ValueError, match="cpu has too little memory for 16 images"):
        made.estimate()


def test_products_are_in_full_precision(monkeypatch):
    """Whatever was set before, which is set again."""
    averaged_sums, seen = polar.averaged_sums, []

    def looked_at(*args):
        seen.append(tf32_is_on())
        return averaged_sums(*args)

    def tf32_is_on():
        matmul = torch.backends.cuda.matmul
        if hasattr(matmul, "fp32_precision"):
            return matmul.fp32_precision == "tf32"
        return matmul.allow_tf32

    monkeypatch.setattr(polar, "averaged_sums", looked_at)
    torch.set_float32_matmul_precision("high")
    try:
        PolarBasis(8).sums(noise_images(3, 8), device=DEVICES[0])
        assert tf32_is_on()
        assert torch.get_float32_matmul_precision() == "high"
        with pytest.raises(Killed), full_precision():
            raise Killed
        assert tf32_is_on()
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen == [False]


@pytest.mark.parametrize(
    "device", ["cuda", torch.device("cuda"), "abacus", "meta", 7.5]
)
def test_devices_that_are_not_here(monkeypatch, device):
    if torch.cuda.is_available() and "cuda" in str(device):
        pytest.skip("there is a GPU")
    source = array_source(noise_images(5, 9))
    streaming = StreamingOptions(device=device)
    message = f"device is {device}, which cannot be used; cpu always can, cuda where"
    with pytest.raises(ValueError, match=message):
        MomentEstimator(source, PolarBasis(9), streaming=streaming)
    if str(device) == "cuda":
        monkeypatch.setenv("LOCAL_RANK", "97")
        with pytest.raises(ValueError, match="device is cuda:97, which cannot be used"):
            MomentEstimator(source, PolarBasis(9), streaming=streaming)


@pytest.mark.parametrize(
    ("device", "basis", "options", "message"),
    [
        ("mps", PolarBasis(16), {}, "computed on cpu or cuda"),
        ("cuda", CartesianBasis(16), {}, "only polar bases averaged"),
        ("cuda", PolarBasis(16, inplane_average=False), {}, "only polar bases"),
        ("cuda:1", PolarBasis(16), {"unique_filters": ctfs(4000)}, "astigmatic CTFs"),
        ("cuda", PolarBasis(16), {"third": True}, "third moments"),
    ],
)
def test_what_gpus_do_not_compute(device, basis, options, message, caplog, monkeypatch):
    """The CPU does, and GPUs, of which there need be none here, what is left."""
    monkeypatch.setattr("aspire_mom.moments.estimator.checked_device", torch.device)
    on_device = StreamingOptions(device=device)
    options = dict(options)
    third = ThirdMomentBasis.rings(basis, 2) if options.pop("third", False) else None
    source = simulation(16, n=4, **options)
    MomentEstimator(source, basis, third=third)
    with pytest.raises(ValueError, match=f'device is {device}; .*{message}.*"cpu"'):
        MomentEstimator(source, basis, third=third, streaming=on_device)
    radial = [RadialCTFFilter(voltage=200, defocus=15_000, Cs=2, alpha=0.1)]
    source = simulation(16, n=4, unique_filters=radial)
    assert default_third(PolarBasis(16), torch.device("cuda")) is None
    assert "Third moments are left out; GPUs do not" in caplog.text
    assert MomentEstimator(source, PolarBasis(16), third=None).device is None
    on_device = StreamingOptions(device="cuda")
    made = MomentEstimator(source, PolarBasis(16), third=None, streaming=on_device)
    assert made.device.type == "cuda"
