"""The frames of an item's video, and what a run's line says of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.eval.tasks.item import Footage, pixels_digest, scaled
from vlm_eff.video import Clip, Sampling, read_video
from vlm_eff.video.reader import Backend


def read_footage(
    footage: Footage,
    sampling: Sampling | None,
    *,
    backend: Backend = "auto",
    allow_partial: bool = False,
    timeout_s: float = 60.0,
) -> tuple[Clip, dict[str, Any]]:
    """Read the frames of a video that the sampling chooses within the footage's part, at the footage's scale.

    The second value is for `Sample.media`: {"video", "digest", "convention", "indices", "partial", "backend"}.

    Raises:
        InputError: the video is missing, empty, cut, damaged, too short, or takes too long.
        ConfigError: a task that does not say which frames are shown, and whatever is wrong with how it says so.
        CapabilityError: no decoder is installed, or not the one asked for.
    """
    if sampling is None:
        got = f"the video {footage.path.name} in a task without sampling"
        raise ConfigError(explain(got, "a task that says which frames are shown", "Give Task.sampling"))
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
    if footage.scale != 1:
        smaller = [np.asarray(scaled(Image.fromarray(frame), footage.scale)) for frame in clip.frames]
        clip = replace(clip, frames=np.stack(smaller))
    entry = {
        "video": footage.path.name,
        "digest": pixels_digest(clip.frames),
        "convention": sampling.name,
        "indices": list(clip.indices),
        "partial": clip.partial,
        "backend": clip.backend,
    }
    return clip, entry
