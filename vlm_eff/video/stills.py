"""Frames that are pictures: a folder of them, or an animated GIF or WebP, read with Pillow."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from vlm_eff.core.errors import ConfigError, InputError, explain
from vlm_eff.video.animation import is_animation, look_over
from vlm_eff.video.broken import Deadline, damaged, no_video
from vlm_eff.video.clip import Clip
from vlm_eff.video.sampling import Sampling

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".webp")
# what Pillow raises for pictures that are cut, damaged, too large, or none
_BROKEN = (OSError, SyntaxError, ValueError, IndexError, EOFError, struct.error, Image.DecompressionBombError)


@dataclass(frozen=True)
class _Stills:
    """What is known before anything is decoded.

    begins:   seconds from the first frame to each frame; its length is the number of frames
    expected: frames there should be
    files:    of a folder, in order; None for an animation, which is in one file
    """

    path: Path
    begins: tuple[float, ...]
    fps: float
    expected: int
    files: tuple[Path, ...] | None = None

    def pictures(self, wanted: Iterable[int]) -> Iterator[tuple[int, Image.Image]]:
        """The wanted frames, ascending, with their numbers; not yet decoded. Other files are not opened."""
        if self.files is not None:
            for number in sorted(wanted):
                with Image.open(self.files[number]) as picture:
                    yield number, picture
        else:
            with Image.open(self.path) as picture:
                for number in sorted(wanted):
                    picture.seek(number)
                    yield number, picture


def is_stills(path: Path) -> bool:
    """Whether this reader is the one for a path: a folder, or a file that begins as GIF or WebP."""
    return path.is_dir() or is_animation(path)


def read_stills(
    path: Path, sampling: Sampling, *, folder_fps: float | None, allow_partial: bool, timeout_s: float
) -> Clip:
    """Read chosen frames with Pillow; see `read_video`. Transparency is left out: the stored colours are taken."""
    deadline = Deadline(path, timeout_s)
    stills = _folder(path, folder_fps) if path.is_dir() else _animation(path)
    if stills.expected > len(stills.begins):
        stills = _before_the_damage(stills, deadline, allow_partial, "the file ends early")
    indices = sampling.choose(len(stills.begins), stills.fps)
    found, why = _decode(stills, set(indices), deadline)
    if why:
        stills = _before_the_damage(stills, deadline, allow_partial, why)
        indices = sampling.choose(len(stills.begins), stills.fps)
        found, why = _decode(stills, set(indices), deadline)
        if why:
            raise damaged(path, len(found), stills.expected, why)
    _check_sizes(path, found)
    return Clip(
        frames=np.stack([found[number] for number in indices]),
        indices=tuple(indices),
        timestamps=tuple(stills.begins[number] for number in indices),
        fps=stills.fps,
        total=len(stills.begins),
        expected=stills.expected,
        backend="pillow",
    )


def _folder(path: Path, fps: float | None) -> _Stills:
    if fps is None or isinstance(fps, bool) or not 0 < fps < float("inf"):
        got = f"the folder {path} with folder_fps={fps!r}"
        raise ConfigError(explain(got, "a number of frames a second", "Give it: pictures do not tell"))
    files = [file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")]
    if not files:
        raise no_video(path, f"the folder holds no picture ({', '.join(SUFFIXES)})")
    files.sort(key=lambda file: _natural(file.name))
    begins = tuple(number / fps for number in range(len(files)))
    return _Stills(path, begins, float(fps), len(files), tuple(files))


def _natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sorts frame2 before frame10."""
    pieces = re.split(r"(\d+)", name.lower())
    return [(int(piece), "") if place % 2 else (0, piece) for place, piece in enumerate(pieces)], name


def _animation(path: Path) -> _Stills:
    delays, whole = look_over(path)
    if not delays:
        raise no_video(path, "it holds no whole frame" if not whole else "it is a picture that does not move")
    begins = [0.0]
    for delay in delays:
        begins.append(begins[-1] + delay)
    return _Stills(path, tuple(begins[:-1]), len(delays) / begins[-1], len(delays) + (not whole))


def _decode(stills: _Stills, wanted: Iterable[int], deadline: Deadline) -> tuple[dict[int, np.ndarray], str]:
    """The wanted frames as far as they can be decoded, by number, and what went wrong."""
    found: dict[int, np.ndarray] = {}
    try:
        for number, picture in stills.pictures(wanted):
            deadline.check()
            found[number] = np.asarray(picture.convert("RGB"))
    except InputError:
        raise
    except _BROKEN as error:
        return found, str(error).splitlines()[0][:120] if str(error) else type(error).__name__
    return found, ""


def _before_the_damage(stills: _Stills, deadline: Deadline, allow_partial: bool, why: str) -> _Stills:
    """The frames before the first that cannot be decoded; an error unless that was allowed."""
    total = len(stills.begins)
    if not allow_partial:
        raise damaged(stills.path, total, stills.expected, why)
    readable = 0
    try:
        for _, picture in stills.pictures(range(total)):
            deadline.check()
            picture.convert("RGB")
            readable += 1
    except InputError:
        raise
    except _BROKEN:
        pass
    if not readable:
        raise damaged(stills.path, 0, stills.expected, why)
    return replace(stills, begins=stills.begins[:readable], expected=max(stills.expected, readable + 1))


def _check_sizes(path: Path, found: dict[int, np.ndarray]) -> None:
    sizes = {(frame.shape[1], frame.shape[0]) for frame in found.values()}
    if len(sizes) > 1:
        listed = ", ".join(f"{width}x{height}" for width, height in sorted(sizes))
        do = "Make all pictures of the folder the same size"
        raise InputError(explain(f"{path} holds frames of different sizes ({listed})", "frames of one size", do))
