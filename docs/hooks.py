"""What `mkdocs build` adds to docs/: pages of methods and examples, files of the repository, and links."""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from vlm_eff.eval.method_pages import method_groups, method_page, overview

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
# files that lie beside docs/, and the pages they are on the site
BESIDE = {
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "examples/README.md": "examples/index.md",
}
# what else stands for a page
NAMES = BESIDE | {"README.md": "index.md", "examples": "examples/index.md"}
# where a number comes from, for a test to read
PROOF = re.compile(r"<!-- record:.*?-->", re.DOTALL)
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_config(config: Any) -> Any:
    """Write out what the navigation names as a folder: "methods/", "examples/", "decisions/", "api/"."""
    config["nav"] = _written_out(config["nav"])
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that nobody writes by hand."""
    # not at the top: tests of links do without mkdocs
    from mkdocs.structure.files import File

    for uri, content in generated().items():
        files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links lead to pages of the site where they lead to files of the repository."""
    return relinked(PROOF.sub("", markdown), page.file.src_uri)


def generated() -> dict[str, str]:
    """Every page that is made, by its place on the site."""
    pages = {"methods/index.md": overview()}
    for methods in method_groups().values():
        pages |= {f"methods/{method.name}.md": method_page(method) for method in methods}
    pages |= {f"examples/{path.stem}.md": _example(path) for path in _examples()}
    return pages | {uri: (ROOT / name).read_text(encoding="utf-8") for name, uri in BESIDE.items()}


def relinked(markdown: str, uri: str) -> str:
    """The page at `uri` with links that hold on the site; what leads to no page stays, for mkdocs to complain."""
    written_in = next((name for name, site in BESIDE.items() if site == uri), f"docs/{uri}")
    folder = "examples" if uri.startswith("examples/") else posixpath.dirname(written_in)

    def link(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, found[1]))
        site = _on_site(target)
        if site is None:
            return found[0]
        return f"]({posixpath.relpath(site, posixpath.dirname(uri) or '.')}{found[2] or ''})"

    return LINK.sub(link, markdown)


def _on_site(target: str) -> str | None:
    """The page of a file of the repository; None where it has none, or is in docs/ already."""
    if target in NAMES:
        return NAMES[target]
    if ROOT / target in _examples():
        return f"{posixpath.splitext(target)[0]}.md"
    return target.removeprefix("docs/") if target.startswith("docs/") else None


def _written_out(items: list[Any]) -> list[Any]:
    found: list[Any] = []
    for item in items:
        if isinstance(item, str) and item.endswith("/"):
            found += _folder(item)
        elif isinstance(item, dict):
            found += [
                {title: _written_out(below) if isinstance(below, list) else below for title, below in item.items()}
            ]
        else:
            found.append(item)
    return found


def _folder(name: str) -> list[Any]:
    if name == "methods/":
        groups = method_groups().items()
        return [{title: [{m.name: f"methods/{m.name}.md"} for m in methods]} for title, methods in groups]
    if name == "examples/":
        return [f"examples/{path.stem}.md" for path in _examples()]
    return [f"{name}{path.name}" for path in sorted((DOCS / name).glob("*.md")) if path.name != "index.md"]


def _examples() -> list[Path]:
    """Notebooks, then scripts in the order of their numbers."""
    return [*sorted((ROOT / "examples").glob("*.ipynb")), *sorted((ROOT / "examples").glob("[0-9]*.py"))]


def _example(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = [("".join(cell["source"]), cell["cell_type"] == "code") for cell in json.loads(text)["cells"]]
        return "\n\n".join(_code(source) if is_code else source for source, is_code in cells) + "\n"
    title = path.stem.partition("_")[2].replace("_", " ").capitalize()
    return f"# {title}\n\n{_code(text)}\n"


def _code(text: str) -> str:
    return f"```python\n{text.rstrip()}\n```"
