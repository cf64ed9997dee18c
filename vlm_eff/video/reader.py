"""The one video reader: checks the file, picks a decoder, and turns what goes wrong into errors that say what to do."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from vlm_eff.core.errors import CapabilityError, ConfigError, InputError, explain
from vlm_eff.video.apart import read_with_decord
from vlm_eff.video.clip import Clip
from vlm_eff.video.codec import is_loaded, read_with_torchcodec
from vlm_eff.video.packets import read_with_av
from vlm_eff.video.sampling import Sampling, Spread
from vlm_eff.video.stills import is_stills, read_stills

Backend = Literal["auto", "av", "decord", "torchcodec", "pillow"]
BACKENDS = ("auto", "av", "decord", "torchcodec", "pillow")
# PyAV first: it decodes in this process and to the last frame; decord can hang, and runs in a process of its own
ORDER = ("av", "decord")


def read_video(
    path: str | Path,
    *,
    frames: int | None = None,
    fps: float | None = None,
    indices: Sequence[int] | None = None,
    spread: Spread = "middle",
    sampling: Sampling | None = None,
    folder_fps: float | None = None,
    backend: Backend = "auto",
    allow_partial: bool = False,
    timeout_s: float = 60.0,
) -> Clip:
    """Read chosen frames of a video file, of an animated GIF or WebP, or of a folder of pictures.

    All decoders give the same frames. PyAV looks over the file's packets first, so that numbers are true for files
    whose header does not tell, and jumps to key frames. decord runs in a child process that is ended on time-out,
    because it can hang on some files and then hears no signal. Rotation marks of telephones are not followed. Pictures
    of a folder are taken in the natural order of their names: 2 before 10.

    Args:
        path: the file or folder.
        frames: number of frames, spread over the video; or fps: frames a second; or indices: frame numbers from 0.
            Give exactly one of the three.
        spread: how `frames` are spread; see `Sampling`.
        sampling: instead of these four: a whole `Sampling`, such as `Sampling.named("mvbench", frames=8)`.
        folder_fps: frames a second of a folder of pictures, which do not tell; for nothing else.
        backend: "av" (PyAV), "decord", "torchcodec", "pillow" (folders, GIF and WebP), or "auto": Pillow for what is
            its own, else torchcodec where this process has loaded it already, else the first of PyAV and decord that is
            installed.
        allow_partial: for a cut or damaged file, choose among the frames that can be read; `Clip.partial` tells.
            Otherwise such a file is an error.
        timeout_s: seconds that reading may take. A decoder that hangs inside one frame is ended in decord's child
            process alone; torchcodec's calls are not limited.

    Raises:
        InputError: the file is missing, empty, no video, cut or damaged, holds fewer frames than asked, lacks a frame
            that was asked for, or takes too long.
        ConfigError: arguments that contradict each other or are out of range.
        CapabilityError: no decoder is installed, or not the one asked for.
    """
    if sampling is None:
        sampling = Sampling(frames, fps, indices, spread)
    elif (frames, fps, indices, spread) != (None, None, None, "middle"):
        got = "sampling beside frames, fps, indices or spread"
        raise ConfigError(explain(got, "one or the other", "Put all of it into the Sampling"))
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not 0 < timeout_s < float("inf"):
        raise ConfigError(explain(f"timeout_s={timeout_s!r}", "seconds above 0", "Give a longer time"))
    path = Path(path)
    _check_path(path, backend, folder_fps)
    chosen = _pick(backend, path)
    if chosen == "pillow":
        return read_stills(path, sampling, folder_fps=folder_fps, allow_partial=allow_partial, timeout_s=timeout_s)
    if chosen == "torchcodec":
        return read_with_torchcodec(path, sampling, allow_partial=allow_partial)
    read = read_with_av if chosen == "av" else read_with_decord
    return read(path, sampling, allow_partial=allow_partial, timeout_s=timeout_s)


def _check_path(path: Path, backend: str, folder_fps: float | None) -> None:
    if backend not in BACKENDS:
        raise ConfigError(explain(f"backend={backend!r}", ", ".join(map(repr, BACKENDS)), "Choose one of them"))
    if not path.exists():
        raise InputError(explain(f"{path} does not exist", "a video file, or a folder of pictures", "Check the path"))
    if path.is_dir():
        if backend not in ("auto", "pillow"):
            do = "Use backend='auto', which reads folders of pictures"
            raise InputError(explain(f"{path} is no file", f"a video file with backend={backend!r}", do))
        return
    if folder_fps is not None:
        raise ConfigError(explain(f"folder_fps for the file {path}", "it for a folder", "Leave it out: files tell"))
    if not path.is_file():
        raise InputError(explain(f"{path} is no file", "a video file, or a folder of pictures", "Give one of these"))
    if not path.stat().st_size:
        raise InputError(explain(f"{path} is empty (0 bytes)", "a video file", "Copy or download it again"))


def _pick(backend: str, path: Path) -> str:
    if backend == "pillow" or (backend == "auto" and is_stills(path)):
        return "pillow"
    if backend == "torchcodec" or (backend == "auto" and is_loaded()):
        return "torchcodec"
    wanted = ORDER if backend == "auto" else (backend,)
    for name in wanted:
        if importlib.util.find_spec(name) is not None:
            return name
    extra = "decord" if backend == "decord" else "video"
    raise CapabilityError(
        explain(f"{' and '.join(wanted)} not installed", "PyAV (av) or decord", f"Run: pip install 'vlm-eff[{extra}]'")
    )
