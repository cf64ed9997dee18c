"""The notebook runs from top to bottom in a fresh kernel, and lies in the repository without what it printed."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
TOUR = ROOT / "examples" / "tour.ipynb"
# code cells and what each of them shows: a text, and a picture where there is one
SHOWN = (
    ("how many objects are there? 4", True),
    ("layer 2: 144 -> 72", False),
    ("what word is written? van", True),
    ("| uniform_grid @ 58 |", False),
    ("random 20 %: error", True),
    ("forecast, 10 evaluations: PSNR to the full run", True),
)


def test_it_holds_no_output() -> None:
    notebook = nbformat.read(TOUR, as_version=4)
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert set(notebook.metadata.language_info) == {"name"}, "no versions of whoever ran it last"
    for cell in notebook.cells:
        assert not cell.metadata, cell.source
        assert cell.cell_type == "markdown" or (not cell.outputs and cell.execution_count is None), cell.source


@pytest.mark.slow
def test_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(TOUR, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(TOUR.parent)}}).execute()
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell, (anchor, pictured) in zip(codes, SHOWN, strict=True):
        texts = [output.get("text", "") for output in cell.outputs]
        shown = [output.data for output in cell.outputs if "data" in output]
        said = "".join(texts + [str(data.get("text/markdown", "")) for data in shown])
        assert anchor in said, said
        assert pictured == any("image/png" in data for data in shown), cell.source
