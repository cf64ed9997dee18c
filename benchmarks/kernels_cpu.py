"""Operations of `vlm_eff.kernels` on a processor without a GPU: the form PyTorch runs against what one would write.

    python benchmarks/kernels_cpu.py                          # every section, one thread
    python benchmarks/kernels_cpu.py --only compact --pairs 9 # one section; rows of the others stay as they are

A section is a function of the number of pairs that returns rows. One thread, CPU time, pairs in random order: other
work on the machine moves both arms alike. Numbers are ratios: below 1 the operation is faster.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import typer
from packed_cache import CACHES, FORMS, arms
from torch import Tensor

from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.eval.measure import paired_times
from vlm_eff.eval.record import Record, read_record
from vlm_eff.kernels.compact import compact
from vlm_eff.kernels.selected_attention import selected_attention
from vlm_eff.reference.machine import describe_device

# (name, L, H, Hkv): LLaVA-1.5, a fourth of LLaVA-NeXT's heads, and all heads of its Mistral variant
PROMPTS = (("L640 H32", 640, 32, 32), ("L2944 H8", 2944, 8, 8), ("L2944 H32 Hkv8", 2944, 32, 8))
WIDTH = 128
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Row = dict[str, Any]


def compare(
    case: dict[str, Any], first: Callable[[], object], second: Callable[[], object], against: str, pairs: int
) -> Row:
    """One row: `first` is the operation, `second` what it is measured against."""
    times = paired_times(first, second, pairs=pairs, warmup=1, clock=time.process_time)
    return case | {
        "against": against,
        "time_ratio": times.ratio,
        "time_ratio_interval": [times.low, times.high],
        "operation_ms": times.first_ms,
        "against_ms": times.second_ms,
        "pairs": pairs,
    }


def chosen(length: int, keep: float, *lead: int) -> Tensor:
    """Ascending places of a share of the tokens, drawn with a seed of their own [*lead, K]."""
    generator = torch.Generator().manual_seed(round(length * keep))
    return torch.rand(*lead, length, generator=generator).argsort(-1)[..., : round(length * keep)].sort(-1).values


def selected_attention_section(pairs: int) -> list[Row]:
    """Attention among chosen tokens against dense causal attention over all, and against a padded row's mask."""
    rows = []
    for name, length, heads, shared in PROMPTS:
        for dtype in DTYPES:
            query, key, value = (
                torch.randn(1, count, length, WIDTH).to(DTYPES[dtype]) for count in (heads, shared, shared)
            )
            for keep in (0.5, 0.25):
                index = chosen(length, keep, 1)
                case = {"case": name, "dtype": dtype, "keep": keep}
                rows.append(
                    compare(
                        case,
                        lambda: selected_attention(query, key, value, index),  # noqa: B023 - called before the next
                        lambda: F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True),  # noqa: B023
                        "dense causal attention",
                        pairs,
                    )
                )
    return rows


def padded_attention_section(pairs: int) -> list[Row]:
    """The same in a batch with padding in front, where dense attention needs a mask [B, 1, L, L]."""
    rows = []
    for name, length, heads, shared in PROMPTS[:2]:
        query, key, value = (torch.randn(2, n, length, WIDTH) for n in (heads, shared, shared))
        first = torch.tensor([0, length // 4])
        place = torch.arange(length)
        mask = ((place <= place[:, None]) & (place >= first[:, None, None]))[:, None]
        for keep in (0.5, 0.25):
            index = chosen(length, keep, 2)
            rows.append(
                compare(
                    {"case": name, "dtype": "float32", "batch": 2, "keep": keep},
                    lambda: selected_attention(query, key, value, index, first=first),  # noqa: B023
                    lambda: F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True),  # noqa: B023
                    "dense attention with a mask",
                    pairs,
                )
            )
    return rows


def compact_section(pairs: int) -> list[Row]:
    """Keeping rows against `torch.gather` with an index for every number."""
    rows = []
    shapes = {
        "hidden [1, 2944, 4096]": (1, 2944, 4096),
        "hidden [4, 640, 4096]": (4, 640, 4096),
        "rotary table [1, 2944, 128]": (1, 2944, WIDTH),
        "keys [1, 8, 2944, 128]": (1, 8, 2944, WIDTH),
    }
    for name, shape in shapes.items():
        for dtype in DTYPES:
            tensor = torch.randn(shape).to(DTYPES[dtype])
            lead = len(shape) - 2
            index = chosen(shape[lead], 0.5, *shape[:lead])
            wide = index[..., None].expand(*index.shape, shape[-1])
            rows.append(
                compare(
                    {"case": name, "dtype": dtype, "keep": 0.5},
                    lambda: compact([tensor], index),  # noqa: B023
                    lambda: tensor.gather(lead, wide),  # noqa: B023
                    "torch.gather",
                    pairs,
                )
            )
    return rows


def packed_decode_section(pairs: int) -> list[Row]:
    """One query row over a packed cache, as it is and through torch.compile."""
    rows = []
    for name, length, heads, shared in CACHES:
        for dtype in DTYPES:
            for form in FORMS:
                for backend, first, against, second in arms(length, heads, shared, DTYPES[dtype], form):
                    case = {"case": f"{name} {form[0]} {backend}", "dtype": dtype}
                    rows.append(compare(case, first, second, against, pairs))
    return rows


# name -> rows of that section; add a function and its line to measure another operation
SECTIONS: dict[str, Callable[[int], list[Row]]] = {
    "selected_attention": selected_attention_section,
    "selected_attention_padded": padded_attention_section,
    "compact": compact_section,
    "packed_decode": packed_decode_section,
}


def _line(row: Row) -> str:
    kept = f"keep {row['keep']}" if "keep" in row else ""
    return (
        f"  {row['case']:30} {row['dtype']:9} {kept:10} {row['time_ratio']:.2f} of {row['against']} "
        f"({row['operation_ms']:.1f} / {row['against_ms']:.1f} ms)"
    )


def main(
    only: list[str] = typer.Option([], help="Sections to measure; all if left out."),  # noqa: B008
    pairs: int = typer.Option(9, help="Timed pairs of each row."),
    output: Path = typer.Option(Path("benchmarks/results/kernels_cpu.json"), help="Where the record goes."),  # noqa: B008
) -> None:
    """Measure sections and write a record; rows of sections that are not measured are kept."""
    if unknown := set(only) - set(SECTIONS):
        raise ConfigError(explain(f"section {min(unknown)!r}", ", ".join(SECTIONS), "Choose among these"))
    torch.set_num_threads(1)
    torch.manual_seed(0)
    before = read_record(output).result if only and output.exists() else {}
    result: dict[str, list[Row]] = {name: before[name] for name in SECTIONS if name in before}
    for name in only or SECTIONS:
        typer.echo(name)
        with torch.no_grad():
            result[name] = SECTIONS[name](pairs)
        for row in result[name]:
            typer.echo(_line(row))
    output.parent.mkdir(parents=True, exist_ok=True)
    Record(
        task="operations in the form of PyTorch against what one would write, interleaved pairs, CPU time",
        task_version="1",
        model="no model: tensors of random numbers (seed 0)",
        config={"threads": 1, "width": WIDTH},
        device=describe_device("cpu"),
        n=pairs,
        result={name: result[name] for name in SECTIONS if name in result},
    ).write(output)


if __name__ == "__main__":
    typer.run(main)
