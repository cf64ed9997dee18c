"""Reading with PyAV: packets are looked over first, then only what is wanted is decoded."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vlm_eff.video.broken import Deadline, damaged, no_video
from vlm_eff.video.clip import Clip
from vlm_eff.video.sampling import Sampling

# a file that ends this much earlier than its header says is cut; less is the rounding of durations
_SLACK_S, _SLACK = 0.5, 0.02


@dataclass(frozen=True)
class PacketIndex:
    """What is known of a file without decoding it.

    times: presentation time of each frame, ascending, in units of `unit` seconds; None where packets do not tell
    keys:  frame numbers at which decoding can begin
    """

    total: int
    expected: int
    fps: float
    times: tuple[int, ...] | None
    keys: tuple[int, ...]
    unit: float

    def seconds(self, index: int) -> float:
        """Seconds from the first frame to frame `index`."""
        if self.times is None:
            return index / self.fps
        return (self.times[index] - self.times[0]) * self.unit


def read_with_av(path: Path, sampling: Sampling, *, allow_partial: bool, timeout_s: float) -> Clip:
    """Read chosen frames with PyAV; see `read_video`."""
    deadline = Deadline(path, timeout_s)
    index = look_over(path, deadline)
    whole = index.total == index.expected
    if not whole:
        index = _before_the_damage(path, index, deadline, allow_partial)
    indices = sampling.choose(index.total, index.fps)
    found, why = decode(path, index, indices, deadline, jump=True)
    if not set(indices) <= set(found):
        # a jump that lands too late loses frames; reading from the start does not
        found, why = decode(path, index, indices, deadline, jump=False)
    if not set(indices) <= set(found):
        index = _before_the_damage(path, index, deadline, allow_partial, why)
        indices = sampling.choose(index.total, index.fps)
        found, why = decode(path, index, indices, deadline, jump=False)
        if not set(indices) <= set(found):
            raise damaged(path, len(found), index.expected, why)
    return Clip(
        frames=np.stack([found[number] for number in indices]),
        indices=tuple(indices),
        timestamps=tuple(index.seconds(number) for number in indices),
        fps=index.fps,
        total=index.total,
        expected=index.expected,
        backend="av",
    )


def look_over(path: Path, deadline: Deadline) -> PacketIndex:
    """Go through the packets of the first video stream (10 to 25 ms for some hundred frames; nothing is decoded).

    Raises:
        InputError: no video in it, or no frame.
    """
    times: list[int | None] = []
    keys: list[int | None] = []
    with _open(path) as (container, stream):
        try:
            for packet in container.demux(stream):
                deadline.check()
                if packet.size and not packet.is_discard:
                    times.append(packet.pts)
                    if packet.is_keyframe:
                        keys.append(packet.pts)
        except _library().FFmpegError:
            # the file ends inside a packet: the header's count below tells that something is missing
            pass
        if not times:
            raise no_video(path, "it holds no frame")
        fps = float(stream.average_rate or stream.guessed_rate or 0) or 25.0
        unit = float(stream.time_base or 0)
        known = sorted(time for time in times if time is not None)
        told = len(set(known)) == len(times) and unit > 0
        reach = (known[-1] - known[0]) * unit + 1 / fps if told else len(times) / fps
        expected = max(int(stream.frames), len(times), _by_duration(container, stream, reach, fps))
    places = {time: place for place, time in enumerate(known)} if told else {}
    begins = tuple(sorted(places[key] for key in keys)) if told else ()  # type: ignore[index]
    return PacketIndex(len(times), expected, fps, tuple(known) if told else None, begins, unit)


def _by_duration(container: Any, stream: Any, reach: float, fps: float) -> int:
    """Frames that the header's duration promises, or 0 where it agrees with the packets or does not tell."""
    if stream.duration is not None and stream.time_base:
        seconds = float(stream.duration * stream.time_base)
    elif container.duration is not None and len(container.streams) == 1:
        # microseconds; with a second stream it may be that one's duration
        seconds = container.duration / 1e6
    else:
        return 0
    return promised(seconds, reach, fps)


def promised(seconds: float, reach: float, fps: float) -> int:
    """Frames that a header's duration promises, or 0 where that is what the packets reach, but for rounding."""
    return round(seconds * fps) if seconds > reach * (1 + _SLACK) + _SLACK_S else 0


def decode(
    path: Path, index: PacketIndex, wanted: list[int], deadline: Deadline, *, jump: bool
) -> tuple[dict[int, np.ndarray], str]:
    """The wanted frames as far as they can be decoded, by number, and what went wrong.

    jump: go to the key frame before a wanted frame when there is one between it and the frame decoded last
    """
    todo, found = sorted(set(wanted)), {}
    with _open(path) as (container, stream):
        stream.thread_type = "AUTO"
        source, last, place, sought = container.decode(stream), -1, 0, -1
        try:
            while place < len(todo):
                deadline.check()
                key = _key_between(index, last, todo[place]) if jump else None
                # a jump may land before its key frame: the same one again would land there for ever
                if key is not None and key > sought:
                    container.seek(index.times[key], stream=stream)  # type: ignore[index]
                    source, last, sought = container.decode(stream), key - 1, key
                frame = next(source)
                last = _number(index, frame, last)
                while place < len(todo) and todo[place] < last:
                    place += 1
                if place < len(todo) and todo[place] == last:
                    found[last] = frame.to_ndarray(format="rgb24")
                    place += 1
        except StopIteration:
            return found, "it ends early"
        except _library().FFmpegError as error:
            return found, error.strerror or type(error).__name__
    return found, ""


def _key_between(index: PacketIndex, last: int, wanted: int) -> int | None:
    place = bisect.bisect_right(index.keys, wanted)
    key = index.keys[place - 1] if place and index.times is not None else -1
    return key if key > last + 1 else None


def _number(index: PacketIndex, frame: Any, last: int) -> int:
    """Number of a decoded frame by its time; by counting where the file does not tell times."""
    if index.times is None or frame.pts is None:
        return last + 1
    return bisect.bisect_right(index.times, frame.pts) - 1


def _before_the_damage(
    path: Path, index: PacketIndex, deadline: Deadline, allow_partial: bool, why: str = ""
) -> PacketIndex:
    """The index cut off where decoding fails first; an error unless that was allowed."""
    if not allow_partial:
        raise damaged(path, index.total, index.expected, why)
    readable = 0
    with _open(path) as (container, stream):
        stream.thread_type = "AUTO"
        try:
            for frame in container.decode(stream):
                deadline.check()
                if frame.is_corrupt:
                    break
                readable += 1
        except _library().FFmpegError:
            pass
    if not readable:
        raise damaged(path, 0, index.expected, why or "nothing can be decoded")
    cut = min(readable, index.total)
    times = None if index.times is None else index.times[:cut]
    # what the packets promised counts as expected, so that the clip says it is partial
    return replace(index, total=cut, expected=max(index.expected, index.total, cut + 1), times=times)


class _open:
    """An open container and its first video stream; what cannot be opened is an `InputError`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> tuple[Any, Any]:
        av = _library()
        try:
            self._container = av.open(str(self._path))
        except (av.FFmpegError, ValueError) as error:
            raise no_video(self._path, str(getattr(error, "strerror", None) or error)) from None
        reason = self._refused()
        if reason:
            self._container.close()
            raise no_video(self._path, reason)
        return self._container, self._container.streams.video[0]

    def _refused(self) -> str:
        name = self._container.format.name
        if name == "tty" or "pipe" in name or name == "image2":
            # FFmpeg reads text as terminal art, and a picture as a video of one frame
            return f"FFmpeg takes it for {'text' if name == 'tty' else 'a picture'}"
        if not self._container.streams.video:
            return "there is no video stream in it"
        return ""

    def __exit__(self, *error: object) -> None:
        self._container.close()


def _library() -> Any:
    import av

    return av
