"""ASPIRE can be imported wherever it may not write, and whatever its configuration."""

import os
import subprocess
import sys

import confuse
import pytest

from aspire_mom import configuration
from aspire_mom.configuration import configure_aspire

DAMAGED = {
    "no YAML": b"logging: [",
    "binary": bytes(range(128, 256)),
    "words": b"just words",
    "list": b"- 1",
    "no section": b"logging: 3",
    "no level": b"logging: {console_level: LOUD}",
    "no module": b"common: {numeric: abacus}",
    "no cache size": b"cache: {grid_cache_size: large}",
}


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """A process that has not imported ASPIRE, with folders of its own."""
    monkeypatch.delitem(sys.modules, "aspire", raising=False)
    for name in ("ASPIREDIR", "XDG_CONFIG_HOME", "XDG_CONFIG_DIRS"):
        monkeypatch.setenv(name, "")  # what the code sets is undone
        monkeypatch.delenv(name)
    monkeypatch.setattr(configuration, "config_dirs", lambda: [str(tmp_path / "home")])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def chosen():
    """The section `logging` as ASPIRE would read it."""
    return confuse.Configuration("ASPIRE", "aspire").flatten()["logging"]


def test_nothing_changes_where_aspire_can_write(alone):
    configure_aspire()
    assert "ASPIREDIR" not in os.environ
    assert not list(alone.iterdir())


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_configuration_is_left_out(alone, caplog, monkeypatch, damage):
    monkeypatch.setenv("ASPIREDIR", str(alone))
    (alone / "config.yaml").write_bytes(DAMAGED[damage])
    configure_aspire()
    assert os.environ["ASPIREDIR"] != str(alone)
    assert chosen()["log_dir"] == "logs"
    (message,) = caplog.messages
    assert str(alone / "config.yaml") in message


def test_a_sound_configuration_stays(alone, monkeypatch):
    monkeypatch.setenv("ASPIREDIR", str(alone))
    (alone / "config.yaml").write_text("logging: {log_dir: mine, tqdm_disable: no}")
    configure_aspire()
    assert os.environ["ASPIREDIR"] == str(alone)
    configure_aspire(tqdm_disable=True, log_exceptions=0)
    settings = chosen()
    assert settings["log_dir"] == "mine"
    assert settings["tqdm_disable"] is False
    assert settings["log_exceptions"] == 0


@pytest.mark.parametrize("home", ["a file/home", "a file"])
def test_without_a_home_folder(alone, monkeypatch, home):
    (alone / "a file").touch()
    monkeypatch.setattr(configuration, "config_dirs", lambda: [str(alone / home)])
    configure_aspire()
    assert chosen()["log_dir"] == "logs"
    configure_aspire(tqdm_disable=True)
    assert chosen()["tqdm_disable"] is True
    assert "aspire-mom-" in chosen()["log_dir"]


def test_a_file_for_the_folder_of_the_configuration(alone, monkeypatch):
    (alone / "file").touch()
    monkeypatch.setenv("ASPIREDIR", str(alone / "file"))
    configure_aspire()
    assert chosen()["log_dir"] == "logs"


@pytest.mark.parametrize("folder", ["/proc", "O'Brien", "50%"])
def test_where_logs_cannot_be_written(alone, monkeypatch, folder):
    if folder != "/proc":
        (alone / folder).mkdir()
    elif sys.platform != "linux":
        pytest.skip("no such folder here")
    monkeypatch.chdir(folder)
    configure_aspire()
    assert "aspire-mom-" in chosen()["log_dir"]
    assert chosen()["log_exceptions"] == 1


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_python_without_a_place_to_write():
    """No home folder, and a working folder that nobody can write to."""
    code = "import aspire_mom, aspire"
    environment = {**os.environ, "HOME": "/dev/null", "XDG_CONFIG_HOME": "/dev/null"}
    environment["PYTHONPATH"] = os.getcwd()
    subprocess.run([sys.executable, "-c", code], cwd="/proc", env=environment, check=1)
