"""The easy-VQA data set: 5,000 third-party pictures of one shape each, with 48,248 questions."""

from __future__ import annotations

from pathlib import Path

SPLITS = ("train", "test")
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")


def load_easy_vqa(split: str) -> list[tuple[Path, str, str]]:
    """Return (picture path, question, answer) for every question of a split, in the order of the package.

    Raises:
        ImportError: the package `easy-vqa` is missing.
        ValueError: the split is neither "train" nor "test".
    """
    if split not in SPLITS:
        raise ValueError(f"got split {split!r}; accepted are {', '.join(SPLITS)}; use one of them")
    try:
        import easy_vqa
    except ImportError as error:
        raise ImportError(
            "got no package `easy_vqa`; the easy-VQA pictures come with it (easy-vqa 1.0); "
            'run: pip install "vlm_eff[reference]"'
        ) from error
    if split == "train":
        texts, answers, images = easy_vqa.get_train_questions()
        paths = easy_vqa.get_train_image_paths()
    else:
        texts, answers, images = easy_vqa.get_test_questions()
        paths = easy_vqa.get_test_image_paths()
    return [(Path(paths[image]), text, answer) for text, answer, image in zip(texts, answers, images, strict=True)]


def family_of(answer: str) -> str:
    """Return the family that an easy-VQA question is reported under, told by its answer."""
    if answer in ("yes", "no"):
        return "easy_vqa_yes_no"
    return "easy_vqa_shape" if answer in SHAPES else "easy_vqa_colour"
