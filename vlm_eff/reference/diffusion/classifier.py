"""The judge of generated pictures: a small network that names the class and gives the features of every distance.

Train it by `python -m vlm_eff.reference.diffusion.classifier`; under a minute on one core.
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from safetensors.torch import load_file
from torch import nn

from ..machine import describe_device, package_versions
from .shapes import CLASSES, shape_batch
from .weights import card_of, save_half, weights_of

log = logging.getLogger(__name__)

FEATURES = 64
_HELD_OUT = 4000


class ShapeClassifier(nn.Module):
    """Three convolutions from 16x16 to 4x4 pixels, 64 features, ten classes.

    Features are taken before the last activation, where a blurred or ragged picture moves them most, and scaled to
    mean 0 and variance 1 over real pictures, so that a Frechet distance has a known unit.
    """

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(32, 48, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(48 * 16, FEATURES),
        )  # fmt: skip
        self.head = nn.Linear(FEATURES, len(CLASSES))
        self.register_buffer("centre", torch.zeros(FEATURES))
        self.register_buffer("spread", torch.ones(FEATURES))

    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return the features [B, 64] of pictures [B, 3, 16, 16] in -1 to 1."""
        return (self._raw(pictures) - self.centre) / self.spread

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return the logits [B, 10] of pictures [B, 3, 16, 16] in -1 to 1."""
        return self.head(F.relu(self._raw(pictures)))

    def _raw(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.body(pictures.float().clamp(-1, 1))


def load_classifier() -> ShapeClassifier:
    """Load the bundled classifier in evaluation mode."""
    model = ShapeClassifier()
    model.load_state_dict({key: value.float() for key, value in load_file(weights_of("classifier")).items()})
    return model.eval()


def train_classifier(seed: int, steps: int, batch_size: int = 128) -> ShapeClassifier:
    """Train on `steps` fresh batches, with a little noise so that small flaws of a sample do not decide."""
    torch.manual_seed(seed)
    model = ShapeClassifier()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        pictures, labels = shape_batch(step, batch_size, "train")
        pictures = pictures + 0.05 * torch.randn_like(pictures)
        loss = F.cross_entropy(model(pictures), labels, label_smoothing=0.05)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        decay.step()
        if step % 100 == 0:
            log.info("step %d loss %.4f", step, loss.item())
    with torch.no_grad():
        real = model.features(shape_batch(steps, _HELD_OUT, "train")[0])
        model.centre.copy_(real.mean(0))
        model.spread.copy_(real.std(0))
    return model.eval()


@torch.no_grad()
def held_out_accuracy(model: ShapeClassifier, count: int = _HELD_OUT) -> float:
    """Return the share of held-out pictures that get their own class."""
    pictures, labels = shape_batch(0, count, "test")
    return (model(pictures).argmax(-1) == labels).float().mean().item()


def main(
    seed: Annotated[int, typer.Option(help="seed of the weights")] = 0,
    steps: Annotated[int, typer.Option(help="batches of 128 pictures")] = 800,
    output: Annotated[Path | None, typer.Option(help="weights file; default: the bundled one")] = None,
) -> None:
    """Train the classifier and write weights and card."""
    started = time.process_time()
    model = train_classifier(seed, steps)
    seconds = time.process_time() - started
    path = save_half(model.state_dict(), output or weights_of("classifier"))
    card = {
        "model": "classifier", "parameters": sum(p.numel() for p in model.parameters()),
        "training": {"seed": seed, "steps": steps, "batch_size": 128, "cpu_seconds": round(seconds, 1),
                     "device": describe_device("cpu"), "packages": package_versions()},
        "reached": {"held_out_pictures": _HELD_OUT, "accuracy": round(held_out_accuracy(model), 4)},
    }  # fmt: skip
    card_of(path).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    typer.run(main)
