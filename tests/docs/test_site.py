"""The site: every page is listed, links lead somewhere, and what is wrong with them turns the build red."""

import importlib.util
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort

from vlm_eff.eval.readme import ROOT

DOCS = ROOT / "docs"


def module_at(path: Path) -> Any:
    """A file that mkdocs loads by its path as well."""
    spec = importlib.util.spec_from_file_location(f"site_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hooks = module_at(DOCS / "hooks.py")


def site(folder: Path, **changes: Any) -> Any:
    """The configuration of the site, for pages in `folder`, without the parts that take seconds."""
    settings = {"docs_dir": str(folder / "docs"), "site_dir": str(folder / "site"), "plugins": [], "hooks": []}
    return load_config(str(ROOT / "mkdocs.yml"), **settings | changes)


def listed(items: list[Any]) -> list[str]:
    """Pages in the navigation, in its order."""
    found: list[str] = []
    for item in items:
        for entry in item.values() if isinstance(item, dict) else [item]:
            found += listed(entry) if isinstance(entry, list) else [entry]
    return found


@pytest.fixture
def small(tmp_path: Path) -> Path:
    shutil.copytree(DOCS / "decisions", tmp_path / "docs" / "decisions")
    (tmp_path / "docs" / "index.md").write_text("# Home\n\n[Why](decisions/index.md)\n")
    return tmp_path


def small_site(small: Path) -> Any:
    config = site(small, nav=["index.md", "decisions/index.md", "decisions/"])
    return hooks.on_config(config)


def test_every_page_is_in_the_navigation() -> None:
    config = hooks.on_config(load_config(str(ROOT / "mkdocs.yml")))
    written = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    there = listed(config["nav"])
    assert len(there) == len(set(there))
    assert set(there) == written | set(hooks.generated()), "pages are listed under `nav` in mkdocs.yml"


def test_links_on_pages_lead_to_files_of_the_repository() -> None:
    # what readers of the repository click on; the build looks at those of the site
    dead = [
        f"{page.relative_to(ROOT)}: {link[1]}"
        for page in [*DOCS.rglob("*.md"), *ROOT.glob("*.md")]
        for link in hooks.LINK.finditer(page.read_text(encoding="utf-8"))
        if not (page.parent / link[1]).exists()
    ]
    assert not dead


def test_links_that_leave_docs_arrive_on_the_site() -> None:
    text = (
        "[a](../ARCHITECTURE.md#limits) [b](../examples/) [c](../examples/01_drop_tokens.py) [d](kvcache.md) "
        "[e](../examples/tour.ipynb) [f](x)"
    )
    made = hooks.relinked(text, "index.md")
    assert re.findall(r"\((.*?)\)", made) == [
        "architecture.md#limits",
        "examples/index.md",
        "examples/01_drop_tokens.md",
        "kvcache.md",
        "examples/tour.md",
        "x",
    ]
    # ARCHITECTURE.md stands beside docs/, and links from there
    assert hooks.relinked("[a](docs/kvcache.md)", "architecture.md") == "[a](kvcache.md)"
    assert (
        hooks.relinked("[a](../docs/kvcache.md) [b](tour.ipynb)", "examples/index.md")
        == "[a](../kvcache.md) [b](tour.md)"
    )


def test_a_sound_site_is_built(small: Path) -> None:
    build(small_site(small))
    assert "Decisions" in (small / "site" / "decisions" / "index.html").read_text()


def test_all_of_the_site_is_built(tmp_path: Path) -> None:
    # the search and the texts of the API take most of the time of `make docs`, and hold no links of ours
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), plugins=["autorefs"]))
    page = (tmp_path / "methods" / "fastv.html").read_text()
    assert "arxiv.org/abs/2403.06764" in page
    fetched = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)"', page)
    assert not fetched, "the site loads nothing from elsewhere"


@pytest.mark.parametrize(
    "wrong",
    ["[gone](decisions/000-gone.md)", "[nowhere](decisions/index.md#nowhere)", "[root](/decisions/index.md)"],
    ids=["page", "anchor", "absolute"],
)
def test_a_broken_link_fails_the_build(small: Path, wrong: str) -> None:
    page = small / "docs" / "index.md"
    page.write_text(f"{page.read_text()}\n{wrong}\n")
    with pytest.raises(Abort):
        build(small_site(small))


def test_a_page_that_nobody_lists_fails_the_build(small: Path) -> None:
    (small / "docs" / "forgotten.md").write_text("# Forgotten\n")
    with pytest.raises(Abort):
        build(small_site(small))


def test_decisions_answer_four_questions() -> None:
    pages = sorted((DOCS / "decisions").glob("0*.md"))
    index = (DOCS / "decisions" / "index.md").read_text(encoding="utf-8")
    for number, page in enumerate(pages, start=1):
        text = page.read_text(encoding="utf-8")
        title = text.splitlines()[0].removeprefix("# ")
        assert page.name.startswith(f"{number:03}-") and title.startswith(f"{number}. ")
        assert f"| {number} | [{title.partition('. ')[2]}]({page.name}) |" in index
        assert re.findall(r"^\*\*(.+?)\.?\*\*", text, re.MULTILINE) == [
            "Question",
            "Choice",
            "Refused",
            "What would change our mind",
        ]


def test_fields_of_docstrings_become_lists() -> None:
    docstrings = module_at(DOCS / "docstrings.py")
    text = (
        "First.\n\nstages:   in order\nscore, select:  how tokens\n    are chosen\n\nNote: plain\n\nArgs:\n    a: one"
    )
    made = (
        "First.\n\n- `stages`: in order\n- `score`, `select`: how tokens are chosen\n\nNote: plain\n\nArgs:\n    a: one"
    )
    assert docstrings.listed(text) == made
