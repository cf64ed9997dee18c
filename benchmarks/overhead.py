"""What selecting costs: time a method takes to score and select, as a share of the prefill time that it saves.

    python benchmarks/overhead.py                        # CPU, float32, 576 and 2,880 visual tokens
    python benchmarks/overhead.py --method fastv --pairs 20

The model is the random LLaVA of prefill.py: speed does not depend on the values of weights. 2,880 visual tokens are
five images of 576. Methods for videos run on the random Qwen2.5-VL of video_model.py, with as many tokens in one video.
Every method keeps a quarter of the tokens where it has a ratio, else its defaults.
"""

from __future__ import annotations

import inspect
import statistics
from pathlib import Path
from typing import Any

import torch
import typer
from prefill import TEXT, random_llava, random_prompt
from video_model import SIDE, random_qwen, random_video_prompt

import vlm_eff
from vlm_eff.core.errors import VlmEffError
from vlm_eff.core.plugin import Plugin
from vlm_eff.eval.measure import paired_times
from vlm_eff.eval.record import Record, read_record
from vlm_eff.reference.machine import describe_device

KEEP = 0.25
# images in the prompt, and timed pairs: a long prompt takes ten seconds
LENGTHS = {1: 1.0, 5: 0.25}


def plugin_of(name: str) -> tuple[str, Plugin]:
    """A method at a quarter of the tokens, and the spec that builds it."""
    known = inspect.signature(vlm_eff.methods()[name].make).parameters
    spec = f"{name}:keep_ratio={KEEP}" if "keep_ratio" in known else name
    return spec, vlm_eff.plugin(spec)


def measure(model: Any, inputs: dict[str, torch.Tensor], name: str, pairs: int) -> dict[str, Any]:
    """One row: median selection time, and paired prefill times attached against bare."""
    spec, plugin = plugin_of(name)

    @torch.no_grad()
    def run() -> None:
        model(**inputs, logits_to_keep=1)

    with vlm_eff.attach(model, plugin) as handle:

        def run_bare() -> None:
            with handle.paused():
                run()

        warmup = int(pairs > 3)
        times = paired_times(run, run_bare, pairs=pairs, warmup=warmup)
        stats = handle.stats()
        reports = stats.prefills[warmup:]
    # one run of the tower goes before each prefill
    towers = [report.selection_ms for report in stats.towers[warmup:]] or [0.0] * len(reports)
    selecting = statistics.median(report.selection_ms + tower for report, tower in zip(reports, towers, strict=True))
    # the ratio of pairs is steadier than the difference of two medians
    saved = (1 - times.ratio) * times.second_ms
    last = reports[-1]
    return {
        "plugin": spec,
        "visual_tokens": round(last.visual_tokens),
        "n_eq": last.n_eq,
        "decoder_flop_ratio": last.flops / last.flops_bare,
        "time_ratio": times.ratio,
        "time_ratio_interval": [times.low, times.high],
        "attached_ms": times.first_ms,
        "bare_ms": times.second_ms,
        "selection_ms": selecting,
        "saved_ms": saved,
        # below a hundredth of the prefill a saving is noise
        "share_of_saving": selecting / saved if saved > 0.01 * times.second_ms else None,
        "pairs": pairs,
    }


def _line(row: dict[str, Any]) -> str:
    share = row["share_of_saving"]
    said = "saves nothing" if share is None else f"{share:.1%}"
    return (
        f"{row['plugin']:34} {row['visual_tokens']:5} tokens  n_eq {row['n_eq']:6.1f}  "
        f"time {row['time_ratio']:.3f}  selecting {row['selection_ms']:7.1f} ms  {said}"
    )


def main(
    method: list[str] = typer.Option([], help="Methods to measure; all training-free ones if left out."),  # noqa: B008
    pairs: int = typer.Option(12, help="Timed pairs at 576 tokens; a quarter of it, three at least, at 2,880."),
    images: list[int] = typer.Option(list(LENGTHS), help="Images of 576 tokens each: 1 and 5."),  # noqa: B008
    output: Path = typer.Option(Path("benchmarks/results/overhead.json"), help="Where the record goes."),  # noqa: B008
    keep: bool = typer.Option(False, help="Keep the rows of other methods in the record that is there."),
) -> None:
    """Measure every method at both lengths and write a record."""
    known = [row for row in vlm_eff.methods().values() if row.room == "tokens" and row.training_free]
    chosen = [row for row in known if not method or row.name in method]
    still = [row.name for row in chosen if row.serves("llava")]
    moving = [row.name for row in chosen if not row.serves("llava")]
    model, film = random_llava(576), random_qwen()
    before = read_record(output).result if keep else []
    rows, skipped = [row for row in before if row["plugin"].partition(":")[0] not in still + moving], {}
    for count in images:
        prompts = {"llava": (model, random_prompt(model, 1, images=count), still)}
        prompts["qwen2_5_vl"] = (film, random_video_prompt(count * 576 // SIDE**2, TEXT), moving)
        for family, (subject, inputs, names) in prompts.items():
            for name in names:
                try:
                    made = measure(subject, inputs, name, max(3, round(pairs * LENGTHS.get(count, 1.0))))
                except VlmEffError as error:
                    skipped[name] = str(error)
                    continue
                rows.append(made | {"family": family})
                typer.echo(_line(made))
    parameters = sum(p.numel() for p in model.parameters())
    output.parent.mkdir(parents=True, exist_ok=True)
    Record(
        task="selection time as a share of the prefill time saved, interleaved pairs",
        task_version="1",
        model=f"random LLaVA ({parameters / 1e6:.0f} M parameters, seed 0); videos: a random Qwen2.5-VL alike",
        config={
            "keep_ratio": KEEP,
            "batch": 1,
            "dtype": "float32",
            "text_tokens": TEXT,
            "threads": torch.get_num_threads(),
            "attention": "sdpa",
            "skipped": skipped,
        },
        device=describe_device("cpu"),
        n=pairs,
        result=sorted(rows, key=lambda row: (row["visual_tokens"], row["plugin"])),
    ).write(output)


if __name__ == "__main__":
    typer.run(main)
