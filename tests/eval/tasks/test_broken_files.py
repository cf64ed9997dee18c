"""Files that are broken, incomplete or hostile: one case a family of layouts, and what the message says."""

from __future__ import annotations

import csv
import json
import pickle
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.eval.tasks.official import WRITERS, base64_png, put, put_json, put_lines, put_parquet, put_table
from vlm_eff.core.errors import CapabilityError, InputError, VlmEffError
from vlm_eff.eval.metrics import METRICS
from vlm_eff.eval.tasks import load_task
from vlm_eff.eval.tasks.files import inside
from vlm_eff.eval.tasks.rows import rows_of


def edit(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    put_json(path, content)


CUT = {
    "vqav2": "v2_mscoco_val2014_annotations.json",
    "gqa": "testdev_balanced_questions.json",
    "pope": "coco_pope_popular.json",
    "mvbench": "json/action_count.json",
    "mmmu": "Art_Theory/validation-00000-of-00001.parquet",
    "refcoco": "refcoco_val.jsonl",
    "longvideobench": "subtitles/86CxyhFV9MI_en.json",
}


@pytest.mark.parametrize("name", CUT)
def test_a_file_that_was_cut_is_named(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path)
    path = tmp_path / CUT[name]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=path.name):
        load_task(name, tmp_path)


MISSING = {
    "vqav2": ("v2_OpenEnded_mscoco_val2014_questions.json", lambda c: c["questions"][1].pop("question"), "record 1"),
    "okvqa": ("mscoco_val2014_annotations.json", lambda c: c["annotations"].pop(0), "question 70 has no annotation"),
    "textvqa": ("TextVQA_0.5.1_val.json", lambda c: c.pop("data"), "has no 'data'"),
    "docvqa": ("val_v1.0_withQT.json", lambda c: c["data"][1].pop("answers"), "1 of 2 items .* no gold"),
    "chartqa": ("test/test_human.json", lambda c: c[0].pop("label"), "record 0 lacks 'label'"),
    "scienceqa": ("pid_splits.json", lambda c: c["test"].append("6"), "problem 6 is not in problems.json"),
    "seed": ("SEED-Bench.json", lambda c: c["questions"][0].update(answer="E"), "answer is 'E'.*A to D"),
    "mlvu": ("json/4_count.json", lambda c: c[1].update(answer="Green"), "record 1: the answer is 'Green'"),
    "egoschema": ("subset_answers.json", lambda c: c.update(u2=5), "answer is '5'.*0 to 4"),
    "mvbench": ("json/action_sequence.json", lambda c: c[0].update(start=20), "start 20.0 and end 17.2"),
}


@pytest.mark.parametrize("name", MISSING)
def test_a_record_without_a_field_or_with_a_wrong_one_is_named(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path)
    file, change, message = MISSING[name]
    edit(tmp_path / file, change)
    with pytest.raises(InputError, match=message):
        load_task(name, tmp_path)


def test_tables_say_the_line(tmp_path: Path) -> None:
    WRITERS["nextqa"](tmp_path)
    path = tmp_path / "val.csv"
    whole = path.read_text()
    path.write_text(whole.rsplit(",", 1)[0])
    with pytest.raises(InputError, match=r"val\.csv, line 4 has more or fewer cells"):
        load_task("nextqa", tmp_path)
    path.write_text(whole.replace("qid", "number"))
    with pytest.raises(InputError, match=r"line 2 lacks 'qid', it has video, frame_count"):
        load_task("nextqa", tmp_path)
    path.write_bytes(whole.encode().replace(b"hungry", b"\xff\xfe"))
    with pytest.raises(InputError, match=r"val\.csv: no UTF-8"):
        load_task("nextqa", tmp_path)


def test_pictures_in_tables_are_checked(tmp_path: Path) -> None:
    row = {"index": 1, "question": "Which?", "A": "x", "B": "y", "answer": "A"}
    for image, message in (
        ("2", "that of row 2, which is not there"),
        ("1", "name one another"),
        ("?" * 60, "no base64"),
        ("../../etc/passwd.png", "the data file names"),
    ):
        put_table(tmp_path / "MMBench_DEV_EN.tsv", [{**row, "image": image}])
        with pytest.raises(InputError, match=message):
            load_task("mmbench", tmp_path)
    put_table(tmp_path / "MMBench_DEV_EN.tsv", [{**row, "image": base64_png()[:60]}])
    (item, _) = load_task("mmbench", tmp_path).items
    with pytest.raises(InputError, match="no picture"):
        item.media[0].open()  # type: ignore[union-attr]


def test_a_cell_may_be_as_long_as_a_picture(tmp_path: Path) -> None:
    before = csv.field_size_limit(131072)
    try:
        path = put_table(tmp_path / "long.tsv", [{"index": 1, "image": "A" * 200_000}])
        assert len(next(rows_of(path)).text("image")) == 200_000
    finally:
        csv.field_size_limit(before)


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../x.jpg", "a/../../x.jpg", "C:\\x.jpg", "\\\\host\\x", "..\\x", "", "a\0b"]
)
def test_names_that_lead_out_of_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the data file names"):
        inside(tmp_path, name)
    assert inside(tmp_path, "a/..b/c.jpg") == tmp_path / "a" / "..b" / "c.jpg"


HOSTILE = {
    "pope": ("coco_pope_random.json", "COCO_val2014_000000000001.jpg"),
    "vizwiz": ("Annotations/val.json", "VizWiz_val_0.jpg"),
    "textvqa": ("TextVQA_0.5.1_val.json", "aa11"),
    "docvqa": ("val_v1.0_withQT.json", "documents/abcd_1.png"),
    "scienceqa": ("problems.json", "image.png"),
    "mvbench": ("json/action_sequence.json", "ZS9XR.mp4"),
    "nextqa": ("map_vid_vidorID.json", "1164/4010069381"),
    "egoschema": ("questions.json", "u2"),
    "longvideobench": ("lvb_val.json", "86CxyhFV9MI_en.json"),
    "refcoco": ("refcoco_val.jsonl", "COCO_train2014_000000000001.jpg"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_reader_follows_a_name_out_of_the_folder(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path)
    file, medium = HOSTILE[name]
    text = (tmp_path / file).read_text()
    put(tmp_path / file, text.replace(medium, f"../../{medium}"))
    if name == "egoschema":
        put_json(tmp_path / "subset_answers.json", {"../../u2": 3})
    with pytest.raises(InputError, match=r"the data file names '.*\.\."):
        load_task(name, tmp_path)


class _Trap:
    def __reduce__(self) -> Any:
        return (sys.exit, ("a pickle was opened",))


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    put(tmp_path / "refs(unc).p", pickle.dumps(_Trap()))
    with pytest.raises(InputError, match=r"only the pickle refs\(unc\)\.p.*never opened here"):
        load_task("refcoco", tmp_path)


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    WRITERS["videomme"](tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(CapabilityError, match=r"vlm-eff\[eval\]"):
        load_task("videomme", tmp_path)


def test_boxes_are_boxes(tmp_path: Path) -> None:
    row = {"image": "a.jpg", "sent": "x", "width": 8, "height": 8}
    for bbox, message in (([4, 4, 2, 6], "is empty"), ([1, 2, 3], "four numbers"), ([1, 2, 3, None], "four numbers")):
        put_lines(tmp_path / "refcoco_val.jsonl", [{**row, "bbox": bbox}])
        with pytest.raises(InputError, match=message):
            load_task("refcoco", tmp_path)
    put_lines(tmp_path / "refcoco_val.jsonl", [{"image": "a.jpg", "sent": "x", "bbox": [1, 2, 3, 4]}])
    with pytest.raises(InputError, match="size of the picture"):
        load_task("refcoco", tmp_path)


def test_ids_that_come_twice_are_refused(tmp_path: Path) -> None:
    row = {"question_id": "q", "bbox": [0.0, 0.0, 4.0, 4.0], "answer": ["x"], "width": 8, "height": 8, "file_name": "a"}
    put_parquet(tmp_path / "val-0.parquet", [row, row])
    with pytest.raises(InputError, match="'q-0' twice"):
        load_task("refcoco", tmp_path)


ODD: tuple[Any, ...] = (
    None,
    "",
    " ",
    -1,
    3.5,
    float("nan"),
    True,
    [],
    {},
    ["x"],
    [None],
    {"a": 1},
    "../x",
    "A. x",
    [1, 2],
)


def damaged(content: Any, rng: random.Random) -> Any:
    """The content with one value taken away, doubled or put in place of another, somewhere."""
    if isinstance(content, dict) and content and rng.random() < 0.9:
        name = rng.choice(list(content))
        rest = {key: value for key, value in content.items() if key != name}
        return rest if rng.random() < 0.25 else {**rest, name: damaged(content[name], rng)}
    if isinstance(content, list) and content and rng.random() < 0.8:
        place = rng.randrange(len(content))
        middle = rng.choice(([], [content[place]] * 2, [damaged(content[place], rng)], [damaged(content[place], rng)]))
        return content[:place] + middle + content[place + 1 :]
    return rng.choice(ODD)


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_whatever_is_wrong_in_a_file_is_read_or_refused_in_our_words(name: str, tmp_path: Path) -> None:
    rng = random.Random(name)
    WRITERS[name](tmp_path)
    whole = {path: path.read_text() for path in tmp_path.rglob("*.json*")}
    for path, text in whole.items():
        for _ in range(8):
            if path.suffix == ".jsonl" or name == "pope":
                lines = text.splitlines()
                lines[0] = json.dumps(damaged(json.loads(lines[0]), rng))
                path.write_text("\n".join(lines))
            else:
                put_json(path, damaged(json.loads(text), rng))
            try:
                task = load_task(name, tmp_path)
                for item in task.items:
                    METRICS.get(task.metric).score("yes", item.gold, item_id=item.id)
            except VlmEffError as error:
                assert "Accepted: " in str(error)
        path.write_text(text)
    load_task(name, tmp_path)
