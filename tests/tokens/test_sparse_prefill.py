"""Methods that leave pairs of tokens out of the prefill: what they refuse, where they step aside, what they cost."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import pytest
import torch

from tests.blocks_oracle import blocks_by_pair
from tests.contracts import kit
from tests.contracts.checks_modes import next_turn, words
from tests.oracle import decoder_layers
from tests.tiny import tiny_inputs, tiny_vlm, visual_layout, visual_mask
from vlm_eff import attach, plugin
from vlm_eff.core.config import from_dict
from vlm_eff.core.errors import CapabilityError, ConfigError
from vlm_eff.core.plugin import BindContext
from vlm_eff.kvcache import kivi, snapkv, streaming_llm
from vlm_eff.models import attend_blocks
from vlm_eff.tokens import cross_modal_window, streaming_heads, top_blocks, vertical_slash

NEAR = cross_modal_window(window=3, sinks=1, tile=(8, 4))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `sparse_attention` was called with, call by call."""
    calls: list[Any] = []
    attend = attend_blocks.sparse_attention

    @wraps(attend)
    def counting(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return attend(*args, **kwargs)

    monkeypatch.setattr(attend_blocks, "sparse_attention", counting)
    return calls


def test_newlines_of_an_image_are_no_text(seen: list[Any]) -> None:
    """Every row of a tile ends with one: as text they would be seen by all and see all."""
    inputs = tiny_inputs("llava_next", (1,))
    assert any(cell["newline"] for cell in visual_layout("llava_next", inputs)[0])
    kit.attached(kit.model_of("llava_next"), inputs, NEAR)
    for call in seen:
        assert torch.equal(~call[4].text, visual_mask(inputs))


def test_one_list_serves_all_layers_where_nothing_is_scored(seen: list[Any]) -> None:
    inputs = tiny_inputs("llava", (1, 2))
    kit.attached(kit.model_of("llava"), inputs, NEAR)
    # one for each row of a batch with padding
    assert len(seen) == 2 * kit.LAYERS
    assert len({id(call[3]) for call in seen}) == 2


def test_padding_is_taken_out_without_a_copy(seen: list[Any]) -> None:
    inputs = tiny_inputs("llava", (1, 2))
    kit.attached(kit.model_of("llava"), inputs, NEAR)
    lengths = sorted({call[0].shape[2] for call in seen})
    assert lengths == sorted(inputs["attention_mask"].sum(1).tolist())
    assert all(call[0]._base is not None for call in seen)


def test_decode_steps_are_left_alone(seen: list[Any]) -> None:
    kit.attached_generate(kit.model_of("llava"), tiny_inputs("llava", (1,)), NEAR, steps=5)
    assert len(seen) == kit.LAYERS


def test_a_prompt_shorter_than_the_defaults_is_left_alone(seen: list[Any]) -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1, 2))
    for make in (cross_modal_window, streaming_heads, vertical_slash):
        assert torch.equal(kit.attached(model, inputs, make()).logits, kit.bare(model, inputs))
    assert seen == []


def test_dense_heads_of_each_layer_see_everything(seen: list[Any]) -> None:
    inputs = tiny_inputs("llava", (1,))
    dense = ((0, 1), (3, 0), (3, 1))
    kit.attached(kit.model_of("llava"), inputs, streaming_heads(sinks=1, local=7, dense_heads=dense, tile=(4, 4)))
    length = inputs["input_ids"].shape[1]
    # a layer of which all heads are dense is none of our business
    assert len(seen) == kit.LAYERS - 1
    mask = seen[0][3].mask(length, length, seen[0][4])
    pairs = mask.sum((0, 2, 3)).tolist()
    # two query heads share a key head
    assert pairs[0] == pairs[1] < pairs[2] == pairs[3] == length * (length + 1) // 2
    assert len(set(seen[1][3].mask(length, length, seen[1][4]).sum((0, 2, 3)).tolist())) == 1


def test_a_head_that_does_not_exist_is_refused() -> None:
    wrong = streaming_heads(local=7, dense_heads=((1, 2),), tile=(4, 4))
    with attach(kit.model_of("llava"), wrong), pytest.raises(ConfigError, match="key heads 0 to 1"):
        kit.forward(kit.model_of("llava"), tiny_inputs("llava", (1,)))


def test_sliding_layers_are_left_alone(seen: list[Any]) -> None:
    """A layer that looks through a window of its own attends as it does without us."""
    model, inputs = tiny_vlm("internvl", layers=3), tiny_inputs("internvl", (1,))
    for index in (0, 2):
        decoder_layers(model)[index].self_attn.sliding_window = 8
    kit.attached(model, inputs, top_blocks(keep_count=2, tile=(4, 4)))
    assert len(seen) == 1
    # a window that hides nothing is none
    decoder_layers(model)[2].self_attn.sliding_window = 1000
    kit.attached(model, inputs, top_blocks(keep_count=2, tile=(4, 4)))
    assert len(seen) == 3


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_the_prompt_is_attended_in_blocks_and_then_compressed(attn: str) -> None:
    """With a plugin of the cache: the prefill is that of the pattern alone, what is stored is the plugin's business."""
    model, inputs = kit.model_of("llava", attn), tiny_inputs("llava", (1, 2))
    with attach(model, NEAR, snapkv(keep_ratio=0.5, window=4)) as handle:
        logits = kit.generate(model, inputs, 4)[1]
        assert handle.stats().compressions
    with blocks_by_pair(model, NEAR, inputs):
        kit.same(logits[:, 0], kit.generate(model, inputs, 1)[1][:, 0])


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "store", [snapkv(keep_ratio=0.5, window=4), streaming_llm(sinks=2, keep_count=20), kivi(group=4, residual=4)]
)
def test_layers_over_a_compressed_cache_are_left_alone(store: Any, attn: str, seen: list[Any]) -> None:
    """A second picture over what a plugin of the cache left: attended in full, as with that plugin alone."""
    model, first = kit.model_of("llava", attn), tiny_inputs("llava", (1,))
    later = tiny_inputs("llava", (1,), text=(6, 6), seed=8)
    length = first["input_ids"].shape[1]
    step = next_turn(model, first, "llava", length, {"input_ids": words(1, 1, 4)})
    turn = next_turn(model, step, "llava", length + 1, later)
    with attach(model, NEAR, store):
        cache = None
        for inputs in (first, step, turn):
            out = kit.forward(model, inputs, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
    assert len(seen) == kit.LAYERS
    assert out.logits.isfinite().all()


def _masks() -> dict[str, torch.Tensor]:
    causal = torch.ones(2, 1, 6, 9).tril(3).bool()
    added = torch.zeros(2, 1, 6, 9).masked_fill(~causal, torch.finfo(torch.float32).min)
    return {
        "a window": causal & torch.ones(6, 9).triu(1).bool(),
        "looks ahead": causal | (torch.arange(9) < 6),
        "two prompts": causal & ~((torch.arange(6)[:, None] > 2) & (torch.arange(9) < 5)),
        "more keys than there are": torch.nn.functional.pad(causal, (1, 0), value=True),
        "heads apart": causal.expand(-1, 4, -1, -1),
        "weights": added + (torch.arange(9) == 2),
    }


@pytest.mark.parametrize("name", _masks())
def test_masks_that_are_more_than_causal_with_padding_are_refused(name: str) -> None:
    with pytest.raises(CapabilityError, match="causal with padding"):
        attend_blocks._valid(_masks()[name], 6, 9)


@pytest.mark.parametrize("pad", ["left", "right", "between"])
@pytest.mark.parametrize("added", [False, True])
def test_padding_is_read_off_the_mask(pad: str, added: bool) -> None:
    real = torch.ones(2, 9, dtype=torch.bool)
    real[1, {"left": slice(0, 5), "right": slice(7, 9), "between": slice(2, 5)}[pad]] = False
    mask = torch.ones(2, 1, 6, 9).tril(3).bool() & real[:, None, None]
    if added:
        mask = torch.zeros(2, 1, 6, 9).masked_fill(~mask, torch.finfo(torch.float32).min)
    assert torch.equal(attend_blocks._valid(mask, 6, 9), real)


def test_gradients_are_refused() -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1,))
    with attach(model, NEAR), pytest.raises(CapabilityError, match="no_grad"):
        model(**inputs)


@pytest.mark.parametrize(
    ("match", "make"),
    [
        ("window=0", lambda: cross_modal_window(window=0)),
        ("sinks=-1", lambda: cross_modal_window(sinks=-1)),
        ("tile=", lambda: cross_modal_window(tile=(128, 0))),
        ("tile=", lambda: cross_modal_window(tile=(128,))),  # type: ignore[arg-type]
        ("tile=", lambda: vertical_slash(tile="x")),  # type: ignore[arg-type]
        ("layers=", lambda: top_blocks(layers=(3, 2))),
        ("local=0", lambda: streaming_heads(local=0)),
        ("pairs", lambda: streaming_heads(dense_heads=(1, 2))),  # type: ignore[arg-type]
        ("pairs", lambda: streaming_heads(dense_heads=((1, 2, 3),))),
        ("pairs", lambda: streaming_heads(dense_heads=((1, -2),))),
        ("longer window", lambda: streaming_heads(local=100, dense_heads=((1, 2),))),
        ("verticals=0", lambda: vertical_slash(verticals=0)),
        ("last=0", lambda: vertical_slash(last=0)),
        ("exactly one", lambda: top_blocks(keep_mass=0.5, keep_count=3)),
        ("keep_mass=", lambda: top_blocks(keep_mass=1.5)),
        ("similarity=", lambda: top_blocks(similarity=2)),
        ("similarity=", lambda: top_blocks(similarity=True)),
    ],
)
def test_values_that_mean_nothing_are_refused(match: str, make: Callable[[], object]) -> None:
    with pytest.raises(ConfigError, match=match):
        make()


def test_layers_are_all_or_those_named() -> None:
    assert [site.layer for site in NEAR.bind(BindContext("llava", 3)).sites] == [0, 1, 2]
    some = top_blocks(layers=(1, 2))
    assert [site.layer for site in some.bind(BindContext("llava", 3)).sites] == [1, 2]
    with pytest.raises(CapabilityError, match="layer 9"):
        top_blocks(layers=(9,)).bind(BindContext("llava", 3))


@pytest.mark.parametrize(
    "made",
    [
        NEAR,
        streaming_heads(local=300, dense_heads=[[1, 0], [2, 3]]),
        vertical_slash(verticals=9, layers=(1, 2)),
        top_blocks(keep_count=3, similarity=0.25),
    ],
    ids=lambda made: made.name,
)
def test_plugins_go_through_plain_dicts(made: Any) -> None:
    assert from_dict(made.to_dict()) == made


def test_spec_strings_name_what_is_set() -> None:
    assert plugin("cross_modal_window:window=256,sinks=8") == cross_modal_window(window=256, sinks=8)
    assert plugin("top_blocks:keep_mass=0.5") == top_blocks(keep_mass=0.5)
