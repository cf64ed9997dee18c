"""GQA: questions generated from scene graphs, with one short answer."""

from __future__ import annotations

from collections.abc import Iterator

from vlm_eff.eval.tasks.files import find_file, inside, media_folder
from vlm_eff.eval.tasks.item import Item, Picture
from vlm_eff.eval.tasks.rows import Row, rows_of
from vlm_eff.eval.tasks.source import Request, TaskSource, register


def read_gqa(request: Request) -> Iterator[Item]:
    """GQA (arXiv:1902.09506): `testdev_balanced_questions.json`, a dict by question id, pictures `images/ID.jpg`.

    Accepted as well: the lines of LLaVA's scripts (`llava_gqa_testdev_balanced.jsonl`: question_id, image, text), which
    hold no answers; the instruction that stands in their text is cut off. From general knowledge of the files.
    """
    stem = f"{request.split}_balanced"
    path = find_file(
        request.folder, f"{stem}_questions.json", f"questions*/{stem}_questions.json", f"*gqa*{stem}.jsonl"
    )
    folder = media_folder(request.folder, "images")
    for row in rows_of(path):
        image = row.text("imageId", "image")
        answer = row.find("answer", "label")
        yield Item(
            id=row.text("_key", "question_id"),
            prompt=request.ask(row.text("question", "text").split("\n")[0]),
            media=(Picture(inside(folder, image if "." in image else f"{image}.jpg")),),
            gold={} if answer is None else {"answer": str(answer)},
            cluster=image.split(".")[0],
            groups=_types(row),
        )


def _types(row: Row) -> dict[str, str]:
    types = row.find("types")
    if not isinstance(types, dict):
        return {}
    return {name: str(types[name]) for name in ("structural", "semantic") if types.get(name)}


register(
    TaskSource(
        name="gqa",
        about="Questions generated from scene graphs of photographs (GQA, arXiv:1902.09506)",
        files="testdev_balanced_questions.json, the folder images",
        splits=("testdev", "val", "train"),
        metric="gqa",
        read=read_gqa,
    )
)
