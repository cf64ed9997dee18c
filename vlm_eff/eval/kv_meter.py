"""The error meter of the KV cache: how far a policy moves the attention of an answer, layer by layer, in seconds.

The model answers once with a full cache; every policy then compresses a copy of what the prompt left, and the queries
of the answer attend to both. Errors of different layers are apart: each layer sees the inputs of the full cache, so
they tell which layers suffer and what a budget or bits change, and are no forecast of the answer: where attention is
spread out, a random draw moves the output less than the largest weights do, and may still lose what the answer needs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.plugin import Plugin
from vlm_eff.core.recipe import Recipe
from vlm_eff.models.kv.compress import Layers
from vlm_eff.models.kv.meter import LayerOutput, Policy, Watched, watch_answer
from vlm_eff.reference.machine import describe_device


@dataclass(frozen=True)
class PolicyError:
    """What one policy does to one prompt.

    error:  of each layer, |o' - o| / |o| over all heads, mean over the answer's queries and rows: o is what the layer's
            attention gives over the full cache, o' over the compressed one
    heads:  [layers][query heads] the same of each head by itself
    entries: of the prompt that each layer still stores, mean over rows and key heads, in whatever form
    bytes:  of everything that the compressed cache holds; bytes_ratio: of what the full one holds
    seconds: planning, compressing and measuring
    """

    plugins: tuple[dict[str, Any], ...]
    error: tuple[float, ...]
    heads: tuple[tuple[float, ...], ...]
    entries: tuple[float, ...]
    bytes: int
    bytes_ratio: float
    seconds: float

    @property
    def mean(self) -> float:
        """Error averaged over the layers."""
        return sum(self.error) / len(self.error)


@dataclass(frozen=True)
class Result:
    """Errors of several policies on one prompt.

    layers: decoder layers that can be compressed; prompt: tokens of each row, padding left out
    steps: queries of each row; bytes: what the full cache holds behind the prompt; answer_seconds: one full answer
    """

    policies: dict[str, PolicyError]
    layers: tuple[int, ...]
    prompt: tuple[int, ...]
    steps: int
    bytes: int
    answer_seconds: float
    device: str

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON, with the mean of each policy written out."""
        made = asdict(self)
        for label, policy in self.policies.items():
            made["policies"][label]["mean"] = policy.mean
        return made


def kv_meter(
    model: Any,
    inputs: Mapping[str, Any],
    plugins: Mapping[str, Plugin | Sequence[Plugin]],
    steps: int = 8,
    watch: Callable[[str, Watched, Layers], None] | None = None,
) -> Result:
    """Measure what each policy of the cache does to the attention of an answer: exact, layer by layer, head by head.

    model:   a vision-language model in eval mode that carries no handle
    inputs:  of `model.generate`, one row or a padded batch
    plugins: by the name to show, one plugin of the cache, or several that compress one after the other
    steps:   decode steps whose queries attend; an answer that ends earlier is made to go on
    watch:   called with each policy's name, the answer with the full cache, and the layers as the policy leaves them
    Oracle   an evicted set S changes a head's output to o' = (o - sum_S A v) / (1 - sum_S A) exactly
    Cost     one answer with a full cache, and for each policy its compression and `steps` attention rows a layer;
             a second copy of the cache while it runs
    Policies that go on compressing while decoding are measured as they are when the prompt is over.

    Raises:
        ConfigError: no plugin, a plugin that acts elsewhere, two that change the same, or steps below 1.
        CapabilityError, ConflictError: as `attach` does.
    """
    if not plugins:
        raise ConfigError(explain("nothing to measure", "one plugin of the cache or more", "Name one, such as snapkv"))
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise ConfigError(explain(f"steps={steps!r}", "a whole number of at least 1", "Give decode steps to measure"))
    policies = {label: _policy(plugin) for label, plugin in plugins.items()}
    started = time.perf_counter()
    watched = watch_answer(model, dict(inputs), tuple(policies.values()), steps)
    answered = time.perf_counter() - started
    found = {}
    for label, policy in zip(policies, watched.policies, strict=True):
        found[label] = _measure(watched, policy, None if watch is None else partial(watch, label, watched))
    return Result(
        policies=found,
        layers=tuple(watched.before),
        prompt=tuple(watched.prompt.tolist()),
        steps=steps,
        bytes=watched.bytes,
        answer_seconds=answered,
        device=describe_device(model.device),
    )


def _policy(plugin: Plugin | Sequence[Plugin]) -> Policy:
    given = (plugin,) if isinstance(plugin, Plugin) else tuple(plugin)
    return tuple(part for one in given for part in (one if isinstance(one, Recipe) else (one,)))


@torch.no_grad()
def _measure(watched: Watched, policy: Policy, watch: Callable[[Layers], None] | None) -> PolicyError:
    started = time.perf_counter()
    layers = watched.compress(policy)
    # a layer's outputs are let go of before the next one's are made
    rows = [_row(watched.output(index, layers[index])) for index in watched.before]
    size = sum(row[3] for row in rows)
    made = PolicyError(
        plugins=tuple(plugin.to_dict() for plugin in policy),
        error=tuple(row[0] for row in rows),
        heads=tuple(row[1] for row in rows),
        entries=tuple(row[2] for row in rows),
        bytes=size,
        bytes_ratio=size / watched.bytes,
        seconds=time.perf_counter() - started,
    )
    if watch is not None:
        watch(layers)
    return made


def _row(output: LayerOutput) -> tuple[float, tuple[float, ...], float, int]:
    moved, full = output.compressed - output.full, output.full
    whole = _relative(moved.norm(dim=(1, 3)), full.norm(dim=(1, 3)))
    heads = _relative(moved.norm(dim=3), full.norm(dim=3)).mean(dim=(0, 2))
    return float(whole.mean()), tuple(heads.tolist()), output.entries, output.bytes


def _relative(moved: Tensor, full: Tensor) -> Tensor:
    """Lengths relative to others; a length of zero is no error where nothing moved."""
    return moved / full.clamp(min=torch.finfo(full.dtype).tiny)
