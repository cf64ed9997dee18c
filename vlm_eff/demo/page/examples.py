"""Pictures and questions that the page offers, drawn and copied into its own folder."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from vlm_eff.core.files import png, write_file
from vlm_eff.demo.tour.pictures import photographs, scene_pictures

_SCENES = 4


@dataclass(frozen=True)
class Example:
    """A picture file with a question about it."""

    title: str
    path: Path
    prompt: str


def write_examples(folder: Path) -> list[Example]:
    """Write the pictures into `folder`: held-out scenes, and photographs where scikit-image is installed."""
    shown = scene_pictures(_SCENES)
    if importlib.util.find_spec("skimage") is not None and importlib.util.find_spec("sklearn") is not None:
        shown += photographs()
    made = []
    for number, one in enumerate(shown):
        path = write_file(folder / f"example-{number}.png", png(one.image))
        made.append(Example(f"{one.title}: {one.text}", path, one.text))
    return made
