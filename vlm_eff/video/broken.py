"""Errors for files that hold no video, or not all of it; both decoders raise the same ones."""

from __future__ import annotations

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
    accepted = "files with a video stream, such as mp4, mkv, webm, avi"
    return InputError(explain(f"{path} is no readable video: {why}", accepted, "Check that the file is complete"))
