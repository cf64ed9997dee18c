"""Perplexity of real text read out of a compressed cache: what rounding and eviction cost a language model.

A window of text is prefilled up to a prefix. The rest is fed token by token, as it stands and not as the model would go
on, so that every prediction that counts comes out of the compressed cache. All policies share one prefill: what they
need is observed together, and each compresses copies of what it left.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from vlm_eff.core.errors import InputError, explain
from vlm_eff.core.handle import Handle
from vlm_eff.core.plugin import Plugin
from vlm_eff.eval.kv_questions import Switch
from vlm_eff.models.attach import attach
from vlm_eff.models.kv.meter import copied_cache

BARE = "bare"


@dataclass(frozen=True)
class TextScore:
    """How well text is predicted out of a cache.

    perplexity: exp of the mean surprise over `tokens` predicted tokens
    surprise: nats a token, of each window; windows are the independent samples
    agrees: share of tokens whose likeliest next token is that of the full cache
    bytes_ratio, entries_ratio: of the prefix, compressed / full; 1 where nothing was compressed
    """

    perplexity: float
    surprise: tuple[float, ...]
    tokens: int
    agrees: float
    bytes_ratio: float
    entries_ratio: float


def text_windows(ids: Tensor, length: int, count: int) -> Tensor:
    """`count` windows of `length` tokens, evenly spread over a text [T] and without overlap, [count, length].

    Raises:
        InputError: the text is too short for them.
    """
    if count < 1 or length < 1 or count * length > len(ids):
        raise InputError(
            explain(
                f"{count} windows of {length} tokens from a text of {len(ids)}",
                "at least one window, of at least one token, and all of them beside one another in the text",
                "Give a longer text, or ask for fewer or shorter windows",
            )
        )
    free = len(ids) - count * length
    starts = [number * length + free * number // max(1, count - 1) for number in range(count)]
    return torch.stack([ids[start : start + length] for start in starts])


def perplexities(
    model: Any, windows: Tensor, prefix: int, policies: Mapping[str, Plugin], batch_size: int = 8
) -> dict[str, TextScore]:
    """Score windows of text [N, L] out of a full cache ("bare") and out of the cache of each policy.

    prefix: tokens that are prefilled; the token behind it is the first that is fed, and the one after that the first
            that is predicted, so L - prefix - 1 tokens of each window count

    Raises:
        InputError: nothing is left to predict, or a policy is called "bare".
    """
    if not 0 < prefix < windows.shape[1] - 1 or BARE in policies:
        raise InputError(
            explain(
                f"a prefix of {prefix} tokens in windows of {windows.shape[1]}, policies {sorted(policies)}",
                f"a prefix that leaves two tokens or more, and policies with other names than {BARE!r}",
                "Shorten the prefix, or rename the policy",
            )
        )
    surprise: defaultdict[str, list[float]] = defaultdict(list)
    agrees: defaultdict[str, list[float]] = defaultdict(list)
    sizes: defaultdict[str, list[tuple[float, float, float, float]]] = defaultdict(list)
    with attach(model, Switch(tuple(policies.values()))) as handle, torch.no_grad():
        (switch,) = (plugin for plugin in handle.plugins if isinstance(plugin, Switch))
        for batch in torch.split(windows.to(model.device), batch_size):
            cache = DynamicCache(config=model.config.get_text_config())
            switch.chosen.clear()
            model(input_ids=batch[:, :prefix], past_key_values=cache, use_cache=True, logits_to_keep=1)
            likeliest = None
            for label, policy in ((BARE, None), *zip(policies, switch.policies, strict=True)):
                switch.chosen[:] = [] if policy is None else [policy]
                handle.reset()
                nats, best = _forced(model, copied_cache(cache), batch[:, prefix:])
                likeliest = best if likeliest is None else likeliest
                surprise[label] += nats.mean(1).tolist()
                agrees[label] += (best == likeliest).float().mean(1).tolist()
                sizes[label] += _sizes(handle)
    return {
        label: _score(surprise[label], agrees[label], sizes[label], windows.shape[1] - prefix - 1) for label in surprise
    }


def _forced(model: Any, cache: Any, rest: Tensor) -> tuple[Tensor, Tensor]:
    """Feed [B, T + 1] tokens one by one; surprise in nats and the likeliest token at each of the last T, [B, T]."""
    nats, best = [], []
    for place in range(rest.shape[1] - 1):
        said = model(input_ids=rest[:, place : place + 1], past_key_values=cache, use_cache=True).logits[:, -1].float()
        wanted = rest[:, place + 1 : place + 2]
        nats.append(-said.log_softmax(-1).gather(1, wanted))
        best.append(said.argmax(-1, keepdim=True))
    return torch.cat(nats, 1), torch.cat(best, 1)


def _sizes(handle: Handle) -> list[tuple[float, float, float, float]]:
    """Bytes and entries that compressing a prompt left and found."""
    return [
        (one.bytes_after, one.bytes_before, sum(one.after), sum(one.before))
        for one in handle.stats().compressions
        if one.when == "prompt"
    ]


def _score(
    surprise: list[float], agrees: list[float], sizes: list[tuple[float, float, float, float]], scored: int
) -> TextScore:
    kept, full, left, there = (sum(column) for column in zip(*sizes, strict=True)) if sizes else (1.0, 1.0, 1.0, 1.0)
    mean = sum(surprise) / len(surprise)
    share = sum(agrees) / len(agrees)
    return TextScore(math.exp(mean), tuple(surprise), len(surprise) * scored, share, kept / full, left / there)
