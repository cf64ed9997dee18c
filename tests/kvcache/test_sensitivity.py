"""Gradients of the answer: finite differences, independent autograd, and a scoring forward that nobody notices."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from tests.contracts import kit
from tests.contracts.checks_modes import next_turn, words
from tests.kvcache.seen import planned
from tests.oracle import decoder_layers
from tests.tiny import row, tiny_inputs, visual_mask
from vlm_eff import attach
from vlm_eff.core.cache import CacheGradients, CacheSums
from vlm_eff.core.config import part
from vlm_eff.core.errors import CapabilityError, ConfigError
from vlm_eff.kvcache import sensitivity
from vlm_eff.kvcache.policy import CachePolicy
from vlm_eff.kvcache.sensitivity import AnswerSensitivity
from vlm_eff.models.adapter import adapter_for
from vlm_eff.models.kv import scoring

FAMILIES = ("llava", "qwen2_5_vl", "qwen3_vl", "internvl")
EPS = 0.03


class Moved(DynamicCache):
    """A cache that adds something to the keys or values that one layer brings in its first call."""

    def __init__(self, layer: int, delta: Tensor, which: str = "keys") -> None:
        super().__init__()
        self.layer, self.delta, self.which = layer, delta, which

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        if layer_idx == self.layer and self.get_seq_length(layer_idx) == 0:
            if self.which == "keys":
                key_states = key_states + self.delta
            else:
                value_states = value_states + self.delta
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)


def answer(logits: Tensor, token: Tensor) -> Tensor:
    """Log-probability [B] of `token` [B] after the last column."""
    return logits[:, -1].double().log_softmax(-1).gather(1, token[:, None])[:, 0]


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_finite_differences(family: str, attn: str) -> None:
    model, inputs = kit.model_of(family, attn), tiny_inputs(family, (2, 1))
    with attach(model, sensitivity()):
        # no positions are given here or below, so that keys of padded rows are turned alike
        out = kit.forward(model, inputs, use_cache=True)
    token, layers = out.logits[:, -1].argmax(-1), out.past_key_values.layers
    width = layers[0].keys.shape[3]
    for layer, which in ((0, "keys"), (3, "keys"), (5, "keys"), (3, "values")):
        gradient = layers[layer].book.gradients[CacheGradients()]
        part_ = gradient[..., :width] if which == "keys" else gradient[..., width:]
        for where in ((slice(None), 0), (slice(None), 1, slice(-12, -9))):
            # along the gradient itself, so that the difference is large against rounding
            step = torch.zeros_like(part_)
            step[where] = part_[where]
            step = step / step.flatten(1).norm(dim=1)[:, None, None, None]
            moved = [
                answer(
                    kit.forward(model, inputs, past_key_values=Moved(layer, s * EPS * step, which)).logits, token
                )
                for s in (1, -1)
            ]  # fmt: skip
            want = (part_ * step).sum((1, 2, 3)).double()
            torch.testing.assert_close((moved[0] - moved[1]) / (2 * EPS), want, rtol=0.05, atol=2e-4)


def test_what_no_query_sees_has_no_score() -> None:
    inputs = tiny_inputs("llava", (2, 1))
    inputs["attention_mask"][:, -4] = 0
    seen = planned(kit.model_of("llava"), inputs, sensitivity())
    for entries in seen.entries.values():
        gradient = entries.gradient(CacheGradients())
        hidden = ~kit.real(inputs)[:, None].expand(gradient.shape[:3])
        assert not gradient[hidden].any()
        assert gradient[~hidden].abs().amax() > 0
        # the last token is behind the last query's own column only in what it says, not in what it is
        assert gradient.isfinite().all()


def by_hand(model: Any, inputs: Any, layer: int) -> tuple[Tensor, Tensor]:
    """|dy/dk|^2 and the cross term [B, Hkv, S] of a layer, with a cache of our own and no plugin."""
    cache = DynamicCache(config=model.config.get_text_config())
    with torch.enable_grad():
        logits = model(**inputs, past_key_values=cache).logits[:, -1]
        best = logits.log_softmax(-1).gather(1, logits.argmax(-1, keepdim=True)).sum()
        own, later = cache.layers[layer].keys, cache.layers[layer + 1].keys
        first, second = torch.autograd.grad(best, [own, later], retain_graph=True)
        visual = visual_mask(inputs)
        cross = torch.zeros(own.shape[:3])
        for kind in (False, True):
            theirs = (visual == kind) & kit.real(inputs)
            sent = (later * (second * theirs[:, None, :, None])).sum()
            (back,) = torch.autograd.grad(sent, own, retain_graph=True)
            # second is a constant here, so this is the derivative of the keys alone
            cross += back.square().sum(-1) * (visual != kind)[:, None]
    return first.square().sum(-1).detach(), cross.detach()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_score_and_its_cross_term_are_autograd_by_hand(family: str) -> None:
    model, inputs = kit.model_of(family), tiny_inputs(family, (2, 1))
    seen = planned(model, inputs, sensitivity(cross=0.5))
    for layer in (0, 3):
        single, cross = by_hand(model, inputs, layer)
        there = kit.real(inputs)[:, None].expand(single.shape)
        entries = seen.entries[layer]
        kit.same(AnswerSensitivity(cross=0.5)(entries)[there], (single + 0.5 * cross)[there], 1e-4)
        assert cross[there].max() > 1e-3 * single[there].max()
        plain = planned(model, inputs, sensitivity(cross=0.0)).entries[layer]
        kit.same(AnswerSensitivity()(plain)[there], single[there], 1e-4)
    last = seen.entries[5]
    assert not last.gradient(CacheGradients(cross=True))[..., -1].any(), "no layer comes after the last"
    assert all(weight.grad is None for weight in model.parameters())


def test_scaling_the_answer_scales_the_score_by_the_square(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1,))
    plain, greedy = planned(model, inputs, sensitivity()).entries[2], scoring.ANSWERS["greedy"]
    once, taylor = AnswerSensitivity()(plain), AnswerSensitivity("taylor")(plain)
    monkeypatch.setitem(scoring.ANSWERS, "greedy", lambda logits: 3 * greedy(logits))
    scaled = planned(model, inputs, sensitivity()).entries[2]
    kit.same(AnswerSensitivity()(scaled), 9 * once, 1e-4)
    kit.same(AnswerSensitivity("taylor")(scaled), 3 * taylor, 1e-4)
    gradient = plain.gradient(CacheGradients())
    keys, values = gradient.split(plain.key.shape[3], -1)
    want = (plain.key * keys).sum(-1).abs() + (plain.value * values).sum(-1).abs()
    kit.same(taylor, want)
    kit.differs(
        planned(model, inputs, sensitivity(of="logits")).entries[2].gradient(CacheGradients("logits")), gradient
    )


@part
@dataclass(frozen=True)
class Both:
    """Gradients and sums, to see that the second forward adds nothing to the sums."""

    @property
    def needs(self) -> tuple[Any, ...]:
        return (CacheGradients(), CacheSums())

    def __call__(self, entries: Any) -> Tensor:
        return entries.gradient(CacheGradients())[..., 0] + entries.sums(CacheSums()).got[..., 0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_nobody_notices_the_scoring_forward(family: str) -> None:
    model, inputs = kit.model_of(family), tiny_inputs(family, (2, 1))
    options = {"use_cache": True, "output_hidden_states": True}
    bare = kit.forward(model, inputs, **options)
    policy = sensitivity(keep_ratio=0.5, recent=2)
    both = CachePolicy("sensitivity", Both(), policy.budget, protect=policy.protect)
    calls: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
        for name, module in (("top", model), ("decoder", model.get_decoder()), ("head", model.lm_head))
    ]
    try:
        with attach(model, both) as handle:
            got = kit.forward(model, inputs, **options)
            assert calls.count("top") == calls.count("decoder") == 1
            report = handle.stats()
            assert len(report.compressions) == 0
    finally:
        for hook in hooks:
            hook.remove()
    assert torch.equal(got.logits, bare.logits)
    assert len(got.hidden_states) == len(bare.hidden_states)
    assert all(torch.equal(a, b) for a, b in zip(got.hidden_states, bare.hidden_states, strict=True))
    for ours, theirs in zip(got.past_key_values.layers, bare.past_key_values.layers, strict=True):
        assert torch.equal(ours.keys, theirs.keys)
        assert not ours.keys.requires_grad
        sums = ours.book.sums[CacheSums()].got[..., 0].sum()
        queries = int(kit.real(inputs).sum()) * model.config.get_text_config().num_attention_heads
        assert abs(float(sums) - queries) < 0.01, "every query attends once"
        assert all(not made.requires_grad for made in ours.book.gradients.values())
    assert all(weight.grad is None for weight in model.parameters())


def test_inference_mode_and_a_cache_made_inside_decide_alike() -> None:
    model, inputs, chosen = kit.model_of("qwen2_5_vl"), tiny_inputs("qwen2_5_vl", (2, 1)), []
    plugin = sensitivity(keep_ratio=0.4, recent=2, cross=1.0)
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with attach(model, plugin) as handle, mode():
            out = model.generate(**inputs, max_new_tokens=3, do_sample=False)
            more = next_turn(model, inputs, "qwen2_5_vl", inputs["input_ids"].shape[1], {"input_ids": words(2, 3, 1)})
            cache = model(**inputs, use_cache=True).past_key_values
            model(**more, past_key_values=cache)
            chosen.append((out.clone(), [handle.kv_positions(layer).clone() for layer in range(kit.LAYERS)]))
            made = [made for layer in cache.layers for made in layer.book.gradients.values()]
            assert len(made) == kit.LAYERS
    for tokens, positions in chosen[1:]:
        assert torch.equal(tokens, chosen[0][0])
        assert all(torch.equal(a, b) for a, b in zip(positions, chosen[0][1], strict=True))


@pytest.mark.parametrize("compressed", [False, True], ids=["chunks", "second turn of a compressed cache"])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_later_call_is_scored_alone_with_what_is_stored_as_leaves(family: str, compressed: bool) -> None:
    """Finite differences of the last call's answer in what the cache held before, by layer, head and column."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (2, 1), text=(9, 9))
    plugin, length = sensitivity(keep_ratio=0.6, recent=2), inputs["input_ids"].shape[1]
    with attach(model, plugin) as handle:
        cache = kit.forward(model, inputs, use_cache=True).past_key_values
        before = {index: layer.book.gradients[CacheGradients()].clone() for index, layer in enumerate(cache.layers)}
        past = length
        if compressed:
            one = next_turn(model, inputs, family, past, {"input_ids": words(2, 1, 2)})
            kit.forward(model, one, past_key_values=cache, use_cache=True)
            past += 1
        more = next_turn(model, inputs, family, past, {"input_ids": words(2, 4, 1)})
        if compressed:
            ones = more["attention_mask"].new_ones(2, 1)
            more["attention_mask"] = torch.cat([inputs["attention_mask"], ones.expand(-1, past + 4 - length)], 1)

        def ask(layer: int, step: Tensor | None) -> tuple[Any, Tensor]:
            mine = copy.deepcopy(cache)
            if step is not None:
                mine.layers[layer].keys = mine.layers[layer].keys + step
            return mine, kit.forward(model, more, past_key_values=mine, use_cache=True).logits

        after, logits = ask(0, None)
        token = logits[:, -1].argmax(-1)
        assert (handle.kv_positions(1).shape[2] < past + 4) is compressed
        for layer in (0, 2, 5):
            made = after.layers[layer].book.gradients[CacheGradients()]
            held, width = cache.layers[layer].keys.shape[2], cache.layers[layer].keys.shape[3]
            assert made.shape[2] == held + 4
            for head in (0, 1):
                step = torch.zeros(2, 2, held, width)
                step[:, head] = made[:, head, :held, :width]
                step = step / step.flatten(1).norm(dim=1)[:, None, None, None]
                moved = [answer(ask(layer, s * EPS * step)[1], token) for s in (1, -1)]
                want = (made[:, :, :held, :width] * step).sum((1, 2, 3)).double()
                torch.testing.assert_close((moved[0] - moved[1]) / (2 * EPS), want, rtol=0.05, atol=2e-4)
            if not compressed:
                kit.differs(made[:, :, :held], before[layer])


def test_rows_do_not_depend_on_their_neighbours() -> None:
    model, inputs = kit.model_of("qwen3_vl"), tiny_inputs("qwen3_vl", (2, 1))
    both = planned(model, inputs, sensitivity(cross=1.0))
    for index in range(2):
        alone = planned(model, row(inputs, index), sensitivity(cross=1.0))
        for layer, entries in both.entries.items():
            got = AnswerSensitivity(cross=1.0)(entries)[index][:, kit.real(inputs)[index]]
            kit.same(got, AnswerSensitivity(cross=1.0)(alone.entries[layer])[0], 1e-3)


def test_candidates_are_not_the_answer() -> None:
    """With candidates behind the prompt the answer is what follows the last verified token."""
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1,))
    plain = planned(model, inputs, sensitivity()).entries[1].gradient(CacheGradients())
    longer = next_turn(model, inputs, "llava", inputs["input_ids"].shape[1], {"input_ids": words(1, 3, 1)})
    asked = dict(inputs) | {
        "input_ids": torch.cat([inputs["input_ids"], longer["input_ids"]], 1),
        "attention_mask": torch.ones(1, inputs["input_ids"].shape[1] + 3, dtype=torch.long),
    }
    with attach(model, sensitivity()):
        cache = DynamicCache(config=model.config.get_text_config())
        kit.forward(model, asked, past_key_values=cache, use_cache=True, logits_to_keep=4)
        made = cache.layers[1].book.gradients[CacheGradients()]
    kit.same(made[:, :, :-3], plain, 1e-4)
    assert not made[:, :, -3:].any()


def test_the_answer_is_the_model_s_own_with_its_soft_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    for family in ("paligemma", "gemma3", "llava"):
        model, inputs = kit.model_of(family), tiny_inputs(family, (1,))
        text = model.config.get_text_config()
        monkeypatch.setattr(text, "final_logit_softcapping", 5.0, raising=False)
        out = kit.forward(model, inputs, output_hidden_states=True)
        made = adapter_for(model).logits(out.hidden_states[-1]).detach()
        kit.same(made, out.logits)
        assert (float(out.logits.abs().max()) <= 5.0) is (family == "paligemma")
        monkeypatch.undo()


def test_what_cannot_be_differentiated_is_refused() -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1,))
    with pytest.raises(CapabilityError, match="language-model head"):
        attach(model.model, sensitivity())
    with attach(model, sensitivity()):
        cache = DynamicCache(config=model.config.get_text_config())
        cache.offloading = True
        with pytest.raises(CapabilityError, match="offloaded"):
            kit.forward(model, inputs, past_key_values=cache)
    assert len(decoder_layers(model)[0]._forward_pre_hooks) == 0


@pytest.mark.parametrize("wrong", [{"form": "hessian"}, {"of": "loss"}, {"cross": -1}, {"cross": 1, "form": "taylor"}])
def test_arguments_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        sensitivity(**wrong)
