"""Quality against cost of every diffusion method on the bundled models, beside fewer steps and other libraries.

    PYTHONPATH=.:peers python benchmarks/diffusion_quality.py --model small-unet     # CPU, about 20 minutes on one core
    PYTHONPATH=.:peers python benchmarks/diffusion_quality.py --model small-dit

Every arm draws the same classes from the same noise. Cost is counted, not timed: FLOPs of the whole run over those of
one full evaluation. PSNR and feature distance are to the pictures of the full run, pair by pair; class accuracy and
Frechet distance are of the pictures by themselves, beside real ones against real ones at the same N.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import typer
from diffusion.arms import ARMS, STEPS, Arm
from diffusion.calibrated import by_change, scheduled
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vlm_eff.eval.generated import class_accuracy, frechet_distance, precision_recall, psnr
from vlm_eff.eval.painter import load_painter
from vlm_eff.eval.record import Record, read_record
from vlm_eff.reference.diffusion import CLASSES, generate, load_classifier, shape_batch
from vlm_eff.reference.machine import describe_device

RESULTS = Path(__file__).parent / "results"
GUIDANCE, BATCH = 1.5, 50


def draw(pipe: Any, labels: list[int], steps: int, seed: int) -> tuple[Tensor, int]:
    """Pictures [N, 3, 16, 16] of the labels, and the FLOPs of drawing them."""
    made, counter = [], FlopCounterMode(display=False)
    with counter:
        for number in range(0, len(labels), BATCH):
            part = labels[number : number + BATCH]
            made.append(generate(pipe, part, steps=steps, guidance=GUIDANCE, seed=seed + number))
    return torch.cat(made), int(counter.get_total_flops())


def judge(made: Tensor, full: Tensor, real: Tensor, labels: list[int], judging: Any) -> dict[str, float]:
    """The figures of a row."""
    with torch.no_grad():
        features, wanted, true = judging.features(made), judging.features(full), judging.features(real)
        logits = judging(made)
    # equal pictures are infinitely alike, which has no mean
    each = psnr(full, made).clamp(max=100.0)
    precision, recall = precision_recall(true, features)
    return {
        "psnr": float(each.mean()),
        "psnr_error": float(each.std() / math.sqrt(len(each))),
        "feature_distance": float((features - wanted).norm(dim=1).mean() / wanted.norm(dim=1).mean()),
        "class_accuracy": class_accuracy(logits, torch.tensor(labels)),
        "frechet": frechet_distance(true, features),
        "precision": precision,
        "recall": recall,
    }


def measure(arm: Arm, pipe: Any, labels: list[int], seed: int) -> tuple[Tensor, int]:
    """Draw with an arm on."""
    with arm.opened(pipe):
        # what is calibrated, is so before anything is counted
        return draw(pipe, labels, arm.steps, seed)


def kept_rows(path: Path, config: dict[str, Any], count: int) -> dict[str, dict[str, Any]]:
    """Rows by label of a record that was made with the same settings; those that did not run are left out."""
    if not path.is_file():
        return {}
    record = read_record(path)
    if record.config != config or record.n != count:
        raise SystemExit(f"{path} was made with other settings: {record.config}, N = {record.n}")
    return {row["label"]: row for row in record.result["rows"] if "error" not in row and row["kind"] != "real"}


def main(
    model: str = "small-unet",
    count: int = 100,
    seed: int = 7,
    only: str = "",
    output: Path | None = None,
    keep: bool = False,
) -> None:
    """Draw with every arm and write the record; an arm that cannot run is a row that says why.

    keep: take over rows of an earlier record of the same settings that ran, and draw the others alone
    """
    painter, judging = load_painter(model), load_classifier()
    labels = [number % len(CLASSES) for number in range(count)]
    real, (other, classes) = shape_batch(seed, count, "test")[0], shape_batch(seed + 1, count, "test")
    full, whole = draw(painter.pipe, labels, STEPS, seed)
    path = output or RESULTS / f"diffusion_quality_{model.replace('-', '_')}.json"
    config = {"steps": STEPS, "guidance": GUIDANCE, "seed": seed, "scheduler": type(painter.pipe.scheduler).__name__}
    known = kept_rows(path, config, count) if keep else {}
    rows: list[dict[str, Any]] = []
    names = ("deepcache", "forecast") if model == "small-unet" else ("forecast",)
    arms = [*ARMS[model], *(arm for name in names for budget in (10, 7, 5) for arm in scheduled(name, budget))]
    if model == "small-dit":
        arms += by_change()
    for arm in arms:
        if only and only not in arm.label:
            continue
        if arm.label in known:
            rows.append(known[arm.label])
            continue
        row: dict[str, Any] = {"label": arm.label, "kind": arm.kind, "steps": arm.steps}
        try:
            # others may leave something behind
            pipe = painter.pipe if arm.kind in ("ours", "fewer steps", "full") else load_painter(model).pipe
            made, flops = measure(arm, pipe, labels, seed)
            row |= {"evaluations": flops / whole * STEPS, **judge(made, full, real, labels, judging)}
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        rows.append(row)
        typer.echo(row)
    again, _ = draw(painter.pipe, labels, STEPS, seed)
    if not torch.equal(again, full):
        raise SystemExit("some arm left the pipeline changed: nothing was written")
    rows.append(
        {"label": "real pictures", "kind": "real", "steps": 0} | judge(other, full, real, classes.tolist(), judging)
    )
    record = Record(
        "quality of diffusion against equivalent full evaluations",
        "1",
        model,
        config,
        describe_device(painter.device),
        count,
        {"rows": rows, "flops_of_an_evaluation": whole / STEPS},
    )
    typer.echo(record.write(path))


if __name__ == "__main__":
    typer.run(main)
