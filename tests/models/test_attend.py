"""Who attends among some tokens: the operation where the model says no more than it, else the model's own function."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.contracts import kit
from tests.tiny import tiny_inputs
from vlm_eff.kernels.selected_attention import selected_attention
from vlm_eff.models import attend
from vlm_eff.models.attend import Among
from vlm_eff.models.call import Call, Entry
from vlm_eff.models.tap import TapName
from vlm_eff.models.token_map import TokenMap
from vlm_eff.tokens import zipvl_attention

LENGTH = 8


def somewhere() -> Among:
    call = Call(Entry(None), 1, LENGTH, 0, torch.device("cpu"))
    return Among(TokenMap.identity(1, LENGTH, call.device), call)


def module(base: str = "sdpa", **more: Any) -> Any:
    name = TapName("efftap0")
    name.base = base
    return SimpleNamespace(config=SimpleNamespace(_attn_implementation=name), **more)


def causal() -> Tensor:
    return torch.ones(1, 1, LENGTH, LENGTH).tril().bool()


def test_causal_attention_of_sdpa_is_taken_over() -> None:
    for mask in (None, causal()):
        assert somewhere().why_not(module(is_causal=True), mask, {"scaling": 0.1, "dropout": 0.0}) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"module": module("eager")}, "eager"),
        ({"module": module("flash_attention_2")}, "flash_attention_2"),
        ({"module": module(is_causal=False)}, "both directions"),
        ({"kwargs": {"is_causal": False}}, "both directions"),
        ({"kwargs": {"dropout": 0.1}}, "dropout"),
        ({"kwargs": {"softcap": 30.0}}, "softcap"),
        ({"mask": causal().transpose(2, 3)}, "more than causal"),
    ],
)
def test_everything_else_has_a_reason(change: dict[str, Any], said: str) -> None:
    asked = {"module": module(), "mask": None, "kwargs": {}} | change
    assert said in (somewhere().why_not(**asked) or "")


@pytest.mark.parametrize(
    ("family", "attn", "fused"),
    [("llava", "sdpa", True), ("qwen2_5_vl", "sdpa", True), ("llava", "eager", False), ("gemma3", "sdpa", False)],
)
@pytest.mark.parametrize("rows", [(1,), (1, 2, 0)])
def test_which_models_it_serves(
    family: str, attn: str, fused: bool, rows: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[bool] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        used.append(kwargs["first"] is None)
        return selected_attention(*args, **kwargs)

    monkeypatch.setattr(attend, "selected_attention", counted)
    run = kit.attached(kit.model_of(family, attn), tiny_inputs(family, rows), zipvl_attention(keep_mass=0.6))
    assert any(len(run.handle.attended(layer)[0]) < run.logits.shape[1] for layer in range(kit.LAYERS))
    assert bool(used) == fused


def test_one_row_without_padding_gives_the_bits_of_the_model_s_own_function(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs, plugin = kit.model_of("llava"), tiny_inputs("llava", (1,)), zipvl_attention(keep_mass=0.6)
    fused = kit.attached(model, inputs, plugin).logits
    monkeypatch.setattr(Among, "why_not", lambda self, module, mask, kwargs: "not today")
    assert torch.equal(fused, kit.attached(model, inputs, plugin).logits)
