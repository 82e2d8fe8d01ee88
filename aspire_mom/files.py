"""Files written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """
    Where to write files that shall appear in a folder all at once and whole: they move
    there at the end of the block, or vanish if it ends in an error.

    :param folder: The folder, made if need be.
    :return: Context of a temporary folder on the same file system.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".partial-", dir=folder) as partial:
        yield Path(partial)
        for path in sorted(Path(partial).iterdir()):
            os.replace(path, folder / path.name)


def write_json(path: Path, report: dict) -> None:
    """
    :param path: File to write.
    :param report: Plain numbers, strings, lists and dictionaries.
    """
    path.write_text(json.dumps(report, indent=2) + "\n")
