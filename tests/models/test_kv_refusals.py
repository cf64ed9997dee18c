"""What cannot be compressed is refused with a reason, and nothing is changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache

from tests.contracts.kit import model_of
from tests.tiny import tiny_inputs
from vlm_eff import attach
from vlm_eff.core.errors import CapabilityError, ConflictError, StateError
from vlm_eff.core.plugin import BindContext
from vlm_eff.kvcache import random_evict, snapkv
from vlm_eff.models.refusals import refuse_latent
from vlm_eff.tokens import fastv, lazyllm


def logits(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        made: torch.Tensor = model(**inputs).logits
    return made


def test_a_cache_filled_without_the_handle_may_be_shared() -> None:
    model, inputs = model_of("llava"), dict(tiny_inputs("llava"))
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(**inputs, past_key_values=cache)
    kinds, keys = [type(layer) for layer in cache.layers], [layer.keys.clone() for layer in cache.layers]
    with attach(model, snapkv(keep_ratio=0.3, window=2)) as handle:
        with pytest.raises(StateError, match="filled without this handle"), torch.no_grad():
            model(input_ids=inputs["input_ids"][:, -1:], past_key_values=cache)
        assert [type(layer) for layer in cache.layers] == kinds
        assert all(torch.equal(layer.keys, old) for layer, old in zip(cache.layers, keys, strict=True))
        # the handle goes on working with caches of its own
        logits(model, inputs)
        assert handle.stats().calls


@pytest.mark.parametrize(
    "chosen",
    [
        {"cache_implementation": "static"},
        {"cache_implementation": "quantized", "cache_config": {"backend": "fp8"}},
    ],
)
def test_caches_of_other_kinds(chosen: dict[str, Any]) -> None:
    model, inputs = model_of("llava"), dict(tiny_inputs("llava"))
    before = logits(model, inputs)
    with attach(model, snapkv()), pytest.raises(CapabilityError, match="Accepted:"):
        model.generate(**inputs, max_new_tokens=2, **chosen)
    assert torch.equal(logits(model, inputs), before)


def test_a_model_whose_layers_all_slide() -> None:
    context = BindContext("gemma3", num_layers=6, cache_layers=())
    with pytest.raises(CapabilityError, match="forget what leaves a window"):
        snapkv().bind(context)


def test_sliding_layers_among_others_are_left_alone() -> None:
    model, inputs = model_of("gemma3"), dict(tiny_inputs("gemma3", text=(9, 13)))
    with attach(model, random_evict(keep_ratio=0.3)) as handle:
        model.generate(**inputs, max_new_tokens=4, min_new_tokens=4)
        kinds = model.config.get_text_config().layer_types
        report = handle.stats().compressions[0]
    assert report.layers == tuple(index for index, kind in enumerate(kinds) if kind == "full_attention")
    assert len(report.layers) < len(kinds)


def test_bringing_tokens_back_into_a_compressed_cache() -> None:
    model = model_of("llava")
    with pytest.raises(ConflictError, match="brings tokens back"):
        attach(model, lazyllm(), snapkv())
    with attach(model, lazyllm(revive="never"), snapkv()):
        logits(model, dict(tiny_inputs("llava")))


def test_latent_attention() -> None:
    class Latent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kv_a_proj_with_mqa = nn.Linear(2, 2)

    layer = nn.Module()
    layer.self_attn = Latent()
    with pytest.raises(CapabilityError, match="snapkv on Latent"):
        refuse_latent([layer], (snapkv(),))
    refuse_latent([layer], (fastv(),))
    refuse_latent(list(model_of("llava").get_decoder().layers), (snapkv(),))


def test_two_plugins_that_evict() -> None:
    with pytest.raises(ConflictError, match="entries of the KV cache"):
        attach(model_of("llava"), snapkv(), random_evict())


def test_a_cache_of_a_handle_without_it() -> None:
    model, inputs = model_of("llava"), dict(tiny_inputs("llava"))
    cache = DynamicCache(config=model.config)
    with attach(model, snapkv(keep_ratio=0.3, window=2)), torch.no_grad():
        model(**inputs, past_key_values=cache)
    with pytest.raises(StateError, match="without its handle"), torch.no_grad():
        model(input_ids=inputs["input_ids"][:, -1:], past_key_values=cache)
