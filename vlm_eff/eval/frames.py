"""The frames of an item's video, and what a run's line says of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from vlm_eff.eval.tasks.item import Footage, pixels_digest
from vlm_eff.video import Clip, Sampling, read_video
from vlm_eff.video.reader import Backend


@dataclass(frozen=True)
class Shown:
    """What is put before a model, read once and kept by nobody else.

    clip:  frames and their times; `clip.metadata()` goes to the processor beside them
    entry: for `Sample.media`: {"video", "digest", "convention", "indices", "partial", "backend"}
    """

    clip: Clip
    entry: dict[str, Any] = field(repr=False)

    @property
    def frames(self) -> np.ndarray:
        """[T, H, W, 3] uint8, RGB."""
        return self.clip.frames


def show(
    footage: Footage,
    sampling: Sampling,
    *,
    backend: Backend = "auto",
    allow_partial: bool = False,
    timeout_s: float = 60.0,
) -> Shown:
    """Read the frames of a video that the sampling chooses within the footage's part.

    Raises:
        InputError: the video is missing, empty, cut, damaged, too short, or takes too long. What is wrong with the task
            or the installation is a `ConfigError` or a `CapabilityError`, as in `read_video`.
    """
    if footage.start is not None or footage.end is not None:
        sampling = replace(sampling, start=footage.start, end=footage.end)
    clip = read_video(
        footage.path,
        sampling=sampling,
        folder_fps=footage.fps,
        backend=backend,
        allow_partial=allow_partial,
        timeout_s=timeout_s,
    )
    entry = {
        "video": footage.path.name,
        "digest": pixels_digest(clip.frames),
        "convention": sampling.name,
        "indices": list(clip.indices),
        "partial": clip.partial,
        "backend": clip.backend,
    }
    return Shown(clip, entry)
