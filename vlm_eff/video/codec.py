"""Reading with torchcodec: the fastest decoder, where the system has FFmpeg's shared libraries."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from vlm_eff.core.errors import CapabilityError, explain
from vlm_eff.video.broken import damaged, no_video
from vlm_eff.video.clip import Clip
from vlm_eff.video.packets import promised
from vlm_eff.video.sampling import Sampling


def is_loaded() -> bool:
    """Whether this process has torchcodec already, and FFmpeg with it; nothing is imported."""
    found = sys.modules.get("torchcodec")
    return getattr(found, "ffmpeg_major_version", None) is not None


def read_with_torchcodec(path: Path, sampling: Sampling, *, allow_partial: bool) -> Clip:
    """Read chosen frames with torchcodec, its seek mode "exact"; see `read_video`.

    The other mode gives other frames on some files. A call cannot be limited in time. Like decord it does not notice a
    cut mkv file; of a cut mp4 file whose index stands in front, the last frame read with `allow_partial` may be broken.

    Raises:
        CapabilityError: torchcodec is missing or finds no FFmpeg, or the video has a rotation mark, which torchcodec
            follows and the other decoders do not.
    """
    decoder = _open(path)
    about = decoder.metadata
    if about.rotation:
        got = f"{path} with a rotation mark of {about.rotation:g} degrees, which torchcodec follows"
        raise CapabilityError(explain(got, "videos without one", "Use backend='av', which gives the stored frames"))
    fps = float(about.average_fps or 25.0)
    total = int(about.num_frames_from_content or 0)
    if not total:
        raise no_video(path, "it holds no frame")
    reach = float(about.end_stream_seconds_from_content) - float(about.begin_stream_seconds_from_content)
    header = promised(float(about.duration_seconds_from_header or 0), reach, fps)
    expected = max(total, int(about.num_frames_from_header or 0), header)
    if expected > total:
        total = _readable(path, decoder, total, expected, allow_partial, "")
    indices = sampling.choose(total, fps)
    try:
        made = decoder.get_frames_at(indices)
    except (RuntimeError, IndexError) as error:
        expected = max(expected, total + 1)
        total = _readable(path, decoder, total, expected, allow_partial, _first_line(error))
        indices = sampling.choose(total, fps)
        made = decoder.get_frames_at(indices)
    begin = float(about.begin_stream_seconds_from_content)
    seconds = tuple(float(second) - begin for second in made.pts_seconds)
    return Clip(made.data.numpy(), tuple(indices), seconds, fps, total, expected, "torchcodec")


def _open(path: Path) -> Any:
    try:
        from torchcodec.decoders import VideoDecoder
    except ImportError as error:
        raise _missing(f"torchcodec is not installed ({_first_line(error)})", "pip install torchcodec") from None
    except (RuntimeError, OSError) as error:
        # some versions look for FFmpeg as soon as they are imported
        raise _missing(f"torchcodec cannot be loaded ({_first_line(error)})", "install FFmpeg with apt") from None
    try:
        return VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
    except (RuntimeError, ValueError) as error:
        if "libtorchcodec" in str(error):
            got = "torchcodec finds no FFmpeg it can use: libavcodec and its kin, version 4 to 9, as shared libraries"
            raise _missing(got, "install FFmpeg, as with `apt install ffmpeg`") from None
        raise no_video(path, _first_line(error)) from None


def _missing(got: str, do: str) -> CapabilityError:
    return CapabilityError(explain(got, "torchcodec beside FFmpeg of the system", f"Use backend='av', or {do}"))


def _readable(path: Path, decoder: Any, total: int, expected: int, allow_partial: bool, why: str) -> int:
    """Frames from the start up to the first that fails; an error unless that was allowed."""
    if not allow_partial:
        raise damaged(path, total, expected, why)
    for number in range(total):
        try:
            decoder.get_frame_at(number)
        except (RuntimeError, IndexError) as error:
            if not number:
                raise damaged(path, 0, expected, _first_line(error)) from None
            return number
    return total


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".")
