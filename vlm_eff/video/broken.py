"""Errors for files that hold no video, or not all of it, or take too long; every decoder raises the same ones."""

from __future__ import annotations

import time
from pathlib import Path

from vlm_eff.core.errors import InputError, explain


def damaged(path: Path, total: int, expected: int, why: str = "") -> InputError:
    """The error for a file that ends too early or cannot be decoded to its end."""
    of = f" of {expected}" if expected > total else ""
    return InputError(
        explain(
            f"{path} is cut or damaged: {total}{of} frames can be read{f' ({why})' if why else ''}",
            "complete files",
            "Copy the file again, or read what exists with allow_partial=True",
        )
    )


def no_video(path: Path, why: str) -> InputError:
    """The error for a file in which no decoder finds a video."""
    accepted = "files with a video stream, such as mp4, mkv, webm, avi; animated GIF and WebP; folders of pictures"
    return InputError(explain(f"{path} is no readable video: {why}", accepted, "Check that the file is complete"))


class Deadline:
    """A limit of wall-clock time, asked about between frames: it cannot end one step that hangs."""

    def __init__(self, path: Path, seconds: float) -> None:
        self._path, self._seconds = path, seconds
        self._end = time.monotonic() + seconds

    def check(self) -> None:
        """Raise `InputError` when the time is over."""
        if time.monotonic() > self._end:
            got = f"{self._path} was not read in {self._seconds:g} seconds"
            raise InputError(explain(got, "files that are read in time", "Give a longer timeout_s, or fewer frames"))
