"""Tables of STAR files as RELION writes them, one row of a table a line."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path

import numpy as np

CHUNK = 50_000  # rows that are converted at once
TOKEN = re.compile(r"""'(.*?)'(?=\s|$)|"(.*?)"(?=\s|$)|(\S+)""")

# Makes an array of the texts of a column, some rows at a time, and of the number of the
# first of these rows, from 1. Raises ValueError for texts that it does not accept.
Converter = Callable[[Sequence[str], int], np.ndarray]
Wanted = Callable[[str, list[str]], dict[str, Converter]]


def read_tables(path: Path, wanted: Wanted) -> dict[str, dict[str, np.ndarray]]:
    """
    Read tables of a STAR file. A million rows take seconds, and only the columns that
    are wanted take memory: ASPIRE's reader needs several times the time and memory.

    :param path: The file, in UTF-8 or Latin-1, with any line endings.
    :param wanted: Function of a table's name (without data_) and of its columns that
        returns a converter for each column to keep.
    :return: For each table, the wanted columns, by name.
    :raises ValueError: No STAR file, or a damaged one: what is wrong, and where.
    """
    with open(path, "rb") as file:
        if b"\0" in file.read(4096):
            raise ValueError("it is binary")
    # Paths in other encodings survive as they are.
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        return _Reader(file).tables(wanted)


def numbers(column: str) -> Converter:
    """
    :param column: Name of a column, for errors.
    :return: Converter to finite numbers (n,), float64.
    """

    def convert(texts: Sequence[str], row: int) -> np.ndarray:
        try:
            values = np.fromiter(map(float, texts), np.float64, len(texts))
        except ValueError:
            values = np.full(1, np.nan)
        if not np.isfinite(values).all():
            bad = next(i for i, text in enumerate(texts) if not _is_finite(text))
            raise ValueError(
                f"row {row + bad} has {texts[bad]!r} as {column}, which must be a"
                " finite number"
            )
        return values

    return convert


def image_names(stacks: dict[str, int]) -> Converter:
    """
    :param stacks: Index by name of stack, to which new ones are added.
    :return: Converter of names number@stack to numbers in the stack, from 1, and
        indices of stacks (n, 2), int64.
    """

    def convert(texts: Sequence[str], row: int) -> np.ndarray:
        found = []
        for text in texts:
            number, _, stack = text.partition("@")
            stack = stack.removeprefix(">")  # cryoSPARC's mark of imported files
            if not (number.isdecimal() and len(number) < 19 and stack):
                raise ValueError(
                    f"row {row + len(found)} names an image {text!r}; it must be"
                    " number@stack"
                )
            found.append((int(number), stacks.setdefault(stack, len(stacks))))
        return np.array(found, dtype=np.int64)

    return convert


class _Reader:
    """
    The lines of a STAR file; `tokens` are the words of the current one, [] at the end.

    :param file: The file's lines.
    """

    def __init__(self, file: Iterable[str]):
        self.lines = self._split(file)
        self.advance()

    def _split(self, file: Iterable[str]) -> Iterator[list[str]]:
        """Words of each line that has any, then [] for ever."""
        for self.number, line in enumerate(file, 1):
            tokens = line.split()
            if "#" in line or "'" in line or '"' in line:
                tokens = _unquoted(line)
            if tokens:
                yield tokens
        while True:
            yield []

    def advance(self) -> list[str]:
        self.tokens = next(self.lines)
        return self.tokens

    def tables(self, wanted: Wanted) -> dict[str, dict[str, np.ndarray]]:
        tables, name = {}, None
        while self.tokens:
            word = self.tokens[0]
            if self._starts_block():
                name = word[len("data_") :]
                if name in tables:
                    raise ValueError(f"two of its tables are named {word}")
                tables[name] = {}
                self.advance()
            elif name is None or not (word == "loop_" or word.startswith("_")):
                raise ValueError(
                    f"line {self.number} starts with {word[:40]!r}, where a table or a"
                    " column should"
                )
            else:
                read = self._loop if word == "loop_" else self._pairs
                try:
                    tables[name] |= read(partial(wanted, name))
                except ValueError as error:
                    raise ValueError(f"in data_{name}, {error}") from error
        return tables

    def _starts_block(self) -> bool:
        return len(self.tokens) == 1 and self.tokens[0].startswith("data_")

    def _pairs(self, wanted: Callable) -> dict[str, np.ndarray]:
        """Read a table of one row, written as a list of columns and values."""
        values = {}
        while self.tokens and self.tokens[0].startswith("_"):
            if len(self.tokens) != 2:
                raise ValueError(
                    f"line {self.number} has {len(self.tokens)} words, where a column"
                    " and a value are needed"
                )
            self._add_column(values, self.tokens[1])
        converters = wanted(list(values))
        return {name: to([values[name]], 1) for name, to in converters.items()}

    def _loop(self, wanted: Callable) -> dict[str, np.ndarray]:
        """Read a table with a row on each line."""
        self.advance()
        places = {}
        while self.tokens and self.tokens[0].startswith("_"):
            self._add_column(places, len(places))
        converters, width = wanted(list(places)), len(places)
        chunks = {name: [] for name in converters}
        pick = [places[name] for name in converters]
        # A single place would give values instead of tuples.
        pick = itemgetter(*pick, *pick[:1]) if pick else None
        rows, n, tokens = [], 0, self.tokens

        def convert() -> None:
            # The first column may have come twice.
            for (name, to), texts in zip(
                converters.items(), zip(*rows, strict=True), strict=False
            ):
                chunks[name].append(to(texts, n - len(rows) + 1))
            rows.clear()

        while tokens and not tokens[0].startswith("_"):
            if len(tokens) == 1 and (self._starts_block() or tokens == ["loop_"]):
                break
            if len(tokens) != width:
                raise ValueError(
                    f"line {self.number} has {len(tokens)} values; its table has"
                    f" {width} columns"
                )
            n += 1
            if pick is not None:
                rows.append(pick(tokens))
            if len(rows) == CHUNK:
                convert()
            tokens = self.advance()
        convert()
        return {k: np.concatenate(v) if v else np.empty(0) for k, v in chunks.items()}

    def _add_column(self, columns: dict, value: int | str) -> None:
        name = self.tokens[0]
        if name in columns:
            raise ValueError(f"line {self.number} names the column {name} again")
        columns[name] = value
        self.advance()


def _unquoted(line: str) -> list[str]:
    """Words of a line with quotation marks or a comment."""
    tokens = []
    for match in TOKEN.finditer(line):
        if match[0].startswith("#"):
            break
        tokens.append(match[match.lastindex or 0])
    return tokens


def _is_finite(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
