"""Memory of the KV cache and time of a decode step on the random LLaVA of prefill.py, with 2,880 visual tokens.

    python benchmarks/kv_memory.py                                # CPU, float32 and bfloat16
    python benchmarks/kv_memory.py --row "kivi:bits=2" --pairs 5

Every row is measured in a process of its own. "live" is what the storages reachable from the cache hold, each counted
once, found by walking through the cache and not by asking the library; "resident" is what the process grew by from
before the prompt to after it, when freed memory was given back to the system; "peak" is its highest point above that.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from prefill import TEXT, random_llava, random_prompt
from transformers import DynamicCache, QuantizedCache

import vlm_eff
from vlm_eff.core.errors import VlmEffError
from vlm_eff.eval.measure import paired_times
from vlm_eff.eval.record import Record
from vlm_eff.reference.machine import describe_device

IMAGES = 5
ROWS = (
    "DynamicCache",
    "QuantizedCache fp8",
    "QuantizedCache quanto 4",
    "QuantizedCache quanto 2",
    "random_evict:keep_ratio=0.1",
    "snapkv:keep_ratio=0.1",
    "kivi:bits=4",
    "kivi:bits=2",
    "zipvl_kv:high_bits=4,low_bits=2",
)
DTYPES = ("float32", "bfloat16")
# decode steps before memory is read: the first one compresses
STEPS = 3


def tensors_in(found: Any, seen: set[int]) -> Iterator[torch.Tensor]:
    """Every plain tensor that can be reached from an object through attributes, lists and dicts."""
    if id(found) in seen or isinstance(found, str | bytes | int | float | type):
        return
    seen.add(id(found))
    if isinstance(found, torch.Tensor):
        if type(found) is torch.Tensor or not hasattr(found, "__tensor_flatten__"):
            yield found
            return
        parts: Any = [getattr(found, name) for name in found.__tensor_flatten__()[0]]
    elif isinstance(found, dict):
        parts = [*found.keys(), *found.values()]
    elif isinstance(found, list | tuple | set):
        parts = list(found)
    elif dataclasses.is_dataclass(found):
        parts = [getattr(found, field.name) for field in dataclasses.fields(found)]
    else:
        parts = list(getattr(found, "__dict__", {}).values())
    for part in parts:
        yield from tensors_in(part, seen)


def live_bytes(cache: Any) -> int:
    """Bytes of all storages that a cache holds."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors_in(cache, set())}
    return sum(storages.values())


def resident() -> int:
    """Bytes of the process that are in memory, after freed ones were given back."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def cache_of(row: str, config: Any) -> Any:
    """The cache that a row uses."""
    if not row.startswith("QuantizedCache"):
        return DynamicCache(config=config)
    _, backend, *bits = row.split()
    options = {"nbits": int(bits[0]), "q_group_size": 64, "residual_length": 128} if bits else {}
    return QuantizedCache(backend, config, **options)


def measure(row: str, dtype: str, pairs: int) -> dict[str, Any]:
    """One row, in this process."""
    torch.manual_seed(0)
    model = random_llava(576).to(getattr(torch, dtype))
    inputs, token = random_prompt(model, 1, images=IMAGES), torch.tensor([[11]])
    config = model.config.get_text_config()
    cache, bare = cache_of(row, config), DynamicCache(config=config)
    spec = None if row.split()[0] in ("DynamicCache", "QuantizedCache") else row
    plugin = None if spec is None else vlm_eff.plugin(spec)
    attached: AbstractContextManager[Any] = nullcontext() if plugin is None else vlm_eff.attach(model, plugin)
    before = resident()

    def step(into: Any) -> None:
        model(input_ids=token, past_key_values=into)

    with attached as handle, torch.no_grad():
        model(**inputs, past_key_values=cache, logits_to_keep=1)
        for _ in range(STEPS):
            step(cache)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
        grown, live = resident() - before, live_bytes(cache)
        reported = None if handle is None else handle.stats().kv_bytes
        kept = None if handle is None else handle.kv_positions(0).ge(0).sum().item() / config.num_key_value_heads
        bare_bytes = bare_form(config, inputs["input_ids"].shape[1] + STEPS, model.dtype)

        def other() -> None:
            with nullcontext() if handle is None else handle.paused():
                step(bare)

        with nullcontext() if handle is None else handle.paused():
            model(**inputs, past_key_values=bare, logits_to_keep=1)
        times = paired_times(lambda: step(cache), other, pairs=pairs, warmup=2)
    weights = sum(p.numel() * p.element_size() for p in model.get_decoder().parameters())
    return {
        "row": row,
        "dtype": dtype,
        "live_bytes": live,
        "reported_bytes": reported,
        "bare_form_bytes": bare_bytes,
        "live_ratio": live / bare_bytes,
        "closed_form_bytes": closed_form(row, kept, config, inputs["input_ids"].shape[1], model.dtype),
        "entries_in_layer_0": kept,
        "resident_bytes": grown,
        "peak_bytes": peak,
        "decode_time_ratio": times.ratio,
        "decode_time_interval": [times.low, times.high],
        "decode_ms": times.first_ms,
        "bare_ms": times.second_ms,
        "ideal_time_ratio": (weights + live) / (weights + bare_bytes),
        "pairs": pairs,
    }


def bare_form(config: Any, tokens: int, dtype: torch.dtype) -> int:
    """Bytes of keys and values of so many tokens in all layers."""
    width = config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * config.num_key_value_heads * width * dtype.itemsize * tokens


def closed_form(row: str, kept: float | None, config: Any, prompt: int, dtype: torch.dtype) -> int | None:
    """What the bytes must be by arithmetic, where that is one line; the last steps are never compressed."""
    if row == "DynamicCache":
        return bare_form(config, prompt + STEPS, dtype)
    if kept is None or not row.startswith(("random_evict", "snapkv", "kivi")):
        return None
    # each kept entry of the prompt has a position of four bytes
    positions = 4 * config.num_hidden_layers * config.num_key_value_heads * (kept - STEPS)
    if row.startswith("kivi"):
        # the prompt is a multiple of the residual: all of it is packed, a scale and a minimum for 32 numbers
        assert prompt % 128 == 0
        bits = int(row.rpartition("=")[2]) + 2 * 8 * dtype.itemsize / 32
        packed = bare_form(config, prompt, dtype) * bits / (8 * dtype.itemsize)
        return round(packed + bare_form(config, STEPS, dtype) + positions)
    return round(bare_form(config, round(kept), dtype) + positions)


def main(
    row: Annotated[list[str] | None, typer.Option(help="Only these rows; all if left out.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="float32, bfloat16; both if left out.")] = None,
    pairs: Annotated[int, typer.Option(help="Timed pairs of decode steps.")] = 20,
    alone: Annotated[bool, typer.Option(hidden=True, help="Measure one row here and print it.")] = False,
    output: Annotated[Path, typer.Option(help="Record to write.")] = Path("benchmarks/results/kv_memory.json"),
) -> None:
    """Measure every row in a process of its own and write a record."""
    if alone:
        assert row is not None and dtype is not None
        try:
            made = measure(row[0], dtype[0], pairs)
        except (ImportError, NotImplementedError, RuntimeError, VlmEffError) as error:
            made = {"row": row[0], "dtype": dtype[0], "not_measured": str(error).splitlines()[0]}
        typer.echo(json.dumps(made))
        return
    rows = []
    for kind in dtype or DTYPES:
        for name in row or ROWS:
            command = [sys.executable, __file__, "--alone", "--row", name, "--dtype", kind, "--pairs", str(pairs)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            typer.echo(line(rows[-1]))
    output.parent.mkdir(parents=True, exist_ok=True)
    Record(
        task="memory of the KV cache behind a prompt, and time of a decode step with it / with a full cache",
        task_version="1",
        model="random LLaVA, 99 M parameters, seed 0",
        config={
            "visual_tokens": IMAGES * 576,
            "text_tokens": TEXT,
            "batch": 1,
            "steps": STEPS,
            "attention": "sdpa",
            "threads": torch.get_num_threads(),
        },
        device=describe_device("cpu"),
        n=pairs,
        result=rows,
    ).write(output)


def line(made: dict[str, Any]) -> str:
    """One row in words."""
    if "not_measured" in made:
        return f"{made['dtype']:9} {made['row']:34} not measured: {made['not_measured']}"
    reported = made["reported_bytes"]
    off = "" if reported is None else f"  reported {reported / made['live_bytes'] - 1:+.2%}"
    form = made["closed_form_bytes"]
    off += "" if form is None else f"  closed form {form / made['live_bytes'] - 1:+.2%}"
    return (
        f"{made['dtype']:9} {made['row']:34} {made['live_bytes'] / 1e6:6.1f} MB ({made['live_ratio']:.1%}){off}  "
        f"resident {made['resident_bytes'] / 1e6:.0f} MB  peak {made['peak_bytes'] / 1e6:.0f} MB  "
        f"decode {made['decode_time_ratio']:.2f} (ideal {made['ideal_time_ratio']:.2f})"
    )


if __name__ == "__main__":
    typer.run(main)
