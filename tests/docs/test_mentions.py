"""What prose names is there: files, names of Python, commands and their options."""

import pkgutil
import re
from collections.abc import Iterator

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from tests.docs.blocks import PAGES, ROOT, page_name, tokens, words
from vlm_eff.cli import app

# groups of entry points, which look like modules
GROUPS = ("vlm_eff.plugins", "vlm_eff.tasks")
FILE = re.compile(r"(?:benchmarks|examples|tests|docs|vlm_eff)/[\w/.-]+")
NAME = re.compile(r"vlm_eff(?:\.\w+)+")


def mentions(text: str) -> Iterator[tuple[int, str]]:
    """What a page sets in code inside its prose, with the line of the paragraph."""
    for token in tokens(text):
        for child in token.children or []:
            if child.type == "code_inline":
                yield (token.map or [0])[0] + 1, child.content


def check_mention(code: str) -> None:
    """Raise where a file, name, command or option that prose names is not there."""
    # words in capitals stand for others
    if FILE.fullmatch(code) and not re.search(r"\b[A-Z]{2,}\b|_NAME", code):
        assert (ROOT / code).exists(), f"there is no {code}"
    elif NAME.fullmatch(code) and code not in GROUPS:
        pkgutil.resolve_name(code)
    elif code.startswith("vlm-eff "):
        _, *arguments = words(code)
        command = get_command(app)
        while isinstance(command, TyperGroup) and arguments and not arguments[0].startswith("--"):
            command = command.commands[arguments.pop(0)]
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        unknown = [one for one in arguments if one.startswith("--") and one not in known | {"--help"}]
        assert not unknown, f"{code}: no option {unknown}"


def test_what_prose_names_is_there() -> None:
    wrong = []
    for path in PAGES:
        for line, code in mentions(path.read_text(encoding="utf-8")):
            try:
                check_mention(code)
            except Exception as error:
                wrong.append(f"{page_name(path)}:{line}: `{code}`: {error!r}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "code",
    ["docs/nowhere.md", "vlm_eff.tokens.fastw", "vlm_eff.nothing", "vlm-eff evaluate", "vlm-eff run --picture a.png"],
)
def test_what_is_not_there_is_noticed(code: str) -> None:
    with pytest.raises((AssertionError, AttributeError, ImportError, KeyError)):
        check_mention(code)
