"""Reading the lists that datasets come with: text files and CSV, line by line, every bad row named.

In: a path relative to the task's root. Out: rows with the `file:line` to name in a problem. A missing list is
the user's mistake (UserError with the expected path); a bad row in it is a `Problem`, and the other rows are
read.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence

from polyvit.data.layouts.scanning.context import ScanContext
from polyvit.errors import UserError


def read_lines(context: ScanContext, path: str) -> Iterator[tuple[int, str]]:
    """The lines of a text file as (number from 1, text without line end); a byte-order mark is dropped.

    Blank lines are skipped. Raises UserError where the file is missing, unreadable or not UTF-8.
    """
    full = context.at(path)
    try:
        content = context.content(path)
        content.decode("utf-8-sig")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise UserError(
            f"tasks.{context.name}: {full} is not there; layout {context.task.layout} needs it. Put the list"
            f" there, or set tasks.{context.name}.root to the folder that holds it"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{full} is not UTF-8 text (byte {error.start}); save it again as UTF-8") from None
    except OSError as error:
        raise UserError(f"{full} cannot be read: {error.strerror or error}; check its permissions") from None
    for number, line in enumerate(io.TextIOWrapper(io.BytesIO(content), "utf-8-sig", newline="\n"), 1):
        if line.strip():
            yield number, line.removesuffix("\n").removesuffix("\r")


def read_rows(
    context: ScanContext, path: str, fields: int = 0, comment: str = "", delimiter: str = ","
) -> Iterator[tuple[str, list[str]]]:
    """Rows of a CSV file as (`file:line`, stripped fields); one line is one row.

    Each line is parsed alone, so that a stray quote damages its own line only. path: the file. fields: how many a
    row must have (0: any); other rows become problems. comment: start of lines that are skipped. delimiter: one
    character. Raises UserError as `read_lines`.
    """
    for number, line in read_lines(context, path):
        if comment and line.startswith(comment):
            continue
        where = f"{path}:{number}"
        try:
            if '"' not in line and "\r" not in line and "\0" not in line:
                row = line.split(delimiter)
            else:
                row = next(csv.reader([line], strict=True, skipinitialspace=True, delimiter=delimiter))
        except (csv.Error, StopIteration) as error:
            context.skip("label", where, f"malformed row: {error}")
            continue
        if fields and len(row) != fields:
            hint = "; a comma inside a field needs quotes" if len(row) > fields else ""
            context.skip("label", where, f"malformed row: {len(row)} fields, expected {fields}{hint}")
            continue
        yield where, [cell.strip() for cell in row]


def read_table(
    context: ScanContext, path: str, delimiter: str = ","
) -> tuple[list[str], Iterator[tuple[str, dict[str, str]]]]:
    """A CSV file with a header line: (column names, rows as (`file:line`, {column: cell})).

    Columns without a name at the end, and rows without a cell, are what a spreadsheet leaves: they are ignored.
    Raises UserError as `read_lines`, and where the file is empty or a column's name occurs twice.
    """
    rows = read_rows(context, path, delimiter=delimiter)
    header = next(rows, ("", []))[1]
    while header and not header[-1]:
        header.pop()
    if not header or len(set(header)) != len(header):
        raise UserError(f"{context.at(path)} needs a header line of distinct column names, found {header}")

    def cells() -> Iterator[tuple[str, dict[str, str]]]:
        for where, row in rows:
            if len(row) == len(header) or (len(row) > len(header) and not any(row[len(header) :])):
                if any(row):
                    yield where, dict(zip(header, row, strict=False))
            else:
                context.skip("label", where, f"malformed row: {len(row)} fields, expected {len(header)}")

    return header, cells()


def need_columns(
    context: ScanContext, path: str, header: Sequence[str], columns: Iterable[str], hint: str = ""
) -> None:
    """Raise UserError where a column is not in the header.

    path: the table's file. header: its column names. columns: those that are needed. hint: the end of the message.
    """
    if missing := [column for column in columns if column not in header]:
        raise UserError(
            f"tasks.{context.name}: {context.at(path)} has no column {', '.join(map(repr, missing))}; it has"
            f" {', '.join(map(repr, header))}{hint}"
        )


def ordered_names(context: ScanContext, path: str, numbered: Sequence[tuple[str, str, str]]) -> list[str]:
    """Class names from (where, index as text, name) rows, whose indices must be 0..n-1, each once.

    Raises UserError otherwise: a hole or a repetition would shift every label.
    """
    names: dict[int, str] = {}
    for where, index, name in numbered:
        if not index.isdecimal() or len(index) > 9 or int(index) in names or not name:
            raise UserError(f"{context.at(where)}: class {name!r} has index {index!r}, not a new number from 0")
        names[int(index)] = name
    if sorted(names) != list(range(len(names))) or not names:
        raise UserError(f"{context.at(path)}: its {len(names)} class indices must be 0..{len(names) - 1}")
    return [names[index] for index in range(len(names))]
