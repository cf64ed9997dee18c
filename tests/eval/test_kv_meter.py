"""The error meter of the cache: against the closed form of evictions, and against running the compressed model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessor

from tests.contracts import kit
from tests.oracle import decoder_layers
from tests.tiny import row, tiny_inputs
from vlm_eff import attach
from vlm_eff.core.cache import CacheSite, Compress, Stored
from vlm_eff.core.errors import ConfigError, ConflictError
from vlm_eff.core.plugin import BindContext, Observation, Plugin
from vlm_eff.core.resources import Resource
from vlm_eff.eval.kv_meter import PolicyError, kv_meter
from vlm_eff.eval.kv_plot import plot_errors
from vlm_eff.kernels.format import Format
from vlm_eff.kvcache import random_evict, snapkv, streaming_llm
from vlm_eff.models.kv.quantised import InBits
from vlm_eff.models.kv.view import CacheView
from vlm_eff.tokens import fastv

STEPS = 5
FAMILIES = ("llava", "qwen2_5_vl", "qwen3_vl", "internvl")


@dataclass(frozen=True)
class Coarse(Plugin):
    """Packs every entry into few bits; `pairs` also puts the mean of two neighbours in place of the first of them."""

    bits: int = 4
    pairs: bool = False

    @property
    def name(self) -> str:
        return "coarse"

    @property
    def sites(self) -> tuple[CacheSite, ...]:
        return (CacheSite("prompt"),)

    @property
    def needs(self) -> tuple[Observation, ...]:
        return ()

    @property
    def writes(self) -> frozenset[Resource]:
        return frozenset()

    def bind(self, context: BindContext) -> Coarse:
        return self

    def at(self, site: CacheSite, view: CacheView) -> Compress:
        def store(layer: int) -> Stored:
            entries = view.entries(layer)
            shape = Format(self.bits, "token")  # type: ignore[arg-type]
            form = torch.ones_like(entries.position, dtype=torch.int8)
            if not self.pairs:
                return Stored(form, (InBits(shape, shape),))
            odd = torch.arange(form.shape[2]) % 2 == 1
            form = torch.where(odd, -1, 0).to(torch.int8).expand(form.shape).clone()
            merged = [(one + one.roll(-1, 2)) / 2 for one in (entries.key, entries.value)]
            return Stored(form, key=merged[0], value=merged[1], weight=torch.full(form.shape, 2.0))

        return Compress(view.layers, store)


class Say(LogitsProcessor):
    """Makes `generate` say given tokens [B, T]."""

    def __init__(self, tokens: Tensor, past: int) -> None:
        self.tokens, self.past = tokens, past

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        forced = torch.full_like(scores, float("-inf"))
        return forced.scatter(1, self.tokens[:, ids.shape[1] - self.past, None], 0.0)


@contextmanager
def attention_outputs(model: Any) -> Iterator[list[list[Tensor]]]:
    """layer -> call -> what enters the output projection [B, Q, H * Dh]."""
    found: list[list[Tensor]] = [[] for _ in decoder_layers(model)]
    hooks = [
        layer.self_attn.o_proj.register_forward_hook(lambda module, args, output, to=to: to.append(args[0].double()))
        for to, layer in zip(found, decoder_layers(model), strict=True)
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def say(model: Any, inputs: dict[str, Any], tokens: Tensor | None = None, **more: Any) -> Any:
    """Generate for `STEPS` decode steps; greedily, or the given tokens."""
    forced = {} if tokens is None else {"logits_processor": [Say(tokens, inputs["input_ids"].shape[1])]}
    length = {"max_new_tokens": STEPS + 1, "min_new_tokens": STEPS + 1}
    with torch.no_grad():
        return model.generate(**inputs, do_sample=False, return_dict_in_generate=True, **length, **forced, **more)


def relative(moved: Tensor, full: Tensor) -> float:
    """Mean over rows and queries; [B, R, D]."""
    return float((moved.norm(dim=-1) / full.norm(dim=-1)).mean())


def only(found: dict[str, PolicyError]) -> PolicyError:
    (policy,) = found.values()
    return policy


@pytest.mark.parametrize("rows", [(1,), (2, 1)], ids=["one", "padded"])
def test_keeping_everything_is_no_error(rows: tuple[int, ...]) -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", rows)
    found = kv_meter(model, inputs, {"all": random_evict(keep_ratio=1.0)}, STEPS)
    policy = only(found.policies)
    assert set(policy.error) == {0.0} and {error for head in policy.heads for error in head} == {0.0}
    assert policy.bytes_ratio == 1 and policy.bytes == found.bytes
    real = inputs["attention_mask"].sum(1).tolist()
    assert found.prompt == tuple(real)
    assert policy.entries == (sum(real) / len(real),) * kit.LAYERS


@pytest.mark.parametrize(
    # padding rows of eager attention are not a number in float64: its lowest number is none in the float32 of softmax
    ("rows", "dtype"),
    [((1,), torch.float64), ((2, 1), torch.float32)],
    ids=["one", "padded"],
)
def test_evictions_agree_with_the_closed_form(rows: tuple[int, ...], dtype: torch.dtype) -> None:
    """o' = (o - sum_S A v) / (1 - sum_S A), with A from eager attention of the bare model and S from a real run."""
    model, inputs = kit.model_of("llava", "eager", dtype), tiny_inputs("llava", rows).to(dtype=dtype)
    plugin = random_evict(keep_ratio=0.4, seed=5)
    measured = only(kv_meter(model, inputs, {"it": plugin}, STEPS).policies)
    with attach(model, plugin) as handle:
        say(model, inputs)
        kept = [handle.kv_positions(layer) for layer in range(kit.LAYERS)]
    bare = say(model, inputs, output_attentions=True)
    length = inputs["input_ids"].shape[1]
    for layer in range(kit.LAYERS):
        values = bare.past_key_values.layers[layer].values
        heads = bare.attentions[1][layer].shape[1]
        spread = heads // values.shape[1]
        # everything of the prompt whose place is not stored
        gone = torch.ones(*values.shape[:2], length + STEPS + 1, dtype=torch.bool)
        gone.scatter_(2, kept[layer].long().where(kept[layer] >= 0, length + STEPS), False)
        gone[:, :, length:] = False
        gone, values = gone.repeat_interleave(spread, 1), values.repeat_interleave(spread, 1)
        errors, whole = [], []
        for step in bare.attentions[1:]:
            weights = step[layer][:, :, 0].double()
            seen = values[:, :, : weights.shape[-1]].to(weights.dtype)
            out = torch.einsum("bhs,bhsd->bhd", weights, seen)
            lost = weights.masked_fill(~gone[:, :, : weights.shape[-1]], 0.0)
            made = (out - torch.einsum("bhs,bhsd->bhd", lost, seen)) / (1 - lost.sum(-1, keepdim=True))
            errors.append((made - out).norm(dim=-1) / out.norm(dim=-1))
            whole.append((made - out).flatten(1).norm(dim=-1) / out.flatten(1).norm(dim=-1))
        expected = torch.stack(errors).mean((0, 1))
        assert min(expected) > 0.05
        # eager attention rounds its softmax to float32
        assert torch.allclose(torch.tensor(measured.heads[layer], dtype=expected.dtype), expected, rtol=0, atol=1e-6)
        assert measured.error[layer] == pytest.approx(float(torch.stack(whole).mean()), abs=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "plugin",
    [snapkv(keep_ratio=0.4, window=3), Coarse(bits=2), Coarse(pairs=True)],
    ids=["evicted", "quantised", "merged"],
)
def test_the_first_layer_agrees_with_the_compressed_model(family: str, plugin: Plugin) -> None:
    """Its inputs are the same with and without compression, so what it puts out can be compared with a real run."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (2, 1))
    measured = only(kv_meter(model, inputs, {"it": plugin}, STEPS).policies)
    with attention_outputs(model) as full:
        tokens = say(model, inputs).sequences[:, inputs["input_ids"].shape[1] :]
    with attention_outputs(model) as short, attach(model, plugin) as handle:
        say(model, inputs, tokens)
        stored = handle.stats().compressions[0]
    before, after = (torch.cat(found[0][1:], 1) for found in (full, short))
    assert before.shape[1] == STEPS
    error = relative(after - before, before)
    assert error > 0.01
    assert measured.error[0] == pytest.approx(error, abs=2e-5)
    assert measured.bytes == stored.bytes_after


def test_a_padded_batch_is_the_mean_of_its_rows() -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (2, 1))
    plugin = snapkv(keep_ratio=0.4, window=3)
    both = only(kv_meter(model, inputs, {"it": plugin}, STEPS).policies)
    alone = [only(kv_meter(model, row(inputs, index), {"it": plugin}, STEPS).policies) for index in range(2)]
    mean = [sum(pair) / 2 for pair in zip(*(one.error for one in alone), strict=True)]
    assert both.error == pytest.approx(mean, abs=2e-5)
    assert alone[0].error != pytest.approx(alone[1].error, abs=1e-3)


def test_policies_are_measured_apart_and_together() -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava")
    evict, pack = random_evict(keep_ratio=0.5), Coarse(bits=8)
    found = kv_meter(model, inputs, {"evict": evict, "pack": pack, "both": (evict, pack)}, STEPS)
    alone = only(kv_meter(model, inputs, {"evict": evict}, STEPS).policies)
    assert found.policies["evict"].error == alone.error
    one, other, both = (found.policies[label] for label in ("evict", "pack", "both"))
    assert both.bytes < min(one.bytes, other.bytes)
    assert both.entries == one.entries and both.mean == pytest.approx(one.mean, rel=0.05)
    assert 0 < other.mean < one.mean
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["policies"]["both"]["mean"] == both.mean
    assert plain["policies"]["both"]["plugins"][0]["method"] == "random_evict"


def test_measuring_leaves_the_model_as_it_was() -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava")
    before = say(model, inputs, output_logits=True)
    kv_meter(model, inputs, {"it": random_evict()}, STEPS)
    after = say(model, inputs, output_logits=True)
    assert torch.equal(torch.stack(before.logits), torch.stack(after.logits))


@pytest.mark.parametrize(
    ("plugins", "steps", "said"),
    [
        ({}, 4, "nothing to measure"),
        ({"it": ()}, 4, "a label without a plugin"),
        ({"it": fastv()}, 4, "acts elsewhere than on the cache"),
        ({"it": "snapkv"}, 4, "plugins, such as snapkv"),
        ({"it": random_evict()}, 0, "at least 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(plugins: Any, steps: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        kv_meter(kit.model_of("llava"), tiny_inputs("llava"), plugins, steps)


def test_two_that_evict_are_refused_together_only() -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava")
    both = (random_evict(), streaming_llm())
    kv_meter(model, inputs, {"one": both[0], "other": both[1]}, 1)
    with pytest.raises(ConflictError):
        kv_meter(model, inputs, {"both": both}, 1)


def test_a_plot_is_a_picture() -> None:
    found = kv_meter(kit.model_of("llava"), tiny_inputs("llava"), {"it": random_evict()}, 2)
    assert plot_errors(found).startswith(b"\x89PNG")
