"""One question with what it is about, and a named set of them."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlm_eff.core.errors import InputError, explain
from vlm_eff.eval.subject import open_image
from vlm_eff.video.sampling import Sampling


@dataclass(frozen=True)
class Picture:
    """An image: a file, the bytes of one, or pixels in memory. Nothing is read before `open`.

    scale: of both sides when it is opened, for the baseline that shows a smaller picture
    """

    source: Path | bytes | Image.Image = field(repr=False)
    scale: float = 1.0

    def open(self) -> Image.Image:
        """The picture as RGB.

        Raises:
            InputError: missing, no picture, or damaged.
        """
        if isinstance(self.source, Path):
            made = open_image(self.source)
        elif isinstance(self.source, bytes):
            made = _decoded(self.source)
        else:
            made = self.source.convert("RGB")
        return scaled(made, self.scale)


@dataclass(frozen=True)
class Footage:
    """A video: a file, an animated picture, or a folder of frames in the order of their names.

    start, end: seconds of the part that is asked about; None is the beginning and the end
    fps:        frames a second, for a folder, which does not tell
    scale:      of both sides of its frames
    """

    path: Path
    start: float | None = None
    end: float | None = None
    fps: float | None = None
    scale: float = 1.0


Media = Picture | Footage


@dataclass(frozen=True)
class Item:
    """One question.

    id:      unique in its task, the benchmark's own id where it has one
    prompt:  what is put to the model: question, options and instruction, without placeholders of media
    media:   pictures and videos in the order in which they are shown; none for a question about text alone
    gold:    what the metric compares with, in its own keys (see the metric); JSON; empty where it is not public
    cluster: the picture or video it belongs to: items of one cluster are not independent
    groups:  by name of the breakdown, the part this item belongs to, such as {"question_type": "how many"}
    """

    id: str
    prompt: str
    media: tuple[Media, ...]
    gold: Mapping[str, Any]
    cluster: str = ""
    groups: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A set of questions, how they are asked, and the metric that scores the answers.

    version:        of the questions and of the way they are asked; runs of different versions are not compared
    metric:         name in `vlm_eff.eval.metrics`
    max_new_tokens: longest answer
    sampling:       which frames of a video are shown; None where there are no videos
    whole:          the metric needs all items of a cluster together: no limit cuts through one
    """

    name: str
    version: str
    metric: str
    items: tuple[Item, ...]
    max_new_tokens: int = 16
    sampling: Sampling | None = None
    whole: bool = False

    def __post_init__(self) -> None:
        ids = [item.id for item in self.items]
        if not ids:
            raise InputError(explain(f"task {self.name} without items", "one item or more", "Check the files read"))
        if len(set(ids)) < len(ids):
            twice = next(one for one in ids if ids.count(one) > 1)
            raise InputError(explain(f"item {twice!r} twice in {self.name}", "unique ids", "Correct the reader"))

    @cached_property
    def scored(self) -> bool:
        """The gold answers are there; the answers to a test split whose gold is not public can only be submitted."""
        return all(item.gold for item in self.items)

    def check_gold(self) -> None:
        """Raise `InputError` where some items have gold answers and others have none."""
        bare = [item.id for item in self.items if not item.gold]
        if bare and len(bare) < len(self.items):
            got = f"{len(bare)} of {len(self.items)} items of {self.name} have no gold answer, the first is {bare[0]!r}"
            raise InputError(explain(got, "gold for all items, or for none", "Check the annotation file"))

    def require_gold(self) -> None:
        """Raise `InputError` where answers cannot be scored."""
        self.check_gold()
        if not self.scored:
            got = f"{self.name} ({self.version}) without gold answers: they are not public"
            raise InputError(explain(got, "a split with gold answers", "Choose another split, or write a submission"))

    @cached_property
    def digest(self) -> str:
        """What stands for ids, prompts and gold answers of all items, in their order."""
        text = json.dumps([[item.id, item.prompt, item.gold] for item in self.items], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _decoded(data: bytes) -> Image.Image:
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return picture.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        problem = f"{len(data)} bytes that are no picture ({str(error).splitlines()[0][:80]})"
    raise InputError(explain(problem, "a PNG, JPEG, WebP or other file that Pillow reads", "Check the data set"))


def scaled(picture: Image.Image, scale: float) -> Image.Image:
    """A picture with both sides so many times as long."""
    if scale == 1:
        return picture
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def pixels_digest(image: Image.Image | np.ndarray) -> str:
    """What stands for the pixels of a picture or of frames in a run's lines."""
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()[:16]
