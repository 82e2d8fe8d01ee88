"""
STAR files as RELION writes them, one row of a table a line. A million rows take
seconds, and only the columns that are wanted take memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from operator import itemgetter
from pathlib import Path
from typing import Protocol, TextIO

import numpy as np

CHUNK = 50_000
TOKEN = re.compile(r"""'(.*?)'(?=\s|$)|"(.*?)"(?=\s|$)|(\S+)""")


class Column(Protocol):
    """What takes the values of one column of a table, some rows at a time."""

    def add(self, texts: Iterable[str]) -> None: ...


class Texts:
    """
    A column of words.

    :param name: The column's.
    """

    def __init__(self, name: str):
        self.name, self.values = name, []

    def add(self, texts: Iterable[str]) -> None:
        self.values.extend(texts)


class Numbers:
    """
    A column of finite numbers.

    :param name: The column's.
    """

    def __init__(self, name: str):
        self.name, self.chunks, self.n = name, [], 0

    def add(self, texts: Iterable[str]) -> None:
        """
        :raises ValueError: a value that is no finite number, with its row, from 1.
        """
        texts = list(texts)
        try:
            chunk = np.array([float(text) for text in texts])
        except ValueError:
            chunk = np.array([_number(text) for text in texts])
        finite = np.isfinite(chunk)
        if not finite.all():
            bad = int(np.argmin(finite))
            raise ValueError(
                f"row {self.n + bad + 1} has {texts[bad]!r} as {self.name}, which must"
                " be a finite number"
            )
        self.chunks.append(chunk)
        self.n += len(chunk)

    @property
    def values(self) -> np.ndarray:
        """(n_rows,), float64."""
        return np.concatenate([*self.chunks, np.empty(0)])


class ImageNames:
    """
    A column of images, number@stack.

    :param name: The column's.
    """

    def __init__(self, name: str):
        self.name, self.chunks, self.n = name, [], 0
        self.stacks: dict[str, int] = {}  # in order of appearance

    def add(self, texts: Iterable[str]) -> None:
        """
        :raises ValueError: a value that is no number@stack, with its row, from 1.
        """
        chunk = []
        for text in texts:
            number, _, stack = text.partition("@")
            stack = stack.removeprefix(">")  # cryoSPARC's mark of imported files
            if not (number.isdecimal() and len(number) < 19 and stack):
                raise ValueError(
                    f"row {self.n + len(chunk) + 1} names an image {text!r}; it must"
                    " be number@stack"
                )
            index = self.stacks.setdefault(stack, len(self.stacks))
            chunk.append((int(number), index))
        self.chunks.append(np.array(chunk, dtype=np.int64).reshape(-1, 2))
        self.n += len(chunk)

    @property
    def values(self) -> np.ndarray:
        """Numbers in their stacks, from 1, and indices of stacks (n_rows, 2)."""
        return np.concatenate([*self.chunks, np.empty((0, 2), np.int64)])


Wanted = Callable[[str, list[str]], dict[str, Column]]


def read_tables(path: Path, wanted: Wanted) -> dict[str, dict[str, Column]]:
    """
    Read tables of a STAR file.

    :param path: The file, in UTF-8 or Latin-1, lines ending in any way.
    :param wanted: From a table's name (without data_) and columns, the columns that are
        to be kept, by name.
    :return: These, by the table's name.
    :raises ValueError: no STAR file, or a damaged one: what is wrong, and where.
    """
    with open(path, "rb") as file:
        if b"\0" in file.read(4096):
            raise ValueError("it is binary")
    # Paths in other encodings survive as they are.
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        return _Reader(file).tables(wanted)


class _Reader:
    """Lines of a STAR file; `tokens` are those of the current one, [] at the end."""

    def __init__(self, file: TextIO):
        self.lines = enumerate(file, 1)
        self.number = 0
        self.advance()

    def advance(self) -> list[str]:
        """Go to the next line that says something."""
        tokens = []
        for number, line in self.lines:
            self.number = number
            tokens = line.split()
            if "#" in line or "'" in line or '"' in line:
                tokens = _unquoted(line)
            if tokens:
                break
        self.tokens = tokens
        return tokens

    def tables(self, wanted: Wanted) -> dict[str, dict[str, Column]]:
        tables, table = {}, None
        while self.tokens:
            word = self.tokens[0]
            if self._starts_block():
                name = word[len("data_") :]
                if name in tables:
                    raise ValueError(f"two of its tables are named {word}")
                table = tables[name] = {}
                self.advance()
            elif table is None or not (word == "loop_" or word.startswith("_")):
                raise ValueError(
                    f"line {self.number} starts with {word[:40]!r}, where a table or a"
                    " column should"
                )
            else:
                read = self._loop if word == "loop_" else self._pairs
                table |= read(name, wanted)
        return tables

    def _starts_block(self) -> bool:
        return len(self.tokens) == 1 and self.tokens[0].startswith("data_")

    def _pairs(self, name: str, wanted: Wanted) -> dict[str, Column]:
        """A table of one row, written as a list of columns and values."""
        values = {}
        while self.tokens and self.tokens[0].startswith("_"):
            if len(self.tokens) != 2:
                raise ValueError(
                    f"line {self.number} has {len(self.tokens)} words, where a column"
                    " and a value are needed"
                )
            self._add_column(values, self.tokens[1])
        columns = wanted(name, list(values))
        _add([tuple(values[column] for column in columns)], name, columns)
        return columns

    def _loop(self, name: str, wanted: Wanted) -> dict[str, Column]:
        """A table with a row on each line."""
        self.advance()
        places = {}
        while self.tokens and self.tokens[0].startswith("_"):
            self._add_column(places, len(places))
        columns, width = wanted(name, list(places)), len(places)
        pick = [places[column] for column in columns]
        # A single place would give values instead of tuples.
        pick = itemgetter(*pick, *pick[:1]) if pick else None
        rows, tokens = [], self.tokens
        while tokens and not tokens[0].startswith("_"):
            if len(tokens) != width:
                if self._starts_block() or tokens == ["loop_"]:
                    break
                raise ValueError(
                    f"line {self.number} has {len(tokens)} values; its table has"
                    f" {width} columns"
                )
            if pick is not None:
                rows.append(pick(tokens))
            elif self._starts_block():  # of a table of one column, after another
                break
            if len(rows) == CHUNK:
                _add(rows, name, columns)
            tokens = self.advance()
        _add(rows, name, columns)
        return columns

    def _add_column(self, columns: dict, value: int | str) -> None:
        name = self.tokens[0]
        if name in columns:
            raise ValueError(f"line {self.number} names the column {name} again")
        columns[name] = value
        self.advance()


def _add(rows: list[tuple[str, ...]], name: str, columns: dict[str, Column]) -> None:
    """Give rows to the columns of a table, and forget them."""
    try:
        # The first column may have come twice: a tuple longer than the columns.
        values = zip(*rows, strict=True)
        for column, texts in zip(columns.values(), values, strict=False):
            column.add(texts)
    except ValueError as error:
        raise ValueError(f"in data_{name}, {error}") from error
    rows.clear()


def _unquoted(line: str) -> list[str]:
    """Words of a line with quotation marks or a comment."""
    tokens = []
    for match in TOKEN.finditer(line):
        if match[0].startswith("#"):
            break
        tokens.append(match[match.lastindex])
    return tokens


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return np.nan
