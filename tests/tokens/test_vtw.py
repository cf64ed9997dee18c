"""Withdrawal: later layers see text alone, everywhere; the search finds the first layer that moves nothing."""

from __future__ import annotations

import pytest
import torch

from tests.contracts import checks, checks_cache, kit
from tests.contracts import checks_modes as modes
from tests.contracts.checks import image_tokens
from tests.oracle import decoder_layers, masked_logits
from tests.tiny import tiny_inputs
from vlm_eff import attach
from vlm_eff.core.errors import ConfigError, StateError
from vlm_eff.core.plugin import BindContext
from vlm_eff.importance.keep import Keep
from vlm_eff.tokens import random_drop, vtw, withdrawal_layer
from vlm_eff.tokens.reducer import TokenReducer
from vlm_eff.tokens.schedule import Stage
from vlm_eff.tokens.scores_hidden import Magnitude

FEW = ("llava", "llava_next", "qwen3_vl", "gemma3")


@pytest.mark.parametrize("family", FEW)
def test_later_layers_see_text_alone(family: str) -> None:
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2, 0))
    with attach(model, vtw(2)) as handle:
        cache = kit.forward(model, inputs, use_cache=True).past_key_values
    candidates, left = image_tokens(family, inputs), kit.survivors(handle, inputs)
    for layer, mask in enumerate(left):
        assert torch.equal(mask, torch.ones_like(mask) if layer < 2 else ~candidates)
    text = (~candidates).sum(1).max()
    for layer, stored in enumerate(cache.layers):
        if not getattr(stored, "is_sliding", False):
            assert stored.keys.shape[-2] == (candidates.shape[1] if layer < 2 else text)


def test_the_default_layer_is_the_papers() -> None:
    assert vtw().bind(BindContext("llava", 32)).sites[0].layer == 15
    assert vtw(4).asked(576, 8) == [576] * 4 + [0] * 4


@pytest.mark.parametrize("family", FEW)
def test_nothing_left_works_in_every_mode(family: str) -> None:
    """Beams, returned samples, turns, an image in the second turn, copies, crops and reordered rows."""
    plugin = vtw(1)
    modes.several_rows_a_prompt(family, plugin, num_beams=3, num_return_sequences=2)
    modes.several_rows_a_prompt(family, plugin, num_return_sequences=2, do_sample=True)
    modes.second_turn_of_text(family, plugin)
    modes.second_turn_with_an_image(family, plugin)
    modes.text_after_an_image(family, plugin)
    modes.prefix_is_reused(family, plugin)
    modes.embeddings_instead_of_ids(family, plugin)
    checks_cache.crop_stops_at_the_image(family, plugin)
    checks_cache.cache_rows_follow(family, plugin)
    checks.generate_equals_masked_generate(family, "eager", plugin, (1,))


def test_later_stages_have_nothing_to_choose_from() -> None:
    """A stage behind the one that drops all is asked and answers nothing, in one method and in two."""
    stages = (Stage(Keep(count=0, least=0), layer=1), Stage(Keep(ratio=0.5), layer=3, score=Magnitude()))
    checks.drop_equals_mask("llava", "sdpa", TokenReducer("two", stages))
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1, 2, 0))
    one = kit.attached(model, inputs, TokenReducer("entry", (Stage(Keep(count=0, least=0), layer=0),)), vtw(2))
    assert not bool((kit.survivors(one.handle, inputs)[0] & image_tokens("llava", inputs)).any())
    assert one.handle.stats().last is not None
    assert str(one.handle.stats())


@pytest.mark.parametrize("pad", ["left", "right"])
def test_the_search_finds_the_first_layer_below_the_threshold(pad: str) -> None:
    """KL by hand from masked runs; the last layer's value is met as threshold from above and missed from below."""
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1, 2), pad=pad)  # type: ignore[arg-type]
    gone = image_tokens("llava", inputs)
    last = inputs["attention_mask"].shape[1] - 1 - inputs["attention_mask"].flip(1).argmax(1)
    rows = torch.arange(2)
    bare = kit.bare(model, inputs)[rows, last].double().softmax(-1)
    moved = []
    for layer in range(1, len(decoder_layers(model))):
        other = masked_logits(model, inputs, {layer: gone})[rows, last].double().softmax(-1)
        moved.append(float((bare * (bare / other).log()).sum(-1).mean()))
    for layer, value in enumerate(moved, 1):
        if value < min(moved[: layer - 1], default=float("inf")):
            assert withdrawal_layer(model, [inputs], value * 1.001) == layer
    with pytest.raises(StateError, match="no layer withdraws"):
        withdrawal_layer(model, [inputs], min(moved) * 0.99)
    assert not torch.equal(kit.attached(model, inputs, random_drop()).logits, kit.bare(model, inputs))


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match="layer=0"):
        vtw(0)
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1,))
    for prompts, threshold in (([], 0.1), ([inputs], 0.0), ([inputs], float("nan"))):
        with pytest.raises(ConfigError, match="threshold"):
            withdrawal_layer(model, prompts, threshold)
    with pytest.raises(ConfigError, match="at least 1"):
        Keep(count=0)
    assert Keep(ratio=0.01, rounding="down", least=0).of_count(10, 10) == 0
    assert Keep(ratio=0.01, rounding="down").of_count(10, 10) == 1
