"""The rules of the house, as tests: sizes, names, who may do what, and that what is listed is what is there."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

import vlm_eff
from tests import tiny
from vlm_eff.eval.readme import pages, render
from vlm_eff.models.adapter import FAMILIES

PACKAGE = Path(vlm_eff.__file__).parent
ROOT = PACKAGE.parent
FILES = sorted(PACKAGE.rglob("*.py"))
LONGEST_FILE, LONGEST_FUNCTION = 400, 50
BANNED = {"utils.py", "helpers.py", "common.py", "misc.py"}
# only these may know Hugging Face's names for what goes through a model
BORDER = ("models", "reference", "eval")
HUGGING_FACE_NAMES = ("past_key_values", "pixel_values", "image_grid_thw", "position_embeddings", "inputs_embeds")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0]


def test_there_is_something_to_check() -> None:
    assert len(FILES) > 50


def test_files_and_functions_are_short() -> None:
    too_long = []
    for path in FILES:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > LONGEST_FILE:
            too_long.append(f"{name_of(path)}: {lines} lines, split it by concept")
        for node in functions(path):
            length = body_length(node)
            if length > LONGEST_FUNCTION:
                too_long.append(f"{name_of(path)}:{node.lineno} {node.name}: {length} lines")
    assert not too_long, "\n".join(too_long)


def body_length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of code: the options of a command and a method's docstring may be long."""
    body = node.body[1:] if ast.get_docstring(node) else node.body
    return (node.end_lineno or 0) - body[0].lineno + 1 if body else 0


def _installed(path: Path) -> bool:
    return any(part.startswith(".venv") for part in path.parts)


def test_no_file_is_a_drawer() -> None:
    drawers = [name_of(path) for path in ROOT.rglob("*.py") if path.name in BANNED and not _installed(path)]
    assert not drawers, f"name these by their concept: {drawers}"


def test_hooks_are_registered_in_two_files() -> None:
    allowed = {PACKAGE / "models" / "seams.py", PACKAGE / "models" / "denoise" / "chain.py"}
    found = {
        path
        for path in FILES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute) and node.attr.startswith("register_") and node.attr.endswith("_hook")
    }
    assert found == allowed


def test_only_models_look_at_a_model() -> None:
    found = []
    for path in FILES:
        if room_of(path) == "models":
            continue
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "hasattr":
                found.append(f"{name_of(path)}:{node.lineno} hasattr")
            named = isinstance(node, ast.Constant | ast.keyword | ast.Attribute)
            text = getattr(node, "value", None) if isinstance(node, ast.Constant) else getattr(node, "arg", None)
            text = node.attr if isinstance(node, ast.Attribute) else text
            if named and text in HUGGING_FACE_NAMES and room_of(path) not in BORDER:
                found.append(f"{name_of(path)}:{node.lineno} {text}")
    assert not found, f"ask the adapter: {found}"


@pytest.mark.parametrize("name", sorted(vlm_eff.methods()))
def test_every_method_says_where_it_comes_from(name: str) -> None:
    method = vlm_eff.methods()[name]
    text = inspect.getdoc(method.make) or ""
    first = text.split("\n")[0]
    assert first.endswith(".") and len(first) <= 120, "one plain sentence first"
    for part in ("Raises:", "Args:", "Saves "):
        assert part in text, f"the docstring of {name} lacks {part!r}"
    assert method.acts and method.paper
    if not method.paper.startswith("baseline"):
        assert "Paper " in text and method.paper in text, f"the docstring of {name} does not name {method.paper}"
    for parameter in inspect.signature(method.make).parameters:
        assert f"{parameter}:" in text, f"the docstring of {name} does not explain {parameter}"


def modules_with_all() -> list[str]:
    named = []
    for path in FILES:
        if any(isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "__all__" for n in tree(path).body):
            parts = path.relative_to(ROOT).with_suffix("").parts
            named.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return named


@pytest.mark.parametrize("name", modules_with_all())
def test_all_is_true(name: str) -> None:
    module = importlib.import_module(name)
    listed = list(module.__all__)
    # ruff (RUF022) keeps the order
    assert len(set(listed)) == len(listed)
    for item in listed:
        assert getattr(module, item) is not None


def offered_by(path: Path) -> set[str]:
    """The public names that a room's `__init__.py` defines, or takes from the files of the room."""
    room = ".".join(path.relative_to(ROOT).parent.parts)
    names: set[str] = set()
    for node in tree(path).body:
        if isinstance(node, ast.ImportFrom) and (node.level == 1 or f"{node.module}.".startswith(f"{room}.")):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return {name for name in names if not name.startswith("_")}


def listed_by(path: Path) -> list[str]:
    """What `__all__` names, in its order."""
    values = [
        node.value
        for node in tree(path).body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
    ]
    return list(ast.literal_eval(values[0])) if values else []


def test_a_room_lists_all_that_it_offers() -> None:
    # importing the families registers them: nobody takes them from there
    rooms = [path for path in FILES if path.name == "__init__.py" and path.parent != PACKAGE / "models" / "vlm"]
    missing = {name_of(path): sorted(offered_by(path) - set(listed_by(path))) for path in rooms}
    assert not {name: names for name, names in missing.items() if names}, "add these to __all__"


def test_every_method_is_offered_by_its_room() -> None:
    for name, method in vlm_eff.methods().items():
        if method.room != "third party":
            room = importlib.import_module(f"vlm_eff.{method.room}")
            assert getattr(room, name) is method.make
            assert name in room.__all__


def test_every_method_has_contract_cases() -> None:
    if importlib.util.find_spec("tests.contracts.cases") is None:
        pytest.skip("tests/contracts/cases.py does not exist yet")
    cases = importlib.import_module("tests.contracts.cases")
    towers = importlib.import_module("tests.contracts.tower_cases")
    caches = importlib.import_module("tests.contracts.kv_cases")
    recipes = importlib.import_module("tests.recipes.cases")
    pipelines = importlib.import_module("tests.diffusion.cases")
    tables = (
        pipelines.CASES,
        cases.METHOD_CASES,
        cases.BYPASS_CASES,
        cases.SPARSE_CASES,
        towers.TOWER_CASES,
        caches.KV_CASES,
        caches.LOGIT_CASES,
        recipes.RECIPES,
    )
    assert {name for table in tables for name in table} == {
        name for name, method in vlm_eff.methods().items() if method.room != "third party"
    }


def test_all_families_are_tested() -> None:
    # the method table says "all", which the contract tests make true on these
    assert set(tiny.FAMILIES) == set(FAMILIES)


def test_every_public_function_has_a_docstring() -> None:
    bare = []
    for path in FILES:
        for node in tree(path).body:
            public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            if public and not ast.get_docstring(node):
                bare.append(f"{name_of(path)}:{node.lineno} {node.name}")
        if not ast.get_docstring(tree(path)) and path.read_text(encoding="utf-8").strip():
            bare.append(name_of(path))
    assert not bare, "\n".join(bare)


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_generated_pages_are_fresh(page: Path) -> None:
    assert page.read_text(encoding="utf-8") == render(page), "run: make readme"
