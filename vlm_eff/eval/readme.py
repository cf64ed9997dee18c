"""The generated parts of README.md: `python -m vlm_eff.eval.readme --write` or `--check`.

The method table comes from the registry, the results from the committed record, the example's output from running it;
nobody types a number.
"""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Annotated, Any

import typer

import vlm_eff
from vlm_eff.core.errors import StateError, explain
from vlm_eff.eval.catalogue import families_text, method_rows
from vlm_eff.eval.loading import quiet_libraries
from vlm_eff.eval.record import Record, read_record
from vlm_eff.eval.table import RECORD
from vlm_eff.models.adapter import FAMILIES

ROOT = Path(vlm_eff.__file__).resolve().parents[1]
SPEED_RECORD = Path("benchmarks/results/prefill.json")
README = ROOT / "README.md"


def render_readme() -> str:
    """README.md with its generated parts made anew.

    Raises:
        StateError: a pair of markers is missing.
        InputError: the record cannot be read.
    """
    text = README.read_text(encoding="utf-8")
    text = _between(text, "output", f"```\n{example_output(text)}\n```")
    text = _between(text, "methods", method_table())
    record = ROOT / RECORD
    results = result_table(read_record(record)) if record.is_file() else "Not measured yet: `make bench`."
    text = _between(text, "results", results)
    speed = ROOT / SPEED_RECORD
    times = speed_table(read_record(speed)) if speed.is_file() else "Not measured yet: `make bench`."
    return _between(text, "speed", times)


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
        f"| `{row.name}` | {row.room} | {row.summary} | {row.acts} | {_linked(row.paper)} | {families_text(row)} |"
        for row in method_rows()
        if row.room != "third party"
    ]
    return "\n".join([*lines, "", f"Families with an adapter: {', '.join(FAMILIES)}."])


def result_table(record: Record) -> str:
    """The record as a Markdown table, with what it was measured on."""
    config, result = record.config, record.result
    tokens = config["timed_question"]["visual_tokens"]
    lines = [
        "| method | n_eq | prefill FLOPs | KV bytes | time to first token | easy-VQA | scenes |",
        "|---|---|---|---|---|---|---|",
        *(_result_row(row, tokens) for row in result["rows"]),
        "",
        f"n_eq: visual tokens averaged over the {config['timed_question']['layers']} decoder layers, of {tokens}; "
        "FLOPs, KV bytes and time are with the method / bare. Accuracy: exact match over "
        f"{result['easy_vqa_n']} easy-VQA test questions and {result['scenes_n']} questions about held-out scenes. "
        f"Time: median of {config['timed_pairs']} interleaved pairs [95 % interval], one question, batch 1; "
        f"{config['timing']}. Bundled model, {config['dtype']}, {record.device}, torch {record.packages['torch']}, "
        f"transformers {record.packages['transformers']}, {record.date}.",
    ]
    return "\n".join(lines)


def speed_table(record: Record) -> str:
    """The record of `benchmarks/prefill.py` as a Markdown table."""
    config = record.config
    lines = ["| plugin | n_eq | FLOPs | prefill time |", "|---|---|---|---|"]
    for row in record.result:
        low, high = row["time_ratio_interval"]
        time = f"{row['time_ratio']:.2f} [{low:.2f}, {high:.2f}]"
        lines.append(f"| `{row['plugin']}` | {row['n_eq']:.0f} | {row['flop_ratio']:.2f} | {time} |")
    kind = "ratios only" if "CPU" in record.device else "ratios"
    note = (
        f"With the plugin / bare, {kind}: median of {record.n} interleaved pairs [95 % interval], tower included. "
        f"Model: {record.model}, {config['visual_tokens']} visual and {config['text_tokens']} text tokens, "
        f"batch {config['batch']}, {config['dtype']}, {config['threads']} thread(s), {record.device}, {record.date}."
    )
    return "\n".join([*lines, "", note])


def _result_row(row: dict[str, Any], tokens: int) -> str:
    accuracy = f"{row['easy_vqa_accuracy']:.1%} | {row['scenes_accuracy']:.1%}"
    if row["n_eq"] is None:
        return f"| {row['method']} | {tokens} | 1 | 1 | 1 | {accuracy} |"
    middle, low, high = row["first_token_ratio"]
    ratios = f"{row['prefill_flops_ratio']:.2f} | {row['kv_bytes_ratio']:.2f} | {middle:.2f} [{low:.2f}, {high:.2f}]"
    return f"| {row['method']} | {row['n_eq']:.1f} | {ratios} | {accuracy} |"


def _linked(paper: str) -> str:
    return re.sub(r"arXiv:(\d{4}\.\d{5})", r"[\1](https://arxiv.org/abs/\1)", paper)


def _between(text: str, name: str, content: str) -> str:
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, opened, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not opened or not closed:
        raise StateError(explain(f"README.md lacks {begin} or {end}", "a README with both", "Put the markers back"))
    return f"{before}{begin}\n{content}\n{end}{after}"


def main(
    write: Annotated[
        bool, typer.Option("--write/--check", help="Rewrite README.md, or fail when it is stale.")
    ] = False,
) -> None:
    """Make the generated parts of README.md anew, or check them."""
    made = render_readme()
    stale = made != README.read_text(encoding="utf-8")
    if write and stale:
        README.write_text(made, encoding="utf-8")
    if stale and not write:
        typer.echo("README.md is stale; run: make readme", err=True)
        raise typer.Exit(1)
    typer.echo("README.md rewritten" if stale else "README.md is fresh", err=True)


if __name__ == "__main__":
    typer.run(main)
