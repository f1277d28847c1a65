"""Tables: one reader for all that come from a file, and checks of what flows."""

import io
from collections import Counter
from collections.abc import Iterator
from csv import Error, reader
from difflib import get_close_matches
from pathlib import Path
from reprlib import Repr
from textwrap import shorten

import numpy as np
import pandas as pd

from agelib import files

# bytes, some ten million faces: no table, but memory that nobody has to spare
LARGEST_FILE = 2**28
# where a comma is the decimal sign, spreadsheets save semicolons
SEPARATORS = ",;\t|"
_SHORT = Repr()
_SHORT.maxstring = 200


def read_table(csv: Path, *columns: str) -> pd.DataFrame:
    """A table in CSV, in which nothing is taken for a number or a missing value.

    Ids such as 007 and NA stay as they are. Semicolons, tabs and bars separate as well
    as commas; spaces after them, and around the columns' names, are no part of the
    table.

    Args:
        columns: those that it must have.
    Returns:
        every column that has a name, as text; the index is the line of the file in
        which a row begins, so that the first below the names is 2.
    Raises:
        FileNotFoundError, OSError: if there is no file, or a folder, pipe or device.
        ValueError: naming the file, and the line, that is no table with these columns.
    """
    text = _text(csv, columns)
    rows = _rows(csv, text, _separator(csv, text, columns))
    names = [name.strip() for name in next(rows, (0, []))[1]]
    _check_names(csv, names, columns)
    lines, values = [], []
    for line, row in rows:
        if len(row) != len(names):
            raise ValueError(_uneven(csv, line, len(row), len(names)))
        lines.append(line)
        values.append(row)
    if not values:
        raise ValueError(f"{csv} has no rows below its first line.")
    table = pd.DataFrame(values, pd.Index(lines, name="line"), names, dtype=str)
    return table[[name for name in names if name]]


def numbers(
    table: pd.DataFrame,
    column: str,
    csv: Path,
    low: float = -np.inf,
    high: float = np.inf,
) -> pd.Series:
    """A column of `read_table` as finite numbers from `low` to `high`.

    A comma before the last digit or two is a decimal comma.

    Raises:
        ValueError: naming the file, the line and the value of one that is none.
    """
    text = table[column].str.strip()
    text = text.str.replace(r"^([-+]?\d+),(\d\d?)$", r"\1.\2", regex=True)
    number = pd.to_numeric(text, errors="coerce").astype(float)
    right = np.isfinite(number) & number.between(low, high)
    limits = f" from {low:g} to {high:g}" if np.isfinite([low, high]).all() else ""
    refuse(
        csv,
        table[column][~right],
        f"has no number{limits} as its {column}",
        "correct or remove the line",
    )
    return number


def refuse(csv: Path, values: pd.Series, fault: str, advice: str) -> None:
    """Raises a ValueError that names the first of the values and counts the others.

    Args:
        values: those at fault, by line, if any.
    """
    if len(values):
        first = brief(values.iloc[0])
        raise ValueError(f"{csv} {at(values)} {fault} ({first}): {advice}.")


def brief(value: str) -> str:
    """A value in quotes, without its middle if it is too long to be read."""
    return _SHORT.repr(value)


def at(values: pd.Series) -> str:
    """The line of the first value, and how many there are besides."""
    more = f" (and {len(values) - 1:,} more)" if len(values) > 1 else ""
    return f"line {values.index[0]}{more}"


def require(table: pd.DataFrame, *columns: str) -> None:
    """Raise a ValueError if a table is empty or lacks a column that is needed."""
    for column in columns:
        if column not in table:
            raise ValueError(
                f"The table has no column {column!r}, only {', '.join(table)}: add it."
            )
    if table.empty:
        raise ValueError("The table is empty: pass at least one face.")


def finite(table: pd.DataFrame, column: str) -> np.ndarray:
    """One column as floats; a ValueError if `require` fails or one is not finite."""
    require(table, column)
    values = table[column].to_numpy(float, na_value=np.nan)
    bad = ~np.isfinite(values)
    if bad.any():
        raise ValueError(
            f"{column!r} is not finite in {bad.sum():,} of {len(table):,} rows, first "
            f"in row {table.index[bad][0]}: drop these rows or fill them in."
        )
    return values


def _text(csv: Path, columns: tuple[str, ...]) -> str:
    if not csv.exists():
        raise FileNotFoundError(
            f"There is no table {csv}: it should list {','.join(columns)}."
        )
    size = files.regular(csv).stat().st_size
    if size > LARGEST_FILE:
        raise ValueError(f"{csv} has {size / 2**20:,.0f} MB, too many for a table.")
    content = csv.read_bytes()
    try:
        # with or without the mark that spreadsheets set before UTF-8
        text = content.decode("utf-8-sig")
        odd = content.find(b"\0")
    except UnicodeDecodeError as error:
        odd = error.start
    if odd >= 0:
        # bytes split at all three kinds of line end
        line = len(content[: odd + 1].splitlines())
        raise ValueError(
            f"{csv} is not text in UTF-8 (line {line}): save it as CSV, as UTF-8."
        )
    return text


def _separator(csv: Path, text: str, columns: tuple[str, ...]) -> str:
    """The one by which the first line names the columns, else a comma."""
    for separator in SEPARATORS:
        try:
            _, row = next(_rows(csv, text, separator), (0, []))
        except ValueError:
            # what stands between quotes ends with another one
            continue
        if {name.strip() for name in row} >= set(columns):
            return separator
    return ","


def _rows(csv: Path, text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """The lines in which each row begins, and its values; blank lines are none."""
    rows = reader(
        io.StringIO(text, newline=""),
        delimiter=separator,
        skipinitialspace=True,
        strict=True,
    )
    line = 1
    try:
        for row in rows:
            if len(row) > 1 or "".join(row).strip():
                yield line, row
            line = rows.line_num + 1
    except Error as error:
        raise ValueError(
            f"{csv} line {line} is no row of a table ({error}): does a quote begin "
            "there that nothing ends?"
        ) from error


def _check_names(csv: Path, names: list[str], columns: tuple[str, ...]) -> None:
    if not names:
        raise ValueError(
            f"{csv} is empty: its first line should name {','.join(columns)}."
        )
    for column in columns:
        if column not in names:
            lower = {name.lower(): name for name in names}
            near = [lower[name] for name in get_close_matches(column, lower, 1)]
            shown = shorten(", ".join(map(repr, names)), 100)
            found = f"but {near[0]!r}" if near else f"only {shown}"
            raise ValueError(
                f"{csv} has no column {column!r}, {found}: its first line should name "
                f"{','.join(columns)}."
            )
    for name, times in Counter(filter(None, names)).items():
        if times > 1:
            raise ValueError(f"{csv} has {times} columns {name!r}: leave one.")


def _uneven(csv: Path, line: int, fields: int, names: int) -> str:
    """What is wrong with a row that has more or fewer fields than names."""
    some = f"{fields} field" + "s" * (fields > 1)
    cause = (
        "a decimal comma, a comma at its end, or a column without a name?"
        if fields > names
        else "is a value missing, or is it no row of the table?"
    )
    return f"{csv} line {line} has {some} where the first line has {names}: {cause}"
