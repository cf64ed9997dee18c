"""Our moving shapes: short generated clips whose questions no single frame answers; made when they are first read."""

from __future__ import annotations

from collections.abc import Iterator

from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.eval.metrics.gold import LETTERS
from vlm_eff.eval.tasks.choices import CHOICE_STYLES, options_text
from vlm_eff.eval.tasks.item import Footage, Item
from vlm_eff.eval.tasks.source import NO_FOLDER, Request, TaskSource, register
from vlm_eff.video.sampling import Sampling


def read_moving_shapes(request: Request, clips: int = 192, first: int = 0) -> Iterator[Item]:
    """Our clips: which way an object moves, which comes next, how many different ones appear, what changes.

    In 192 clips in a row every answer and every letter of a family is right equally often. The folder is where the
    clips are written; those that are there already are used again. Without one it is a cache folder of the user.

    clips: how many; first: number of the first
    """
    for name, value, least in (("clips", clips, 1), ("first", first, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(explain(f"{name}={value!r}", f"a whole number of at least {least}", "Change it"))
    from vlm_eff.reference.moving import FPS, clip_folder, default_folder, make_clip

    folder = default_folder() if request.folder == NO_FOLDER else request.folder
    for number in range(first, first + clips):
        clip = make_clip(number, request.split)
        home = f"{request.split}-{number:05d}"
        footage = Footage(clip_folder(clip, folder), fps=FPS)
        for place, question in enumerate(clip.questions):
            yield Item(
                id=f"{home}-{clip.family}-{place}",
                prompt=request.ask(question.text, options=options_text(question.options)),
                media=(footage,),
                gold={"answer": LETTERS[question.right], "options": list(question.options)},
                cluster=home,
                groups={"family": clip.family},
            )


register(
    TaskSource(
        name="moving-shapes",
        about="Our generated clips: direction, order, counting, what changes; no folder needed (it is a cache)",
        files="",
        splits=("test", "validation", "train"),
        metric="multiple_choice",
        read=read_moving_shapes,
        styles=CHOICE_STYLES,
        # eight of sixteen frames: each object that comes and goes is seen every time
        sampling=Sampling(frames=8),
    )
)
