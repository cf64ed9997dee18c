"""The docstring of a method, taken apart: its first sentence, labelled lines, prose, arguments and errors."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# a label fills its line up to here; what continues it is indented as far
_COLUMN = 9
_LABELLED = re.compile(r"([A-Z][a-z]+) {2,}\S")
# a second label on the same line: "Reduce  drop     When  once"
_INSIDE = re.compile(r" {2,}([A-Z][a-z]+) {2,}(?=\S)")
_SECTIONS = ("Args:", "Raises:")
_NAMED = re.compile(r"(\w+): +(.*)")


@dataclass(frozen=True)
class MethodDoc:
    """What a method says of itself.

    parts: labelled lines in their order, such as ("Score", "attention of the last prompt token ...")
    prose: paragraphs without a label
    arguments, raises: name and meaning
    """

    summary: str
    parts: tuple[tuple[str, str], ...]
    prose: tuple[str, ...]
    arguments: tuple[tuple[str, str], ...]
    raises: tuple[tuple[str, str], ...]


def method_doc(make: Callable[..., Any]) -> MethodDoc:
    """Take the docstring of a method apart; nothing of it gets lost."""
    lines = (inspect.getdoc(make) or "").splitlines()
    sections: dict[str, list[str]] = {name: [] for name in _SECTIONS}
    rest: list[str] = []
    into = rest
    for line in lines:
        if line in sections:
            into = sections[line]
        elif line and not line.startswith(" ") and into is not rest:
            into = rest
            into += ["", line]
        else:
            into.append(line)
    summary, *blocks = _paragraphs(rest)
    parts: list[tuple[str, str]] = []
    prose: list[str] = []
    for block in blocks:
        if _is_labelled(block[0]):
            parts += _labelled(block)
        else:
            prose.append(_joined(block))
    arguments, raises = (_named(sections[name]) for name in _SECTIONS)
    return MethodDoc(_joined(summary), tuple(parts), tuple(prose), arguments, raises)


def _paragraphs(lines: list[str]) -> list[list[str]]:
    found: list[list[str]] = [[]]
    for line in lines:
        if line:
            found[-1].append(line)
        elif found[-1]:
            found.append([])
    return [block for block in found if block]


def _is_labelled(line: str) -> bool:
    label = _LABELLED.match(line)
    return label is not None and label.end() == _COLUMN + 1


def _labelled(block: list[str]) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for line in block:
        label = ""
        if _is_labelled(line):
            label, line = line.split(maxsplit=1)
        first, *others = _INSIDE.split(line)
        if label:
            found.append((label, first.strip()))
        else:
            found[-1] = (found[-1][0], f"{found[-1][1]} {first.strip()}")
        found += [(name, text.strip()) for name, text in zip(others[::2], others[1::2], strict=True)]
    return found


def _named(lines: list[str]) -> tuple[tuple[str, str], ...]:
    """Entries `name: meaning` of a section; what is indented further continues the entry."""
    found: list[tuple[str, str]] = []
    for line in filter(None, lines):
        entry = _NAMED.match(line.removeprefix("    "))
        if entry:
            found.append((entry[1], entry[2]))
        elif found:
            found[-1] = (found[-1][0], f"{found[-1][1]} {line.strip()}")
    return tuple(found)


def _joined(lines: list[str]) -> str:
    return " ".join(line.strip() for line in lines)
