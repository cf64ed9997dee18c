"""Official data files as rows: JSON, JSON lines, CSV, TSV and parquet, with errors that name file and record."""

from __future__ import annotations

import ast
import csv
import importlib
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_eff.core.errors import CapabilityError, InputError, explain

_LONGEST_LINE = 100_000
# a picture in base64 is one cell of a TSV; the standard library allows 128 KiB
_LONGEST_CELL = min(sys.maxsize, 2**31 - 1)


@dataclass(frozen=True)
class Row:
    """One record of a data file, and where it stands for error messages."""

    values: Mapping[str, Any]
    where: str

    def find(self, *names: str) -> Any:
        """The first of `names` that the record has with a value, or None."""
        return next((self.values[name] for name in names if self.values.get(name) is not None), None)

    def need(self, *names: str) -> Any:
        """As `find`; raises `InputError` where there is none."""
        found = self.find(*names)
        if found is None:
            raise InputError(
                explain(
                    f"{self.where} lacks {' or '.join(map(repr, names))}, it has {', '.join(self.values) or 'nothing'}",
                    "the official file of this benchmark, or a file with the same fields",
                    "Check the file and its version",
                )
            )
        return found

    def text(self, *names: str) -> str:
        """As `need`, as text without blanks around it; `InputError` where it is blank, or no text or number."""
        found = self.need(*names)
        if not isinstance(found, str | int | float) or not str(found).strip():
            raise self.wrong(f"{' or '.join(map(repr, names))} is {str(found)[:40]!r}", "a text or a number")
        return str(found).strip()

    def sequence(self, *names: str) -> list[Any]:
        """As `need`, as a list; a list written out as text, which tables hold, is read."""
        found = self.need(*names)
        if isinstance(found, str):
            try:
                found = ast.literal_eval(found)
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                found = None
        if not isinstance(found, Sequence) or isinstance(found, str | bytes):
            raise self.wrong(f"{' or '.join(map(repr, names))} is no list", "a list, or one written out as text")
        return list(found)

    def number(self, name: str) -> float | None:
        """The number of a field, None where the record has none."""
        found = self.find(name)
        try:
            value = None if found is None else float(found)
        except (TypeError, ValueError):
            value = math.nan
        if value is not None and not math.isfinite(value):
            raise self.wrong(f"{name} is {found!r}", "a number")
        return value

    def wrong(self, got: str, accepted: str) -> InputError:
        """The error to raise for a value of this record."""
        return InputError(explain(f"{self.where}: {got}", accepted, "Check the file and its version"))


def rows_of(path: Path, *keys: str) -> Iterator[Row]:
    """The records of a file, by the ending of its name.

    keys: where the records of a JSON object may stand; without them it is a list, or a dict of records by id, whose id
          is then the field `"_key"`

    Raises:
        InputError: the file is broken, or holds something else.
        CapabilityError: a parquet file, and pyarrow is not installed.
    """
    ending = path.suffix.lower()
    if ending == ".parquet":
        yield from _parquet_rows(path)
    elif ending in (".tsv", ".csv"):
        yield from _table_rows(path, "\t" if ending == ".tsv" else ",")
    elif ending == ".jsonl":
        yield from _line_rows(path)
    elif ending == ".json":
        yield from _json_rows(path, keys)
    else:
        accepted = ".json, .jsonl, .csv, .tsv or .parquet"
        raise InputError(explain(f"{path.name} has the ending {ending!r}", accepted, "Convert the file"))


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        InputError: missing, no UTF-8, or no JSON, with the line.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        problem = f"{path.name}, line {error.lineno}: {error.msg}"
    except UnicodeDecodeError as error:
        problem = f"{path.name} is no UTF-8 text (byte {error.start})"
    except OSError as error:
        problem = f"{path} cannot be read ({error.strerror})"
    raise InputError(explain(problem, "a whole JSON file", "Copy or download it again"))


def read_object(path: Path) -> dict[str, Any]:
    """As `read_json`, of a file that holds one object with fields."""
    return dict(_row(read_json(path), path.name).values)


def _json_rows(path: Path, keys: Sequence[str]) -> Iterator[Row]:
    content = read_json_lines(path) if _holds_lines(path) else read_json(path)
    if isinstance(content, dict):
        key = next((key for key in keys if key in content), None)
        if key is not None:
            content = content[key]
        elif keys:
            raise InputError(
                explain(f"{path.name} has no {' or '.join(map(repr, keys))}", "the official file", "Check the file")
            )
    if isinstance(content, dict):
        for name, values in content.items():
            yield _row(
                {"_key": name, **values} if isinstance(values, dict) else values, f"{path.name}, record {name!r}"
            )
        return
    if not isinstance(content, list):
        raise InputError(explain(f"{path.name} holds {type(content).__name__}", "records", "Check the file"))
    for place, values in enumerate(content):
        yield _row(values, f"{path.name}, record {place}")


def _holds_lines(path: Path) -> bool:
    # POPE's files are called .json and hold one object a line
    try:
        with path.open(encoding="utf-8-sig") as stream:
            # an official file may be one line of many megabytes
            first, second = stream.readline(_LONGEST_LINE).strip(), stream.readline(_LONGEST_LINE).strip()
    except (OSError, UnicodeDecodeError):
        return False
    return first.startswith("{") and first.endswith("}") and second.startswith("{")


def read_json_lines(path: Path) -> list[Any]:
    """The objects of a file with one on each line; see `rows_of`."""
    return [row.values for row in _line_rows(path)]


def _line_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as stream:
        lines = enumerate(stream, 1)
        while True:
            try:
                number, line = next(lines)
            except StopIteration:
                return
            except UnicodeDecodeError as error:
                raise _broken(path, f"no UTF-8 text ({error.reason})") from None
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except json.JSONDecodeError as error:
                raise _broken(path, f"line {number}: {error.msg}") from None
            yield _row(values, f"{path.name}, line {number}")


def _table_rows(path: Path, separator: str) -> Iterator[Row]:
    # raised for good: rows are read one by one, and another table may be read in between
    csv.field_size_limit(_LONGEST_CELL)
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            table = csv.DictReader(stream, delimiter=separator, strict=True)
            for values in table:
                place = f"{path.name}, line {table.line_num}"
                if None in values or None in values.values():
                    counts = f"{len(table.fieldnames or ())} cells, as the first line names"
                    raise InputError(explain(f"{place} has more or fewer cells", counts, "Copy or download it again"))
                yield Row({name: value if value else None for name, value in values.items()}, place)
    except UnicodeDecodeError as error:
        raise _broken(path, f"no UTF-8 text ({error.reason})") from None
    except csv.Error as error:
        raise _broken(path, f"line {table.line_num}: {error}") from None


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError:
        problem = f"{path.name} is a parquet file and pyarrow is not installed"
        raise CapabilityError(explain(problem, "pyarrow 14 or later", 'Run: pip install "vlm-eff[eval]"')) from None
    # pyarrow's own are kinds of ValueError; text that is no UTF-8 is another
    errors = (importlib.import_module("pyarrow").ArrowException, OSError, ValueError)
    place = 0
    try:
        with parquet.ParquetFile(path) as table:
            # few rows at a time: they hold pictures
            for batch in table.iter_batches(batch_size=64):
                for values in batch.to_pylist():
                    yield Row(values, f"{path.name}, row {place}")
                    place += 1
    except errors as error:
        raise _broken(path, str(error).splitlines()[0][:120]) from None


def _row(values: Any, where: str) -> Row:
    if not isinstance(values, dict):
        raise InputError(explain(f"{where} is {type(values).__name__}", "an object with fields", "Check the file"))
    return Row(values, where)


def _broken(path: Path, problem: str) -> InputError:
    return InputError(explain(f"{path.name}: {problem}", f"a whole {path.suffix} file", "Copy or download it again"))
