"""Pictures that stand inside a table: base64 text, bytes, Hugging Face's struct, or the index of another row."""

from __future__ import annotations

import ast
import base64
import binascii
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vlm_eff.eval.tasks.files import inside
from vlm_eff.eval.tasks.item import Picture
from vlm_eff.eval.tasks.rows import Row

# shorter text is a number or a name: the smallest picture of one pixel has more
_SHORTEST_BASE64 = 40


def embedded_picture(row: Row, value: Any, folder: Path) -> Picture:
    """The picture that a cell holds; nothing is decoded as a picture yet.

    value: Hugging Face's struct {bytes, path}, bytes, base64 text, or the name of a file under `folder`

    Raises:
        InputError: none of these.
    """
    if isinstance(value, dict):
        value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
    if isinstance(value, bytes):
        return Picture(value)
    if isinstance(value, str) and value:
        # base64 has no dot
        if len(value) < _SHORTEST_BASE64 or "." in value:
            return Picture(inside(folder, value))
        try:
            return Picture(base64.b64decode(value, validate=True))
        except binascii.Error as error:
            raise row.wrong(f"the picture is no base64 text ({error})", "base64, bytes, or a file name") from None
    accepted = "base64 text, bytes, a struct with bytes, or a file name"
    raise row.wrong(f"the picture is {type(value).__name__}", accepted)


def picture_size(row: Row, picture: Picture) -> tuple[int, int]:
    """Width and height of a picture in a table, from its first bytes; of a file, when it can be read.

    Raises:
        InputError: no picture.
    """
    source = picture.source
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:  # type: ignore[arg-type]
            return opened.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        name = f"{len(source)} bytes" if isinstance(source, bytes) else str(source)
        problem = f"the size of the picture ({name}) cannot be read: {str(error).splitlines()[0][:80]}"
    raise row.wrong(problem, "a picture, or width and height in the file")


class SharedPictures:
    """Pictures of a TSV in which a cell may hold the index of the row that has the picture.

    rows: all of the file, because a row may come before the one it shares with
    """

    def __init__(self, rows: Sequence[Row], folder: Path) -> None:
        self._folder = folder
        self._cells = {row.text("index"): row.text("image", "image_path") for row in rows}
        self._made: dict[str, tuple[Picture, ...]] = {}

    def of(self, row: Row) -> tuple[str, tuple[Picture, ...]]:
        """Index of the row that holds the pictures of this one, and the pictures.

        Raises:
            InputError: a chain that leads nowhere or in a circle, or a cell that is no picture.
        """
        index, seen = row.text("index"), set[str]()
        if index not in self._cells:
            # a row made here, such as a rotation
            index = row.text("image")
        while self._cells[index] in self._cells and len(self._cells[index]) < _SHORTEST_BASE64:
            seen.add(index)
            index = self._cells[index]
            if index in seen:
                raise row.wrong(f"the pictures of rows {sorted(seen)} name one another", "a row that holds the picture")
        if index not in self._made:
            found = tuple(embedded_picture(row, value, self._folder) for value in _values(row, self._cells[index]))
            self._made[index] = found
        return index, self._made[index]


def _values(row: Row, cell: str) -> Iterator[str]:
    if cell.isdecimal():
        raise row.wrong(
            f"the picture is that of row {cell}, which is not there", "base64 text, or an index of the file"
        )
    if not cell.startswith("["):
        yield cell
        return
    # a question about several pictures: a list of base64 texts, written out
    try:
        found = ast.literal_eval(cell)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise row.wrong("the list of pictures cannot be read", 'a list such as ["...", "..."]') from None
    yield from (str(one) for one in found)
