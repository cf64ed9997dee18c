"""The one video reader: checks the file, picks a decoder, and turns what goes wrong into errors that say what to do."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from vlm_eff.core.errors import CapabilityError, ConfigError, InputError, explain
from vlm_eff.video.apart import read_with_decord
from vlm_eff.video.clip import Clip
from vlm_eff.video.packets import read_with_av
from vlm_eff.video.sampling import Sampling, Spread

Backend = Literal["auto", "av", "decord"]
# PyAV first: it decodes in this process and to the last frame; decord can hang, and runs in a process of its own
ORDER = ("av", "decord")


def read_video(
    path: str | Path,
    *,
    frames: int | None = None,
    fps: float | None = None,
    indices: Sequence[int] | None = None,
    spread: Spread = "middle",
    backend: Backend = "auto",
    allow_partial: bool = False,
    timeout_s: float = 60.0,
) -> Clip:
    """Read chosen frames of a video file.

    Both decoders give the same frames. PyAV looks over the file's packets first, so that numbers are true for files
    whose header does not tell, and jumps to key frames. decord runs in a child process that is ended on time-out,
    because it can hang on some files and then hears no signal. Rotation marks of telephones are not followed.

    Args:
        path: the file.
        frames: number of frames, spread over the video; or fps: frames a second; or indices: frame numbers from 0.
            Give exactly one of the three.
        spread: how `frames` are spread: "middle" of equal segments, "start" of them as the processors of transformers
            do, or "ends" with the first and last frame as LLaVA does.
        backend: "av" (PyAV), "decord", or "auto": the first of them that is installed.
        allow_partial: for a cut or damaged file, choose among the frames that can be read; `Clip.partial` tells.
            Otherwise such a file is an error.
        timeout_s: seconds that decord may take.

    Raises:
        InputError: the file is missing, empty, no video, cut or damaged, holds fewer frames than asked, lacks a frame
            that was asked for, or decord took too long.
        ConfigError: arguments that contradict each other or are out of range.
        CapabilityError: no decoder is installed, or not the one asked for.
    """
    sampling = Sampling(frames, fps, indices, spread)
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not 0 < timeout_s < float("inf"):
        raise ConfigError(explain(f"timeout_s={timeout_s!r}", "seconds above 0", "Give a longer time"))
    path = Path(path)
    _check_file(path)
    if _pick(backend) == "av":
        return read_with_av(path, sampling, allow_partial=allow_partial)
    return read_with_decord(path, sampling, allow_partial=allow_partial, timeout_s=timeout_s)


def _check_file(path: Path) -> None:
    if not path.exists():
        raise InputError(explain(f"{path} does not exist", "a video file", "Check the path"))
    if not path.is_file():
        raise InputError(explain(f"{path} is no file", "a video file", "Give one file, not a folder"))
    if not path.stat().st_size:
        raise InputError(explain(f"{path} is empty (0 bytes)", "a video file", "Copy or download it again"))


def _pick(backend: str) -> str:
    if backend not in ("auto", *ORDER):
        raise ConfigError(explain(f"backend={backend!r}", "'auto', 'av', 'decord'", "Choose one of them"))
    wanted = ORDER if backend == "auto" else (backend,)
    for name in wanted:
        if importlib.util.find_spec(name) is not None:
            return name
    raise CapabilityError(
        explain(f"{' and '.join(wanted)} not installed", "PyAV (av) or decord", "Run: pip install 'vlm-eff[video]'")
    )
