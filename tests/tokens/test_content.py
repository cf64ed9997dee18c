"""Magnitude, redundancy and variation: sets worked out from the bare model's hidden states."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.contracts import kit
from tests.contracts.checks import image_tokens
from tests.oracle import decoder_layers, hidden_columns
from tests.tiny import tiny_inputs, visual_layout, visual_mask
from vlm_eff.core.errors import ConfigError
from vlm_eff.core.plugin import BindContext
from vlm_eff.tokens import magnitude_drop, redundancy_drop, v2drop

DEEP = BindContext("llava", 32)


def layer_inputs(model: Any, inputs: Any, gone: dict[int, Tensor] | None = None) -> list[Tensor]:
    """Input of every layer and the output of the last, full length; `gone` is hidden from attention."""
    seen: list[Tensor] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone())) for layer in decoder_layers(model)
    ]
    with hidden_columns(model, gone or {}):
        kit.forward(model, inputs)
    for hook in hooks:
        hook.remove()
    return seen


def best(scores: dict[int, float], count: int) -> set[int]:
    return set(sorted(scores, key=lambda at: (-scores[at], at))[:count])


@pytest.mark.parametrize(("layer", "norm"), [(0, 2), (2, 1)])
@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "gemma3"])
def test_the_longest_hidden_states_stay(family: str, layer: int, norm: int) -> None:
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2, 0))
    run = kit.attached(model, inputs, magnitude_drop(layer=layer, norm=norm, keep_count=5))
    hidden = layer_inputs(model, inputs)[layer].double()
    left, candidates = kit.survivors(run.handle, inputs)[layer], image_tokens(family, inputs)
    for row, mask in enumerate(candidates):
        places = mask.nonzero()[:, 0].tolist()
        lengths = {at: float((hidden[row, at].abs() ** norm).sum()) for at in places}
        assert set((left[row] & mask).nonzero()[:, 0].tolist()) == best(lengths, 5)


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen3_vl", "gemma3"])
def test_what_is_like_its_neighbours_goes(family: str, layer: int) -> None:
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2, 0))
    run = kit.attached(model, inputs, redundancy_drop(layer=layer, keep_count=6))
    hidden = layer_inputs(model, inputs)[layer].double()
    left = kit.survivors(run.handle, inputs)[layer] & image_tokens(family, inputs)
    for row, (cells, mask) in enumerate(zip(visual_layout(family, inputs), visual_mask(inputs), strict=True)):
        at = {
            (c["image"], c["frame_or_tile"], c["y"], c["x"]): place
            for c, place in zip(cells, mask.nonzero()[:, 0].tolist(), strict=True)
            if not c["newline"]
        }
        scores = {}
        for (image, tile, y, x), place in at.items():
            near = [at.get((image, tile, y + dy, x + dx)) for dy, dx in ((-1, 0), (0, -1), (0, 1), (1, 0))]
            cosines = [
                float(torch.cosine_similarity(hidden[row, place], hidden[row, other], dim=0))
                for other in near
                if other is not None
            ]
            scores[place] = -sum(cosines) / len(cosines) if cosines else 0.0
        assert set(left[row].nonzero()[:, 0].tolist()) == best(scores, 6)


@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "gemma3"])
def test_v2drop_keeps_what_the_layers_change_most(family: str) -> None:
    """Three stages; the expected sets come from full-length masked runs, one a stage."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2, 0))
    layers = (1, 3, 5)
    run = kit.attached(model, inputs, v2drop(keep_ratio=0.6, layers=layers, schedule="paper"))
    got, candidates = kit.survivors(run.handle, inputs), image_tokens(family, inputs)
    left, gone = candidates.clone(), {}
    for layer, dropped in zip(layers, (0.5, 0.7, 1.0), strict=True):
        states = layer_inputs(model, inputs, gone)
        change = (states[layer].double() - states[layer - 1].double()).norm(dim=-1)
        for row, mask in enumerate(candidates):
            started = int(mask.sum())
            count = -int(-started * (1 - dropped * 0.4) // 1)
            kept = best({at: float(change[row, at]) for at in left[row].nonzero()[:, 0].tolist()}, count)
            left[row] = torch.tensor([at in kept for at in range(left.shape[1])])
        gone[layer] = candidates & ~left
        assert torch.equal(got[layer] & candidates, left), f"layer {layer}"


def test_v2drop_schedules() -> None:
    assert [site.layer for site in v2drop().bind(DEEP).sites] == [3, 17, 22]
    code = v2drop().asked(576, 32)
    assert [code[layer] for layer in (2, 3, 17, 22, 31)] == [576, 288, 144, 0, 0]
    paper = v2drop(keep_ratio=0.2, schedule="paper").asked(100, 32)
    assert [paper[layer] for layer in (2, 3, 17, 22)] == [100, 60, 44, 20]


def test_what_v2drop_refuses() -> None:
    with pytest.raises(ConfigError, match="3 ascending layers"):
        v2drop(layers=(1, 2))
    with pytest.raises(ConfigError, match="'code', 'paper'"):
        v2drop(schedule="other")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="norm=3"):
        magnitude_drop(norm=3)  # type: ignore[arg-type]
