"""Which frames of a video are read: by number, by rate or by index, under the names of the conventions in use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from vlm_eff.core.errors import ConfigError, InputError, explain

Spread = Literal["middle", "start", "ends"]
SPREADS = ("middle", "start", "ends")


@dataclass(frozen=True)
class Sampling:
    """A choice of frames. Give exactly one of `frames`, `fps`, `indices`.

    frames:  number of frames, spread evenly over the video as `spread` says
    spread:  "middle" takes the middle of each of that many equal segments; "start" their first frames, as the video
             processors of transformers do; "ends" includes the first and the last frame (`linspace`), as LLaVA does
    fps:     frames a second: the frame on display at each multiple of 1 / fps seconds
    indices: frames by number, counted from 0, in any order
    """

    frames: int | None = None
    fps: float | None = None
    indices: Sequence[int] | None = None
    spread: Spread = "middle"

    def __post_init__(self) -> None:
        given = [name for name in ("frames", "fps", "indices") if getattr(self, name) is not None]
        if len(given) != 1:
            raise _refused(f"{' and '.join(given) or 'nothing'} given", "exactly one of frames, fps and indices")
        if self.frames is not None and (not _whole(self.frames) or self.frames < 1):
            raise _refused(f"frames={self.frames!r}", "a whole number of at least 1")
        number = isinstance(self.fps, int | float) and not isinstance(self.fps, bool)
        if self.fps is not None and not (number and 0 < self.fps < float("inf")):
            raise _refused(f"fps={self.fps!r}", "a number above 0")
        if self.indices is not None and (not len(self.indices) or not all(map(_whole, self.indices))):
            raise _refused(f"indices={self.indices!r}", "one frame number or more, counted from 0")
        if self.spread not in SPREADS:
            raise _refused(f"spread={self.spread!r}", ", ".join(map(repr, SPREADS)))

    def choose(self, total: int, fps: float) -> list[int]:
        """Frame numbers for a video of `total` frames, `fps` a second.

        Raises:
            InputError: an index out of range, or more frames asked for than there are.
        """
        if self.indices is not None:
            outside = [int(index) for index in self.indices if not 0 <= index < total]
            if outside:
                accepted = f"frames 0 to {total - 1} of this video"
                raise InputError(explain(f"frame index {outside[0]}", accepted, "Choose frames that exist"))
            return [int(index) for index in self.indices]
        if self.fps is not None:
            # exact arithmetic: at a multiple of the file's own rate no frame may be taken twice or skipped
            step = Fraction(fps).limit_denominator(10**6) / Fraction(self.fps).limit_denominator(10**6)
            return [int(count * step) for count in range(-int(-total // step))]
        count = self.frames or 0
        if count > total:
            accepted = f"up to {total}, the frames this video has"
            raise InputError(explain(f"frames={count}", accepted, "Ask for fewer frames, or give fps"))
        if self.spread == "start":
            return [place * total // count for place in range(count)]
        if self.spread == "ends":
            return [place * (total - 1) // max(count - 1, 1) for place in range(count)]
        return [(2 * place + 1) * total // (2 * count) for place in range(count)]


def _whole(value: object) -> bool:
    # numpy's integers count too
    try:
        return not isinstance(value, bool) and int(value) == value  # type: ignore[call-overload,no-any-return]
    except (TypeError, ValueError):
        return False


def _refused(got: str, accepted: str) -> ConfigError:
    return ConfigError(explain(got, accepted, "Correct the arguments of read_video"))
