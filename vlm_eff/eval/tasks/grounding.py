"""RefCOCO, RefCOCO+ and RefCOCOg: where is the thing that a phrase describes; one item a phrase."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.eval.tasks.embedded import embedded_picture, picture_size
from vlm_eff.eval.tasks.files import find_file, find_files, inside, media_folder
from vlm_eff.eval.tasks.item import Item, Picture
from vlm_eff.eval.tasks.rows import Row, rows_of
from vlm_eff.eval.tasks.source import Request, TaskSource, register

# models are trained on different numbers: the style says which the prompt asks for and the answer is read as
GROUNDING_STYLES = {
    "unit": 'Provide the bounding box of "{question}" as [x1, y1, x2, y2] with numbers between 0 and 1.',
    "unit-padded": 'Provide the bounding box of "{question}" as [x1, y1, x2, y2] with numbers between 0 and 1.',
    "0-1000": 'Provide the bounding box of "{question}" as [x1, y1, x2, y2] with whole numbers between 0 and 1000.',
}


def read_refcoco(name: str, request: Request, boxes: Literal["file", "xyxy", "xywh"] = "file") -> Iterator[Item]:
    """RefCOCO and its sisters (arXiv:1608.00272, arXiv:1511.02283), from lines of JSON or from parquet.

    Lines: {image, sent, bbox, width, height}, or img_path and expression, with corners [x1, y1, x2, y2]; pictures in
    the folder of COCO train2014. Parquet: {question_id, image, answer or sentences, bbox} with corner and size
    [x, y, w, h], one row an object, whose phrases become items of their own. `boxes` says what `bbox` is where a file
    does otherwise. The authors' pickles (`refs(unc).p`) are never opened.

    The style says which coordinates are asked for and how the metric reads them. Pixels of the resized image ("resized"
    of the metric, Qwen2.5-VL) are not offered: only the processor knows that size. The lines' layout is from general
    knowledge.
    """
    if boxes not in ("file", "xyxy", "xywh"):
        raise ConfigError(explain(f"boxes={boxes!r}", "file, xyxy, xywh", "Choose one of them"))
    paths = _files(name, request)
    stored = "xywh" if paths[0].suffix == ".parquet" else "xyxy"
    folder = media_folder(request.folder, "train2014", "images/train2014", "images")
    for place, row in enumerate(row for path in paths for row in rows_of(path)):
        source = row.need("image", "img_path", "file_name")
        if isinstance(source, str):
            # the path before it is that of whoever wrote the file
            cluster = source.rsplit("train2014/", 1)[-1]
            picture = Picture(inside(folder, cluster))
        else:
            cluster = str(row.find("file_name", "image_id", "question_id") or place)
            picture = embedded_picture(row, source, folder)
        gold = _gold(request, row, stored if boxes == "file" else boxes, picture)
        thing = str(row.find("question_id", "ref_id", "id") or place)
        for number, phrase in enumerate(_phrases(row)):
            yield Item(f"{thing}-{number}", request.ask(phrase), (picture,), gold, cluster)


def _files(name: str, request: Request) -> list[Path]:
    split = request.split
    tables = (f"{split}*.parquet", f"data/{split}*.parquet", f"{name}/{split}*.parquet")
    # lines of all three sets may lie in one folder
    lines = (f"{name}_{split}.jsonl", f"*{name}_*{split}.jsonl", f"{split}.jsonl")
    found = find_files(request.folder, *tables, *lines)
    return found if found[0].suffix == ".parquet" else [find_file(request.folder, *lines)]


def _phrases(row: Row) -> list[str]:
    # in the parquet files the question is "describe the box" and the answers are the phrases
    found: Any = row.need("sent", "expression", "sentences", "answer")
    listed = found if isinstance(found, list) else [found]
    phrases = [str(one.get("sent", "") if isinstance(one, dict) else one).strip() for one in listed]
    if not phrases or not all(phrases):
        raise row.wrong("no phrase that describes the thing", "a text, or a list of one or more")
    return phrases


def _gold(request: Request, row: Row, kind: str, picture: Picture) -> dict[str, Any]:
    values = row.sequence("bbox")
    if len(values) != 4 or not all(isinstance(one, int | float) and math.isfinite(one) for one in values):
        raise row.wrong(f"bbox is {values}", "four numbers")
    x, y, a, b = map(float, values)
    box = [x, y, x + a, y + b] if kind == "xywh" else [x, y, a, b]
    if not (box[0] < box[2] and box[1] < box[3]):
        raise row.wrong(f"bbox {values} read as {kind} is empty", "a box with an inside; see the option boxes")
    width, height = row.number("width"), row.number("height")
    size = picture_size(row, picture) if width is None or height is None else (int(width), int(height))
    if min(size) < 1:
        raise row.wrong(f"a picture of {size[0]}x{size[1]}", "width and height in pixels")
    return {"box": box, "size": list(size), "coordinates": request.style}


for _name, _splits, _paper in (
    ("refcoco", ("val", "testA", "testB"), "RefCOCO, arXiv:1608.00272"),
    ("refcoco+", ("val", "testA", "testB"), "RefCOCO+, without words of place, arXiv:1608.00272"),
    ("refcocog", ("val", "test"), "RefCOCOg, longer phrases, arXiv:1511.02283"),
):
    register(
        TaskSource(
            name=_name,
            about=f"The box of the thing that a phrase describes ({_paper})",
            files=f"{_name}_val.jsonl and the folder train2014, or val*.parquet",
            splits=_splits,
            metric="grounding",
            read=partial(read_refcoco, _name),
            styles=GROUNDING_STYLES,
            max_new_tokens=48,
        )
    )
