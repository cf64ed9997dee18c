"""Tasks that need no download: easy-VQA and our held-out scenes, asked as the bundled model was evaluated."""

from __future__ import annotations

from collections.abc import Iterator

from vlm_eff.core.errors import CapabilityError, ConfigError, explain
from vlm_eff.eval.tasks.item import Item, Picture
from vlm_eff.eval.tasks.source import Request, TaskSource, register

# the question alone: the bundled model was trained so, and its chat template adds the rest
_PLAIN = {"plain": "{question}"}
# as the bundled model was evaluated; every answer is one or two words
_LONGEST = 4


def read_easy_vqa(request: Request) -> Iterator[Item]:
    """easy-VQA 1.0 (package `easy-vqa`, Victor Zhou): shapes and colours, one gold answer, compared exactly."""
    from vlm_eff.reference.easy_vqa import family_of, load_easy_vqa

    try:
        rows = load_easy_vqa(request.split)
    except ImportError:
        do = 'Run: pip install "vlm-eff[reference]"'
        raise CapabilityError(explain("the package easy-vqa is not installed", "easy-vqa 1.0", do)) from None
    for place, (path, question, answer) in enumerate(rows):
        yield Item(
            id=f"{request.split}-{place:05d}",
            prompt=request.ask(question),
            media=(Picture(path),),
            gold={"answer": answer},
            cluster=path.stem,
            groups={"family": family_of(answer)},
        )


def read_scenes(request: Request, scenes: int = 500, first: int = 0, seed: int = 0) -> Iterator[Item]:
    """Our scenes: one question of every family that a scene allows, none of which was drawn for training.

    scenes: how many; first: number of the first; seed: which of a scene's questions are asked
    """
    for name, value, least in (("scenes", scenes, 1), ("first", first, 0), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(explain(f"{name}={value!r}", f"a whole number of at least {least}", "Change it"))
    from vlm_eff.reference.evaluate import scene_samples

    for number in range(first, first + scenes):
        for sample in scene_samples(request.split, 1, number, seed):
            question = sample.question
            yield Item(
                id=f"{request.split}-{number:05d}-{question.family}",
                prompt=request.ask(question.text),
                media=(Picture(sample.image),),
                gold={"answer": question.answer},
                cluster=f"{request.split}-{number:05d}",
                groups={"family": question.family},
            )


register(
    TaskSource(
        name="easy-vqa",
        about="Shape and colour of one drawn shape, third-party pictures (easy-VQA 1.0); no folder needed",
        files="",
        splits=("test", "train"),
        metric="exact_match",
        read=read_easy_vqa,
        styles=_PLAIN,
        max_new_tokens=_LONGEST,
    )
)
register(
    TaskSource(
        name="scenes",
        about="Our held-out scenes: nine families of questions about drawn things and words; no folder needed",
        files="",
        splits=("test", "validation"),
        metric="exact_match",
        read=read_scenes,
        styles=_PLAIN,
        max_new_tokens=_LONGEST,
    )
)
