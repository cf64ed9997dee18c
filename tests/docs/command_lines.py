"""What is checked of each program that a page tells the reader to run."""

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer.core import TyperGroup
from typer.main import get_command

import vlm_eff
from tests.docs.blocks import ROOT, words
from vlm_eff.cli import app
from vlm_eff.cli.run import together_of
from vlm_eff.eval.bridges.arguments import read_arguments
from vlm_eff.eval.tasks import TASKS


class Wrong(AssertionError):
    """A page tells the reader something that does not work."""


def check(command: str) -> None:
    """Raise `Wrong`, or what the program itself raises, where a command line cannot be."""
    program, *rest = words(command)
    if program not in CHECKS:
        raise Wrong(f"nobody checks the program {program!r}: say in CHECKS how")
    CHECKS[program](rest)


def parsed(arguments: list[str]) -> dict[str, Any]:
    """What `vlm-eff` reads from its arguments, by the name of the option; click raises what it does not know."""
    command, path = get_command(app), "vlm-eff"
    while isinstance(command, TyperGroup):
        name, *arguments = [*arguments, ""]
        arguments = [one for one in arguments if one != ""]
        if name not in command.commands:
            raise Wrong(f"{path} has no command {name!r}")
        command, path = command.commands[name], f"{path} {name}"
    return command.make_context(path, list(arguments)).params


def _vlm_eff(arguments: list[str]) -> None:
    given = parsed(arguments)
    plugins = given.get("plugin") or []
    together_of([plugins] if isinstance(plugins, str) else list(plugins))
    for spec in given.get("method") or []:
        vlm_eff.plugin(spec)
    tasks = given.get("task") or []
    for task in [tasks] if isinstance(tasks, str) else tasks:
        TASKS.get(task.partition(":")[0])


def _pip(arguments: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for argument in arguments:
        found = re.fullmatch(r"(?:\.|vlm[-_]eff(?:-[\d.]+-py3-none-any\.whl)?)\[([\w,-]+)\]", argument)
        for extra in found[1].split(",") if found else []:
            if extra not in extras:
                raise Wrong(f"there is no extra {extra!r}")


def _make(arguments: list[str]) -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in arguments:
        if not re.search(rf"^{re.escape(target)}:", text, re.MULTILINE):
            raise Wrong(f"the Makefile has no target {target!r}")


def _python(arguments: list[str]) -> None:
    """A script or module that is there and knows its options."""
    if arguments[0] == "-m":
        module, rest = arguments[1], arguments[2:]
        if module == "vlm_eff.cli":
            return _vlm_eff(rest)
        stem = ROOT / module.replace(".", "/")
        path = stem.with_suffix(".py") if stem.with_suffix(".py").is_file() else stem / "__main__.py"
    else:
        path, rest = ROOT / arguments[0], arguments[1:]
    if not path.is_file():
        raise Wrong(f"there is no {path.relative_to(ROOT)}")
    source = path.read_text(encoding="utf-8")
    for option in (one for one in rest if one.startswith("--")):
        # written out for argparse, or the name of a parameter for typer
        if f'"{option}"' not in source and not re.search(rf"\b{option[2:].replace('-', '_')}\b\s*:", source):
            raise Wrong(f"{path.relative_to(ROOT)} has no option {option}")
    return None


def _torchrun(arguments: list[str]) -> None:
    _python(arguments[arguments.index("-m") :])


def _lmms_eval(arguments: list[str]) -> None:
    """What is ours in it: the arguments of our model, and what is asked of our package in between."""
    read_arguments(re.sub(r"\$\(.*?\)\)'\)", "FOLDER", arguments[arguments.index("--model_args") + 1]))


def _ours(path: str) -> Callable[[list[str]], None]:
    def there(_: list[str]) -> None:
        if not (ROOT / Path(path)).is_file():
            raise Wrong(f"there is no {path}")

    return there


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "vlm-eff": _vlm_eff,
    "pip": _pip,
    "make": _make,
    "python": _python,
    "torchrun": _torchrun,
    "lmms-eval": _lmms_eval,
    ".ci/run": _ours(".ci/run"),
    "export": lambda _: None,  # settings for the commands that follow
    "cd": lambda _: None,
}
