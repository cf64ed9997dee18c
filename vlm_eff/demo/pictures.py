"""Pictures and questions of the demo: photographs that ship with two libraries, and easy-VQA test pictures."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from vlm_eff.core.errors import CapabilityError, explain
from vlm_eff.eval.subject import open_image
from vlm_eff.reference.easy_vqa import load_easy_vqa

_PHOTOGRAPHS = (
    ("astronaut", "is there a red object?"),
    ("coffee", "what color is the object in the middle?"),
    ("chelsea", "how many objects are there?"),
    ("rocket", "is there a circle?"),
)
_DATASET_PHOTOGRAPHS = (("china.jpg", "what color is the rectangle?"), ("flower.jpg", "what color is the object?"))


@dataclass(frozen=True)
class Question:
    """A picture, what is asked of it, and the right answer where there is one."""

    title: str
    source: str
    text: str
    truth: str | None
    image: Image.Image = field(repr=False)


def photographs() -> list[Question]:
    """Real photographs. The bundled model has never seen one: its answers mean nothing, its token counts are real.

    Raises:
        CapabilityError: scikit-image or scikit-learn is missing.
    """
    try:
        from skimage import data
        from sklearn.datasets import load_sample_image
    except ImportError as error:
        raise _missing(error) from None
    made = [
        Question(name, "photograph, scikit-image", text, None, Image.fromarray(np.asarray(getattr(data, name)())))
        for name, text in _PHOTOGRAPHS
    ]
    made += [
        Question(Path(name).stem, "photograph, scikit-learn", text, None, Image.fromarray(load_sample_image(name)))
        for name, text in _DATASET_PHOTOGRAPHS
    ]
    return made


def easy_vqa_pictures(count: int) -> list[Question]:
    """`count` questions whose answer is no yes or no, each of another test picture, spread over the test split.

    Raises:
        CapabilityError: easy-vqa is missing.
    """
    try:
        rows = load_easy_vqa("test")
    except ImportError as error:
        raise _missing(error) from None
    named = {path: (text, answer) for path, text, answer in rows if answer not in ("yes", "no")}
    paths = list(named)
    chosen = [paths[place * len(paths) // count] for place in range(count)]
    return [
        Question(f"easy-VQA {path.stem}", "easy-VQA test picture", *named[path], open_image(path)) for path in chosen
    ]


def _missing(error: ImportError) -> CapabilityError:
    return CapabilityError(
        explain(
            f"the demo's pictures are not installed ({error})",
            "an installation with the extra `reference`",
            'Run: pip install "vlm-eff[reference]"',
        )
    )
