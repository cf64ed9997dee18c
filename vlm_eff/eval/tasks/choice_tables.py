"""MMBench, SEED-Bench and ScienceQA: one picture, one question, options with letters; TSV with base64, or JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.eval.metrics.choice import ROTATION
from vlm_eff.eval.metrics.gold import LETTERS
from vlm_eff.eval.tasks.choices import CHOICE_STYLES, bare_options, by_letter, by_number, options_text
from vlm_eff.eval.tasks.embedded import SharedPictures
from vlm_eff.eval.tasks.files import find_file, inside, media_folder
from vlm_eff.eval.tasks.item import Item, Media, Picture
from vlm_eff.eval.tasks.rows import Row, read_object, rows_of
from vlm_eff.eval.tasks.source import Request, TaskSource, register


def lettered_options(row: Row) -> list[str]:
    """Options in columns A, B, C, ... up to the first that is empty.

    Raises:
        InputError: fewer than two, or an empty one between others.
    """
    options: list[str] = []
    for letter in LETTERS:
        if row.find(letter) is None:
            break
        options.append(row.text(letter))
    later = [letter for letter in LETTERS[len(options) :] if row.find(letter) is not None]
    if len(options) < 2 or later:
        raise row.wrong(f"options A to {LETTERS[max(len(options) - 1, 0)]}, then {later}", "two or more without a gap")
    return options


def tsv_choices(request: Request, rows: Sequence[Row], *groups: str, pictures: SharedPictures) -> Iterator[Item]:
    """Items of a TSV in VLMEvalKit's columns: index, image, hint, question, A, B, ..., answer.

    groups: columns of breakdowns; a column that is not there is left out
    """
    for row in rows:
        options = lettered_options(row)
        home, shown = pictures.of(row)
        question, hint = row.text("question"), row.find("hint")
        answer = row.find("answer")
        yield Item(
            id=row.text("index"),
            prompt=request.ask(f"{hint}\n{question}" if hint else question, options=options_text(options)),
            media=shown,
            gold={} if answer is None else by_letter(row, answer, options),
            cluster=home,
            groups={name: row.text(name) for name in groups if row.find(name) is not None},
        )


def read_mmbench(request: Request, circular: bool = True, language: Literal["en", "cn"] = "en") -> Iterator[Item]:
    """MMBench (arXiv:2307.06281): a TSV with pictures in base64, such as `MMBench_DEV_EN.tsv`.

    A question is asked once for each rotation of its options, and counts when all are answered rightly. Files that hold
    the rotations (index = question + k x 1,000,000) are read as they are; of others the rotations are made here.
    `circular=False` asks each question once. Items of a question stand together.
    """
    if language not in ("en", "cn"):
        raise ConfigError(explain(f"language={language!r}", "en, cn", "Choose one of them"))
    stems = (f"{request.split.upper()}_{language.upper()}", f"{request.split}_{language}")
    names = [f"*{kind}{stem}{more}.tsv" for stem in stems for kind in ("MMBench_", "mmbench_") for more in ("", "_V11")]
    rows = list(rows_of(find_file(request.folder, *names, "mmbench*.tsv")))
    questions: dict[int, list[Row]] = {}
    for row in sorted(rows, key=_index):
        questions.setdefault(_index(row) % ROTATION, []).append(row)
    rotated = any(len(same) > 1 for same in questions.values())
    chosen = [
        row
        for same in questions.values()
        for row in (same[:1] if not circular else same if rotated else _rotations(same[0]))
    ]
    for item in tsv_choices(request, chosen, "category", "l2-category", pictures=SharedPictures(rows, request.folder)):
        yield replace(item, gold={**item.gold, "index": int(item.id)}) if item.gold else item


def _question(item: Item) -> str:
    return str(int(item.id) % ROTATION)


def _index(row: Row) -> int:
    text = row.text("index")
    if not text.isdecimal():
        raise row.wrong(f"index is {text!r}", "a whole number")
    return int(text)


def _rotations(row: Row) -> list[Row]:
    """The row, and the rows with its options moved by one place, two places, and so on; answer and index go along."""
    options, index = lettered_options(row), _index(row)
    made = []
    for turn in range(len(options)):
        values = dict(row.values)
        turned = options[turn:] + options[:turn]
        values.update(zip(LETTERS, turned, strict=False))
        values["index"] = str(index + turn * ROTATION)
        if turn:
            values["image"] = str(index)
        if row.find("answer") is not None:
            gold = by_letter(row, row.need("answer"), options)["answer"]
            values["answer"] = LETTERS[(LETTERS.index(gold) - turn) % len(options)]
        made.append(Row(values, row.where))
    return made


def read_seed(request: Request) -> Iterator[Item]:
    """SEED-Bench (arXiv:2307.16125), its questions about pictures: `SEED-Bench.json`, folder `SEED-Bench-image`.

    Questions about videos are left out. Accepted as well: `SEEDBench_IMG.tsv` with pictures in base64. The JSON layout
    is from general knowledge of the official file.
    """
    path = find_file(request.folder, "SEED-Bench.json", "SEED*Bench*.json", "SEED*Bench*.tsv")
    if path.suffix == ".tsv":
        rows = list(rows_of(path))
        yield from tsv_choices(request, rows, "category", pictures=SharedPictures(rows, request.folder))
        return
    names = read_object(path).get("question_type")
    types = {str(number): name for name, number in names.items()} if isinstance(names, dict) else {}
    folder = media_folder(request.folder, "SEED-Bench-image", "images")
    for row in rows_of(path, "questions"):
        if row.find("data_type") != "image":
            continue
        options = bare_options(row, [row.need(f"choice_{letter}") for letter in "abcd"])
        kind = row.text("question_type_id")
        name = row.text("data_id")
        yield Item(
            id=row.text("question_id"),
            prompt=request.ask(row.text("question"), options=options_text(options)),
            media=(Picture(inside(folder, name)),),
            gold=by_letter(row, row.need("answer"), options),
            cluster=name,
            groups={"category": types.get(kind, kind)},
        )


def read_scienceqa(request: Request, subset: Literal["image", "all"] = "image") -> Iterator[Item]:
    """ScienceQA (arXiv:2209.09513): `problems.json`, `pid_splits.json`, pictures `images/test/ID/image.png`.

    By default the questions with a picture, as models are usually compared; `subset="all"` adds those about text alone.
    The hint stands before the question. From general knowledge of the official files.
    """
    if subset not in ("image", "all"):
        raise ConfigError(explain(f"subset={subset!r}", "image, all", "Choose one of them"))
    problems = {row.text("_key"): row for row in rows_of(find_file(request.folder, "problems.json"))}
    path = find_file(request.folder, "pid_splits.json")
    splits = Row(read_object(path), path.name)
    folder = media_folder(request.folder, f"images/{request.split}", request.split)
    for number in map(str, splits.sequence(request.split)):
        if number not in problems:
            raise splits.wrong(f"problem {number} is not in problems.json", "files of one version")
        row = problems[number]
        image = row.find("image")
        if image is None and subset == "image":
            continue
        options = bare_options(row, row.sequence("choices"))
        hint, question = row.find("hint"), row.text("question")
        media: tuple[Media, ...] = () if image is None else (Picture(inside(folder, f"{number}/{image}")),)
        yield Item(
            id=number,
            prompt=request.ask(f"{hint}\n{question}" if hint else question, options=options_text(options)),
            media=media,
            gold=by_number(row, row.need("answer"), options),
            cluster=number,
            groups={
                **{name: row.text(name) for name in ("subject", "grade") if row.find(name)},
                "context": "image" if image else "text" if hint else "none",
            },
        )


register(
    TaskSource(
        name="mmbench",
        about="Multiple choice asked in every rotation of its options (MMBench, arXiv:2307.06281)",
        files="MMBench_DEV_EN.tsv, or that of another split or language",
        splits=("dev", "test"),
        metric="mmbench",
        read=read_mmbench,
        styles=CHOICE_STYLES,
        whole=_question,
    )
)
register(
    TaskSource(
        name="seed",
        about="Multiple choice about photographs in nine dimensions (SEED-Bench, arXiv:2307.16125)",
        files="SEED-Bench.json and the folder SEED-Bench-image, or SEEDBench_IMG.tsv",
        splits=("test",),
        metric="seed_bench",
        read=read_seed,
        styles=CHOICE_STYLES,
    )
)
register(
    TaskSource(
        name="scienceqa",
        about="Multiple choice from school books, questions with a picture (ScienceQA, arXiv:2209.09513)",
        files="problems.json, pid_splits.json, the folder images/test",
        splits=("test", "val", "train"),
        metric="scienceqa",
        read=read_scienceqa,
        styles=CHOICE_STYLES,
    )
)
