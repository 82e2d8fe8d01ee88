"""What moments are corrected for: in words, compared, merged."""

from dataclasses import replace

import numpy as np
import pytest
from aspire.operators import CTFFilter, ScalarFilter

from aspire_mom.bases import PolarBasis
from aspire_mom.moments import (
    CorrectionOptions,
    Corrections,
    MomentEstimator,
    Moments,
    Noise,
    StreamingOptions,
)
from tests.moments.sources import array_source, noise_images, simulation


def estimator(source, **options):
    return MomentEstimator(source, PolarBasis(source.L), **options)


@pytest.mark.parametrize(
    ("corrections", "words"),
    [
        (Corrections(), ""),
        (
            Corrections(
                ctf="corrected",
                n_filters=5,
                astigmatic=True,
                phase_flipped=True,
                shifts="centred",
                largest_shift=3.14159,
                shift_std=1.5,
                noise="white",
                amplitude_std=0.3,
                inverted=True,
                background_subtracted=True,
                left_out=7,
            ),
            "corrected for 5 astigmatic filter(s), phases flipped; centred by shifts of"
            " up to 3.14 pixels; residual shifts of 1.5 pixels modelled; white noise;"
            " contrast inverted; amplitudes vary by 30 %; background of each image"
            " subtracted; 7 outlier(s) left out",
        ),
        (
            Corrections(ctf="ignored", shifts="ignored", noise="corners"),
            "CTFs ignored; known shifts ignored; noise of the spectrum in the corners",
        ),
        (
            Corrections(noise="given spectrum", shift_std=None, amplitude_std=None),
            "no CTF; residual shifts of unknown spread modelled; noise of a given"
            " spectrum; amplitudes of unknown spread",
        ),
    ],
)
def test_in_words(corrections, words):
    assert str(corrections) == words


def test_merged_keep_what_is_equal():
    """What differs is mixed; merged moments are of no single source."""
    a = Corrections(
        half=1, half_batch=8, ctf="corrected", n_filters=3, noise="white", shifts="none"
    )
    b = replace(a, half=2, n_filters=3, amplitude_std=0.2, inverted=True, left_out=3)
    b = replace(b, background_subtracted=True, unchecked=True)
    a = replace(a, left_out=2)
    b = replace(b, noise="corners", shifts="centred", largest_shift=2.0)
    a, b = replace(a, noise_variance=1.0), replace(b, noise_variance=4.0)
    merged = a.merged(b, 20, 10)
    assert merged == Corrections(
        ctf="corrected",
        n_filters=3,
        shifts="mixed",
        largest_shift=2.0,
        noise="mixed",
        noise_variance=2.0,
        amplitude_std="mixed",
        inverted="mixed",
        unchecked="mixed",
        background_subtracted="mixed",
        left_out=5,
    )
    assert str(merged) == (
        "corrected for 3 filter(s); known shifts: mixed; noise: mixed; contrast: mixed;"
        " amplitudes: mixed; checks: mixed; background: mixed; 5 outlier(s) left out"
    )
    assert merged.merged(a, 1, 1).noise == "mixed"


def test_estimates_are_compatible_with_their_own_estimator(tmp_path):
    """From files too, and whatever the pass tells; not those of other images."""
    source = simulation(12, n=30, unique_filters=[CTFFilter()])
    options = {
        "noise": Noise(spectrum="corners"),
        "corrections": CorrectionOptions(amplitude_std=None),
    }
    wanted = estimator(source, **options)
    wanted.estimate().save(tmp_path / "m.npz")
    found = Moments.load(tmp_path / "m.npz")
    wanted.check_compatible(found)
    again = simulation(12, n=30, unique_filters=[CTFFilter()])
    estimator(again, **options).check_compatible(found)
    assert found.corrections.noise_variance > 0
    for other, name in (
        (estimator(source[:20], **options), "n_images is 30, not 20"),
        (estimator(source[1:], **options), "n_images is 30, not 29"),
        (estimator(source), "noise is corners, not white"),
        (
            estimator(source, noise=Noise(variance=1)),
            "noise is corners, not white",
        ),
    ):
        with pytest.raises(ValueError, match=name):
            other.check_compatible(found)
    with pytest.raises(ValueError, match="the basis is PolarBasis"):
        MomentEstimator(source, PolarBasis(12, n_rings=3)).check_compatible(found)
    with pytest.raises(ValueError, match="half is 0, not 1"):
        wanted.check_compatible(found, half=1)


@pytest.mark.parametrize(
    ("one", "other", "name"),
    [
        (Noise(variance=1), Noise(variance=2), "noise_given is 1.0, not 2.0"),
        (Noise(variance=1), Noise(), "noise_given is 1.0, not None"),
        (
            Noise(spectrum=ScalarFilter(dim=2, value=1.0)),
            Noise(spectrum=ScalarFilter(dim=2, value=2.0)),
            "noise_given is ",
        ),
    ],
)
def test_given_noise_is_compared(one, other, name):
    source = array_source(noise_images(8, 9))
    found = estimator(source, noise=one).estimate()
    estimator(source, noise=one).check_compatible(found)
    with pytest.raises(ValueError, match=name):
        estimator(source, noise=other).check_compatible(found)


def test_halves_and_merged_moments():
    source = array_source(noise_images(40, 9))
    made = estimator(source, streaming=StreamingOptions(batch_size=10))
    whole, *halves = made.estimate_with_halves()
    made.check_compatible(whole)
    for number, half in enumerate(halves, 1):
        made.check_compatible(half, half=number)
    with pytest.raises(ValueError, match="half is 1, not 2"):
        made.check_compatible(halves[0], half=2)
    merged = halves[0].merge(halves[1])
    np.testing.assert_allclose(merged.second, whole.second, atol=1e-9)
    with pytest.raises(ValueError, match="other settings or from other images"):
        made.check_compatible(merged)
