"""The generated parts of the README: numbers come from records, and a stale README is noticed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from vlm_eff.core.errors import StateError
from vlm_eff.eval import readme, results, timings
from vlm_eff.eval.record import Record
from vlm_eff.eval.tuning_table import tuning_table

TEXT = """# Title
<!-- example:begin -->
```python
print("hello")
print("12.0 ms on the host")
```
<!-- example:end -->
<!-- output:begin -->
a stale table
<!-- output:end -->
<!-- results:begin --><!-- results:end -->
<!-- smol:begin --><!-- smol:end -->
<!-- kv:begin --><!-- kv:end -->
<!-- kv_smol:begin --><!-- kv_smol:end -->
<!-- diffusion:begin --><!-- diffusion:end -->
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
    for constant, name in (
        ("METHODS_PAGE", "methods.md"),
        ("CACHE_PAGE", "kvcache.md"),
        ("KERNELS_PAGE", "kernels.md"),
        ("DIFFUSION_PAGE", "diffusion.md"),
        ("TUNING_PAGE", "tuning.md"),
        ("REFERENCE_PAGE", "reference-model.md"),
        ("REGISTERS_PAGE", "registers.md"),
        ("SMOL_PAGE", "smol.md"),
    ):
        parts = readme.pages()[getattr(readme, constant)]
        page = tmp_path / name
        page.write_text("".join(f"<!-- {part}:begin --><!-- {part}:end -->\n" for part in parts))
        monkeypatch.setattr(readme, constant, page)
    # a page that is not replaced here would be written where it really lies
    assert all(page.is_relative_to(tmp_path) for page in readme.pages())
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
    assert "a stale table" not in made
    assert "| `fastv` | tokens |" in made
    assert "Not measured yet" in made
    assert made.startswith("# Title\n") and made.endswith("end\n")
    assert run("--check") == 0
    small_readme.write_text(made.replace("`fastv`", "`fastw`"))
    assert run("--check") == 1


def test_missing_markers_are_named(small_readme: Path) -> None:
    small_readme.write_text(TEXT.replace("<!-- methods:end -->", ""))
    with pytest.raises(StateError, match="methods:end"):
        readme.render(small_readme)


def asked_row(method: str, n_eq: float | None, scenes: float, locate: float, n: int = 10) -> dict[str, Any]:
    costs = {"n_eq": n_eq or 144, "flops_ratio": 0.5, "kv_bytes_ratio": 0.5}
    part = {"family": {"locate": {"accuracy": locate, "n": n}, "relation": {"accuracy": 0.5, "n": n}}}
    tasks = {name: {"accuracy": scenes, "by": part, "costs": costs} for name in ("scenes", "easy-vqa")}
    time = {"first_token": {"ratio": 0.9, "low": 0.8, "high": 1.0}} if method not in ("bare", "downsize") else {}
    return {"label": f"{method} @ {n_eq}", "method": method, "n_eq_asked": n_eq, "tasks": tasks} | time


def test_tables_show_the_record() -> None:
    rows = [
        asked_row("bare", None, 0.9, 0.95),
        asked_row("fastv", 72, 0.8, 0.7),
        asked_row("fastv:layer=1", 72, 0.6, 0.7),
        asked_row("uniform_grid", 72, 0.7, 0.75),
        asked_row("uniform_grid", 16, 0.5, 0.4),
        asked_row("downsize", 72, 0.6, 0.5),
    ]
    config = {
        "visual_tokens": 144,
        "layers": 8,
        "timed_pairs": 3,
        "settings": {"dtype": "float32"},
        "tasks": {"scenes": {"items": 10}, "easy-vqa": {"items": 20}},
    }
    result = {"rows": rows, "unreachable": {"fastv @ 16": "18 at least"}}
    record = Record("scenes, easy-vqa", "1", "bundled model", config, "2-core CPU", 30, result)

    real_rows = [
        asked_row("bare", None, 0.7, 0.9),
        asked_row("uniform_grid", 40, 0.6, 0.5),
        asked_row("uniform_grid", 20, 0.4, 0.5),
        asked_row("fastv", 40, 0.5, 0.5),
        asked_row("fastv", 20, 0.3, 0.5),
        asked_row("downsize", 40, 0.65, 0.5),
        asked_row("downsize", 20, 0.6, 0.5),
        asked_row("dart", 40, 0.9, 0.5),
    ]
    real = replace(record, config=config | {"visual_tokens": 80, "layers": 30}, result=result | {"rows": real_rows})
    first = results.first_table(record, real).splitlines()
    assert first[0] == "| method | bundled 50% | bundled 11% | real 50% | real 25% | first token at 25% |"
    names = ["| bare", "| `fastv`", "| *downsize*", "| *uniform_grid*"]
    assert [line.split(" | ")[0] for line in first[2:6]] == names, "what both measured, methods first, then by the real"
    assert first[3] == "| `fastv` | 80.0 | - | 50.0 | 30.0 | 0.90 [0.80, 1.00] |"
    assert first[4].endswith("| 65.0 | 60.0 | - |")
    assert "80 tokens, 30 layers, N = 10" in first[-1] and record.device in first[-1]

    page = results.results_page(record)
    assert "### 72 of 144 tokens (50%)" in page and "### 16 of 144 tokens (11%)" in page
    assert "Out of reach with 8 layers: `fastv`." in page
    assert "| `fastv` | 72.0 | 0.50 | 0.50 | 0.90 [0.80, 1.00] | 80.0 | 80.0 | 70.0 |" in page
    assert "3 interleaved pairs" in page and "ratios only" in page

    # a row that no budget was asked of has a table of its own
    own = dict(rows[1], method="atp", n_eq_asked=None)
    more = replace(record, result=result | {"rows": [*rows, own]})
    assert results.first_table(more, real) == results.first_table(record, real)
    assert results.results_page(more).split("### At their own count")[1].count("| `atp` |") == 1


def test_the_tuning_table_leaves_out_what_exceeds_the_budget() -> None:
    def arm(label: str, accuracy: float, over: dict[str, float]) -> dict[str, Any]:
        return {"label": label, "accuracy": accuracy, "over": over, "preset_minus_this": [0.05, -0.01, 0.1]}

    rows = [
        arm("best", 0.95, {"kv": 0.1}),
        arm("good", 0.9, {}),
        arm("a + b", 0.92, {}),
        arm("c + d", 0.97, {"kv": 0.1}),
    ]
    config = {"tuned": {"settings": {"budget": {"flops": None, "kv": 0.25}}}}
    result = {"bare": 0.98, "preset": {"accuracy": 0.95, "costs": {"flops": 0.5, "kv": 0.2}}, "untuned": rows}
    table = tuning_table([Record("tuning", "1", "model", config, "2-core CPU", 300, result)])
    assert "| kv 0.25 | 300 | 98.0 | 95.0 | 0.50, 0.20 | `good` 90.0 | +5.0 [-1.0, +10.0] | `a + b` 92.0 |" in table


def test_a_method_that_loses_to_a_blind_baseline_is_named() -> None:
    rows = [("uniform_grid", 0.8, 0.9), ("clever", 0.85, 0.7), ("poor", 0.5, 0.95)]
    said = results._beaten([asked_row(method, 72, scenes, locate) for method, scenes, locate in rows])
    assert "on all scene questions: `poor` (50.0)" in said
    assert "on localisation: `clever` (70.0)" in said


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
    table = timings.speed_table(record)
    assert "| `fastv:layer=2` | 336 | 0.60 | 0.70 [0.60, 0.80] |" in table
    assert "ratios only" in table and "median of 20" in table


def test_overhead_table_shows_the_record() -> None:
    def row(length: int, saved: float, share: float | None) -> dict[str, Any]:
        return {
            "plugin": "fastv", "visual_tokens": length, "selection_ms": 2.0,
            "saved_ms": saved, "share_of_saving": share, "pairs": 5,
        }  # fmt: skip

    config = {"text_tokens": 64, "dtype": "float32", "threads": 1}
    record = Record("overhead", "1", "random LLaVA", config, "CPU", 20, [row(576, 50, 0.04), row(2880, -1, None)])
    table = timings.overhead_table(record)
    assert "| `fastv` | 2.0 ms | 50 ms | 4.0% | 2.0 ms | -1 ms | nothing saved |" in table
    assert "(5 for 576 tokens, 5 for 2880 tokens)" in table


def test_tower_tables_show_their_records() -> None:
    timed = {
        "model": "ViT-S", "plugin": "tome:r=13", "tokens": 197, "tokens_left": 41, "flop_ratio": 0.5,
        "throughput_ratio": 1.6, "time_ratio_interval": [0.5, 0.8],
    }  # fmt: skip
    config = {"batch": 8, "dtype": "float32", "threads": 1, "saliency": "s", "images": ["cat"], "side": 224}
    table = timings.towers_table(Record("towers", "1", "ViT", config, "CPU", 5, [timed]))
    assert "| ViT-S | `tome:r=13` | 41 of 197 | 0.50 | x2.00 | x1.60 [1.25, 2.00] |" in table
    row = {"tokens_left": 9.0, "patch_cosine": 0.9, "class_cosine": 0.95, "saliency_rank": 0.8}
    rows = [{"plugin": "low", "flop_ratio": 0.3} | row, {"plugin": "high", "flop_ratio": 0.7} | row]
    table = timings.features_table(Record("features", "1", "DINOv2", config, "CPU", 1, rows))
    assert table.index("`high`") < table.index("`low`")
    assert "| `low` | 9 | 0.30 | 0.900 | 0.950 | 0.800 |" in table
