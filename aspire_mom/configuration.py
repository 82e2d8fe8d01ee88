"""
ASPIRE's configuration, so that ASPIRE can be imported anywhere.

When it is imported, ASPIRE reads its configuration, makes a folder for it in the home
folder, and opens a log in ./logs. It fails where the configuration is damaged, and
where it may not write there.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import confuse
from confuse.util import config_dirs

FILE = "config.yaml"
LEVEL = confuse.Choice(["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"])
# What ASPIRE reads, and accepts.
ACCEPTED = {
    "common": {
        "numeric": confuse.Choice(["numpy", "cupy"]),
        "fft": confuse.Choice(["pyfftw", "scipy", "cupy", "mkl"]),
    },
    "cache": {"grid_cache_size": confuse.Optional(int)},
    "logging": {
        "log_dir": str,
        "log_exceptions": int,
        "console_level": LEVEL,
        "log_file_level": LEVEL,
        "log_prefix": str,
    },
    "nufft": {"backends": confuse.StrSeq()},
}


def configure_aspire(**settings: Any) -> None:
    """
    Prepare the import of ASPIRE, if it is still to come: where its configuration cannot
    be used or its folders cannot be written, ASPIRE gets a configuration and logs in a
    temporary folder.

    :param settings: Values of the section `logging`, where the user's configuration has
        no others. With any, ASPIRE logs into a temporary folder by default.
    """
    if "aspire" in sys.modules:
        return
    if settings:
        settings["log_dir"] = _temporary_folder()
    # As confuse looks for it, which makes the first folder where there is none.
    folders = [os.path.join(folder, "ASPIRE") for folder in config_dirs()]
    if "ASPIREDIR" in os.environ:
        folders = [os.path.expanduser(os.environ["ASPIREDIR"])]
    paths = (Path(folder, FILE) for folder in folders)
    path = next((path for path in paths if os.path.lexists(path)), None)
    try:
        config = _configuration(settings, path)
        sound = path is not None or _writable(Path(folders[0]))
    except (confuse.ConfigError, OSError, TypeError, ValueError) as error:
        logging.getLogger(__name__).warning(
            "ASPIRE's configuration %s cannot be used (%s); its defaults are used",
            path,
            " ".join(str(error).split()),
        )
        config, sound = _configuration(settings), False
    logs = _writable(Path(config["logging"]["log_dir"].get(str)))
    if sound and logs and not settings:
        return
    folder = settings.get("log_dir") or _temporary_folder()
    if not logs:
        config.set({"logging": {"log_dir": folder}})
    Path(folder, FILE).write_text(config.dump(full=False), encoding="utf-8")
    os.environ["ASPIREDIR"] = folder


def _configuration(settings: dict, path: Path | None = None) -> confuse.Configuration:
    """ASPIRE's defaults, replaced by settings, and these by the user's file."""
    config = confuse.Configuration("ASPIRE", "aspire", read=False)
    config.read(user=False)
    config.set({"logging": settings})
    if path is not None:
        config.set_file(str(path))
    config.get(ACCEPTED)
    return config


def _writable(folder: Path) -> bool:
    """Whether ASPIRE can write files in a folder, or make it."""
    try:
        folder = Path(os.path.abspath(folder.expanduser()))
        there = next(f for f in (folder, *folder.parents) if f.exists())
        with tempfile.TemporaryFile(dir=there):
            pass
    except (OSError, RuntimeError):
        return False
    # ASPIRE puts the name between quotes in a file in which % has a meaning.
    return not set("'%") & set(str(folder))


def _temporary_folder() -> str:
    folder = tempfile.mkdtemp(prefix="aspire-mom-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
