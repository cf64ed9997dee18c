"""Every Python block of README and docs runs, those of a page one after another, as a reader would run them."""

import contextlib
import io
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import vlm_eff
from tests.docs.blocks import Block, all_blocks, blocks_of, check_printed
from tests.docs.names import names_of
from vlm_eff.core.registry import METHODS
from vlm_eff.eval.tasks import TASKS
from vlm_eff.models.family import FAMILIES

BLOCKS = all_blocks()
PYTHON = [block for block in BLOCKS if block.language == "python"]

# a block that is compiled and not run, by page and a line of it; everything else runs
NOT_RUN = {
    (
        "docs/beside.md",
        "Int8WeightOnlyConfig",
    ): "needs torchao; tests/beside/test_quantised.py runs the same",
    ("docs/beside.md", "BitsAndBytesConfig"): "needs bitsandbytes; tests/beside/test_quantised.py runs the same",
    (
        "docs/beside.md",
        "layer.mlp.compile()",
    ): "takes a minute; tests/beside/test_compile.py has another backend",
    ("docs/scale.md", "# torchrun --nproc-per-node 2 ask.py"): "needs two ranks; tests/scale runs the same on two",
    ("docs/scale.md", "import run_with_ray"): "needs Ray; tests/eval/runs/test_ray_pool.py runs it",
}
# what a block may be in: python runs, bash is checked (test_commands.py), toml and json are read, text was printed by
# a program or is a drawing, mermaid is drawn by the site
LANGUAGES = ("python", "bash", "toml", "json", "text", "mermaid")


def run_page(page: str, blocks: list[Block], names: dict[str, Any]) -> str:
    """Run the Python blocks of a page in one namespace; what they printed."""
    printed, before = io.StringIO(), ""
    for block in blocks:
        if block.prints and before == "python":
            check_printed(block, printed.getvalue())
        if block.language in ("python", "bash"):
            before = block.language
        if block.language != "python":
            continue
        # lines of a traceback are those of the page
        code = compile("\n" * (block.line - 1) + block.text, page, "exec", dont_inherit=True)
        if any(line in block.text for skipped, line in NOT_RUN if skipped == page):
            continue
        with contextlib.redirect_stdout(printed):
            exec(code, names)
    return printed.getvalue()


@pytest.fixture(autouse=True)
def registries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a page registers is gone behind it, and what it writes lies in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    vlm_eff.methods()
    for registry in (METHODS, TASKS, FAMILIES):
        monkeypatch.setattr(registry, "_values", dict(registry._values))
    yield


@pytest.mark.parametrize("page", sorted({block.page for block in PYTHON}))
def test_the_code_of_a_page_runs(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run_page(page, [block for block in BLOCKS if block.page == page], names_of(page, monkeypatch))


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_every_block_says_what_it_is(block: Block) -> None:
    assert block.language in LANGUAGES, f"{block} is in {block.language!r}; write one of {LANGUAGES}"
    if block.language == "toml":
        tomllib.loads(block.text)
    if block.language == "json":
        json.loads(block.text)


def test_nothing_is_excused_in_vain() -> None:
    for page, line in NOT_RUN:
        assert any(block.page == page and line in block.text for block in PYTHON), (page, line)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ("from vlm_eff.tokens import fastv\nfastv(keep=0.5)", TypeError),
        ("from vlm_eff.tokens import fastw", ImportError),
        ("handle.stats()", NameError),
        ("x = (", SyntaxError),
    ],
)
def test_wrong_code_is_noticed(wrong: str, error: type[Exception]) -> None:
    blocks = list(blocks_of("docs/page.md", f"# Title\n\n```python\n{wrong}\n```\n"))
    with pytest.raises(error) as raised:
        run_page("docs/page.md", blocks, {})
    # the line is that of the page
    last = raised.traceback[-1] if error is not SyntaxError else None
    assert last is None or last.lineno + 1 >= 4
