"""What moments are corrected for, and the images that they are of."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

from aspire_mom.checks import check_positive, spread
from aspire_mom.moments.identity import SourceIdentity

MIXED = "mixed"
# Fields that only the pass over the images tells.
FOUND = ("noise_variance", "amplitude_std", "inverted")


@dataclass(frozen=True, kw_only=True)
class Corrections:
    """
    What moments are corrected for, and the images that they are of. All but the last
    three fields are known before the images are read: they are the request that the
    moments answer. Fields of merged moments are "mixed" where the parts differ. `str()`
    puts the corrections into words.

    :param source: Identity of the images; None for exact and for merged moments.
    :param half: 0 for all images, 1 or 2 for one half of them.
    :param half_batch: Images per batch, which decides the half that an image is in; 0
        where `half` is.
    :param ctf: "none", "ignored" or "corrected".
    :param n_filters: Number of distinct filters corrected for.
    :param astigmatic: Whether some of them are astigmatic.
    :param phase_flipped: Whether phases were flipped before.
    :param shifts: "none", "ignored" or "centred": what was done about known shifts.
    :param largest_shift: The largest one undone along an axis, pixels.
    :param shift_std: Standard deviation along each axis, pixels, of shifts that the
        images still have, for the inversion to model; None where it is to find them.
    :param noise: "none", "white", "given spectrum", or "corners" for the radial
        spectrum of the images' corners.
    :param noise_given: The variance given, or a digest of the spectrum; None where it
        is estimated.
    :param amplitude_std_given: Standard deviation of amplitudes relative to their mean,
        as given; None where it is estimated.
    :param noise_variance: Variance of the noise per pixel of the images.
    :param amplitude_std: Standard deviation of the amplitudes corrected for; None where
        the images do not determine it, which leaves moments uncorrected.
    :param inverted: Whether the contrast was inverted, to make molecules bright.
    :raises ValueError: a variance or a standard deviation below 0, or not finite.
    """

    source: SourceIdentity | None = None
    half: int = 0
    half_batch: int = 0
    ctf: str = "none"
    n_filters: int | str = 0
    astigmatic: bool | str = False
    phase_flipped: bool | str = False
    shifts: str = "none"
    largest_shift: float = 0.0
    shift_std: float | None = 0.0
    noise: str = "none"
    noise_given: float | str | None = None
    amplitude_std_given: float | str | None = 0.0
    noise_variance: float = 0.0
    amplitude_std: float | str | None = 0.0
    inverted: bool | str = False

    def __post_init__(self):
        if self.noise_variance != 0:
            check_positive("noise_variance", self.noise_variance)
        if self.shift_std not in (0, None):
            check_positive("shift_std", self.shift_std)

    def __str__(self):
        if self == Corrections():
            return ""
        ctf = {"none": "no CTF", "ignored": "CTFs ignored"}.get(self.ctf)
        if self.ctf == "corrected":
            kind = "astigmatic " if self.astigmatic else ""
            flipped = ", phases flipped" if self.phase_flipped else ""
            ctf = f"corrected for {self.n_filters} {kind}filter(s){flipped}"
        words = [ctf or "CTFs: mixed"]
        if self.shifts == "centred":
            words.append(f"centred by shifts of up to {self.largest_shift:.3g} pixels")
        elif self.shifts != "none":
            mixed = self.shifts == MIXED
            words.append("known shifts: mixed" if mixed else "known shifts ignored")
        if self.shift_std != 0:
            words.append(f"residual shifts of {spread(self.shift_std)} modelled")
        words.append(
            {
                "none": "no noise",
                "white": "white noise",
                "given spectrum": "noise of a given spectrum",
                "corners": "noise of the spectrum in the corners",
            }.get(self.noise, "noise: mixed")
        )
        if self.inverted:
            words.append(
                "contrast: mixed" if self.inverted == MIXED else "contrast inverted"
            )
        if self.amplitude_std is None:
            words.append("amplitudes of unknown spread")
        elif self.amplitude_std == MIXED:
            words.append("amplitudes: mixed")
        elif self.amplitude_std != 0:
            words.append(f"amplitudes vary by {100 * self.amplitude_std:.3g} %")
        return "; ".join(words)

    def difference(self, wanted: Corrections) -> str | None:
        """
        Compare what was asked for, and of which images; what the pass tells is left
        out.

        :param wanted: Another request.
        :return: The first field that differs, with both values; None if none does.
        """
        own, other = self._request(), wanted._request()
        for name in own | other:
            if own.get(name) != other.get(name):
                return f"{name} is {own.get(name)}, not {other.get(name)}"
        return None

    def _request(self) -> dict[str, object]:
        """Fields known before the pass, those of the source among them."""
        values = {k: v for k, v in asdict(self).items() if k not in FOUND}
        return (values.pop("source") or {"source": None}) | values

    def of_sums(self) -> dict[str, object]:
        """
        :return: What sums over the images depend on, by name: less than the request,
            since noise, amplitudes and residual shifts come in later.
        """
        corrected = self.ctf == "corrected"
        return {
            "CTFs corrected": corrected,
            "phases flipped": corrected and self.phase_flipped,
            "shifts undone": self.shifts == "centred",
            "spectrum of corners": self.noise == "corners",
            **asdict(self.source),
        }

    def merged(self, other: Corrections, n: int, n_other: int) -> Corrections:
        """
        :param other: Corrections of other images.
        :param n: Number of images of these moments.
        :param n_other: Number of the others.
        :return: Corrections of all: "mixed" where the two differ.
        """
        values = {
            field.name: value if value == getattr(other, field.name) else MIXED
            for field in fields(self)
            for value in [getattr(self, field.name)]
        }
        total = n * self.noise_variance + n_other * other.noise_variance
        return Corrections(
            **values
            | {
                "source": None,
                "half": 0,
                "half_batch": 0,
                "largest_shift": max(self.largest_shift, other.largest_shift),
                "noise_variance": total / (n + n_other),
            }
        )

    @classmethod
    def from_dict(cls, values: dict) -> Corrections:
        """
        :param values: What `dataclasses.asdict` returned, from JSON.
        :return: The corrections.
        """
        source = values["source"] and SourceIdentity(**values["source"])
        return cls(**values | {"source": source})
