"""What stands in our pages: their code blocks, and the command lines in these."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[2]
PAGES = tuple(
    [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")]
    + sorted((ROOT / "docs").rglob("*.md"))
)


@dataclass(frozen=True)
class Block:
    """One fenced or indented block; `line` is that of its first line of code, from 1.

    prints: it stands under the title "Prints": these are lines of what the code before it printed
    """

    page: str
    line: int
    language: str
    text: str
    prints: bool = False

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def page_name(path: Path) -> str:
    """A page as people name it, such as docs/kvcache.md."""
    return path.relative_to(ROOT).as_posix()


def tokens(text: str) -> list[Token]:
    """The Markdown of a page, tables included; parts between `begin` and `end` are left out.

    These are generated, and `python -m vlm_eff.eval.readme --check` holds them: the README's example is run there.
    Their lines stay, empty, so that numbers of lines are those of the file.
    """

    def emptied(found: re.Match[str]) -> str:
        return "\n" * found[0].count("\n")

    hand_written = re.sub(r"<!-- (\w+):begin -->.*?<!-- \1:end -->", emptied, text, flags=re.DOTALL)
    return MarkdownIt("commonmark").enable("table").parse(hand_written)


def blocks_of(page: str, text: str) -> Iterator[Block]:
    """Every block of a page in order. An indented one is a command line: nothing else is written that way."""
    for token in tokens(text):
        if token.type in ("fence", "code_block") and token.map is not None:
            fenced = token.type == "fence"
            line = token.map[0] + (2 if fenced else 1)
            language, _, title = token.info.strip().partition(" ") if fenced else ("bash", "", "")
            yield Block(page, line, language, token.content, title == 'title="Prints"')


def all_blocks() -> list[Block]:
    """Every block of every page."""
    return [block for path in PAGES for block in blocks_of(page_name(path), path.read_text(encoding="utf-8"))]


def commands(text: str) -> list[str]:
    """The command lines of a shell block: continued lines joined, `&&` taken apart, comments left out."""
    joined = re.sub(r"\\\n\s*", " ", text)
    parts = [part for line in joined.splitlines() for part in line.split(" && ")]
    return [part.strip() for part in parts if shlex.split(part, comments=True)]


def check_printed(block: Block, printed: str) -> None:
    """Raise where a line of the block was not printed; how wide a table was drawn says nothing."""
    lines = {"".join(line.split()) for line in printed.splitlines()}
    missing = [line for line in block.text.splitlines() if line.strip() and "".join(line.split()) not in lines]
    assert not missing, f"{block} shows {missing}, which is not in\n{printed}"


def words(command: str) -> list[str]:
    """The words of a command line, as a shell would take them apart; settings in front of the program left out."""
    found = shlex.split(command, comments=True)
    while found and re.fullmatch(r"\w+=\S*", found[0]):
        found = found[1:]
    return found
