"""What moments are corrected for, and the images that they are of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from aspire.operators import Filter
from aspire.source import ImageSource

from aspire_mom.checkpoints import digest
from aspire_mom.checks import check_positive, describe_shift_std
from aspire_mom.moments.ctf import ctf_parameters

MIXED = "mixed"
# Fields that are known only after the pass over the images.
ESTIMATED_FIELDS = {"noise_variance", "amplitude_std", "inverted"}
ESTIMATED_FIELDS |= {"background_subtracted", "left_out"}
# Images whose pixels identify a source, spread evenly from the first to the last.
N_READ = 16


def source_identity(source: ImageSource) -> dict[str, str | int | float | None]:
    """
    Describe what identifies a source and the images selected from it: what is known of
    each image, the state of the files, and the pixels of 16 images as the source gives
    them, after all that it does to them. Long values are digests.

    :param source: ASPIRE `ImageSource`.
    :return: Values by name, ready for JSON.
    """
    read = np.unique(np.linspace(0, source.n - 1, N_READ).astype(int))
    filters = source.unique_filters or []
    ctfs = ctf_parameters(filters)
    indices = source.get_metadata("__filter_indices", default_value=-1)
    identity = {
        "n_images": source.n,
        "kind": type(source).__name__,
        "L": source.L,
        "dtype": str(source.dtype),
        "pixel_size": source.pixel_size and float(source.pixel_size),
        "filters": digest(ctfs if len(ctfs) == len(filters) else _parameters(filters)),
        "filter_indices": digest(indices),
        "shifts": digest(source.offsets),
        "amplitudes": digest(source.amplitudes),
        "pixels": digest(source.images[read].asnumpy()),
    }
    columns = ["__mrc_filepath", "__mrc_index"]
    if source.has_metadata(columns):
        paths, numbers = (np.atleast_1d(source.get_metadata(c)) for c in columns)
        names, which = np.unique(paths.astype(str), return_inverse=True)
        states = digest(*map(_file_state, names))
        identity["stacks"] = f"{len(names)}, {states}"
        identity["images_in_stacks"] = digest(which, numbers)
    return identity


@dataclass(frozen=True, kw_only=True)
class Corrections:
    """
    What moments are corrected for, and the images that they are of. All fields but the
    last five are known before the images are read. Fields of merged moments are
    "mixed" where the parts differ. `str()` puts the corrections into words.

    :param source: The :func:`source_identity`; None for exact and for merged moments.
    :param half: 0 for all images, 1 or 2 for one half of them.
    :param half_batch: Images per batch of halves, else 0.
    :param ctf: "none", "ignored" or "corrected".
    :param n_filters: Number of distinct filters corrected for.
    :param astigmatic: Whether some of them are astigmatic.
    :param phase_flipped: Whether phases were flipped before.
    :param premultiplied: Whether images were multiplied by their CTFs before.
    :param shifts: Known shifts: "none", "ignored" or "centred".
    :param largest_shift: The largest shift undone along an axis, pixels.
    :param shift_std: As in `CorrectionOptions`.
    :param noise: "none", "white", "given spectrum" or "corners".
    :param noise_given: The given variance or digest of the spectrum; None if estimated.
    :param amplitude_std_given: `amplitude_std` of `CorrectionOptions`.
    :param unchecked: Whether images were taken as they are, as in `CorrectionOptions`.
    :param noise_variance: Variance of the noise per pixel of the images.
    :param amplitude_std: Relative standard deviation of the amplitudes corrected for;
        None where the images do not determine it, so that nothing is corrected.
    :param inverted: Whether the contrast was inverted, to make molecules bright.
    :param background_subtracted: Whether each image's mean outside the inscribed disc
        was subtracted from it.
    :param left_out: Number of outliers that were left out.
    :raises ValueError: a variance or a standard deviation is below 0 or not finite.
    """

    source: dict[str, str | int | float | None] | None = None
    half: int = 0
    half_batch: int = 0
    ctf: str = "none"
    n_filters: int | str = 0
    astigmatic: bool | str = False
    phase_flipped: bool | str = False
    premultiplied: bool | str = False
    shifts: str = "none"
    largest_shift: float = 0.0
    shift_std: float | None = 0.0
    noise: str = "none"
    noise_given: float | str | None = None
    amplitude_std_given: float | str | None = 0.0
    unchecked: bool | str = False
    noise_variance: float = 0.0
    amplitude_std: float | str | None = 0.0
    inverted: bool | str = False
    background_subtracted: bool | str = False
    left_out: int = 0

    def __post_init__(self):
        for name in ("noise_variance", "shift_std"):
            if getattr(self, name) not in (0, None):
                check_positive(name, getattr(self, name))

    def __str__(self):
        if self == Corrections():
            return ""
        kind = "astigmatic " if self.astigmatic else ""
        flipped = ", phases flipped" if self.phase_flipped else ""
        flipped += ", premultiplied" if self.premultiplied else ""
        corrected = f"corrected for {self.n_filters} {kind}filter(s){flipped}"
        ctfs = {"none": "no CTF", "ignored": "CTFs ignored", "corrected": corrected}
        centred = f"centred by shifts of up to {self.largest_shift:.3g} pixels"
        shifts = {"none": "", "ignored": "known shifts ignored", "centred": centred}
        words = [ctfs.get(self.ctf, "CTFs: mixed")]
        words.append(shifts.get(self.shifts, "known shifts: mixed"))
        if self.shift_std != 0:
            std = describe_shift_std(self.shift_std)
            words.append(f"residual shifts of {std} modelled")
        noises = {
            "none": "no noise",
            "white": "white noise",
            "given spectrum": "noise of a given spectrum",
            "corners": "noise of the spectrum in the corners",
        }
        words.append(noises.get(self.noise, "noise: mixed"))
        contrasts = {False: "", True: "contrast inverted"}
        words.append(contrasts.get(self.inverted, "contrast: mixed"))
        if self.amplitude_std is None:
            words.append("amplitudes of unknown spread")
        elif self.amplitude_std == MIXED:
            words.append("amplitudes: mixed")
        elif self.amplitude_std != 0:
            words.append(f"amplitudes vary by {100 * self.amplitude_std:.3g} %")
        unchecked = {False: "", True: "images unchecked"}
        words.append(unchecked.get(self.unchecked, "checks: mixed"))
        backgrounds = {False: "", True: "background of each image subtracted"}
        words.append(backgrounds.get(self.background_subtracted, "background: mixed"))
        words.append(f"{self.left_out} outlier(s) left out" if self.left_out else "")
        return "; ".join(filter(None, words))

    def difference(self, wanted: Corrections) -> str | None:
        """
        Compare the fields that are known before the images are read.

        :param wanted: Other corrections.
        :return: The first field that differs, with both values; None if none does.
        """
        own, other = self._known_fields(), wanted._known_fields()
        for name in own | other:
            if own.get(name) != other.get(name):
                return f"{name} is {own.get(name)}, not {other.get(name)}"
        return None

    def _known_fields(self) -> dict[str, object]:
        """Fields known before the images are read, with those of the source."""
        values = {k: v for k, v in vars(self).items() if k not in ESTIMATED_FIELDS}
        return (values.pop("source") or {"source": None}) | values

    def sum_settings(self) -> dict[str, object]:
        """
        Select what sums over images depend on; not what is only used after the pass.

        :return: The settings by name.
        """
        corrected = self.ctf == "corrected"
        return {
            "CTFs corrected": corrected,
            "phases flipped": corrected and self.phase_flipped,
            "premultiplied": self.premultiplied,
            "shifts undone": self.shifts == "centred",
            "spectrum of corners": self.noise == "corners",
            "unchecked": self.unchecked,
            **self.source,
        }

    def merged(self, other: Corrections, n: int, n_other: int) -> Corrections:
        """
        :param other: Corrections of other images.
        :param n: Number of images of these moments.
        :param n_other: Number of the others.
        :return: Corrections of all: "mixed" where the two differ.
        """
        values = {
            name: value if value == getattr(other, name) else MIXED
            for name, value in vars(self).items()
        }
        total = n * self.noise_variance + n_other * other.noise_variance
        values |= {"source": None, "half": 0, "half_batch": 0}
        values["largest_shift"] = max(self.largest_shift, other.largest_shift)
        values["noise_variance"] = total / (n + n_other)
        values["left_out"] = self.left_out + other.left_out
        return Corrections(**values)


def _file_state(path: str) -> str:
    """A file's name, size and time of last change; its folder may have moved."""
    state = Path(path).stat()
    return f"{Path(path).name} {state.st_size} {state.st_mtime_ns}"


def _parameters(value: object) -> object:
    """Parameters of filters, by name; plain values; types of anything else."""
    if isinstance(value, Filter):
        fields = {name: _parameters(v) for name, v in sorted(vars(value).items())}
        return {"type": type(value).__name__, **fields}
    if isinstance(value, list | tuple):
        return dict(enumerate(map(_parameters, value)))
    if isinstance(value, bool | int | float | str | np.number | np.ndarray | None):
        return value
    return type(value).__name__
