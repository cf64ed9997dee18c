"""VQAv2, OK-VQA, TextVQA and VizWiz: free questions with ten human answers each, in JSON files of four layouts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vlm_eff.core.errors import InputError, explain
from vlm_eff.eval.tasks.files import find_file, inside, media_folder
from vlm_eff.eval.tasks.item import Item, Picture
from vlm_eff.eval.tasks.rows import Row, rows_of
from vlm_eff.eval.tasks.source import SHORT, SHORT_STYLES, Request, TaskSource, register
from vlm_eff.eval.tasks.submission import answer_list

# what the answers of these splits would be is known to the server alone
_CLOSED = ("test", "test-dev")
_COCO = {"val": "val2014", "train": "train2014", "test": "test2015", "test-dev": "test2015"}
_UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'.\n"


def read_vqav2(request: Request) -> Iterator[Item]:
    """VQAv2 (arXiv:1612.00837): `v2_OpenEnded_mscoco_*_questions.json` and `v2_mscoco_*_annotations.json`.

    Pictures: `val2014/COCO_val2014_000000000042.jpg`, the folder also under `images/`, or all pictures in `images/` or
    beside the files. The layout is described from general knowledge of the official files.
    """
    yield from _coco_items(request, "v2_OpenEnded_mscoco", "v2_mscoco", test_year="2015")


def read_okvqa(request: Request) -> Iterator[Item]:
    """OK-VQA (arXiv:1906.00067): `OpenEnded_mscoco_val2014_questions.json`, `mscoco_val2014_annotations.json`.

    The layout of VQAv2; five people's answers stand twice each. Its field `raw_answer` is not used, as in the official
    evaluation. From general knowledge of the official files.
    """
    yield from _coco_items(request, "OpenEnded_mscoco", "mscoco", test_year="2014")


def _coco_items(request: Request, questions: str, annotations: str, test_year: str) -> Iterator[Item]:
    year = test_year if request.split in _CLOSED else "2014"
    pictures = _COCO[request.split]
    path = find_file(request.folder, f"{questions}_{request.split}{year}_questions.json")
    gold = {} if request.split in _CLOSED else _annotations(request, f"{annotations}_{request.split}{year}")
    folder = media_folder(request.folder, pictures, f"images/{pictures}", "images")
    for row in rows_of(path, "questions"):
        number, image = row.text("question_id"), row.need("image_id")
        if not isinstance(image, int):
            raise row.wrong(f"image_id is {image!r}", "a whole number")
        note = gold.get(number)
        if note is None and gold:
            raise row.wrong(f"question {number} has no annotation", "one annotation a question")
        yield Item(
            id=number,
            prompt=request.ask(row.text("question")),
            media=(Picture(folder / f"COCO_{pictures}_{image:012d}.jpg"),),
            gold={} if note is None else _gold(note),
            cluster=str(image),
            groups={} if note is None else _groups(note, "question_type", "answer_type"),
        )


def _annotations(request: Request, stem: str) -> dict[str, Row]:
    path = find_file(request.folder, f"{stem}_annotations.json")
    found = {row.text("question_id"): row for row in rows_of(path, "annotations")}
    if not found:
        raise InputError(explain(f"{path.name} holds no annotation", "one a question", "Copy or download it again"))
    return found


def read_textvqa(request: Request, ocr: bool = False) -> Iterator[Item]:
    """TextVQA (arXiv:1904.08920): `TextVQA_0.5.1_val.json` {"data": [...]}, pictures `train_images/ID.jpg`.

    Validation pictures lie in `train_images`, as in the official archive. With `ocr` the tokens that the authors found
    (`TextVQA_Rosetta_OCR_v0.2_val.json`) are put below the question, as for LLaVA-1.5's published numbers. From general
    knowledge of the official files.
    """
    path = find_file(request.folder, f"TextVQA_0.5.1_{request.split}.json", f"TextVQA*_{request.split}.json")
    folder = media_folder(
        request.folder, "test_images" if request.split == "test" else "train_images", "images/train_images", "images"
    )
    tokens = _ocr_tokens(request) if ocr else {}
    for row in rows_of(path, "data"):
        image = row.text("image_id")
        question = row.text("question")
        if ocr:
            question = f"{question}\nReference OCR token: {', '.join(tokens.get(image, ()))}"
        answers = row.find("answers")
        yield Item(
            id=row.text("question_id"),
            prompt=request.ask(question),
            media=(Picture(inside(folder, f"{image}.jpg")),),
            gold=_gold(row) if answers and request.split != "test" else {},
            cluster=image,
        )


def _ocr_tokens(request: Request) -> dict[str, list[str]]:
    path = find_file(request.folder, f"TextVQA_Rosetta_OCR*_{request.split}.json")
    return {row.text("image_id"): [str(one) for one in row.find("ocr_tokens") or ()] for row in rows_of(path, "data")}


def read_vizwiz(request: Request) -> Iterator[Item]:
    """VizWiz-VQA (arXiv:1802.08218): `val.json` or `Annotations/val.json`, pictures in `val/`.

    Questions have no number: the picture's name is the id. From general knowledge of the official files.
    """
    name = f"{request.split}.json"
    path = find_file(request.folder, name, f"Annotations/{name}", f"annotations/{name}")
    folder = media_folder(request.folder, request.split, f"images/{request.split}", "images")
    for row in rows_of(path):
        image = row.text("image")
        yield Item(
            id=image,
            prompt=request.ask(row.text("question")),
            media=(Picture(inside(folder, image)),),
            gold=_gold(row) if row.find("answers") and request.split != "test" else {},
            cluster=image,
            groups=_groups(row, "answer_type", "answerable"),
        )


def _gold(row: Row) -> dict[str, Any]:
    """Answers of all people, as texts or as records with `answer`, and their confidences where they stand there."""
    found = row.sequence("answers")
    texts = [one.get("answer") if isinstance(one, dict) else one for one in found]
    if len(texts) < 2 or not all(isinstance(text, str) for text in texts):
        accepted = 'two or more texts, or records with the field "answer"'
        raise row.wrong("'answers' holds something else, or fewer", accepted)
    sure = [one.get("answer_confidence") if isinstance(one, dict) else None for one in found]
    return {"answers": texts, "confidences": sure} if all(isinstance(one, str) for one in sure) else {"answers": texts}


def _groups(row: Row, *names: str) -> dict[str, str]:
    return {name: str(row.values[name]) for name in names if row.find(name) is not None}


_FOLDER_OF_COCO = "the folder val2014 of pictures"

register(
    TaskSource(
        name="vqav2",
        about="Free questions about photographs, ten human answers each (VQAv2, arXiv:1612.00837)",
        files="v2_OpenEnded_mscoco_val2014_questions.json, v2_mscoco_val2014_annotations.json, " + _FOLDER_OF_COCO,
        splits=("val", "train", "test-dev", "test"),
        metric="vqa",
        read=read_vqav2,
        submission=answer_list("question_id"),
    )
)
register(
    TaskSource(
        name="okvqa",
        about="Questions whose answer needs outside knowledge (OK-VQA, arXiv:1906.00067)",
        files="OpenEnded_mscoco_val2014_questions.json, mscoco_val2014_annotations.json, " + _FOLDER_OF_COCO,
        splits=("val", "train"),
        metric="vqa_evalai",
        read=read_okvqa,
    )
)
register(
    TaskSource(
        name="textvqa",
        about="Questions about text in photographs (TextVQA, arXiv:1904.08920)",
        files="TextVQA_0.5.1_val.json, the folder train_images",
        splits=("val", "train", "test"),
        metric="vqa_evalai",
        read=read_textvqa,
        submission=answer_list("question_id"),
    )
)
register(
    TaskSource(
        name="vizwiz",
        about="Questions of blind people about their own photographs (VizWiz-VQA, arXiv:1802.08218)",
        files="val.json or Annotations/val.json, the folder val of pictures",
        splits=("val", "train", "test"),
        metric="vqa_evalai",
        read=read_vizwiz,
        styles={"short": "{question}\n" + _UNANSWERABLE + SHORT, "plain": SHORT_STYLES["plain"]},
        submission=answer_list("image"),
    )
)
