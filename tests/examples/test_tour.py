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


def left_over(notebook: nbformat.NotebookNode) -> list[str]:
    """What a run or an editor left in the notebook."""
    found = [f"metadata {name}" for name in notebook.metadata if name not in ("kernelspec", "language_info")]
    found += [f"language_info {name}" for name in notebook.metadata.language_info if name != "name"]
    for number, cell in enumerate(notebook.cells):
        found += [f"cell {number} {name}" for name in ("outputs", "execution_count", "metadata") if cell.get(name)]
    return found


def test_it_holds_nothing_of_a_run() -> None:
    notebook = nbformat.read(TOUR, as_version=4)
    nbformat.validate(notebook)
    assert not left_over(notebook)
    # each of these would be seen
    notebook.metadata.language_info.version = "3.11"
    notebook.cells[0].metadata.collapsed = True
    notebook.cells[1].outputs = [nbformat.v4.new_output("stream", text="said")]
    notebook.cells[3].execution_count = 2
    wrong = ["language_info version", "cell 0 metadata", "cell 1 outputs", "cell 3 execution_count"]
    assert left_over(notebook) == wrong


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
