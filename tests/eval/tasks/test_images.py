"""What each reader of picture benchmarks makes of its files, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.eval.tasks.official import WRITERS, base64_png, png, put_lines, put_parquet, put_table
from vlm_eff.core.errors import InputError
from vlm_eff.eval.tasks import Item, Picture, Task, load_task


def read(name: str, folder: Path, **options: object) -> Task:
    WRITERS[name](folder)
    return load_task(name, folder, **options)  # type: ignore[arg-type]


def shade(item: Item, place: int = 0) -> int:
    """Grey of a picture of the fixtures: which one it is."""
    picture = item.media[place]
    assert isinstance(picture, Picture)
    return int(picture.open().getpixel((0, 0))[0])  # type: ignore[index]


def test_vqav2_joins_questions_and_annotations_by_id(tmp_path: Path) -> None:
    items = read("vqav2", tmp_path).items
    assert [item.id for item in items] == ["420", "421", "70"]
    assert [item.cluster for item in items] == ["42", "42", "7"]
    assert items[1].gold["answers"] == ["two", *["a cat"] * 9]
    assert items[1].groups == {"question_type": "what is", "answer_type": "other"}
    assert items[0].prompt == "how many?\nAnswer the question using a single word or phrase."
    assert load_task("vqav2", tmp_path, style="plain").items[0].prompt == "how many?"
    assert shade(items[0]) == 42
    # a picture that is missing is found when it is asked for
    with pytest.raises(InputError, match=r"there is no file .*COCO_val2014_000000000007\.jpg"):
        shade(items[2])


def test_vizwiz_without_answers_can_be_read_and_not_scored(tmp_path: Path) -> None:
    task = read("vizwiz", tmp_path)
    assert task.items[0].gold["confidences"] == ["yes"] * 10 and task.items[0].groups["answerable"] == "1"
    assert "respond with 'Unanswerable'" in task.items[0].prompt
    hidden = load_task("vizwiz", tmp_path, "test")
    assert not hidden.scored and hidden.items[0].gold == {}
    with pytest.raises(InputError, match="write a submission"):
        hidden.require_gold()
    task.require_gold()


def test_textvqa_puts_ocr_tokens_below_the_question(tmp_path: Path) -> None:
    plain, told = read("textvqa", tmp_path), load_task("textvqa", tmp_path, ocr=True)
    assert "Reference OCR token: STOP, 4\n" in told.items[0].prompt and "OCR" not in plain.items[0].prompt
    assert told.version == plain.version + " ocr=True"


def test_gqa_reads_the_official_dict_and_lines(tmp_path: Path) -> None:
    items = read("gqa", tmp_path).items
    assert items[0].id == "201" and items[0].gold == {"answer": "left"} and shade(items[0]) == 1
    assert items[0].groups == {"structural": "query", "semantic": "rel"}
    (tmp_path / "testdev_balanced_questions.json").unlink()
    row = {"question_id": "201", "image": "n100.jpg", "text": "On which side?\nAnswer the question using a ..."}
    put_lines(tmp_path / "llava_gqa_testdev_balanced.jsonl", [row])
    lines = load_task("gqa", tmp_path)
    assert lines.items[0].prompt == items[0].prompt and not lines.scored


def test_documents_find_their_pages(tmp_path: Path) -> None:
    page = read("docvqa", tmp_path / "doc").items[0]
    assert page.groups == {"question_types": "form + layout"} and page.cluster == "documents/abcd_1.png"
    assert page.gold == {"answers": ["1999", "'99"]} and shade(page) == 1
    poster = read("infovqa", tmp_path / "info").items[0]
    assert poster.groups == {"answer_type": "single span", "operation/reasoning": "counting"} and shade(poster) == 1


def test_chartqa_has_two_parts(tmp_path: Path) -> None:
    items = read("chartqa", tmp_path).items
    assert [item.id for item in items] == ["human-00000", "human-00001", "augmented-00000", "augmented-00001"]
    assert items[0].groups == {"part": "human"} and items[0].cluster == items[2].cluster == "1.png"
    assert [i.id for i in load_task("chartqa", tmp_path, part="human").items] == ["human-00000", "human-00001"]
    assert shade(items[0]) == 1


def test_pope_reads_one_split_or_all(tmp_path: Path) -> None:
    every = read("pope", tmp_path).items
    assert len(every) == 6 and [item.id for item in every[:2]] == ["random-1", "random-2"]
    chosen = load_task("pope", tmp_path, "adversarial").items
    assert [item.id for item in chosen] == ["adversarial-1", "adversarial-2"]
    assert chosen[1].gold == {"answer": "no"} and chosen[0].groups == {"split": "adversarial"}


def test_mme_is_the_same_from_folders_parquet_and_tsv(tmp_path: Path) -> None:
    folders = read("mme", tmp_path / "folders").items
    assert [item.id for item in folders[2:]] == ["artwork/9/1", "artwork/9/2"]
    assert folders[2].groups == {"category": "artwork", "part": "perception"} and shade(folders[3]) == 9
    rows = [
        {"question_id": f"{kind}/{n}.png", "image": {"bytes": png(n), "path": None}, "question": question,
         "answer": answer, "category": kind}
        for question, answer in (("Is it?", "Yes"), ("Is it not?", "No")) for kind, n in (("color", 1), ("OCR", 2))
    ]  # fmt: skip
    put_parquet(tmp_path / "parquet" / "data" / "test-00000-of-00001.parquet", rows)
    table = [
        {"index": place, "image": base64_png(4) if place == 0 else "0", "question": "Is it?", "answer": answer,
         "category": "color"}
        for place, answer in enumerate(("Yes", "No"))
    ]  # fmt: skip
    put_table(tmp_path / "tsv" / "MME.tsv", table)
    parquet, tsv = (load_task("mme", tmp_path / kind).items for kind in ("parquet", "tsv"))
    for items in (folders, parquet, tsv):
        # the two questions of a picture stand together
        assert all(items[n].cluster == items[n + 1].cluster for n in range(0, len(items), 2))
        assert [item.gold["answer"] for item in items] == ["yes", "no"] * (len(items) // 2)
    assert [shade(item) for item in parquet] == [1, 1, 2, 2] and [shade(item) for item in tsv] == [4, 4]


def test_mmbench_asks_every_rotation(tmp_path: Path) -> None:
    items = read("mmbench", tmp_path).items
    assert [item.id for item in items] == ["3", "1000003", "2000003", "8", "1000008"]
    assert [item.gold["answer"] for item in items] == ["B", "A", "C", "A", "B"]
    for item in items[:3]:
        assert item.gold["options"]["ABC".index(item.gold["answer"])] == "a cat"
    assert items[1].prompt.startswith("Which?\nA. a cat\nB. an owl\nC. a dog\nAnswer with the option's letter")
    assert items[3].prompt.startswith("Look up.\nWhich?")
    assert items[0].cluster == items[4].cluster == "3" and {shade(item) for item in items} == {3}
    assert [item.id for item in load_task("mmbench", tmp_path, circular=False).items] == ["3", "8"]


def test_mmbench_keeps_the_rotations_of_a_file(tmp_path: Path) -> None:
    row = {"question": "Which?", "A": "x", "B": "y", "image": "5"}
    rows = [{"index": 1000005, **row, "answer": "A"}, {"index": 5, **row, "image": base64_png(5), "answer": "B"}]
    put_table(tmp_path / "mmbench_dev_en.tsv", rows)
    items = load_task("mmbench", tmp_path).items
    assert [(item.id, item.gold["answer"], shade(item)) for item in items] == [("5", "B", 5), ("1000005", "A", 5)]
    assert [item.id for item in load_task("mmbench", tmp_path, circular=False).items] == ["5"]


def test_seed_leaves_videos_out(tmp_path: Path) -> None:
    (item,) = read("seed", tmp_path).items
    assert item.id == "101669" and item.groups == {"category": "Scene Understanding"} and shade(item) == 1
    assert item.gold == {"answer": "A", "options": ["one", "two", "three", "four"]}


def test_scienceqa_with_and_without_pictures(tmp_path: Path) -> None:
    (item,) = read("scienceqa", tmp_path).items
    assert item.prompt.startswith("Think.\nWhich is a solid?\nA. ice\nB. air\n") and item.gold["answer"] == "A"
    assert item.groups == {"subject": "natural science", "grade": "grade2", "context": "image"} and shade(item) == 1
    both = load_task("scienceqa", tmp_path, subset="all").items
    assert both[1].media == () and both[1].groups["context"] == "none"


def test_mmmu_shows_pictures_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    choice, free = read("mmmu", tmp_path).items
    assert choice.prompt.startswith("See image 1 and image 2.\nA. image 1\nB. b\nAnswer with the option's letter")
    assert [shade(choice, place) for place in range(len(choice.media))] == [1, 2]
    assert choice.groups == {"subject": "Art_Theory", "question_type": "multiple-choice"}
    assert free.gold == {"question_type": "open", "answers": ["24", "two dozen"]}
    assert free.prompt == "How many?\nAnswer the question using a single word or phrase."


def test_mmmu_from_a_table(tmp_path: Path) -> None:
    row = {"question": "<image 1> or <image 2>?", "A": "one", "B": "two", "category": "Art", "split": "validation"}
    several = str([base64_png(6), base64_png(7)])
    rows = [
        {"index": 1, "id": "validation_Art_1", "image": several, **row, "answer": "B"},
        {"index": 2, "id": "dev_Art_1", "image": base64_png(8), **row, "split": "dev", "answer": "A"},
    ]
    put_table(tmp_path / "MMMU_DEV_VAL.tsv", rows)
    (item,) = load_task("mmmu", tmp_path).items
    assert [shade(item, 0), shade(item, 1)] == [6, 7] and item.gold["answer"] == "B" and item.groups["subject"] == "Art"


def test_refcoco_asks_once_a_phrase(tmp_path: Path) -> None:
    items = read("refcoco", tmp_path).items
    assert [item.id for item in items] == ["0-0", "1-0"] and items[0].cluster == items[1].cluster
    assert items[0].gold == {"box": [1, 2, 5, 7.5], "size": [8, 8], "coordinates": "unit"} and shade(items[0]) == 1
    other = load_task("refcoco", tmp_path, style="0-1000").items[0]
    assert other.gold["coordinates"] == "0-1000" and "between 0 and 1000" in other.prompt
    # lines of its sisters may lie beside it
    WRITERS["refcocog"](tmp_path)
    assert len(load_task("refcoco", tmp_path).items) == 2


def test_refcoco_from_parquet_is_corner_and_size(tmp_path: Path) -> None:
    row = {"question_id": "q7", "image": {"bytes": png(7), "path": "a.png"}, "answer": ["the cup", "left cup"]}
    put_parquet(tmp_path / "data" / "testA-00000-of-00001.parquet", [{**row, "bbox": [1.0, 2.0, 3.0, 4.0]}])
    items = load_task("refcoco", tmp_path, "testA").items
    assert [item.id for item in items] == ["q7-0", "q7-1"] and '"left cup"' in items[1].prompt
    assert items[0].gold["box"] == [1, 2, 4, 6] and items[0].gold["size"] == [8, 8] and shade(items[0]) == 7
    assert load_task("refcoco", tmp_path, "testA", boxes="xyxy").items[0].gold["box"] == [1, 2, 3, 4]


def test_pages_may_lie_in_a_folder_of_another_name(tmp_path: Path) -> None:
    WRITERS["docvqa"](tmp_path)
    (tmp_path / "documents").rename(tmp_path / "spdocvqa_images")
    page = load_task("docvqa", tmp_path).items[0]
    assert shade(page) == 1 and page.cluster == "documents/abcd_1.png"


def test_another_metric_may_be_asked_for(tmp_path: Path) -> None:
    assert read("pope", tmp_path, metric="pope/official").metric == "pope/official"


def test_hidden_answers_are_no_gold(tmp_path: Path) -> None:
    row = {
        "id": "test_Art_1",
        "question": "<image 1>?",
        "options": "['a', 'b']",
        "image_1": {"bytes": png(), "path": None},
    }
    put_parquet(tmp_path / "Art" / "test-00000-of-00001.parquet", [{**row, "answer": "?"}])
    assert not load_task("mmmu", tmp_path, "test").scored


def test_a_row_may_share_the_picture_of_a_row_that_shares_it(tmp_path: Path) -> None:
    row = {"question": "Which?", "A": "x", "B": "y", "answer": "A"}
    images = {1: "2", 2: "3", 3: base64_png(9)}
    put_table(tmp_path / "SEEDBench_IMG.tsv", [{"index": n, "image": image, **row} for n, image in images.items()])
    items = load_task("seed", tmp_path).items
    assert [shade(item) for item in items] == [9, 9, 9] and {item.cluster for item in items} == {"3"}
