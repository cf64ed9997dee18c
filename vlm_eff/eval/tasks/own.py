"""Questions of one's own, in a layout that is written down here: about pictures, videos or both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vlm_eff.eval.metrics.gold import LETTERS
from vlm_eff.eval.tasks.choices import CHOICE_STYLES, bare_options, by_letter, by_text, options_text
from vlm_eff.eval.tasks.embedded import embedded_picture
from vlm_eff.eval.tasks.files import find_file, media_folder
from vlm_eff.eval.tasks.footage import video_file
from vlm_eff.eval.tasks.item import Footage, Item, Media
from vlm_eff.eval.tasks.rows import Row, rows_of
from vlm_eff.eval.tasks.source import Request, TaskSource, register
from vlm_eff.video.sampling import Sampling

_FILES = "questions.jsonl (or .json, .tsv, .csv, .parquet) with question, image or video, "


def read_own_answers(request: Request) -> Iterator[Item]:
    """Your own questions with short answers: `questions.jsonl`, one object a line.

    {"question": ..., "answer": text} or {"answers": [texts]}, with {"image": file}, {"images": [files]} or {"video":
    file, "start": s, "end": s, "fps": of a folder of frames}. Also "id" (else the place), "cluster" (else the first
    medium) and "category", the group of a breakdown. Files are names below the folder, or below its `images` and
    `videos`; in tables a picture may be base64. The metric is exact; name another with `metric`, such as "anls",
    "relaxed_accuracy", "gqa" or, with several answers, "vqa".
    """
    for place, row in enumerate(_rows(request)):
        answers = [str(one) for one in row.sequence("answers")] if row.find("answers") else [str(row.need("answer"))]
        gold = {"answer": answers[0], "answers": answers}
        yield _item(request, row, place, request.ask(row.text("question")), gold)


def read_own_choices(request: Request) -> Iterator[Item]:
    """Your own multiple choice, as `read_own_answers`, with {"options": [texts]} or columns A, B, C, ...

    "answer" is the letter, or where it is none of the letters, the text of the right option.
    """
    for place, row in enumerate(_rows(request)):
        lettered = [row.text(letter) for letter in LETTERS if row.find(letter) is not None]
        options = bare_options(row, row.sequence("options") if row.find("options") is not None else lettered)
        answer = row.text("answer")
        gold = (by_letter if answer in LETTERS[: len(options)] else by_text)(row, answer, options)
        yield _item(request, row, place, request.ask(row.text("question"), options=options_text(options)), gold)


def _rows(request: Request) -> Iterator[Row]:
    names = [f"questions{ending}" for ending in (".jsonl", ".json", ".tsv", ".csv", ".parquet")]
    yield from rows_of(find_file(request.folder, *names))


def _item(request: Request, row: Row, place: int, prompt: str, gold: Mapping[str, Any]) -> Item:
    media, first = _media(request, row)
    return Item(
        id=str(row.find("id", "index") or f"{place:05d}"),
        prompt=prompt,
        media=media,
        gold=gold,
        cluster=str(row.find("cluster") or first or f"{place:05d}"),
        groups={"category": row.text("category")} if row.find("category") else {},
    )


def _media(request: Request, row: Row) -> tuple[tuple[Media, ...], str]:
    """What is shown, and the name of the first of them where it has one."""
    video = row.find("video")
    if video is not None:
        path = video_file(media_folder(request.folder, "videos"), str(video))
        return (Footage(path, row.number("start"), row.number("end"), row.number("fps")),), str(video)
    cells = row.sequence("images") if row.find("images") is not None else [row.need("image", "images", "video")]
    folder = media_folder(request.folder, "images")
    pictures = tuple(embedded_picture(row, cell, folder) for cell in cells)
    if not pictures:
        raise row.wrong("no picture", "one picture or more, or a video")
    # the text of a picture in base64 is no name
    return pictures, cells[0] if isinstance(cells[0], str) and not isinstance(pictures[0].source, bytes) else ""


register(
    TaskSource(
        name="own-answers",
        about="Your own questions with short answers",
        files=_FILES + "answer or answers; pictures and videos beside it",
        splits=("all",),
        metric="exact_match",
        read=read_own_answers,
        sampling=Sampling.named("lmms-eval", frames=8),
    )
)
register(
    TaskSource(
        name="own-choices",
        about="Your own multiple choice",
        files=_FILES + "options, answer; pictures and videos beside it",
        splits=("all",),
        metric="multiple_choice",
        read=read_own_choices,
        styles=CHOICE_STYLES,
        sampling=Sampling.named("lmms-eval", frames=8),
    )
)
