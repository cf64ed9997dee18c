"""POPE and MME: is it there, is it so; answered with yes or no."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vlm_eff.core.errors import InputError, explain
from vlm_eff.eval.metrics.yes_no import COGNITION, PERCEPTION
from vlm_eff.eval.tasks.embedded import SharedPictures, embedded_picture
from vlm_eff.eval.tasks.files import find_file, find_files, inside, media_folder
from vlm_eff.eval.tasks.item import Item, Picture
from vlm_eff.eval.tasks.rows import Row, rows_of
from vlm_eff.eval.tasks.source import Request, TaskSource, register

_POPE_SPLITS = ("random", "popular", "adversarial")
_PICTURES = (".jpg", ".jpeg", ".png")


def read_pope(request: Request) -> Iterator[Item]:
    """POPE (arXiv:2305.10355): `coco_pope_random.json` and its two sisters, one object a line, and `val2014/`.

    The split "all" reads the three; ids are such as "adversarial-1".
    """
    folder = media_folder(request.folder, "val2014", "images/val2014", "images")
    for split in _POPE_SPLITS if request.split == "all" else (request.split,):
        names = (f"coco_pope_{split}.json", f"coco/coco_pope_{split}.json")
        for row in rows_of(find_file(request.folder, *names, f"*pope_{split}.json*")):
            image = row.text("image")
            yield Item(
                id=f"{split}-{row.text('question_id')}",
                prompt=request.ask(row.text("text")),
                media=(Picture(inside(folder, image)),),
                gold={"answer": _yes_no(row, "label")},
                cluster=image,
                groups={"split": split},
            )


def read_mme(request: Request) -> Iterator[Item]:
    """MME (arXiv:2306.13394): a folder a sub-task with pictures and texts, each of two lines "question TAB Yes".

    The folders may lie in `MME_Benchmark_release_version`, and hold `images/` and `questions_answers_YN/`. Accepted as
    well: a parquet file (question_id, image, question, answer, category) and a TSV (index, image, question, answer,
    category). From general knowledge of the official files.
    """
    folder = media_folder(request.folder, "MME_Benchmark_release_version")
    if any((folder / name).is_dir() for name in (*PERCEPTION, *COGNITION)):
        yield from _mme_folders(request, folder)
        return
    tables = ("*MME*.tsv", "*test*.parquet", "data/*test*.parquet", "*.parquet")
    paths = find_files(request.folder, "MME_Benchmark_release_version/existence/*.txt", *tables)
    found = [one for path in paths for one in _mme_rows(request, path)]
    # a picture's two questions side by side, whatever the order of the file
    places = {pair: place for place, pair in reversed(list(enumerate(item.cluster for item in found)))}
    yield from sorted(found, key=lambda item: places[item.cluster])


def _mme_folders(request: Request, folder: Path) -> Iterator[Item]:
    for category in (*PERCEPTION, *COGNITION):
        home = folder / category
        if not home.is_dir():
            continue
        texts, pictures = media_folder(home, "questions_answers_YN"), media_folder(home, "images")
        for text in sorted(texts.glob("*.txt")):
            files = [pictures / f"{text.stem}{ending}" for ending in _PICTURES]
            file = next((one for one in files if one.exists()), files[0])
            for number, row in enumerate(_mme_lines(text), 1):
                pair = f"{category}/{file.name}"
                yield _mme_item(request, row, f"{category}/{text.stem}/{number}", pair, category, Picture(file))


def _mme_lines(path: Path) -> Iterator[Row]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise InputError(explain(f"{path} is no UTF-8 text", "lines of text", "Copy or download it again")) from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            question, tab, answer = line.partition("\t")
            where = f"{path.parent.name}/{path.name}, line {number}"
            yield Row({"question": question, "answer": answer} if tab else {"question": question}, where)


def _mme_rows(request: Request, path: Path) -> Iterator[Item]:
    rows = list(rows_of(path))
    shared = SharedPictures(rows if path.suffix == ".tsv" else (), request.folder)
    numbers: dict[str, int] = {}
    for row in rows:
        category = row.text("category")
        if path.suffix == ".tsv":
            index, pictures = shared.of(row)
            pair, picture = f"{category}/{row.find('image_path') or index}", pictures[0]
        else:
            # both questions of a picture have its name as their id
            pair = row.text("question_id")
            pair = pair if pair.startswith(f"{category}/") else f"{category}/{pair}"
            picture = embedded_picture(row, row.need("image"), request.folder)
        numbers[pair] = numbers.get(pair, 0) + 1
        yield _mme_item(request, row, f"{pair}/{numbers[pair]}", pair, category, picture)


def _mme_item(request: Request, row: Row, name: str, pair: str, category: str, picture: Picture) -> Item:
    part = "perception" if category in PERCEPTION else "cognition"
    return Item(
        id=name,
        prompt=request.ask(row.text("question")),
        media=(picture,),
        gold={"answer": _yes_no(row, "answer")},
        cluster=pair,
        groups={"category": category, "part": part},
    )


def _yes_no(row: Row, name: str) -> str:
    answer = row.text(name).lower().rstrip(".")
    if answer not in ("yes", "no"):
        raise row.wrong(f"{name!r} is {answer[:40]!r}", "yes or no")
    return answer


register(
    TaskSource(
        name="pope",
        about="Is there such a thing in the photograph? Hallucination of objects (POPE, arXiv:2305.10355)",
        files="coco_pope_random.json, coco_pope_popular.json, coco_pope_adversarial.json, the folder val2014",
        splits=("all", *_POPE_SPLITS),
        metric="pope",
        read=read_pope,
    )
)
register(
    TaskSource(
        name="mme",
        about="Yes or no in 14 sub-tasks of perception and cognition, two questions a picture (MME, arXiv:2306.13394)",
        files="a folder a sub-task with pictures and texts, or MME.tsv, or test-*.parquet",
        splits=("test",),
        metric="mme",
        read=read_mme,
        whole=lambda item: item.cluster,
    )
)
