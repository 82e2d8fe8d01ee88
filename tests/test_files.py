"""Files are whole or not there, and refused with a reason when they are not ours."""

import contextlib

import numpy as np
import pytest
import torch

from aspire_mom.files import (
    atomic,
    contents_of,
    load_arrays,
    load_network,
    load_npz,
    save_arrays,
    save_network,
    staged,
)

FORMAT = "aspire_mom.Test.1"


def test_atomic_replaces_a_file_or_leaves_it(tmp_path):
    path = tmp_path / "a.txt"
    for text in ("first", "second"):
        with atomic(path, "w") as file:
            file.write(text)
            assert not path.exists() or path.read_text() == "first"
    with pytest.raises(TypeError), atomic(path, "w") as file:
        print("third", file=file, flush=True) or file.write(3)
    assert path.read_text() == "second"
    assert [f.name for f in tmp_path.iterdir()] == ["a.txt"]
    with (
        pytest.raises(FileNotFoundError, match="nowhere: no such folder"),
        atomic(tmp_path / "nowhere" / "a.txt"),
    ):
        pass


def test_staged_files_appear_together(tmp_path):
    folder = tmp_path / "results"
    with pytest.raises(TypeError), staged(folder) as stage:
        (stage / "a").write_text("a") and (stage / "b").write_text(3)
    assert not list(folder.iterdir())
    with staged(folder) as stage:
        (stage / "a").write_text("a")
        (stage / "b").write_text("b")
        assert not (folder / "a").exists()
    assert sorted(f.name for f in folder.iterdir()) == ["a", "b"]


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "a.npz"
    arrays = {"x": np.arange(6.0).reshape(2, 3), "i": np.array(3), "none": None}
    save_arrays(path, FORMAT, arrays, {"size": 0.1, "name": None})
    return path


def test_arrays_and_settings_come_back(saved):
    arrays, settings = load_arrays(saved, FORMAT)
    assert arrays.keys() == {"x", "i"}
    np.testing.assert_array_equal(arrays["x"], np.arange(6.0).reshape(2, 3))
    assert settings == {"size": 0.1, "name": None}
    with pytest.raises(FileExistsError, match=r"a\.npz exists"):
        save_arrays(saved, FORMAT, {})
    save_arrays(saved, FORMAT, {}, overwrite=True)
    assert load_arrays(saved, FORMAT) == ({}, {})
    with pytest.raises(ValueError, match=r"must end in \.npz"):
        save_arrays(saved.with_suffix(".txt"), FORMAT, {})


def test_other_files_are_refused(saved):
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_npz(saved.with_name("none.npz"))
    with pytest.raises(ValueError, match=r"holds aspire_mom\.Test\.1, and other\.1 is"):
        load_arrays(saved, "other.1")
    np.savez(saved, x=np.ones(2))
    with pytest.raises(ValueError, match="it holds unknown contents"):
        load_arrays(saved, FORMAT)
    np.savez(saved, x=np.array({}, dtype=object))
    with pytest.raises(ValueError, match=r"a\.npz is damaged"):
        load_npz(saved)
    saved.write_text("some text")
    with pytest.raises(ValueError, match=r"is not an \.npz file"):
        load_npz(saved)


def test_damage_is_noticed(saved):
    whole, rng = saved.read_bytes(), np.random.default_rng(0)
    expected = load_npz(saved)
    for place in rng.integers(0, len(whole), 300):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.integers(8)
        saved.write_bytes(damaged)
        # Zip archives have some bytes twice, and do not use others.
        with contextlib.suppress(ValueError):
            for name, found in load_npz(saved).items():
                np.testing.assert_array_equal(found, expected.get(name, found))
    for length in range(0, len(whole), 50):
        saved.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"a\.npz is"):
            load_npz(saved)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (KeyError("x"), r"a\.npz lacks 'x'"),
        (TypeError("no"), r"a\.npz is damaged or incomplete"),
        (ValueError("size is 0"), r"a\.npz cannot be used: size is 0"),
    ],
)
def test_errors_name_the_file(error, message):
    with pytest.raises(ValueError, match=message), contents_of("a.npz"):
        raise error


def test_networks_come_back(tmp_path):
    path = tmp_path / "n.npz"
    network = torch.nn.BatchNorm1d(3)
    network.running_mean += 0.1
    network.num_batches_tracked += 7
    save_network(path, network, "norm", {"num_features": 3}, {"steps": 5})
    found = load_network(path, {"norm": torch.nn.BatchNorm1d})
    assert found.training_info == {"steps": 5}
    assert not found.training
    for name, value in network.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name
    with pytest.raises(ValueError, match="a 'norm' network, and 'other' is wanted"):
        load_network(path, {"other": torch.nn.BatchNorm1d})
    with pytest.raises(ValueError, match=r"n\.npz is damaged or incomplete"):
        load_network(path, {"norm": lambda num_features: torch.nn.BatchNorm1d(2)})
