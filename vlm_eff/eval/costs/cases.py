"""What a bench asks: every combination of batch sizes, pictures, frames, prompt lengths and answer lengths."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image

from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.eval.subject import Row, Subject
from vlm_eff.reference.scenes import make_scene, render
from vlm_eff.video.clip import Clip

_QUESTION = "what colour is the circle ?"
_FPS = 2.0


@dataclass(frozen=True)
class Case:
    """One point of the grid.

    batch: rows; images: pictures a row; frames: of one video a row, 0 for none; image_size: pixels a side of a picture
    or frame, 0 as it is; prompt_tokens: text tokens of the question at least, 0 for one short question; new_tokens: of
    every answer
    """

    batch: int = 1
    images: int = 1
    frames: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 16
    image_size: int = 0

    def __post_init__(self) -> None:
        least = {"batch": 1, "images": 0, "frames": 0, "prompt_tokens": 0, "new_tokens": 1, "image_size": 0}
        for name, value in asdict(self).items():
            if value < least[name]:
                raise ConfigError(explain(f"{name}={value}", f"{least[name]} or more", "Give a larger number"))
        if not self.images and not self.frames:
            raise ConfigError(explain("no picture and no frame", "one of either", "Plugins here act on visual tokens"))

    def to_dict(self) -> dict[str, int]:
        """Plain dict for JSON."""
        return asdict(self)


def grid(**axes: Sequence[int]) -> list[Case]:
    """Every combination of the given values; axes are the fields of `Case`.

    Raises:
        ConfigError: an axis without values, or a value that cannot be.
    """
    for name, values in axes.items():
        if not values:
            raise ConfigError(explain(f"{name} without a number", "one or more", "Give a list such as 1,4"))
    return [Case(**dict(zip(axes, values, strict=True))) for values in itertools.product(*axes.values())]


@dataclass(frozen=True)
class Source:
    """Where pictures and words come from: the user's, or made-up scenes and a question about colours."""

    pictures: tuple[Image.Image, ...] = ()
    prompt: str = ""

    def inputs(self, subject: Subject, case: Case) -> Any:
        """Inputs of a case on the model's device; pictures in turn, each row its own.

        Raises:
            InputError: what the subject's processor cannot take.
        """
        words, shown = self._question(subject, case.prompt_tokens), self._pictures(case)
        rows = []
        for _ in range(case.batch):
            parts: list[Image.Image | Clip] = [next(shown) for _ in range(case.images)]
            frames = [next(shown) for _ in range(case.frames)]
            parts += [_clip(frames)] if frames and subject.watches else frames
            rows.append(Row(tuple(parts), words))
        if len(rows) == 1 and not case.frames:
            # prompts that hold their own placeholders, and processors without a chat template
            return subject.inputs([one for one in rows[0].shown if not isinstance(one, Clip)], words)
        return subject.batch(rows)

    def _pictures(self, case: Case) -> Iterator[Image.Image]:
        made = itertools.cycle(self.pictures) if self.pictures else (_scene(seed) for seed in itertools.count())
        side = case.image_size
        return (one.resize((side, side)) for one in made) if side else iter(made)

    def _question(self, subject: Subject, tokens: int) -> str:
        """The prompt, said again and again until the tokenizer counts enough tokens."""
        question = self.prompt or _QUESTION
        words = itertools.cycle(question.split())
        text = question
        while len(subject.processor.tokenizer(text, add_special_tokens=False)["input_ids"]) < tokens:
            text = f"{text} {next(words)}"
        return text


def _scene(seed: int) -> Image.Image:
    return render(make_scene(seed, "test"))


def _clip(frames: Sequence[Image.Image]) -> Clip:
    """Pictures as the frames of a video of two a second."""
    same = [np.asarray(frame.convert("RGB").resize(frames[0].size)) for frame in frames]
    indices = tuple(range(len(frames)))
    return Clip(np.stack(same), indices, tuple(i / _FPS for i in indices), _FPS, len(frames), len(frames), "pillow")
