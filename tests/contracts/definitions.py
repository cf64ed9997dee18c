"""The methods' selections written down a second time, from eager attention weights and the true layout alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.contracts.checks import image_tokens
from tests.oracle import Dropped, attention_rows, decoder_layers
from tests.tiny import TinyInputs, visual_layout, visual_mask

Count = Callable[[int, int], int]
"""(candidates at the start, candidates left) -> how many to keep"""


def best(scores: list[float], count: int) -> list[int]:
    """Indices of the `count` best, ascending; ties go to the lower index."""
    order = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
    return sorted(order[:count])


def last_row(
    model: PreTrainedModel, inputs: TinyInputs, layer: int, gone: Dropped, among: Tensor | None = None
) -> Tensor:
    """Attention of the last prompt token, mean over heads [B, S]; `among` [B, S]: shared out over these keys alone."""
    weights = attention_rows(model, inputs, layer, gone)
    if among is not None:
        weights = weights * among[:, None, None]
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-30)
    last = inputs["attention_mask"].shape[1] - 1 - inputs["attention_mask"].flip(1).argmax(1)
    return torch.stack([weights[index, :, at].mean(0) for index, at in enumerate(last.tolist())])


def choose(row: Tensor, candidates: Tensor, count: Count, started: Tensor) -> Tensor:
    """Of the True `candidates` [B, S] the best by `row` [B, S], as a mask [B, S]."""
    kept = torch.zeros_like(candidates)
    for index, mask in enumerate(candidates):
        places = mask.nonzero()[:, 0]
        if len(places):
            keep = min(max(count(int(started[index].sum()), len(places)), 1), len(places))
            kept[index, places[best(row[index, places].tolist(), keep)]] = True
    return kept


def fastv_set(model: PreTrainedModel, inputs: TinyInputs, layer: int, ratio: float) -> Tensor:
    """Kept candidates [B, S]: the attention of the layer before, halves rounded up."""
    candidates = image_tokens(inputs.family, inputs)
    row = last_row(model, inputs, layer - 1, {})
    return choose(row, candidates, lambda n, now: math.floor(n * ratio + 0.5), candidates)


def pyramid_sets(model: PreTrainedModel, inputs: TinyInputs, layers: tuple[int, ...], ratio: float) -> list[Tensor]:
    """Kept candidates after each stage: the stage layer's own attention over what is still there."""
    started = left = image_tokens(inputs.family, inputs)
    gone: Dropped = {}
    made = []
    for stage, layer in enumerate(layers):
        row = last_row(model, inputs, layer, gone)
        left = choose(row, left, lambda n, now, power=stage + 1: int(n * ratio**power), started)  # type: ignore[misc]
        gone[layer] = started & ~left
        made.append(left)
    return made


def feather_sets(
    model: PreTrainedModel, inputs: TinyInputs, layers: tuple[int, int], ratio: float, stride: int
) -> list[Tensor]:
    """Kept candidates after both stages: attention without rotation over image tokens; the grid besides in stage 1."""
    started = image_tokens(inputs.family, inputs)
    with unrotated(model, layers[0] - 1):
        row = last_row(model, inputs, layers[0] - 1, {}, started)
    first = choose(row, started, lambda n, now: int(n * ratio), started) | grid(inputs, stride)
    with unrotated(model, layers[1] - 1):
        row = last_row(model, inputs, layers[1] - 1, {layers[0]: started & ~first}, first)
    return [first, choose(row, first, lambda n, now: int(now * ratio**2), first)]


def grid(inputs: TinyInputs, stride: int) -> Tensor:
    """Candidates on every `stride`-th row and column of their tile or frame [B, S]."""
    made = torch.zeros_like(inputs["attention_mask"], dtype=torch.bool)
    for index, (cells, mask) in enumerate(zip(visual_layout(inputs.family, inputs), visual_mask(inputs), strict=True)):
        on = [not c["newline"] and c["y"] % stride == 0 and c["x"] % stride == 0 for c in cells]
        made[index, mask] = torch.tensor(on, dtype=torch.bool)
    return made


@contextmanager
def unrotated(model: PreTrainedModel, layer: int) -> Iterator[None]:
    """While open, one decoder layer attends without rotary positions (copies of the model too)."""

    def still(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        cos, sin = kwargs["position_embeddings"]
        return args, kwargs | {"position_embeddings": (torch.ones_like(cos), torch.zeros_like(sin))}

    hook = decoder_layers(model)[layer].register_forward_pre_hook(still, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def official_pyramid(
    model: PreTrainedModel, ids: Tensor, embeds: Tensor, plan: dict[int, float], visual: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """PyramidDrop as its code runs it on one LLaMA prompt: survivors are numbered anew before every layer.

    ids [1, S + T]: prompt and answer; embeds [1, S, D]: of the prompt; plan: layer -> fraction of image tokens kept.
    Returns logits of what is left and the positions left at each layer.
    """
    decoder, prompt = model.get_decoder(), embeds.shape[1]
    hidden = torch.cat([embeds, model.get_input_embeddings()(ids[:, prompt:])], 1)
    left, layers = torch.arange(hidden.shape[1]), []
    for index, layer in enumerate(decoder.layers):
        if index in plan:
            here = visual[0][left.clamp(max=prompt - 1)] & (left < prompt)
            row = _query_row(decoder, layer, hidden[:, left < prompt])
            places = here.nonzero()[:, 0]
            keep = places[best(row[places].tolist(), max(int(int(visual.sum()) * plan[index]), 1))]
            stays = ~here
            stays[keep] = True
            hidden, left = hidden[:, stays], left[stays]
        positions = torch.arange(hidden.shape[1])[None]
        tables = decoder.rotary_emb(hidden, positions)
        hidden = layer(hidden, attention_mask=None, position_embeddings=tables)
        layers.append(left)
    return model.lm_head(decoder.norm(hidden)), layers


def _query_row(decoder: Any, layer: Any, hidden: Tensor) -> Tensor:
    """Attention of the last token with `layer`'s projections, mean over heads [S]."""
    cos, sin = (table[0] for table in decoder.rotary_emb(hidden, torch.arange(hidden.shape[1])[None]))
    normed, attention = layer.input_layernorm(hidden)[0], layer.self_attn
    query = _rotate(attention.q_proj(normed[-1:]).view(1, -1, attention.head_dim), cos[-1:], sin[-1:])
    key = _rotate(attention.k_proj(normed).view(len(normed), -1, attention.head_dim), cos, sin)
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    logits = torch.einsum("qhd,shd->hs", query, key) * attention.head_dim**-0.5
    return logits.softmax(-1).mean(0)


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = heads.chunk(2, -1)
    return heads * cos[:, None] + torch.cat([-second, first], -1) * sin[:, None]
