"""What the tables of a STAR file say is honoured, or refused by row and image."""

import pytest

from aspire_mom.relion import read_particles
from tests.relion.files import EDGE, OPTICS, ctf, particles, write_stack, write_star

NAMES = [f"{i}@a.mrcs" for i in (1, 3, 2)]


def read(folder, optics=OPTICS, **columns):
    write_stack(folder / "a.mrcs")
    columns = {**ctf(3), **columns}
    return read_particles(
        write_star(folder / "p.star", particles(NAMES, **columns), optics)
    )


def test_a_particles_own_value_comes_before_that_of_its_optics_group(tmp_path):
    found = read(tmp_path, _rlnVoltage=[200, 120, 200])
    ctfs, which = found.ctfs
    assert ctfs[which, 0].tolist() == [200, 120, 200]
    assert (ctfs[:, 4] == 2.7).all()


@pytest.mark.parametrize("column", ["_rlnOddZernike", "_rlnEvenZernike"])
def test_higher_order_aberrations_are_told(tmp_path, caplog, column):
    read(tmp_path, OPTICS | {column: ["[0,0,0]"]})
    assert not caplog.records
    read(tmp_path, OPTICS | {column: ["[0.5,-34.25,0]"]})
    message = caplog.records[-1].getMessage()
    assert f"lists higher-order aberrations ({column} 34.25), not corrected" in message
    with pytest.raises(ValueError, match=rf"'\[1,x\]' as {column}"):
        read(tmp_path, OPTICS | {column: ["[1,x]"]})


def test_volumes_of_subtomograms_are_refused(tmp_path):
    assert len(read(tmp_path, OPTICS | {"_rlnImageDimensionality": [2]})) == 3
    with pytest.raises(ValueError, match="'3' as _rlnImageDimensionality, .* be 2"):
        read(tmp_path, OPTICS | {"_rlnImageDimensionality": [3]})


@pytest.mark.parametrize("unit", ["µm", "m"])
def test_defocus_in_another_unit(tmp_path, unit):
    scale = {"µm": 1e-4, "m": 1e-10}[unit]
    values = {name: values * scale for name, values in ctf(3).items()}
    with pytest.raises(ValueError, match="may be in µm; they must be in Å"):
        read(tmp_path, **values).check_ctf()


def test_unusual_defocus_is_told(tmp_path, caplog):
    read(tmp_path).check_ctf()
    assert not caplog.records
    read(tmp_path, **{name: values / 10 for name, values in ctf(3).items()}).check_ctf()
    assert "defocus values of 975 to 1028 Å" in caplog.records[-1].getMessage()


@pytest.mark.parametrize("first", [1e4, -1e4])
def test_ctf_that_is_zero(tmp_path, first):
    """It is found wherever it stands among the CTFs, sorted or not."""
    nothing = {"_rlnSphericalAberration": [0.0], "_rlnAmplitudeContrast": [0.0]}
    defocus = [first, 2e4, 0]
    found = read(tmp_path, OPTICS | nothing, _rlnDefocusU=defocus, _rlnDefocusV=defocus)
    with pytest.raises(ValueError, match=r"zero in row 3 \(image 2 of a\.mrcs\)"):
        found.check_ctf()


@pytest.mark.parametrize("axis", ["X", "Y"])
def test_origins_outside_of_images(tmp_path, axis):
    half = EDGE / 2 * OPTICS["_rlnImagePixelSize"][0]
    read(tmp_path, **{f"_rlnOrigin{axis}Angst": [0, -half, half]}).check_shifts()
    columns = {f"_rlnOrigin{axis}Angst": [0, -1.2 * half, half]}
    star = read(tmp_path, **columns, _rlnClassNumber=[1, 2, 2]).table.path
    with pytest.raises(ValueError, match=r"row 2 \(image 3 of a\.mrcs\) has an origin"):
        read_particles(star, class_number=2).check_shifts()
    read_particles(star, class_number=1).check_shifts()


def test_zero_pixel_size(tmp_path):
    with pytest.raises(ValueError, match=r"'0\.0' as _rlnImagePixelSize"):
        read(tmp_path, OPTICS | {"_rlnImagePixelSize": [0.0]})
    unknown = {k: v for k, v in OPTICS.items() if k != "_rlnImagePixelSize"}
    old = {"_rlnDetectorPixelSize": [5.0] * 3, "_rlnMagnification": [0.0] * 3}
    with pytest.raises(ValueError, match="row 1 .image 1@a.mrcs. has '0.0' as _rlnMag"):
        read(tmp_path, unknown, **old)


def test_optics_tables_without_rows_or_groups(tmp_path):
    with pytest.raises(ValueError, match="optics table has no _rlnOpticsGroup"):
        read(tmp_path, {name: [] for name in OPTICS})
    with pytest.raises(
        ValueError, match=r"row 2 .image 3@a\.mrcs. is of optics group 7"
    ):
        read(tmp_path, _rlnOpticsGroup=[1, 7, 1])


@pytest.mark.parametrize("values", [[1, 2], [1, 2, 1, 2], [1, 2, 1, "x"]])
def test_columns_of_several_loops(tmp_path, values):
    """Rows of one table must not get values of another."""
    write_stack(tmp_path / "a.mrcs")
    star = write_star(tmp_path / "p.star", particles(NAMES))
    more = "\n".join(map(str, values))
    star.write_text(star.read_text() + f"\nloop_\n_rlnClassNumber\n{more}\n")
    said = f"_rlnImageName has 3 values and _rlnClassNumber {len(values)}"
    with pytest.raises(ValueError, match=said):
        read_particles(star)
