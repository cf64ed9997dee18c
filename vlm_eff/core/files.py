"""Writing results: a file is there in full or not at all."""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path

from PIL import Image

from vlm_eff.core.errors import InputError, explain


def make_folder(folder: Path) -> Path:
    """Make a folder for results, or take the one that is there.

    Raises:
        InputError: a file has that name, or the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(
            explain(
                f"{folder} is a file, or lies inside one", "a folder, or a name that is free", "Choose another name"
            )
        ) from None
    except OSError as error:
        raise InputError(
            explain(f"{folder} cannot be made ({error.strerror})", "a folder that may be written", "Choose another one")
        ) from None
    return folder


def check_place(path: Path) -> None:
    """Raise `InputError` where a file could not be written; asked before the work that it is for."""
    if not path.parent.is_dir() or path.is_dir():
        got = f"{path} in a folder that is not there" if not path.parent.is_dir() else f"{path}, which is a folder"
        raise InputError(explain(got, "a file in a folder that exists", "Make the folder, or choose another name"))


def write_file(path: Path, content: str | bytes) -> Path:
    """Write a file beside its place and move it there, so that nobody ever sees half of it."""
    data = content.encode() if isinstance(content, str) else content
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        # mkstemp lets nobody else read; a result may be read by whoever may read the folder
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


def png(image: Image.Image) -> bytes:
    """The bytes of a picture's PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
