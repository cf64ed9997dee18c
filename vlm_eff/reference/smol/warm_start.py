"""A projector to start from: visual tokens that already say, in the language model's own words, what lies under them.

Each patch's target is the sum of the embeddings of a few words (" red", " circle", " large", " top", " left"), scaled
to the size of one. Training then starts from tokens that the model can read, instead of from noise.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from ..layout import GRID, IMAGE_SIZE
from ..scenes import Scene, make_scene, render
from .processor import GRID as PATCHES

_SCENES, _STEPS, _BATCH = 480, 1500, 512
_FIRST_SCENE = 1 << 50  # far from the 48-bit seeds of training
_ROWS, _COLUMNS = ("top", "middle", "bottom"), ("left", "center", "right")


def warm_start(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, seed: int, scenes: int = _SCENES
) -> float:
    """Fit the projector to naming what each patch shows, in place; return the share of variance it explains."""
    torch.manual_seed(seed)
    features, targets = [], []
    table = model.get_input_embeddings().weight.detach()
    size = table.std(dim=0).norm()
    for first in range(_FIRST_SCENE, _FIRST_SCENE + scenes, 16):
        drawn = [make_scene(number, "train") for number in range(first, min(first + 16, _FIRST_SCENE + scenes))]
        pixels = processor.image_processor([render(scene) for scene in drawn], return_tensors="pt")["pixel_values"]
        features.append(visual_features(model, pixels).flatten(0, 1))
        for scene in drawn:
            said = [sum(_embedding(word, table, processor) for word in words) for words in patch_words(scene)]
            targets.append(torch.stack([value * (size / value.norm()) for value in said]))
    return _fit(model.model.multi_modal_projector, torch.cat(features), torch.cat(targets))


@torch.no_grad()
def visual_features(model: LlavaForConditionalGeneration, pixels: torch.Tensor) -> torch.Tensor:
    """Return what the projector is given, [B, 81, 384]; the tower is never trained."""
    layer = model.config.vision_feature_layer
    seen = model.model.vision_tower(pixel_values=pixels, output_hidden_states=True).hidden_states[layer]
    return seen[:, 1:]


def patch_words(scene: Scene) -> list[list[str]]:
    """Return for each of the 81 patches, row by row, the words for what it shows and where it is."""
    side = IMAGE_SIZE / PATCHES
    found = []
    for number in range(PATCHES * PATCHES):
        row, column = divmod(number, PATCHES)
        place = [_ROWS[row * GRID // PATCHES], _COLUMNS[column * GRID // PATCHES]]
        x, y = (column + 0.5) * side, (row + 0.5) * side
        words = []
        for item in scene.objects:
            if _covers(item.box, x, y):
                words = [item.colour, item.shape, item.size]
        for kind, text in (("word", scene.word), ("digit", scene.digit)):
            if text is not None and _covers(text.box, x, y):
                words = [kind, text.text, text.text]
        found.append(words + place)
    return found


def _covers(box: tuple[int, int, int, int], x: float, y: float) -> bool:
    left, top, right, bottom = box
    return left <= x < right and top <= y < bottom


def _embedding(word: str, table: torch.Tensor, processor: LlavaProcessor) -> torch.Tensor:
    """Return the mean embedding of a word's tokens: digits as they stand, words behind a space."""
    text = word if word.isdigit() else f" {word}"
    return table[processor.tokenizer(text, add_special_tokens=False)["input_ids"]].mean(dim=0)


def _fit(projector: nn.Module, features: torch.Tensor, targets: torch.Tensor) -> float:
    mean, deviation = features.mean(dim=0), features.std(dim=0)
    standard = (features - mean) / deviation
    optimiser = torch.optim.AdamW(projector.parameters(), lr=2e-3, weight_decay=1e-4)
    for step in range(_STEPS):
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * (1 - step / _STEPS)
        chosen = torch.randint(len(standard), (_BATCH,))
        loss = nn.functional.mse_loss(projector(standard[chosen]), targets[chosen])
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    with torch.no_grad():
        # the projector takes features as they come: the first layer standardises them
        projector.linear_1.bias -= projector.linear_1.weight @ (mean / deviation)
        projector.linear_1.weight /= deviation
        left = nn.functional.mse_loss(projector(features), targets).item()
    return 1 - left / targets.var(dim=0).mean().item()
