"""What the small diffusion models reach: `python -m vlm_eff.eval.shape_quality --model unet` writes it on the card."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Annotated

import torch
import typer

from vlm_eff.core.errors import InputError, explain
from vlm_eff.eval.generated import class_accuracy, frechet_distance, precision_recall
from vlm_eff.reference.diffusion import (
    CLASSES,
    generate,
    load_classifier,
    load_small_dit_pipeline,
    load_small_unet_pipeline,
)
from vlm_eff.reference.diffusion.shapes import draw_shapes, stream
from vlm_eff.reference.diffusion.weights import card_of, weights_of

_REAL, _OTHER_REAL = 1, 2
_CHUNK = 100


@dataclass(frozen=True)
class ShapeQuality:
    """Quality of N pictures of shapes; `frechet` is in the features of the bundled classifier."""

    pictures: int
    accuracy: float
    frechet: float
    precision: float
    recall: float


@torch.no_grad()
def shape_quality(pictures: torch.Tensor, labels: torch.Tensor) -> ShapeQuality:
    """Judge pictures [N, 3, 16, 16] in -1 to 1 of classes [N] against as many held-out real ones.

    Raises:
        InputError: fewer than four pictures, or not one class for each.
    """
    judge = load_classifier()
    real = _real(labels, _REAL)
    mine, theirs = judge.features(pictures), judge.features(real)
    precision, recall = precision_recall(theirs, mine)
    return ShapeQuality(
        pictures=len(pictures),
        accuracy=round(class_accuracy(judge(pictures), labels), 4),
        frechet=round(frechet_distance(theirs, mine), 3),
        precision=round(precision, 4),
        recall=round(recall, 4),
    )


def real_against_real(count: int) -> ShapeQuality:
    """Return the row that belongs beside every other: other held-out real pictures, judged in the same way."""
    labels = torch.tensor(cycle_of_classes(count))
    return shape_quality(_real(labels, _OTHER_REAL), labels)


def _real(labels: torch.Tensor, number: int) -> torch.Tensor:
    """Draw held-out pictures of the same classes, so that the mix of classes adds nothing to a distance."""
    return draw_shapes(labels, stream(number, "test"))


def cycle_of_classes(count: int) -> list[int]:
    """Return `count` class ids, each class in turn."""
    return [place % len(CLASSES) for place in range(count)]


def main(
    model: Annotated[str, typer.Option(help="unet or dit")],
    pictures: Annotated[int, typer.Option(help="pictures per row")] = 400,
) -> None:
    """Generate pictures with several samplers and write the rows on the model's card."""
    loaders = {"unet": load_small_unet_pipeline, "dit": load_small_dit_pipeline}
    if model not in loaders:
        raise InputError(explain(f"model {model!r}", f"one of {', '.join(loaders)}", "Use one of them"))
    from diffusers import UniPCMultistepScheduler

    pipeline = loaders[model]()
    own = pipeline.scheduler
    other = UniPCMultistepScheduler.from_config(own.config)
    settings = [
        ("DPM-Solver++ 2M", own, 20, 1.0),
        ("DPM-Solver++ 2M", own, 20, 1.5),
        ("DPM-Solver++ 2M", own, 20, 2.0),
        ("UniPC", other, 10, 2.0),
    ]
    rows = [{"sampler": "real pictures", **asdict(real_against_real(pictures))}]
    labels = cycle_of_classes(pictures)
    for name, scheduler, steps, guidance in settings:
        pipeline.scheduler = scheduler
        parts = [
            generate(pipeline, labels[start : start + _CHUNK], steps=steps, guidance=guidance, seed=start)
            for start in range(0, pictures, _CHUNK)
        ]
        found = shape_quality(torch.cat(parts), torch.tensor(labels))
        rows.append({"sampler": name, "steps": steps, "guidance": guidance, **asdict(found)})
    card = card_of(weights_of(model))
    record = json.loads(card.read_text(encoding="utf-8"))
    card.write_text(json.dumps({**record, "reached": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
