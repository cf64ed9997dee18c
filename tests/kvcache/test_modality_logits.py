"""Logits scaled by modality: equal to a full table written down in eager attention, wherever keys are stored."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.contracts import kit, kv_kit
from tests.contracts.kv_kit import FOUR, Talk
from tests.kvcache.open_cache import entries_behind_prompt
from tests.oracle import decoder_layers, hidden_columns
from tests.tiny import TinyInputs, ids, tiny_inputs
from vlm_eff import attach, plugin
from vlm_eff.core.cache import CacheRows, CacheSite, CacheSums
from vlm_eff.core.errors import CapabilityError, ConfigError, ConflictError
from vlm_eff.core.plugin import BindContext, Plugin
from vlm_eff.core.resources import Resource
from vlm_eff.kvcache import cross_modal_low_rank, modality_logits, random_evict, snapkv
from vlm_eff.tokens import fastv, lazyllm, random_drop

TABLE = {"text_to_image": 0.4, "image_to_text": 1.7}
VIDEO = {"text_to_video": 0.5, "video_to_text": 1.4, "text_to_image": 1.6, "video_to_image": 0.3, "image_to_video": 0.7}
KINDS = ("text", "image", "video")


def modality(inputs: dict[str, Any]) -> Tensor:
    """0 text, 1 image, 2 video of every column of a prompt [B, S]."""
    tokens = inputs["input_ids"]
    return (tokens == ids.IMAGE).long() + 2 * (tokens == ids.VIDEO).long()


@contextmanager
def written_out(model: Any, columns: Tensor, seen: list[Tensor] | None = None, **factors: float) -> Iterator[None]:
    """While open, the bare eager `model` multiplies its logits with a full table; columns behind the known are text.

    seen: takes the attention weights [B, H, Q, S] of every layer
    """
    alpha = torch.ones(3, 3)
    for name, factor in factors.items():
        query, key = name.split("_to_")
        alpha[KINDS.index(query), KINDS.index(key)] = factor
    module = sys.modules[type(decoder_layers(model)[0].self_attn).__module__]
    original = module.eager_attention_forward  # type: ignore[attr-defined]
    totals: dict[int, int] = {}
    hooks = []

    def count(attention: Any, args: Any, kwargs: Any) -> None:
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        cache = kwargs.get("past_key_values")
        past = 0 if cache is None else cache.get_seq_length(attention.layer_idx)
        totals[id(attention)] = past + hidden.shape[1]

    def attend(attention: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any) -> Any:
        mask = attention_mask
        if id(attention) not in totals:
            return original(attention, query, key, value, mask, **kwargs)
        total, group = totals[id(attention)], query.shape[1] // key.shape[1]
        known = torch.zeros(len(columns), total, dtype=torch.long)
        width = min(total, columns.shape[1])
        known[:, :width] = columns[:, :width]
        known = known.repeat_interleave(len(query) // len(columns), 0)
        scores = query @ key.repeat_interleave(group, 1).mT * kwargs["scaling"]
        table = alpha[known[:, -query.shape[2] :, None], known[:, None, -key.shape[2] :]]
        scores = scores * table[:, None]
        if kwargs.get("softcap"):
            scores = kwargs["softcap"] * torch.tanh(scores / kwargs["softcap"])
        if mask is not None and mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        elif mask is not None:
            scores = scores + mask
        weights = scores.softmax(-1)
        if seen is not None:
            seen.append(weights)
        return (weights @ value.repeat_interleave(group, 1)).transpose(1, 2).contiguous(), weights

    for layer in decoder_layers(model):
        hooks.append(layer.self_attn.register_forward_pre_hook(count, with_kwargs=True))
    module.eager_attention_forward = attend  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module.eager_attention_forward = original  # type: ignore[attr-defined]
        for hook in hooks:
            hook.remove()


def agrees(family: str, attn: str, inputs: TinyInputs, factors: dict[str, float], **mode: Any) -> None:
    """Assert that `generate` with the plugins equals the written-out table, and is not the bare model's."""
    _, logits = kit.generate(kit.model_of(family, "eager"), inputs, 5, **mode)
    with written_out(kit.model_of(family, "eager"), modality(inputs), **factors):
        want_tokens, want = kit.generate(kit.model_of(family, "eager"), inputs, 5, **mode)
    got = kit.attached_generate(kit.model_of(family, attn), inputs, modality_logits(**factors), steps=5, **mode)
    kit.same(got.logits, want)
    assert got.tokens is not None and torch.equal(got.tokens, want_tokens)
    kit.differs(got.logits, logits)


# ------------------------------------------------------------------ the table


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FOUR)
def test_ones_change_no_bit(family: str, attn: str) -> None:
    model, inputs = kit.model_of(family, attn), tiny_inputs(family, (1, 2))
    tokens, logits = kit.generate(model, inputs, 4)
    got = kit.attached_generate(model, inputs, modality_logits(), steps=4)
    assert torch.equal(got.logits, logits)
    assert got.tokens is not None and torch.equal(got.tokens, tokens)


@pytest.mark.parametrize("mode", [{}, {"num_beams": 3}], ids=["batch", "beams"])
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("family", [*FOUR, "gemma3"])
def test_it_equals_the_table_written_out(family: str, attn: str, mode: dict[str, Any]) -> None:
    inputs = tiny_inputs(family, (1, 2))
    agrees(family, attn, inputs, TABLE, **mode)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_video_is_a_modality_of_its_own(family: str, attn: str) -> None:
    inputs = tiny_inputs(family, (2, 1), video="mixed")
    agrees(family, attn, inputs, VIDEO)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_a_call_without_a_cache(attn: str) -> None:
    inputs = tiny_inputs("qwen3_vl", (1, 2))
    with written_out(kit.model_of("qwen3_vl", "eager"), modality(inputs), **TABLE):
        want = kit.bare(kit.model_of("qwen3_vl", "eager"), inputs, use_cache=False)
    got = kit.attached(kit.model_of("qwen3_vl", attn), inputs, modality_logits(**TABLE), use_cache=False).logits
    real = kit.real(inputs)
    kit.same(got[real], want[real])


@pytest.mark.parametrize("family", FOUR)
def test_zero_makes_images_equally_likely_and_hides_none(family: str) -> None:
    model, inputs = kit.model_of(family, "eager"), tiny_inputs(family, (1,))
    with attach(model, modality_logits(text_to_image=0.0)):
        weights = kit.forward(model, inputs, output_attentions=True).attentions
    image = modality(inputs)[0] == 1
    for layer in weights:
        row = layer[0, :, -1][:, image]
        assert bool((row > 0).all())
        torch.testing.assert_close(row, row[:, :1].expand_as(row))
    # and images look at each other as they did
    assert bool((weights[0][0, 0, int(image.nonzero().max())][image].std() > 1e-4).all())


# ------------------------------------------------------------------ beside other plugins


def beside(family: str, plugins: tuple[Plugin, ...], rewrites: bool) -> Any:
    model, inputs = kit.model_of(family, "eager"), tiny_inputs(family, (1, 2))
    both = (modality_logits(**TABLE), *plugins)
    handle, _ = kv_kit.hiding(
        model, kv_kit.generating(model, inputs, 5), *both, rewrites=rewrites,
        beside=lambda _: written_out(model, modality(inputs), **TABLE),
    )  # fmt: skip
    eager = kit.attached_generate(model, inputs, *both, steps=5)
    sdpa = kit.attached_generate(kit.model_of(family), inputs, *both, steps=5)
    kit.same(sdpa.logits, eager.logits)
    return handle


@pytest.mark.parametrize("family", FOUR)
def test_over_a_cache_from_which_entries_are_evicted(family: str) -> None:
    assert beside(family, (snapkv(keep_ratio=0.4, window=4),), False).stats().compressions
    beside(family, (random_evict(keep_ratio=0.5),), False)


@pytest.mark.parametrize("family", FOUR)
def test_over_a_packed_cache(family: str) -> None:
    beside(family, (cross_modal_low_rank(rank=3, rows=5),), True)


def test_over_a_packed_cache_in_a_turn_with_another_image() -> None:
    model, inputs = kit.model_of("llava", "eager"), tiny_inputs("llava", (1, 2))
    later = tiny_inputs("llava", (1, 1), text=(3, 6), seed=8)
    answers = torch.zeros(2, 2, dtype=torch.long)
    columns = torch.cat([modality(inputs), answers, modality(later)], 1)

    def act() -> list[Tensor]:
        return Talk(model, inputs).decode(2).hear(more=dict(later)).decode(2).said

    plugins = (modality_logits(**TABLE), cross_modal_low_rank(rank=3, rows=5))
    kv_kit.hiding(model, act, *plugins, rewrites=True, beside=lambda _: written_out(model, columns, **TABLE))


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize(("family", "other"), [
    ("llava", random_drop(keep_ratio=0.5, layer=2)), ("qwen2_5_vl", random_drop(keep_ratio=0.5)),
    ("gemma3", random_drop(keep_ratio=0.5, layer=1)),
])  # fmt: skip
def test_beside_tokens_that_are_dropped(family: str, other: Plugin, attn: str) -> None:
    inputs = tiny_inputs(family, (1, 2))
    model = kit.model_of(family, "eager")
    got = kit.attached_generate(kit.model_of(family, attn), inputs, other, modality_logits(**TABLE), steps=4)
    with written_out(model, modality(inputs), **TABLE), hidden_columns(model, kit.dropped(got.handle, inputs)):
        _, want = kit.generate(model, inputs, 4)
    kit.same(got.logits, want)


@dataclass(frozen=True)
class Looks(Plugin):
    """Looks at rows and sums, and does nothing."""

    @property
    def name(self) -> str:
        return "looks"

    @property
    def sites(self) -> tuple[CacheSite, ...]:
        return (CacheSite("prompt"),)

    @property
    def needs(self) -> Any:
        return CacheRows("last", 4), CacheSums("mass")

    @property
    def writes(self) -> frozenset[Resource]:
        return frozenset()

    def bind(self, context: BindContext) -> Plugin:
        return self

    def at(self, site: Any, view: Any) -> None:
        return None


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FOUR)
def test_what_plugins_are_shown_knows_the_table(family: str, attn: str) -> None:
    model, inputs = kit.model_of(family, attn), tiny_inputs(family, (1, 2))
    with attach(model, modality_logits(**TABLE), Looks()) as handle:
        cache = kit.forward(model, dict(inputs), use_cache=True).past_key_values
        entries = entries_behind_prompt(handle, cache)
    weights: list[Tensor] = []
    eager = kit.model_of(family, "eager")
    with written_out(eager, modality(inputs), weights, **TABLE):
        kit.bare(eager, inputs)
    for layer, made in entries.items():
        rows, sums = made.attention(CacheRows("last", 4)), made.sums(CacheSums("mass"))
        torch.testing.assert_close(rows.weight, weights[layer][:, :, -4:], rtol=1e-3, atol=1e-5)
        real = kit.real(inputs)[:, None, :, None]
        heads = sums.got.shape[1]
        want = (weights[layer] * real).sum(2).unflatten(1, (heads, -1)).sum(2)
        torch.testing.assert_close(sums.got[..., 0], want, rtol=1e-3, atol=1e-4)


def test_plugins_that_read_attention_inside_are_refused() -> None:
    model = kit.model_of("llava")
    for other in (fastv(), lazyllm()):
        with pytest.raises((CapabilityError, ConflictError)):
            attach(model, other, modality_logits(**TABLE))
    with attach(model, fastv(), modality_logits()) as handle:
        kit.forward(model, tiny_inputs("llava", (1,)))
    assert handle.stats().calls == 1


def test_two_tables_are_refused() -> None:
    with pytest.raises(ConflictError):
        attach(kit.model_of("llava"), modality_logits(**TABLE), modality_logits(**TABLE))


# ------------------------------------------------------------------ life


def test_detach_restores() -> None:
    model, inputs = kit.model_of("qwen3_vl"), tiny_inputs("qwen3_vl", (1,))
    before, name = kit.bare(model, inputs), model.config.get_text_config()._attn_implementation
    with attach(model, modality_logits(**TABLE)) as handle:
        moved = kit.bare(model, inputs)
        with handle.paused():
            assert torch.equal(kit.bare(model, inputs), before)
    assert model.config.get_text_config()._attn_implementation == name
    assert torch.equal(kit.bare(model, inputs), before)
    kit.differs(moved, before)


def test_arguments() -> None:
    assert plugin("modality_logits:text_to_image=0.5") == modality_logits(text_to_image=0.5)
    for wrong in (float("nan"), float("inf"), "much", None):
        with pytest.raises(ConfigError):
            modality_logits(text_to_image=wrong)  # type: ignore[arg-type]
