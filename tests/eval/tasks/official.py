"""Small folders in the layout of each benchmark, written by us: two clusters, a few questions, pictures of 8x8."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
from PIL import Image

from vlm_eff.eval.tasks.short_videos import MVBENCH_FOLDERS


def png(shade: int = 0) -> bytes:
    """The bytes of a grey picture, 8x8."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade,) * 3).save(buffer, format="PNG")
    return buffer.getvalue()


def base64_png(shade: int = 0) -> str:
    return base64.b64encode(png(shade)).decode()


def put(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def put_json(path: Path, content: Any) -> Path:
    return put(path, json.dumps(content))


def put_lines(path: Path, rows: Iterable[Any]) -> Path:
    return put(path, "".join(json.dumps(row) + "\n" for row in rows))


def put_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    buffer = io.StringIO()
    table = csv.DictWriter(buffer, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
    table.writeheader()
    table.writerows(rows)
    return put(path, buffer.getvalue())


def put_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def people(*answers: str) -> list[dict[str, Any]]:
    """Ten answers, the last one repeated."""
    filled = [*answers, *[answers[-1]] * (10 - len(answers))]
    return [{"answer": one, "answer_confidence": "yes", "answer_id": place} for place, one in enumerate(filled, 1)]


def _coco(folder: Path, prefix: str) -> None:
    questions = [
        {"image_id": image, "question": text, "question_id": number}
        for image, text, number in ((42, "how many?", 420), (42, "what is it?", 421), (7, "is it red?", 70))
    ]
    notes = [
        {"question_id": number, "question_type": kind, "answer_type": sort, "answers": people("two", answer)}
        for number, kind, sort, answer in (
            (70, "is it", "yes/no", "yes"), (420, "how many", "number", "2"), (421, "what is", "other", "a cat"),
        )
    ]  # fmt: skip
    put_json(folder / f"{prefix}OpenEnded_mscoco_val2014_questions.json", {"questions": questions})
    put_json(folder / f"{prefix}mscoco_val2014_annotations.json", {"annotations": notes})
    put(folder / "val2014" / "COCO_val2014_000000000042.jpg", png(42))


def vqav2(folder: Path) -> None:
    _coco(folder, "v2_")


def okvqa(folder: Path) -> None:
    _coco(folder, "")


def textvqa(folder: Path) -> None:
    texts = [one["answer"] for one in people("stop", "halt")]
    rows = [
        {"question_id": number, "image_id": image, "question": "what does the sign say?", "answers": texts}
        for number, image in ((1, "aa11"), (2, "aa11"), (3, "bb22"))
    ]
    put_json(folder / "TextVQA_0.5.1_val.json", {"data": rows})
    ocr = [{"image_id": "aa11", "ocr_tokens": ["STOP", "4"]}]
    put_json(folder / "TextVQA_Rosetta_OCR_v0.2_val.json", {"data": ocr})
    put(folder / "train_images" / "aa11.jpg", png(1))


def vizwiz(folder: Path) -> None:
    rows = [
        {"image": f"VizWiz_val_{number}.jpg", "question": "What is this?", "answers": people("unanswerable", "can"),
         "answer_type": "other", "answerable": 1}
        for number in (0, 1)
    ]  # fmt: skip
    put_json(folder / "Annotations" / "val.json", rows)
    put(folder / "val" / "VizWiz_val_0.jpg", png(1))
    put_json(folder / "Annotations" / "test.json", [{"image": "VizWiz_test_0.jpg", "question": "What is this?"}])


def gqa(folder: Path) -> None:
    row = {"imageId": "n100", "answer": "left", "types": {"structural": "query", "semantic": "rel", "detailed": "x"}}
    rows = {"201": {**row, "question": "On which side?"}, "202": {**row, "question": "Is it?", "answer": "no"}}
    put_json(folder / "testdev_balanced_questions.json", rows)
    put(folder / "images" / "n100.jpg", png(1))


def docvqa(folder: Path) -> None:
    row = {"image": "documents/abcd_1.png", "docId": 5, "question_types": ["form", "layout"], "data_split": "val"}
    rows = [{**row, "questionId": number, "question": "What year?", "answers": ["1999", "'99"]} for number in (11, 12)]
    put_json(folder / "val_v1.0_withQT.json", {"data": rows})
    hidden = [{"questionId": 13, "question": "What year?", "image": "documents/abcd_1.png"}]
    put_json(folder / "test_v1.0.json", {"data": hidden})
    put(folder / "documents" / "abcd_1.png", png(1))


def infovqa(folder: Path) -> None:
    row = {"image_local_name": "30.jpeg", "answer_type": ["single span"], "operation/reasoning": ["counting"]}
    rows = [{**row, "questionId": number, "question": "How many?", "answers": ["8", "eight"]} for number in (65, 66)]
    put_json(folder / "infographicsVQA_val_v1.0_withQT.json", {"data": rows})
    put(folder / "infographicsvqa_images" / "30.jpeg", png(1))


def chartqa(folder: Path) -> None:
    for part, label in (("human", "0.57"), ("augmented", "Yes")):
        rows = [
            {"imgname": "1.png", "query": f"{part}?", "label": label},
            {"imgname": "2.png", "query": "?", "label": "3"},
        ]
        put_json(folder / "test" / f"test_{part}.json", rows)
    put(folder / "test" / "png" / "1.png", png(1))


def pope(folder: Path) -> None:
    for split in ("random", "popular", "adversarial"):
        rows = [
            {"question_id": number, "image": "COCO_val2014_000000000001.jpg", "text": "Is there a dog?", "label": label}
            for number, label in ((1, "yes"), (2, "no"))
        ]
        put_lines(folder / f"coco_pope_{split}.json", rows)
    put(folder / "val2014" / "COCO_val2014_000000000001.jpg", png(1))


def mme(folder: Path) -> None:
    text = "Is there a {} here? Please answer yes or no.\t{}\n"
    home = folder / "MME_Benchmark_release_version"
    put(home / "existence" / "1.txt", text.format("dog", "Yes") + text.format("cat", "No"))
    put(home / "existence" / "1.jpg", png(1))
    put(home / "artwork" / "questions_answers_YN" / "9.txt", text.format("king", "Yes") + text.format("sea", "No"))
    put(home / "artwork" / "images" / "9.png", png(9))


def mmbench(folder: Path) -> None:
    row = {"hint": "", "question": "Which?", "A": "a dog", "B": "a cat", "C": "an owl", "D": ""}
    more = {"category": "recognition", "l2-category": "fine", "split": "dev"}
    rows = [
        {"index": 3, "image": base64_png(3), **row, "answer": "B", **more},
        {"index": 8, "image": "3", **row, "C": "", "hint": "Look up.", "answer": "A", **more},
    ]
    put_table(folder / "MMBench_DEV_EN.tsv", rows)


def seed(folder: Path) -> None:
    row = {"question": "What?", "choice_a": "one", "choice_b": "two", "choice_c": "three", "choice_d": "four"}
    rows = [
        {**row, "question_id": "101669", "data_id": "1454426_2591111986", "data_type": "image", "answer": "A",
         "question_type_id": 1, "segment": None},
        {**row, "question_id": "9", "data_id": "v.mp4", "data_type": "video", "answer": "B", "question_type_id": 10},
    ]  # fmt: skip
    put_json(folder / "SEED-Bench.json", {"question_type": {"Scene Understanding": 1}, "questions": rows})
    put(folder / "SEED-Bench-image" / "1454426_2591111986", png(1))


def scienceqa(folder: Path) -> None:
    row = {"question": "Which is a solid?", "choices": ["ice", "air"], "answer": 0, "subject": "natural science"}
    problems = {
        "4": {**row, "image": "image.png", "hint": "Think.", "grade": "grade2"},
        "5": {**row, "image": None, "hint": ""},
    }
    put_json(folder / "problems.json", problems)
    put_json(folder / "pid_splits.json", {"test": ["4", "5"], "val": []})
    put(folder / "images" / "test" / "4" / "image.png", png(1))


def mmmu(folder: Path) -> None:
    base = {f"image_{number}": None for number in range(1, 8)}
    picture = {"bytes": png(1), "path": None}
    rows = [
        {"id": "validation_Art_Theory_1", "question": "See <image 1> and <image 2>.", "options": "['<image 1>', 'b']",
         **base, "image_1": picture, "image_2": {"bytes": png(2), "path": "2.png"}, "answer": "B",
         "question_type": "multiple-choice", "subfield": "x"},
        {"id": "validation_Art_Theory_2", "question": "How many?", "options": "[]", **base, "image_1": picture,
         "answer": "['24', 'two dozen']", "question_type": "open", "subfield": "x"},
    ]  # fmt: skip
    put_parquet(folder / "Art_Theory" / "validation-00000-of-00001.parquet", rows)


def refcoco(folder: Path, name: str = "refcoco") -> None:
    rows = [
        {"image": "data/train2014/COCO_train2014_000000000001.jpg", "sent": text, "bbox": [1, 2, 5, 7.5],
         "width": 8, "height": 8}
        for text in ("man on the left", "the red one")
    ]  # fmt: skip
    put_lines(folder / f"{name}_val.jsonl", rows)
    put(folder / "train2014" / "COCO_train2014_000000000001.jpg", png(1))


def videomme(folder: Path) -> None:
    row = {"duration": "short", "domain": "Knowledge", "sub_category": "x", "task_type": "Counting Problem"}
    rows = [
        {"video_id": "001", **row, "videoID": video, "question_id": f"001-{number}", "question": "How many?",
         "options": ["A. One.", "B. Two.", "C. Three.", "D. Four."], "answer": "C"}
        for number, video in ((1, "fFjv93ACGo8"), (2, "fFjv93ACGo8"), (3, "N1cdUjctpG8"))
    ]  # fmt: skip
    put_parquet(folder / "videomme" / "test-00000-of-00001.parquet", rows)
    put(folder / "data" / "N1cdUjctpG8.mkv", b"not read")
    srt = "1\n00:00:01,500 --> 00:00:03,000\n<i>Hello\nthere.</i>\n\n2\n00:01:00,000 --> 00:01:02,250\nBye.\n"
    put(folder / "subtitle" / "fFjv93ACGo8.srt", srt)


def mvbench(folder: Path) -> None:
    row = {"question": "What happened?", "candidates": ["sat down", "stood up", "left"], "answer": "stood up"}
    put_json(folder / "json" / "action_sequence.json", [{**row, "video": "ZS9XR.mp4", "start": 11.1, "end": 17.2}])
    put_json(folder / "json" / "action_count.json", [{**row, "video": "video_1.gif"}, {**row, "video": "video_1.gif"}])
    frames = {**row, "video": "friends_s01e01", "start": 0.0, "end": 4.0, "fps": 3}
    put_json(folder / "json" / "episodic_reasoning.json", [frames])
    place = folder / "video" / MVBENCH_FOLDERS["episodic_reasoning"] / "friends_s01e01"
    put(place / "00001.jpg", png(1))


def nextqa(folder: Path) -> None:
    row = {"frame_count": 900, "width": 640, "height": 480, "question": "why did the baby cry", "answer": 4}
    options = {f"a{number}": text for number, text in enumerate(("hungry", "tired", "fell", "toy", "alone"))}
    rows = [
        {"video": video, **row, "qid": number, "type": kind, **options}
        for video, number, kind in ((4010069381, 0, "CW"), (4010069381, 1, "TP"), (77, 0, "DO"))
    ]
    put_table(folder / "val.csv", rows)
    put_json(folder / "map_vid_vidorID.json", {"4010069381": "1164/4010069381", "77": "0001/77"})
    put(folder / "NExTVideo" / "1164" / "4010069381.mp4", b"not read")


def egoschema(folder: Path) -> None:
    options = {f"option {number}": f"C does {number}" for number in range(5)}
    rows = [{"q_uid": name, "google_drive_id": "x", "question": "What is C doing?", **options} for name in ("u1", "u2")]
    put_json(folder / "questions.json", rows)
    put_json(folder / "subset_answers.json", {"u2": 3})


def mlvu(folder: Path) -> None:
    row = {"duration": 480.0, "question": "What colour?", "candidates": ["Yellow", "Red", "Pink", "Blue"]}
    for stem, kind in (("1_plotQA", "plotQA"), ("4_count", "count")):
        rows = [{**row, "video": f"{kind}_{n}.mp4", "answer": "Red", "question_type": kind} for n in (1, 2)]
        put_json(folder / "json" / f"{stem}.json", rows)
    summary = {"video": "x.mp4", "question": "Summarise.", "answer": "A long text.", "question_type": "summary"}
    put_json(folder / "json" / "9_summary.json", [summary])
    put(folder / "video" / "1_plotQA" / "plotQA_1.mp4", b"not read")


def longvideobench(folder: Path) -> None:
    row = {
        "video_id": "86CxyhFV9MI", "video_path": "86CxyhFV9MI.mp4", "subtitle_path": "86CxyhFV9MI_en.json",
        "question": "What appears?", "candidates": ["Yes.", "No.", "A cat."], "duration": 10.0,
        "question_category": "T2A", "starting_timestamp_for_subtitles": 100.0,
    }  # fmt: skip
    rows = [{**row, "id": f"86CxyhFV9MI_{number}", "correct_choice": number} for number in (0, 2)]
    put_json(folder / "lvb_val.json", rows)
    hidden = [{**row, "id": "86CxyhFV9MI_9"}]
    put_json(folder / "lvb_test_wo_gt.json", hidden)
    lines = [
        {"start": "00:01:00.000", "end": "00:01:02.000", "line": "before"},
        {"start": "00:01:41.500", "end": "00:01:43.000", "line": "hello"},
        {"timestamp": [105.0, None], "text": "again"},
        {"start": "00:02:00.000", "end": "00:02:01.000", "line": "after"},
    ]
    put_json(folder / "subtitles" / "86CxyhFV9MI_en.json", lines)


def own_answers(folder: Path) -> None:
    rows = [
        {"question": "What is it?", "image": "a.png", "answers": ["cup", "mug"], "category": "things"},
        {"id": "x", "question": "Which way?", "video": "b", "start": 1, "end": 2.5, "answer": "left", "cluster": "b1"},
    ]
    put_lines(folder / "questions.jsonl", rows)
    put(folder / "images" / "a.png", png(1))


def own_choices(folder: Path) -> None:
    rows = [
        {"id": "1", "question": "Which two?", "images": ["a.png", "b.png"], "options": ["x", "y"], "answer": "B"},
        {"id": "2", "question": "Which way?", "video": "b.mp4", "options": ["left", "right"], "answer": "left"},
    ]
    put_json(folder / "questions.json", rows)
    for name, shade in (("a", 1), ("b", 2)):
        put(folder / f"{name}.png", png(shade))


WRITERS: dict[str, Callable[[Path], None]] = {
    **{
        make.__name__: make
        for make in (
            vqav2, okvqa, textvqa, vizwiz, gqa, docvqa, infovqa, chartqa, pope, mme, mmbench, seed, scienceqa, mmmu,
            refcoco, videomme, mvbench, nextqa, egoschema, mlvu, longvideobench,
        )
    },
    "own-answers": own_answers,
    "own-choices": own_choices,
    "refcoco+": lambda folder: refcoco(folder, "refcoco+"),
    "refcocog": lambda folder: refcoco(folder, "refcocog"),
}  # fmt: skip
