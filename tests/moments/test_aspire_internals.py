"""What of ASPIRE's inside is read; a failure here says what ASPIRE has changed."""

import numpy as np
import pytest
from aspire.image.xform import FilterXform, Multiply
from aspire.operators import (
    CTFFilter,
    IdentityFilter,
    MultiplicativeFilter,
    RadialCTFFilter,
    ScaledFilter,
)

from aspire_mom.moments.aspire_internals import (
    factors,
    flipping_filter,
    is_cached,
    unscaled,
)
from aspire_mom.moments.ctf import is_phase_flipped
from tests.moments.sources import array_source, noise_images, simulation

CTF = CTFFilter(defocus_u=9e3, defocus_v=1e4)


def test_filters_inside_others():
    assert unscaled(CTF) == (CTF, 1)
    assert unscaled(ScaledFilter(ScaledFilter(CTF, 2), 1.5)) == (CTF, 3)
    assert factors(MultiplicativeFilter(CTF, IdentityFilter()))[0] is CTF


def test_phase_flips():
    assert flipping_filter(FilterXform(CTF.sign)) is CTF
    assert flipping_filter(FilterXform(CTF)) is None
    assert flipping_filter(Multiply(-1)) is None


def test_caches():
    source = simulation(8, n=3)
    assert not is_cached(source)
    assert is_cached(source.cache())
    assert not is_cached(array_source(noise_images(3, 8)))


@pytest.mark.parametrize("read", [unscaled, flipping_filter])
def test_another_aspire_is_named(read):
    """By the class and the attribute that is gone."""
    changed = ScaledFilter(CTF, 2) if read is unscaled else FilterXform(CTF.sign)
    inner = getattr(changed, "filter", changed)
    del inner._filter
    with pytest.raises(RuntimeError, match=r"Filter of ASPIRE .* has no '_filter'"):
        read(changed)


def test_downsampling_that_aspire_mends(monkeypatch):
    """Once ASPIRE's signs after a cached downsampling are right (its pull request
    1396), flips are accepted, whatever wraps the CTFs."""
    ctf = RadialCTFFilter(voltage=300, defocus=2e4, Cs=2.7, alpha=0.1)
    late = simulation(32, n=3, unique_filters=[ctf]).downsample(16).cache()
    late = late.phase_flip()
    with pytest.raises(ValueError, match="flip them before downsampling"):
        is_phase_flipped(late)

    def evaluate(self, omega, **kwargs):
        return unscaled(self)[0].evaluate(omega, **kwargs)

    monkeypatch.setattr(ScaledFilter, "_evaluate", evaluate)
    assert is_phase_flipped(late)
    assert np.isfinite(late.images[:].asnumpy()).all()
