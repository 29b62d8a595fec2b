"""CSV tables supplied by the user, as spreadsheets and scripts really write them."""

import codecs
import csv
import io
import re
import unicodedata
from collections import Counter
from collections.abc import Collection
from difflib import get_close_matches
from itertools import zip_longest
from pathlib import Path

import pandas as pd

from quintet.errors import InputError

DELIMITERS = (",", ";", "\t", "|")
INVISIBLE = re.compile("[\u200b-\u200d\u2060\ufeff]")  # zero-width characters that copying from web pages leaves
DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+(?:[eE][+-]?\d+)?")
NUMBER = {",": DECIMAL_COMMA, ".": re.compile(r"[+-]?\d+(?:\.\d+)+")}
MIN_MARKED = {",": 1, ".": 3}  # points are decimal ones more often
THOUSANDS = {mark: re.compile(rf"[+-]?[1-9]\d{{0,2}}(?:{re.escape(mark)}\d{{3}})+") for mark in NUMBER}


def read_text(path: Path) -> str:
    """A text file in UTF-8, or in UTF-16 with a byte order mark, with composed accents (NFC) and plain line ends. Raises
    InputError, naming the line, for another encoding."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if data.startswith(b"PK\x03\x04"):
        raise InputError(f"{path}: a spreadsheet (xlsx), not text; export it as CSV in UTF-8")
    try:
        text = data.decode("utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(f"{path}: line {line} is not UTF-8 (perhaps Windows-1252 or Latin-1); save the file as UTF-8") from None
    if "\0" in text:
        raise InputError(f"{path}: line {text[: text.index(chr(0))].count(chr(10)) + 1} has NUL characters; save the file again")
    return INVISIBLE.sub("", unicodedata.normalize("NFC", text)).replace("\r\n", "\n").replace("\r", "\n")


def read_cells(path: Path) -> list[list[str]]:
    """The stripped cells of each row of a CSV file; commas, semicolons, tabs or bars separate them, whichever is most frequent
    in the first row that is not empty, or as a row `sep=;` says. Where it is not the comma, a decimal comma becomes a point.
    Empty rows at the end are left out.

    Raises InputError for a file that is not CSV in UTF-8 or UTF-16, and for commas that may separate thousands."""
    text = read_text(path)
    first, _, rest = text.partition("\n")
    if named := re.fullmatch(r"\"?sep=(.)\"?", first.strip("\r ")):
        delimiter, text = named[1], rest
    else:
        delimiter = max(DELIMITERS, key=text.lstrip("\n").partition("\n")[0].count)
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)]
    except csv.Error as error:
        raise InputError(f"{path}: cannot be read as CSV ({error}); is a quotation mark left open?") from None
    while rows and not any(rows[-1]):
        rows.pop()
    _reject_thousands(path, rows, ".")
    if delimiter != ",":
        _reject_thousands(path, rows, ",")
        rows = [[cell.replace(",", ".") if DECIMAL_COMMA.fullmatch(cell) else cell for cell in row] for row in rows]
    return rows


def _reject_thousands(path: Path, rows: list[list[str]], mark: str) -> None:
    """Raise InputError for a column of whole numbers in which every comma, or point, is followed by three digits."""
    for column in zip_longest(*rows, fillvalue=""):
        marked = [(number, cell) for number, cell in enumerate(column, 1) if NUMBER[mark].fullmatch(cell)]
        if (
            len(marked) >= MIN_MARKED[mark]
            and all(THOUSANDS[mark].fullmatch(cell) for _, cell in marked)
            and any(map(str.isdecimal, column))
        ):
            number, cell = marked[0]
            one, other = cell.replace(mark, ""), cell.replace(mark, ".")
            raise InputError(f"{path}: row {number}: is {cell} {one} or {other}? Write it that way, without thousands separators")


def read_text_table(path: Path) -> pd.DataFrame:
    """Read a CSV file with a header (`read_cells`) with every cell as text; empty cells are empty strings. The index has
    the rows' numbers in a spreadsheet, where the header is usually row 1; empty rows are left out.

    Raises InputError if the file is not CSV, a row is longer than the header, or a column has no name or that of another one.
    """
    numbers, rows = [], []
    for number, row in enumerate(read_cells(path), 1):
        if row:
            numbers.append(number)
            rows.append(row)
    if not rows:
        raise InputError(f"{path}: the file is empty; expected a CSV file with a header")
    named, width = len(rows[0]), max(len(row) for row in rows)
    rows = [row + [""] * (width - len(row)) for row in rows]
    while width and not any(row[width - 1] for row in rows):  # a spreadsheet's empty last columns
        width -= 1
    header, *rows = [row[:width] for row in rows]
    if width > named:
        number = next(n for n, row in zip(numbers[1:], rows, strict=True) if any(row[named:]))
        raise InputError(f"{path}: row {number} has more fields than the header; quote text that contains commas")
    if "" in header:
        raise InputError(f"{path}: column {header.index('') + 1} has no name (an index saved by accident?); name or delete it")
    if repeated := [name for name, count in Counter(header).items() if count > 1]:
        raise InputError(f"{path}: the column {repeated[0]!r} is listed twice; rename or delete one")
    return pd.DataFrame(rows, columns=header, index=numbers[1:], dtype=str)


def spelled_alike(name: str, others: Collection[str]) -> str | None:
    """The one of `others` that is most like `name`: equal but for capitals, punctuation and leading zeros, or nearly equal."""
    plain = _plain(name)
    if same := [other for other in others if _plain(other) == plain]:
        return same[0]
    return next(iter(get_close_matches(name, list(others), 1, cutoff=0.85)), None)


def _plain(name: str) -> str:
    letters = re.sub(r"[^a-z0-9]+", "", unicodedata.normalize("NFKC", name).casefold())
    return re.sub(r"(?<!\d)0+(?=\d)", "", letters)


def folded(name: str) -> str:
    """A name without letter case, spaces and leading zeros of its numbers: two people's names still differ."""
    return re.sub(r"(?<!\d)0+(?=\d)", "", re.sub(r"\s+", "", name).casefold())
