"""What must hold for methods that act on video tokens alone."""

from __future__ import annotations

import torch

from tests.contracts import kit
from tests.tiny import tiny_inputs, visual_layout, visual_mask
from vlm_eff.core.plugin import Plugin


def images_are_left_alone(family: str, plugin: Plugin) -> None:
    """On prompts with images and no video not a bit changes, and no stage is reported."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2, 0))
    run = kit.attached(model, inputs, plugin)
    assert torch.equal(run.logits, kit.bare(model, inputs))
    last = run.handle.stats().last
    assert last is not None
    assert last.stages == ()


def only_video_tokens_go(family: str, plugin: Plugin) -> None:
    """With images and videos in one row, every video loses tokens and keeps some, and images lose none."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (2, 4, 0), video="mixed")
    left = kit.survivors(kit.attached(model, inputs, plugin).handle, inputs)[-1]
    for index, (cells, mask) in enumerate(zip(visual_layout(family, inputs), visual_mask(inputs), strict=True)):
        kept = left[index, mask].tolist()
        for number in {cell["image"] for cell in cells}:
            mine = [stays for stays, cell in zip(kept, cells, strict=True) if cell["image"] == number]
            video = any(cell["video"] for cell in cells if cell["image"] == number)
            assert all(mine) is not video, f"row {index}, {'video' if video else 'image'} {number}"
            assert any(mine)
        assert bool(left[index, ~mask].all())
