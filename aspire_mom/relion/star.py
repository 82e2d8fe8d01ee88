"""STAR files as gemmi reads them."""

from __future__ import annotations

import re
from pathlib import Path

from gemmi import cif

# First bytes of compressed files.
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\x28\xb5": "zstd", b"PK": "zip"}


def read_star(path: Path) -> cif.Document:
    """
    :param path: STAR file.
    :return: Its tables. gemmi reads ASCII only, so backslashes and other characters are
        escaped, as :func:`unescaped` undoes.
    :raises OSError: The file cannot be read.
    :raises ValueError: It is no STAR file, or has no table.
    """
    found = path.read_bytes()
    check_uncompressed(path, found)
    text = found.decode("utf-8-sig", "surrogateescape")
    text = text.replace("\\", r"\\")
    try:
        document = cif.read_string(text.encode("ascii", "backslashreplace"))
        if len(document) == 0:
            raise ValueError("it has no table")
    except (ValueError, RuntimeError) as error:
        # gemmi's messages start with data:LINE:COLUMN(BYTE).
        reason = re.sub(r"^data:(\d+)(:\d+\(\d+\))?", r"line \1", str(error))
        if "Wrong number" in reason:
            reason += (
                " (each row needs a value for each column; a value that starts with"
                " data_, save_, _ or $ needs quotation marks)"
            )
        raise ValueError(
            f"{path} cannot be read as a STAR file of particles:"
            f" {reason.removeprefix('data: ')}"
        ) from error
    return document


def unescaped(text: str) -> str:
    """
    :param text: Text of a document that :func:`read_document` returned.
    :return: The text as the file has it; bytes that are not UTF-8 are surrogates.
    """
    return text.encode().decode("unicode_escape") if "\\" in text else text


def escaped(text: str) -> str:
    """
    :param text: A value.
    :return: The value as :func:`read_star` has it, in quotation marks if it has white
        space. Some programs do not know quotation marks, and only white space needs
        them in names number@stack.
    """
    text = text.replace("\\", r"\\").encode("ascii", "backslashreplace").decode()
    return cif.quote(text) if re.search(r"\s", text) else text


def check_uncompressed(path: Path, head: bytes) -> None:
    """
    :param path: A file.
    :param head: Its first bytes.
    :raises ValueError: They are those of a compressed file.
    """
    for mark, program in COMPRESSED.items():
        if head.startswith(mark):
            raise ValueError(f"{path} is compressed by {program}; unpack it first")
