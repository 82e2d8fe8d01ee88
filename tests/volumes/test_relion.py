import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"


@pytest.mark.skipif(
    not (DATA / "relion" / "rln_proj_65.star").exists(),
    reason="RELION projections not found in ../shared/data",
)
def test_slices_are_relion_projections():
    path = ROOT / "benchmarks" / "relion_convention.py"
    spec = importlib.util.spec_from_file_location("relion_convention", path)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    right, *wrong = benchmark.relion_errors(DATA).values()
    assert right <= 0.03  # RELION interpolates in Fourier space, we do not
    assert min(wrong) > 0.5
