"""The generated parts of the README: numbers come from records, and a stale README is noticed."""

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from vlm_eff.core.errors import StateError
from vlm_eff.eval import readme
from vlm_eff.eval.record import Record
from vlm_eff.eval.subject import Subject
from vlm_eff.eval.table import measure
from vlm_eff.reference.evaluate import easy_vqa_samples, scene_samples

TEXT = """# Title
<!-- example:begin -->
```python
print("hello")
print("12.0 ms on the host")
```
<!-- example:end -->
<!-- output:begin -->
old
<!-- output:end -->
<!-- results:begin --><!-- results:end -->
<!-- speed:begin --><!-- speed:end -->
<!-- methods:begin --><!-- methods:end -->
end
"""


@pytest.fixture
def small_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "README.md"
    path.write_text(TEXT)
    monkeypatch.setattr(readme, "README", path)
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    return path


def run(*arguments: str) -> int:
    app = typer.Typer()
    app.command()(readme.main)
    return CliRunner().invoke(app, list(arguments)).exit_code


def test_a_stale_readme_fails_until_it_is_rewritten(small_readme: Path) -> None:
    assert run("--check") == 1
    assert small_readme.read_text() == TEXT
    assert run("--write") == 0
    made = small_readme.read_text()
    assert "```\nhello\n```" in made
    assert "old" not in made
    assert "| `fastv` | tokens |" in made
    assert "Not measured yet" in made
    assert made.startswith("# Title\n") and made.endswith("end\n")
    assert run("--check") == 0
    small_readme.write_text(made.replace("`fastv`", "`fastw`"))
    assert run("--check") == 1


def test_missing_markers_are_named(small_readme: Path) -> None:
    small_readme.write_text(TEXT.replace("<!-- methods:end -->", ""))
    with pytest.raises(StateError, match="methods:end"):
        readme.render_readme()


def test_result_table_shows_the_record(subject: Subject) -> None:
    easy, scenes = easy_vqa_samples("test")[:3], scene_samples("test", 1)
    record = measure(subject, easy, scenes, shares=(0.5,), methods=("fastv", "uniform_grid"), pairs=3)
    assert record.n == 3 + len(scenes)
    assert [row["method"] for row in record.result["rows"]] == ["bare", "fastv", "uniform_grid"]
    assert record.config["plugins"]["fastv @ 72"]["method"] == "fastv"
    table = readme.result_table(record)
    bare, fastv, _ = table.splitlines()[2:5]
    assert bare.startswith("| bare | 144 | 1 | 1 | 1 |")
    assert fastv.startswith("| fastv | 72.0 | 0.")
    for words in ("3 easy-VQA test questions", f"{len(scenes)} questions about", "3 interleaved pairs", "ratios only"):
        assert words in table
    assert record.device in table


def test_speed_table_shows_the_record() -> None:
    row = {
        "plugin": "fastv:layer=2",
        "n_eq": 336.0,
        "flop_ratio": 0.6,
        "time_ratio": 0.7,
        "time_ratio_interval": [0.6, 0.8],
    }
    config = {"visual_tokens": 576, "text_tokens": 64, "batch": 1, "dtype": "float32", "threads": 2}
    record = Record("prefill", "1", "random LLaVA", config, "2-core CPU", 20, [row])
    table = readme.speed_table(record)
    assert "| `fastv:layer=2` | 336 | 0.60 | 0.70 [0.60, 0.80] |" in table
    assert "ratios only" in table and "median of 20" in table
