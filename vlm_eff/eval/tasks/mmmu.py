"""MMMU: college questions about one picture or several, multiple choice or open."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from vlm_eff.eval.tasks.choices import CHOICE_STYLES, bare_options, by_letter, options_text
from vlm_eff.eval.tasks.embedded import SharedPictures, embedded_picture
from vlm_eff.eval.tasks.files import find_files
from vlm_eff.eval.tasks.item import Item, Picture
from vlm_eff.eval.tasks.rows import Row, rows_of
from vlm_eff.eval.tasks.source import SHORT_STYLES, Request, TaskSource, register

_MOST_PICTURES = 7
_MARK = re.compile(r"<image (\d)>")


def read_mmmu(request: Request) -> Iterator[Item]:
    """MMMU (arXiv:2311.16502): a parquet file a subject, `SUBJECT/validation-00000-of-00001.parquet`, or one TSV.

    The TSV is VLMEvalKit's `MMMU_DEV_VAL.tsv` with base64 and the column `split`; its open questions have no options
    and keep their answer as text. Pictures are shown first, in the order of their numbers: "<image 2>" in the text
    becomes "image 2". Open questions are asked for a short answer instead of a letter.
    """
    parquet = (f"*/{request.split}-*.parquet", f"data/*{request.split}*.parquet", f"{request.split}*.parquet")
    for path in find_files(request.folder, *parquet, "MMMU*.tsv"):
        if path.suffix == ".tsv":
            yield from _tsv_items(request, list(rows_of(path)))
        else:
            for row in rows_of(path):
                yield _item(request, row, row.text("id"), _pictures(request, row))


def _pictures(request: Request, row: Row) -> tuple[Picture, ...]:
    cells = [row.find(f"image_{number}") for number in range(1, _MOST_PICTURES + 1)]
    found = tuple(embedded_picture(row, cell, request.folder) for cell in cells if cell is not None)
    if not found:
        raise row.wrong("no picture in image_1 to image_7", "one picture or more")
    return found


def _tsv_items(request: Request, rows: list[Row]) -> Iterator[Item]:
    shared = SharedPictures(rows, request.folder)
    for row in rows:
        # a file of one split may lack the column
        if row.find("split") in (None, request.split, {"validation": "val"}.get(request.split)):
            yield _item(request, row, row.text("id", "index"), shared.of(row)[1])


def _item(request: Request, row: Row, name: str, pictures: tuple[Picture, ...]) -> Item:
    options = _options(row)
    question = _MARK.sub(r"image \1", row.text("question"))
    hint = row.find("hint")
    question = f"{hint}\n{question}" if hint else question
    if options:
        prompt = request.ask(question, options=options_text(options))
    else:
        prompt = SHORT_STYLES["short" if request.style == "letter" else "plain"].format(question=question)
    kind = "multiple-choice" if options else "open"
    return Item(
        id=name,
        prompt=prompt,
        media=pictures,
        gold=_gold(request, row, options),
        cluster=name,
        groups={"subject": _subject(row, name), "question_type": kind},
    )


def _options(row: Row) -> list[str]:
    lettered = [row.text(letter) for letter in "ABCDEFGHI" if row.find(letter) is not None]
    found: list[Any] = row.sequence("options") if row.find("options") is not None else lettered
    return bare_options(row, [_MARK.sub(r"image \1", str(one)) for one in found]) if found else []


def _gold(request: Request, row: Row, options: list[str]) -> dict[str, Any]:
    answer = row.find("answer")
    if request.split == "test" or answer is None or str(answer).strip() == "?":
        return {}
    if options:
        return {"question_type": "multiple-choice", **by_letter(row, answer, options)}
    # several accepted answers stand as a list written out
    text = str(answer).strip()
    return {
        "question_type": "open",
        "answers": [str(one) for one in (row.sequence("answer") if text.startswith("[") else [text])],
    }


def _subject(row: Row, name: str) -> str:
    # "validation_Art_Theory_12"; a TSV says it in a column
    found = row.find("category", "subject")
    return str(found) if found else re.sub(r"^(?:dev|validation|test)_|_\d+$", "", name)


register(
    TaskSource(
        name="mmmu",
        about="College questions of 30 subjects, one picture or several (MMMU, arXiv:2311.16502)",
        files="SUBJECT/validation-*.parquet of all subjects, or MMMU_DEV_VAL.tsv",
        splits=("validation", "dev", "test"),
        metric="mmmu",
        read=read_mmmu,
        styles=CHOICE_STYLES,
    )
)
