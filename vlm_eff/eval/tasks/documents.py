"""DocVQA, InfoVQA and ChartQA: short answers that stand in a scanned page, an infographic or a chart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.eval.tasks.files import find_file, inside, media_folder
from vlm_eff.eval.tasks.item import Item, Picture
from vlm_eff.eval.tasks.rows import Row, rows_of
from vlm_eff.eval.tasks.source import Request, TaskSource, register
from vlm_eff.eval.tasks.submission import answer_list


def read_docvqa(request: Request) -> Iterator[Item]:
    """DocVQA (arXiv:2007.00398): `val_v1.0.json` or `val_v1.0_withQT.json` {"data": [...]}, pictures `documents/*.png`.

    With question types where the file has them; a question of several types is of the group of their names together.
    From general knowledge of the official files.
    """
    path = find_file(request.folder, f"{request.split}_v1.0_withQT.json", f"{request.split}_v1*.json")
    for row in rows_of(path, "data"):
        yield _page(request, row, row.text("image"), ("spdocvqa_images", "images"), "question_types")


def read_infovqa(request: Request) -> Iterator[Item]:
    """InfographicVQA (arXiv:2104.12756): `infographicsVQA_val_v1.0.json` {"data": [...]}, `infographicsvqa_images/`.

    `image_local_name` is the file. From general knowledge of the official files.
    """
    stem = f"infographicsVQA_{request.split}_v1"
    path = find_file(request.folder, f"{stem}.0_withQT.json", f"{stem}*.json")
    for row in rows_of(path, "data"):
        name = row.text("image_local_name", "image")
        yield _page(request, row, name, ("infographicsvqa_images", "images"), "answer_type", "operation/reasoning")


def _page(request: Request, row: Row, name: str, folders: tuple[str, ...], *groups: str) -> Item:
    path = inside(request.folder, name)
    if not path.parent.is_dir() or path.parent == request.folder:
        # on disk the folder that the name begins with may be another one
        path = inside(media_folder(request.folder, *folders), path.name)
    hidden = request.split == "test" or row.find("answers") is None
    return Item(
        id=row.text("questionId"),
        prompt=request.ask(row.text("question")),
        media=(Picture(path),),
        gold={} if hidden else {"answers": [str(one) for one in row.sequence("answers")]},
        cluster=name,
        groups={one: " + ".join(sorted(map(str, row.sequence(one)))) for one in groups if row.find(one)},
    )


def read_chartqa(request: Request, part: Literal["all", "human", "augmented"] = "all") -> Iterator[Item]:
    """ChartQA (arXiv:2203.10244): `test_human.json` and `test_augmented.json` [{imgname, query, label}], `png/`.

    Both files and `png/` may lie in a folder with the split's name, as in the official archive. Questions have no id:
    it is their part and place. From general knowledge of the official files.
    """
    parts = ("human", "augmented")
    if part not in ("all", *parts):
        raise ConfigError(explain(f"part={part!r}", "all, human, augmented", "Choose one of them"))
    folder = media_folder(request.folder, f"{request.split}/png", f"images/{request.split}/png", "png", "images")
    for name in parts if part == "all" else (part,):
        file = f"{request.split}_{name}.json"
        for place, row in enumerate(rows_of(find_file(request.folder, file, f"{request.split}/{file}"))):
            image = row.text("imgname")
            yield Item(
                id=f"{name}-{place:05d}",
                prompt=request.ask(row.text("query")),
                media=(Picture(inside(folder, image)),),
                gold={"answer": str(row.need("label"))},
                cluster=image,
                groups={"part": name},
            )


register(
    TaskSource(
        name="docvqa",
        about="Questions about scanned pages (DocVQA, arXiv:2007.00398)",
        files="val_v1.0.json or val_v1.0_withQT.json, the folder documents",
        splits=("val", "train", "test"),
        metric="anls",
        read=read_docvqa,
        max_new_tokens=32,
        submission=answer_list("questionId"),
    )
)
register(
    TaskSource(
        name="infovqa",
        about="Questions about infographics (InfographicVQA, arXiv:2104.12756)",
        files="infographicsVQA_val_v1.0.json or its _withQT, the folder infographicsvqa_images",
        splits=("val", "train", "test"),
        metric="anls",
        read=read_infovqa,
        max_new_tokens=32,
        submission=answer_list("questionId"),
    )
)
register(
    TaskSource(
        name="chartqa",
        about="Questions about charts, written by people or made from captions (ChartQA, arXiv:2203.10244)",
        files="test_human.json and test_augmented.json (or in a folder test), the folder png",
        splits=("test", "val", "train"),
        metric="relaxed_accuracy",
        read=read_chartqa,
    )
)
