"""What the contract checks of the cache share: calls made by hand, and the same calls on a full cache."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from tests.contracts import kit
from tests.contracts.checks_modes import next_turn, words
from tests.kv_oracle import Entries, Record, recording, replaying, slides
from tests.oracle import decoder_layers
from tests.tiny import TinyInputs
from tests.tiny.batch import TYPE_IDS
from vlm_eff import attach
from vlm_eff.core.handle import Handle
from vlm_eff.core.plugin import Plugin

Act = Callable[[], list[Tensor]]
"""makes calls of a model, attached or not; returns logits, and tokens where it chose some"""
# the four decoders: plain, three-axis positions, interleaved axes with normed keys and DeepStack, biased projections
FOUR = ("llava", "qwen2_5_vl", "qwen3_vl", "internvl")


def generating(model: Any, inputs: TinyInputs, steps: int = kit.STEPS, **mode: Any) -> Act:
    """Plain `generate`."""

    def act() -> list[Tensor]:
        torch.manual_seed(3)
        tokens, logits = kit.generate(model, inputs, steps, **mode)
        return [logits, tokens]

    return act


class Talk:
    """Calls on one cache, made by hand; each adds its logits to `said`."""

    def __init__(self, model: Any, inputs: TinyInputs, cache: Any = None, candidates: int = 0) -> None:
        self.model, self.family, self.inputs = model, inputs.family, dict(inputs)
        self.said: list[Tensor] = []
        given, options = with_candidates(model, inputs, candidates) if candidates else (dict(inputs), {})
        out = kit.forward(model, given, **({"past_key_values": cache, "use_cache": True} | options))
        self.inputs["attention_mask"] = given["attention_mask"]
        self.cache, self.length = out.past_key_values, given["input_ids"].shape[1]
        self.said.append(out.logits[:, -1])

    def __deepcopy__(self, memo: Any) -> Talk:
        made = copy.copy(self)
        made.inputs, made.said, made.cache = dict(self.inputs), list(self.said), copy.deepcopy(self.cache)
        return made

    def hear(self, count: int = 1, seed: int = 0, more: dict[str, Any] | None = None) -> Talk:
        """One call of `count` random words, or of the inputs `more`."""
        rows = len(self.inputs["input_ids"])
        given = more or {"input_ids": words(rows, count, 100 * seed + self.length)}
        asked = next_turn(self.model, self.inputs, self.family, self.length, given)
        self.said.append(kit.forward(self.model, asked, past_key_values=self.cache, use_cache=True).logits[:, -1])
        self.length += given["input_ids"].shape[1]
        self.inputs["attention_mask"] = asked["attention_mask"]
        return self

    def decode(self, steps: int, seed: int = 0) -> Talk:
        """`steps` calls of one word."""
        for _ in range(steps):
            self.hear(1, seed)
        return self

    def forget(self, count: int) -> Talk:
        """Crop the newest positions."""
        self.cache.crop(-count)
        self.length -= count
        self.inputs["attention_mask"] = self.inputs["attention_mask"][:, :-count]
        return self

    def take(self, rows: Tensor, how: str = "reorder_cache") -> Talk:
        """Change the rows of the cache with one of its own operations; `rows` is what has to come out."""
        getattr(self.cache, how)(2 if how == "batch_repeat_interleave" else rows)
        for name in ("input_ids", "attention_mask"):
            self.inputs[name] = self.inputs[name].index_select(0, rows)
        return self


def with_candidates(model: Any, inputs: TinyInputs, count: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A prompt with candidates behind it, and what assisted decoding asks for beside it."""
    rows, length = inputs["input_ids"].shape
    extra = next_turn(model, inputs, inputs.family, length, {"input_ids": words(rows, count, 9)})
    longer = dict(inputs) | {"attention_mask": extra["attention_mask"]}
    for name in ("input_ids", TYPE_IDS.get(inputs.family, "input_ids")):
        longer[name] = torch.cat([inputs[name], extra[name]], 1)
    cache = DynamicCache(config=model.config.get_text_config())
    return longer, {"logits_to_keep": count + 1, "past_key_values": cache}


def hiding(
    model: Any, act: Act, *plugins: Plugin, rewrites: bool = False, beside: Callable[[Handle], Any] | None = None
) -> tuple[Handle, Record]:
    """Assert that `act` with the plugins on equals `act` on a full cache in which what is gone is hidden.

    rewrites: the plugins change what is stored, which the full cache takes over
    beside:   handle -> what else to do to the bare model
    """
    with attach(model, *plugins) as handle, recording(model, handle, rewrites) as record:
        got = act()
    with nullcontext() if beside is None else beside(handle), replaying(model, record):
        want = act()
    for one, other in zip(got, want, strict=True):
        if one.is_floating_point():
            kit.same(one, other)
        else:
            assert torch.equal(one, other), "other tokens were chosen"
    moved(got, act())
    return handle, record


def moved(got: list[Tensor], from_: list[Tensor]) -> None:
    """Assert that some logits are others."""
    kit.differs(*(torch.cat([one.flatten() for one in said if one.is_floating_point()]) for said in (got, from_)))


def compressed(model: Any, inputs: TinyInputs, plugin: Plugin, steps: int = 1, contents: bool = False) -> Record:
    """The record of a prompt and some decode steps."""
    with attach(model, plugin) as handle, recording(model, handle, contents) as record:
        Talk(model, inputs).decode(steps)
    return record


def kept(entries: Entries, row: int, head: int) -> list[int]:
    """Positions that one row and head store, ascending."""
    stored = entries.positions[row, head]
    return sorted(stored[stored >= 0].tolist())


def each(record_of_a_call: list[Entries], model: Any) -> Iterator[tuple[int, int, int, list[int]]]:
    """(layer, row, head, kept positions) of every layer whose window does not forget by itself."""
    for layer, entries in enumerate(record_of_a_call):
        if slides(decoder_layers(model)[layer].self_attn):
            continue
        for row in range(entries.positions.shape[0]):
            for head in range(entries.positions.shape[1]):
                yield layer, row, head, kept(entries, row, head)


def real_places(inputs: TinyInputs, row: int) -> list[int]:
    """Positions of a row that are no padding."""
    return kit.real(inputs)[row].nonzero()[:, 0].tolist()


def changed_keys(model: Any, change: Callable[[Any, int, Tensor, Any], Tensor]) -> Any:
    """While open, the keys of every layer's prompt are `change(attention, layer, keys [B, S, Hkv * Dh], its call)`.

    They are changed behind their projection, before norms and rotation.
    """
    return _changed(model, "k_proj", change)


def changed_values(model: Any, change: Callable[[Any, int, Tensor, Any], Tensor]) -> Any:
    """The same for values."""
    return _changed(model, "v_proj", change)


@contextmanager
def _changed(model: Any, name: str, change: Callable[[Any, int, Tensor, Any], Tensor]) -> Iterator[None]:
    calls: dict[int, Any] = {}
    hooks = []
    for index, layer in enumerate(decoder_layers(model)):
        attention = layer.self_attn

        def note(_: Any, args: Any, kwargs: Any, index: int = index) -> None:
            calls[index] = kwargs

        def write(_: Any, args: Any, output: Tensor, index: int = index, attention: Any = attention) -> Tensor | None:
            return None if output.shape[1] == 1 else change(attention, index, output, calls[index])

        hooks.append(attention.register_forward_pre_hook(note, with_kwargs=True))
        hooks.append(getattr(attention, name).register_forward_hook(write))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
