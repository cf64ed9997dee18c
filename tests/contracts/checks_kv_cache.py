"""The compressed cache in the user's hands: rows, crops, copies, what it weighs, and what is left after detach."""

from __future__ import annotations

import copy
import dataclasses
import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake

from tests.contracts import kit, kv_kit
from tests.contracts.checks_life import leaves_nothing
from tests.contracts.checks_modes import next_turn, words
from tests.contracts.kv_kit import Talk
from tests.kv_oracle import recording
from tests.tiny import tiny_inputs
from vlm_eff import attach
from vlm_eff.core.errors import StateError
from vlm_eff.core.plugin import Plugin

ROWS = {"reorder_cache": [1, 0], "batch_select_indices": [1], "batch_repeat_interleave": [0, 0, 1, 1]}


def kv_rows_follow(family: str, plugin: Plugin, how: str = "reorder_cache", rewrites: bool = False) -> None:
    """P10: rows taken in another order, alone or twice, take every buffer with them, before and after compression."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2))
    order = torch.tensor(ROWS[how])

    def act(early: bool) -> list[Tensor]:
        talk = Talk(model, inputs)
        talk = talk.take(order, how) if early else talk.decode(2).take(order, how)
        if family.startswith("qwen"):
            model.model.rope_deltas = model.model.rope_deltas[:1].repeat(len(order), 1)
        return talk.decode(2).said

    for early in (False, True):
        _, record = kv_kit.hiding(model, lambda early=early: act(early), plugin, rewrites=rewrites)
        if early:
            continue
        # what the handle says has moved too
        before, after = record[2], record[3]
        length = inputs["input_ids"].shape[1] + 2
        for layer, index, head, kept in kv_kit.each(after, model):
            old = kv_kit.kept(before[layer], ROWS[how][index], head)
            # some methods go on evicting while decoding
            assert {place for place in kept if place < length} <= set(old), f"layer {layer}, row {index}"


def kv_crop_forgets_the_newest(family: str, plugin: Plugin, rewrites: bool = False) -> None:
    """P10: what was decoded may be cropped and said anew; a crop into what was compressed is refused, changing nothing.

    Cropped below the first decode step, but not into the prompt, the prompt stays compressed.
    """
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2))

    def act() -> list[Tensor]:
        return Talk(model, inputs).decode(1).hear(4, 1).forget(3).hear(2, 2).decode(2).said

    kv_kit.hiding(model, act, plugin, rewrites=rewrites)
    with attach(model, plugin) as handle:
        talk = Talk(model, inputs).decode(2)
        before = _stored(handle, talk.cache)
        with pytest.raises(StateError, match="Accepted: "):
            talk.cache.crop(-8)
        after = _stored(handle, talk.cache)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def kv_crop_shortens_a_prompt(family: str, plugin: Plugin, rewrites: bool = False) -> None:
    """P10: the end of a prompt or turn may be cropped before it is compressed; what is left is the prompt then."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2))

    def act(turn: bool) -> list[Tensor]:
        talk = Talk(model, inputs)
        return (talk.decode(2).hear(6, 1) if turn else talk).forget(3).decode(3).said

    for turn in (False, True):
        kv_kit.hiding(model, lambda turn=turn: act(turn), plugin, rewrites=rewrites)


def _stored(handle: Any, cache: Any) -> list[Tensor]:
    lengths = torch.tensor([layer.get_seq_length() for layer in cache.layers])
    return [lengths, *(handle.kv_positions(layer).clone() for layer in range(kit.LAYERS))]


def kv_reset_forgets_everything(family: str, plugin: Plugin) -> None:
    """P10: after `reset` a cache answers like a new one."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2))
    with attach(model, plugin) as handle:
        talk = Talk(model, inputs).decode(3)
        wanted, places = talk.said, [handle.kv_positions(layer).clone() for layer in range(kit.LAYERS)]
        talk.cache.reset()
        assert {layer.get_seq_length() for layer in talk.cache.layers} == {0}
        again = Talk(model, inputs, talk.cache).decode(3)
        for one, other in zip(again.said, wanted, strict=True):
            assert torch.equal(one, other)
        for layer, stored in enumerate(places):
            assert torch.equal(handle.kv_positions(layer), stored)


def kv_copies_part(family: str, plugin: Plugin) -> None:
    """P10: two questions on deep copies of one compressed prefix, asked in turns, are answered as if asked alone."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2))
    with attach(model, plugin):
        alone = [Talk(model, inputs).decode(1).hear(5, seed).decode(3, seed).said for seed in (1, 2)]
        prefix = Talk(model, inputs).decode(1)
        talks = [copy.deepcopy(prefix) for _ in alone]
        for ask in ("hear", "decode"):
            for seed, talk in enumerate(talks, start=1):
                talk.hear(5, seed) if ask == "hear" else talk.decode(3, seed)
    for talk, wanted in zip(talks, alone, strict=True):
        for one, other in zip(talk.said, wanted, strict=True):
            assert torch.equal(one, other)
    kv_kit.moved(talks[0].said[2:], talks[1].said[2:])


def kv_reported_bytes_are_live(family: str, plugin: Plugin, less: float = 1.0) -> None:
    """P11: reported bytes are those of the live storages, and really below `less` of the uncompressed cache's."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2))
    bare = Talk(model, inputs).decode(3).cache
    with attach(model, plugin) as handle:
        talk = Talk(model, inputs).decode(3)
        said = handle.stats()
    live, plain = _bytes(talk.cache), _bytes(bare)
    assert said.kv_bytes_bare == plain
    assert abs(said.kv_bytes - live) <= 0.01 * live, f"{said.kv_bytes} bytes are reported, {live} are alive"
    assert live < less * plain, f"{live} of {plain} bytes are left"


def kv_evicted_memory_is_freed(family: str, plugin: Plugin) -> None:
    """P11: the process itself holds as many bytes less as the report says, whoever might have held on to them."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2))
    Talk(model, inputs).decode(1)
    before = _alive()
    talk = Talk(model, inputs).decode(2)
    bare = _alive() - before
    del talk
    before = _alive()
    with attach(model, plugin) as handle:
        talk = Talk(model, inputs).decode(2)
        held, said = _alive() - before, handle.stats()
    saved = said.kv_bytes_bare - said.kv_bytes
    assert bare - held >= saved - 0.1 * said.kv_bytes_bare, f"{saved} bytes are said to be saved, {bare - held} are"
    assert talk.length > 0


def _alive() -> int:
    """Bytes of all tensors of the process."""
    gc.collect()
    storages = {}
    for item in gc.get_objects():
        # what torch.compile traces with has no bytes, and other tests of the process may have left some
        if issubclass(type(item), Tensor) and not is_fake(item):
            storage = item.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _bytes(cache: Any) -> int:
    """Bytes of all storages that the cache's layers hold on to, whatever they are called."""
    storages = {}
    for layer in cache.layers:
        for tensor in _tensors(vars(layer), set()):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())


def _tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item, seen)
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from _tensors(item, seen)
    elif dataclasses.is_dataclass(value) or (hasattr(value, "__dict__") and not isinstance(value, nn.Module | type)):
        yield from _tensors(vars(value), seen)


def kv_groups_share_entries(family: str, plugin: Plugin, queries: int = 0) -> None:
    """P12: an entry is stored once for all query heads of its group, in every tensor.

    queries: rows that a method keeps beside the entries while decoding
    """
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2))
    config = model.config.get_text_config()
    with attach(model, plugin) as handle, recording(model, handle) as record:
        Talk(model, inputs).decode(2)
    for layer, entries in enumerate(record[-1]):
        assert entries.positions.shape[1] == config.num_key_value_heads, f"layer {layer}"
    stored = sum(int((entries.positions >= 0).sum()) for entries in record[-1])
    fillers = sum(int((entries.positions < 0).sum()) for entries in record[-1])
    # keys and values in float32, and room for a position and a weight of each
    most = (stored + fillers) * (2 * config.head_dim * 4 + 16)
    # of a query its states, and which columns it may look at
    one = config.num_attention_heads * config.head_dim * 4 + inputs["input_ids"].shape[1] + 32
    most += kit.LAYERS * len(inputs["input_ids"]) * queries * one
    assert handle.stats().kv_bytes <= most, "more is stored than one entry a position and key head"


def kv_detach_restores(family: str, attn: str, plugin: Plugin) -> None:
    """P14: after detach nothing of the model is changed, and it decodes bit for bit as before."""
    model, inputs = kit.model_of(family, attn), tiny_inputs(family, (1, 2))
    before = kit.generate(model, inputs, 4)[1]

    def act() -> None:
        with attach(model, plugin):
            kit.differs(kit.generate(model, inputs, 4)[1], before)

    leaves_nothing(model, inputs, act)
    assert torch.equal(kit.generate(model, inputs, 4)[1], before)


def kv_pause_is_bare(family: str, plugin: Plugin) -> None:
    """P14: inside `paused` the model decodes bit for bit as if bare; afterwards the plugin works again."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2))
    bare = kit.generate(model, inputs, 4)[1]
    with attach(model, plugin) as handle:
        on = kit.generate(model, inputs, 4)[1]
        with handle.paused():
            assert torch.equal(kit.generate(model, inputs, 4)[1], bare)
        assert torch.equal(kit.generate(model, inputs, 4)[1], on)
    kit.differs(on, bare)


def kv_cache_needs_its_handle(family: str, plugin: Plugin) -> None:
    """P14: a compressed cache is refused by the bare model instead of being misread."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2))
    with attach(model, plugin) as handle:
        talk = Talk(model, inputs).decode(2)
        want = copy.deepcopy(talk).decode(1).said[-1]
        with handle.paused(), pytest.raises(StateError, match="handle"):
            copy.deepcopy(talk).decode(1)
    with pytest.raises(StateError, match="handle"):
        copy.deepcopy(talk).decode(1)
    with attach(model, plugin):
        assert torch.equal(talk.decode(1).said[-1], want)


def kv_error_in_a_step_is_survived(family: str, plugin: Plugin) -> None:
    """P14: an error deep inside a decode step leaves the handle usable, and detach restores."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2))

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    def act() -> None:
        with attach(model, plugin):
            want = Talk(model, inputs).decode(2).said
            talk = Talk(model, inputs)
            hook = model.get_decoder().layers[3].mlp.register_forward_pre_hook(fail)
            with pytest.raises(ZeroDivisionError):
                talk.decode(1)
            hook.remove()
            for one, other in zip(Talk(model, inputs).decode(2).said, want, strict=True):
                assert torch.equal(one, other)

    leaves_nothing(model, inputs, act)


def kv_tensors_stay_on_their_device(plugin: Plugin) -> None:
    """Nothing is made on the default device and then mixed with what is on the model's; without a GPU, too.

    The default device holds no numbers here. LLaVA itself does without it.
    """
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1, 2))
    calls: list[dict[str, Any]] = [dict(inputs)]
    for count in (1, 1, 4, 1):
        length = calls[-1]["attention_mask"].shape[1]
        calls.append(next_turn(model, calls[-1], "llava", length, {"input_ids": words(2, count, length)}))

    def talk() -> list[Tensor]:
        said, cache = [], None
        for call in calls:
            out = kit.forward(model, call, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            said.append(out.logits[:, -1])
        return said

    with attach(model, plugin):
        wanted = talk()
        with torch.device("meta"):
            for one, other in zip(talk(), wanted, strict=True):
                assert torch.equal(one, other)


def kv_threads_do_not_meet(family: str, plugin: Plugin, rounds: int = 4) -> None:
    """P14: two threads that talk to one attached model keep and compute what each of them would alone."""
    model = kit.model_of(family)
    prompts = [tiny_inputs(family, (1,), seed=1), tiny_inputs(family, (2, 1), seed=2)]
    with attach(model, plugin):
        wanted = [Talk(model, inputs).decode(3).said for inputs in prompts]

    def right(index: int) -> bool:
        said = Talk(model, prompts[index]).decode(3).said
        return all(torch.equal(one, other) for one, other in zip(said, wanted[index], strict=True))

    with attach(model, plugin):
        kit.meet(right, rounds)
