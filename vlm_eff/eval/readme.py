"""The generated parts of README.md and of pages in docs: `python -m vlm_eff.eval.readme --write` or `--check`.

The method table comes from the registry, the results from the committed record, the example's output from running it;
nobody types a number.
"""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Annotated

import typer

import vlm_eff
from vlm_eff.core.errors import StateError, explain
from vlm_eff.eval.catalogue import families_text, method_rows
from vlm_eff.eval.diffusion_tables import denoising_quality_table, denoising_summary, denoising_time_table
from vlm_eff.eval.kernel_bounds import bounds_table
from vlm_eff.eval.kernel_tables import patterns_table, processor_table
from vlm_eff.eval.kv_tables import cache_sentence, cache_summary, memory_table, quality_table
from vlm_eff.eval.loading import quiet_libraries
from vlm_eff.eval.record import read_record
from vlm_eff.eval.reference_tables import answers_table, perplexity_table, registers_table
from vlm_eff.eval.results import first_table, results_page
from vlm_eff.eval.timings import features_table, overhead_table, speed_table, towers_table
from vlm_eff.eval.tuning_table import tuning_table
from vlm_eff.models.adapter import FAMILIES

ROOT = Path(vlm_eff.__file__).resolve().parents[1]
# written by `vlm-eff eval`, see `make bench`
RECORD = Path("benchmarks/results/bundled_vlm.json")
SMOL_RECORD = Path("benchmarks/results/smol_vlm.json")
TUNING_RECORDS = tuple(Path(f"benchmarks/results/tuned_{name}bundled.json") for name in ("tokens_", "", "eighth_"))
SPEED_RECORD = Path("benchmarks/results/prefill.json")
OVERHEAD_RECORD = Path("benchmarks/results/overhead.json")
TOWERS_RECORD = Path("benchmarks/results/towers.json")
FEATURES_RECORD = Path("benchmarks/results/features.json")
KV_MEMORY_RECORD = Path("benchmarks/results/kv_memory.json")
KV_QUALITY_RECORD = Path("benchmarks/results/kv_quality.json")
KV_SMOL_RECORD = Path("benchmarks/results/kv_quality_smol.json")
KERNELS_RECORD = Path("benchmarks/results/kernels_cpu.json")
PATTERNS_RECORD = Path("benchmarks/results/sparse_prefill.json")
UNET_RECORD = Path("benchmarks/results/diffusion_quality_small_unet.json")
DIT_RECORD = Path("benchmarks/results/diffusion_quality_small_dit.json")
DENOISING_TIME_RECORD = Path("benchmarks/results/diffusion_time_cpu.json")
REGISTERS_RECORD = Path("benchmarks/results/registers.json")
PERPLEXITY_RECORD = Path("benchmarks/results/kv_perplexity.json")
# written by the trainers of the reference models, beside their weights
SMALL_ANSWERS = Path("vlm_eff/reference/small_vlm/training_record.json")
SMOL_ANSWERS = Path("vlm_eff/reference/smol/training_record.json")
README = ROOT / "README.md"
METHODS_PAGE = ROOT / "docs" / "methods.md"
CACHE_PAGE = ROOT / "docs" / "kvcache.md"
KERNELS_PAGE = ROOT / "docs" / "kernels.md"
DIFFUSION_PAGE = ROOT / "docs" / "diffusion.md"
TUNING_PAGE = ROOT / "docs" / "tuning.md"
REFERENCE_PAGE = ROOT / "docs" / "reference-model.md"
REGISTERS_PAGE = ROOT / "docs" / "registers.md"
SMOL_PAGE = ROOT / "docs" / "smol.md"


_MISSING = "Not measured yet: `make bench`."


def pages() -> dict[Path, tuple[str, ...]]:
    """Every page with generated parts, and the names of their markers."""
    return {
        README: ("output", "methods", "results", "kv", "kv_smol", "diffusion", "speed"),
        METHODS_PAGE: ("methods", "families", "families_smol", "overhead", "towers", "features"),
        CACHE_PAGE: ("kv_memory", "kv_quality", "kv_quality_smol"),
        KERNELS_PAGE: ("bounds", "processor", "patterns"),
        DIFFUSION_PAGE: ("diffusion_unet", "diffusion_dit", "diffusion_time"),
        TUNING_PAGE: ("tuning",),
        REFERENCE_PAGE: ("small_answers",),
        REGISTERS_PAGE: ("registers",),
        SMOL_PAGE: ("smol_answers", "perplexity"),
    }


def render(page: Path) -> str:
    """A page with its generated parts made anew.

    Raises:
        StateError: a pair of markers is missing.
        InputError: a record cannot be read.
    """
    text = page.read_text(encoding="utf-8")
    for name in pages()[page]:
        text = _between(text, name, _part(name, text))
    return text


def _part(name: str, text: str) -> str:
    if name == "output":
        return f"```\n{example_output(text)}\n```"
    if name == "methods":
        return method_table()
    if name == "bounds":
        return bounds_table()
    if name == "tuning":
        there = [path for path in TUNING_RECORDS if (ROOT / path).is_file()]
        return tuning_table([read_record(ROOT / path) for path in there]) if there else _MISSING
    if name == "results":
        both = [ROOT / path for path in (RECORD, SMOL_RECORD)]
        return first_table(*map(read_record, both)) if all(path.is_file() for path in both) else _MISSING
    if name in ("small_answers", "smol_answers"):
        path = ROOT / (SMALL_ANSWERS if name == "small_answers" else SMOL_ANSWERS)
        return answers_table(path) if path.is_file() else _MISSING
    path, show = {
        "families": (RECORD, results_page),
        "families_smol": (SMOL_RECORD, results_page),
        "speed": (SPEED_RECORD, speed_table),
        "overhead": (OVERHEAD_RECORD, overhead_table),
        "towers": (TOWERS_RECORD, towers_table),
        "features": (FEATURES_RECORD, features_table),
        "processor": (KERNELS_RECORD, processor_table),
        "patterns": (PATTERNS_RECORD, patterns_table),
        "kv": (KV_QUALITY_RECORD, cache_summary),
        "kv_smol": (KV_SMOL_RECORD, cache_sentence),
        "kv_memory": (KV_MEMORY_RECORD, memory_table),
        "kv_quality": (KV_QUALITY_RECORD, quality_table),
        "kv_quality_smol": (KV_SMOL_RECORD, quality_table),
        "diffusion": (UNET_RECORD, denoising_summary),
        "diffusion_unet": (UNET_RECORD, denoising_quality_table),
        "diffusion_dit": (DIT_RECORD, denoising_quality_table),
        "registers": (REGISTERS_RECORD, registers_table),
        "perplexity": (PERPLEXITY_RECORD, perplexity_table),
        "diffusion_time": (DENOISING_TIME_RECORD, denoising_time_table),
    }[name]
    record = ROOT / path
    return show(read_record(record)) if record.is_file() else _MISSING


def example_output(text: str) -> str:
    """What the README's first example prints, host times left out: they differ from run to run."""
    code = re.search(r"<!-- example:begin -->\n```python\n(.*?)```", text, re.DOTALL)
    if code is None:
        raise StateError(explain("README.md has no example", "a python block after example:begin", "Put it back"))
    printed = io.StringIO()
    quiet_libraries()
    with contextlib.redirect_stdout(printed):
        exec(compile(code[1], "README.md", "exec"), {"__name__": "readme"})
    return "\n".join(line for line in printed.getvalue().splitlines() if " ms on the host" not in line)


def method_table() -> str:
    """The registry as a Markdown table, families with an adapter below it."""
    lines = ["| method | room | what it does | acts | paper | tested families |", "|---|---|---|---|---|---|"]
    lines += [
        f"| `{row.name}` | {row.room} | {row.summary} | {row.acts} | {linked(row.paper)} | {families_text(row)} |"
        for row in method_rows()
        if row.room != "third party"
    ]
    return "\n".join([*lines, "", f"Families with an adapter: {', '.join(FAMILIES)}."])


def linked(paper: str) -> str:
    """Text with a link behind every arXiv number."""
    return re.sub(r"arXiv:(\d{4}\.\d{5})", r"[\1](https://arxiv.org/abs/\1)", paper)


def _between(text: str, name: str, content: str) -> str:
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, opened, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not opened or not closed:
        raise StateError(explain(f"a page lacks {begin} or {end}", "a page with both", "Put the markers back"))
    return f"{before}{begin}\n{content}\n{end}{after}"


def main(
    write: Annotated[
        bool, typer.Option("--write/--check", help="Rewrite the pages, or fail when one is stale.")
    ] = False,
) -> None:
    """Make the generated parts of README.md and of the documentation anew, or check them."""
    stale = {page: made for page in pages() if (made := render(page)) != page.read_text(encoding="utf-8")}
    names = ", ".join(page.name for page in stale)
    if write:
        for page, made in stale.items():
            page.write_text(made, encoding="utf-8")
    elif stale:
        typer.echo(f"{names} stale; run: make readme", err=True)
        raise typer.Exit(1)
    typer.echo(f"rewritten: {names}" if stale else "generated pages are fresh", err=True)


if __name__ == "__main__":
    typer.run(main)
