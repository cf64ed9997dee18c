"""Fields that docstrings list as aligned lines ("stages:  in ascending order") become lists on the pages of the API."""

from __future__ import annotations

import re
from typing import Any

import griffe

_FIELD = re.compile(r"([a-z_]\w*(?:, [a-z_]\w*)*): +(\S.*)")


class Fields(griffe.Extension):
    """Rewrites the text of each docstring before it is read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called once for everything that is found in the sources."""
        if obj.docstring is not None:
            obj.docstring.value = listed(obj.docstring.value)


def listed(text: str) -> str:
    """The text with every paragraph of fields as a Markdown list; sections such as "Args:" stay as they are."""
    # [M][N] is a shape, and no reference to something named N
    return "\n\n".join(_paragraph(block) for block in text.replace("][", "]\\[").split("\n\n"))


def _paragraph(block: str) -> str:
    lines = block.splitlines()
    if not lines or not _FIELD.match(lines[0]):
        return block
    found: list[str] = []
    for line in lines:
        field = _FIELD.match(line)
        if field:
            names = ", ".join(f"`{name}`" for name in field[1].split(", "))
            found.append(f"- {names}: {field[2]}")
        elif line.startswith(" "):
            found[-1] += f" {line.strip()}"
        else:
            return block
    return "\n".join(found)
