"""Which frames of a video are read: by number, by rate or by index, under the names of the conventions in use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, Literal

from vlm_eff.core.errors import ConfigError, InputError, explain
from vlm_eff.video.conventions import CONVENTIONS, Convention

Spread = Literal[
    "middle", "start", "ends", "lmms-eval", "qwen3-vl", "transformers", "vlmevalkit", "mvbench", "longvideobench"
]
OnShort = Literal["error", "repeat", "all"]
ON_SHORT = ("error", "repeat", "all")


@dataclass(frozen=True)
class Sampling:
    """A choice of frames. Give exactly one of `frames`, `fps`, `indices`; or `named`, which knows what is usual.

    frames:     number of frames, spread evenly over the video as `spread` says
    spread:     "middle" takes the middle of each of that many equal segments; "start" their first frames; "ends"
                includes the first and the last frame; or the name of a convention in use, see `CONVENTIONS`
    fps:        frames a second: the frame on display at each multiple of 1 / fps seconds. In the conventions
                "qwen3-vl" and "transformers" it gives the number of frames, which are then spread
    indices:    frames by number, counted from 0, in any order
    start, end: seconds of the part of the video to choose from, both ends included; None is the whole video
    min_frames, max_frames: limits of the number that `fps` gives ("qwen3-vl", "transformers"). "longvideobench" takes
                `max_frames` alone: that many, but no more than the part has whole seconds
    on_short:   what is done for a part with fewer frames than asked: "error", "repeat" frames, or "all" there are;
                None is what the convention does
    """

    frames: int | None = None
    fps: float | None = None
    indices: Sequence[int] | None = None
    spread: Spread = "middle"
    start: float | None = None
    end: float | None = None
    min_frames: int | None = None
    max_frames: int | None = None
    on_short: OnShort | None = None

    @classmethod
    def named(cls, name: Spread, **given: Any) -> Sampling:
        """A convention with the defaults of its official code, as far as nothing else is given.

        `named("qwen3-vl")` is 2 frames a second, 4 to 768; `named("mvbench", frames=8, start=3.5, end=9)`.
        """
        usual = _convention(name)
        if usual.by_rate and not {"frames", "indices"} & set(given):
            known = {name: getattr(usual, name) for name in ("fps", "min_frames", "max_frames")}
            given = {name: value for name, value in known.items() if value is not None} | given
        return cls(spread=name, **given)

    def __post_init__(self) -> None:
        usual = _convention(self.spread)
        given = [name for name in ("frames", "fps", "indices") if getattr(self, name) is not None]
        if len(given) != 1 and not (usual.seconds and not given and self.max_frames is not None):
            raise _refused(f"{' and '.join(given) or 'nothing'} given", "exactly one of frames, fps and indices")
        for name in ("frames", "min_frames", "max_frames"):
            value = getattr(self, name)
            if value is not None and (not _whole(value) or value < 1):
                raise _refused(f"{name}={value!r}", "a whole number of at least 1")
        if self.fps is not None and not (_number(self.fps) and self.fps > 0):
            raise _refused(f"fps={self.fps!r}", "a number above 0")
        if self.indices is not None and (not len(self.indices) or not all(map(_whole, self.indices))):
            raise _refused(f"indices={self.indices!r}", "one frame number or more, counted from 0")
        if self.on_short not in (None, *ON_SHORT):
            raise _refused(f"on_short={self.on_short!r}", ", ".join(map(repr, ON_SHORT)))
        self._check_limits(usual)
        self._check_part()

    def _check_limits(self, usual: Convention) -> None:
        ours = self.spread in ("middle", "start", "ends")
        if self.fps is not None and not (usual.by_rate or ours):
            raise _refused(f"fps with {self.spread!r}", "frames, which is what this convention is given")
        limited = usual.by_rate and self.fps is not None
        if self.min_frames is not None and not limited:
            raise _refused("min_frames", "it beside fps with 'qwen3-vl' or 'transformers'")
        if self.max_frames is not None and not limited and not (usual.seconds and self.frames is None):
            raise _refused("max_frames", "it beside fps with 'qwen3-vl' or 'transformers', or for 'longvideobench'")
        if (self.min_frames or 1) > (self.max_frames or float("inf")):
            raise _refused(f"min_frames={self.min_frames} above max_frames={self.max_frames}", "limits in order")

    def _check_part(self) -> None:
        for name in ("start", "end"):
            value = getattr(self, name)
            if value is not None and not (_number(value) and value >= 0):
                raise _refused(f"{name}={value!r}", "seconds from the first frame, at least 0")
            if value is not None and self.indices is not None:
                raise _refused(f"{name} beside indices", "indices alone: they name frames of the whole video")
        if self.start is not None and self.end is not None and self.start > self.end:
            raise _refused(f"start={self.start:g} after end={self.end:g}", "a part that begins before it ends")

    @property
    def name(self) -> str:
        """The convention; "indices" and "fps" where that alone decides."""
        if self.indices is not None:
            return "indices"
        return "fps" if self.fps is not None and not CONVENTIONS[self.spread].by_rate else self.spread

    def to_dict(self) -> dict[str, Any]:
        """The name and every parameter that was given; JSON."""
        given = {name: value for name, value in asdict(self).items() if value is not None and name != "spread"}
        if self.indices is not None:
            given["indices"] = [int(index) for index in self.indices]
        elif self.name != "fps":
            given["on_short"] = self._short
        return {"convention": self.name} | given

    def choose(self, total: int, fps: float) -> list[int]:
        """Frame numbers for a video of `total` frames, `fps` a second.

        Raises:
            InputError: an index out of range, a part without frames, or more frames asked for than there are.
        """
        if self.indices is not None:
            outside = [int(index) for index in self.indices if not 0 <= index < total]
            if outside:
                accepted = f"frames 0 to {total - 1} of this video"
                raise InputError(explain(f"frame index {outside[0]}", accepted, "Choose frames that exist"))
            return [int(index) for index in self.indices]
        first, last = self._part(total, fps)
        return [first + place for place in self._places(last - first + 1, fps)]

    @property
    def _short(self) -> str:
        return self.on_short or CONVENTIONS[self.spread].on_short

    def _part(self, total: int, fps: float) -> tuple[int, int]:
        """First and last frame of the part; an end after the video's is the video's."""
        first = 0 if self.start is None else round(self.start * fps)
        last = total - 1 if self.end is None else min(round(self.end * fps), total - 1)
        if first > last:
            got = f"a part from {self.start:g} s of a video of {total / fps:.2f} s"
            raise InputError(explain(got, "a part that begins before the video ends", "Check the times and the file"))
        return first, last

    def _places(self, total: int, fps: float) -> list[int]:
        if self.name == "fps" and self.fps is not None:
            # exact arithmetic: at a multiple of the file's own rate no frame may be taken twice or skipped
            step = Fraction(fps).limit_denominator(10**6) / Fraction(self.fps).limit_denominator(10**6)
            return [int(count * step) for count in range(-int(-total // step))]
        count = self._count(total, fps)
        if count > total:
            if self._short == "error":
                got = f"frames={count}" if self.frames else f"{count} frames at fps={self.fps}"
                accepted = f"up to {total}, the frames this video has"
                do = "Ask for fewer frames, or give fps or on_short"
                raise InputError(explain(got, accepted, do))
            if self._short == "all":
                return list(range(total))
        return CONVENTIONS[self.spread].spread(total, count)

    def _count(self, total: int, fps: float) -> int:
        if self.frames is not None:
            return int(self.frames)
        if self.fps is not None:
            count = max(int(total / fps * self.fps), self.min_frames or 1)
            return min(count, self.max_frames or count)
        return max(1, min(self.max_frames or 1, int(total / fps)))


def _convention(name: str) -> Convention:
    if name not in CONVENTIONS:
        raise _refused(f"spread={name!r}", ", ".join(map(repr, CONVENTIONS)))
    return CONVENTIONS[name]


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def _whole(value: object) -> bool:
    # numpy's integers count too
    try:
        return not isinstance(value, bool) and int(value) == value  # type: ignore[call-overload,no-any-return]
    except (TypeError, ValueError):
        return False


def _refused(got: str, accepted: str) -> ConfigError:
    return ConfigError(explain(got, accepted, "Correct the arguments of read_video or Sampling"))
