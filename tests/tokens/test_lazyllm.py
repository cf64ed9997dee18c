"""LazyLLM with revival against the slow procedure on full matrices: steps, turns, images, batches, beams, crops."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.contracts import checks_cache, checks_life, kit
from tests.contracts.checks import image_tokens
from tests.contracts.checks_modes import next_turn, words
from tests.slow_revival import SlowRevival
from tests.tiny import FAMILIES, TinyInputs, row, tiny_inputs
from vlm_eff import attach
from vlm_eff.core.errors import CapabilityError, ConfigError, StateError
from vlm_eff.core.plugin import BindContext
from vlm_eff.models.adapter import adapter_for
from vlm_eff.models.refusals import refuse_plugins
from vlm_eff.tokens import lazyllm, random_drop

# gemma3's sliding layers forget: revival is refused there
REVIVING = tuple(family for family in FAMILIES if family != "gemma3")
FEW = ("llava", "llava_next", "qwen2_vl", "paligemma")
# six decode steps, a second question, its steps
CALLS = (1, 1, 1, 1, 1, 1, 4, 1, 1)
LATE = (3, 4, 5)

Call = Callable[[dict[str, Any], Tensor | None], Tensor]


class Attached:
    """The model as it is, with a cache that goes on from call to call."""

    def __init__(self, model: Any) -> None:
        self.model, self.cache = model, None

    def __call__(self, inputs: dict[str, Any], visual: Tensor | None = None) -> Tensor:
        out = kit.forward(self.model, inputs, past_key_values=self.cache, use_cache=True)
        self.cache = out.past_key_values
        logits: Tensor = out.logits
        return logits


def later(model: Any, inputs: TinyInputs, calls: tuple[int, ...], seed: int = 0) -> list[dict[str, Any]]:
    """Inputs of the calls after the prefill: so many words each, the same in every row."""
    at, made, rows = inputs["input_ids"].shape[1], [], inputs["input_ids"].shape[0]
    for count in calls:
        made.append(next_turn(model, inputs, inputs.family, at, {"input_ids": words(rows, count, at + seed)}))
        at += count
    return made


def stages(ratio: float, layers: tuple[int, ...]) -> dict[int, float]:
    return {layer: ratio ** (place + 1) for place, layer in enumerate(layers)}


def talk(call: Call, model: Any, inputs: TinyInputs, calls: tuple[int, ...] = CALLS) -> list[Tensor]:
    visual = image_tokens(inputs.family, inputs)[0]
    return [call(inputs, visual), *(call(more, None) for more in later(model, inputs, calls))]


def equals_the_slow_procedure(
    family: str, attn: str, ratio: float, layers: tuple[int, ...], share: float | None, rows: tuple[int, ...] = (1,)
) -> None:
    model, inputs = kit.model_of(family, attn), tiny_inputs(family, rows)
    with attach(model, lazyllm(keep_ratio=ratio, layers=layers, revive_ratio=share)) as handle:
        got = talk(Attached(model), model, inputs)
        stats = handle.stats()
        left = kit.survivors(handle, inputs)[-1][0]
    slow = SlowRevival(model, stages(ratio, layers), share)
    want = talk(slow, model, inputs)
    kit.same(got[0][0, left], want[0][left])
    for one, other in zip(got[1:], want[1:], strict=True):
        kit.same(one[0], other)
    counts = [report.tokens[0] for report in stats.revivals]
    assert counts == [count for back in slow.revived[1:] for count in back.values()]
    assert sum(counts) > 3, "nothing came back"
    never = lazyllm(keep_ratio=ratio, layers=layers, revive="never")
    with attach(model, never):
        kit.differs(talk(Attached(model), model, inputs)[-1], got[-1])


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("family", REVIVING)
def test_revival_is_the_slow_procedure(family: str, attn: str) -> None:
    equals_the_slow_procedure(family, attn, 0.5, LATE, None)


@pytest.mark.parametrize(
    ("ratio", "layers", "share"),
    [(0.6, (1, 2, 4), None), (0.3, (1, 4), 0.5), (0.2, (2,), 0.9), (0.4, (1, 2, 3, 4, 5), 0.7), (0.5, (1, 3), 1.0)],
)
@pytest.mark.parametrize("family", FEW)
def test_revival_with_other_stages_and_shares(
    family: str, ratio: float, layers: tuple[int, ...], share: float | None
) -> None:
    equals_the_slow_procedure(family, "sdpa", ratio, layers, share, (2,))


@pytest.mark.parametrize("family", ["llava", "llava_next", "internvl"])
def test_a_second_image_joins_the_first_in_the_store(family: str) -> None:
    model, first = kit.model_of(family), tiny_inputs(family, (1,))
    second = tiny_inputs(family, (1,), text=(6, 6), seed=8)
    length = first["input_ids"].shape[1]

    def both(call: Call) -> list[Tensor]:
        steps = later(model, first, (1, 1))
        turn = next_turn(model, first, family, length + 2, second)
        made = [call(first, image_tokens(family, first)[0]), *(call(more, None) for more in steps)]
        made.append(call(turn, image_tokens(family, second)[0]))
        at = length + 2 + second["input_ids"].shape[1]
        for count in (1, 3, 1):
            made.append(call(next_turn(model, turn, family, at, {"input_ids": words(1, count, at)}), None))
            at += count
        return made

    with attach(model, lazyllm(keep_ratio=0.5, layers=(2, 4))) as handle:
        got = both(Attached(model))
        looks = {report.call for report in handle.stats().revivals}
        left = kit.survivors(handle, second)[-1][0]
    want = both(SlowRevival(model, stages(0.5, (2, 4))))
    for place, (one, other) in enumerate(zip(got, want, strict=True)):
        shown = left if place == 3 else slice(-1, None)
        kit.same(one[0, shown], other[shown])
    assert looks == {1, 2, 4, 5, 6}, "a call with an image brings nothing back"


@pytest.mark.parametrize("pad", ["left", "right"])
@pytest.mark.parametrize("family", [*FEW, "qwen3_vl"])
def test_a_batch_equals_its_rows(family: str, pad: str) -> None:
    """Rows with different images, without images and with padding, each alone and together."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2, 0), pad=pad)  # type: ignore[arg-type]
    layers = LATE if family == "qwen3_vl" else (1, 2, 4)

    def run(rows: slice) -> tuple[list[Tensor], list[tuple[int, ...]], list[Tensor]]:
        some = inputs if rows == slice(None) else padded_row(inputs, rows.start)
        if family.startswith("qwen"):
            model.model.rope_deltas = None
        call = Attached(model)
        with attach(model, lazyllm(keep_ratio=0.5, layers=layers)) as handle:
            made = [call(some), *(call(more) for more in later(model, some, (1, 1, 3, 1)))]
            return made, [report.tokens for report in handle.stats().revivals], handle.survivors(5)

    batch, back, kept = run(slice(None))
    assert any(any(tokens) for tokens in back)
    for index in range(2):
        alone, own, left = run(slice(index, index + 1))
        assert [tokens[index] for tokens in back] == [tokens[0] for tokens in own]
        assert kept[index].tolist() == left[0].tolist()
        for one, other in zip(batch[1:], alone[1:], strict=True):
            kit.same(one[index], other[0])
    assert not any(tokens[2] for tokens in back)
    if family.startswith("qwen"):
        model.model.rope_deltas = None
    bare = Attached(model)
    bare(inputs)
    for one, more in zip(batch[1:], later(model, inputs, (1, 1, 3, 1)), strict=True):
        kit.same(one[2], bare(more)[2])


def padded_row(inputs: TinyInputs, index: int) -> TinyInputs:
    """One row alone, with the padding that it has in the batch."""
    alone = row(inputs, index)
    for name in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"):
        if name in alone and alone[name].dim() == 2:
            alone[name] = inputs[name][index : index + 1]
    return alone


@pytest.mark.parametrize("family", ["llava", "llava_next", "internvl"])
def test_generate_in_a_padded_batch_is_the_slow_procedure_of_each_row(family: str) -> None:
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2, 0))
    run = kit.attached_generate(model, inputs, lazyllm(keep_ratio=0.5, layers=(1, 2, 4)))
    for index in range(2):
        alone, slow = row(inputs, index), SlowRevival(model, stages(0.5, (1, 2, 4)))
        length = alone["input_ids"].shape[1]
        made = [slow(alone, image_tokens(family, alone)[0])[-1]]
        for step, token in enumerate(run.tokens[index, :-1]):  # type: ignore[index]
            more = next_turn(model, alone, family, length + step, {"input_ids": token.view(1, 1)})
            made.append(slow(more)[-1])
        kit.same(run.logits[index], torch.stack(made))
    kit.same(run.logits[2], kit.generate(model, inputs)[1][2])


@pytest.mark.parametrize("mode", [{"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}])
@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_beams_of_a_batch_are_the_beams_of_its_rows(family: str, mode: dict[str, int]) -> None:
    """Beams that are exchanged take their stores along: else rows with other images would mix."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2))
    plugin = lazyllm(keep_ratio=0.4, layers=(1, 2, 4))
    batch = kit.attached_generate(model, inputs, plugin, steps=6, **mode)
    width = mode.get("num_return_sequences", 1)
    for index in range(2):
        alone = kit.attached_generate(model, row(inputs, index), plugin, steps=6, **mode)
        assert torch.equal(batch.tokens[index * width : (index + 1) * width], alone.tokens)  # type: ignore[index]
        beams = mode["num_beams"]
        kit.same(batch.logits[index * beams : (index + 1) * beams], alone.logits)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "paligemma"])
def test_the_cache_may_be_reordered_copied_and_needs_its_handle(family: str) -> None:
    plugin = lazyllm(keep_ratio=0.5, layers=(1, 2, 4))
    checks_cache.cache_rows_follow(family, plugin)
    checks_cache.a_cache_needs_its_handle(family, plugin)
    checks_life.detach_restores(family, "sdpa", plugin)
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2))
    with attach(model, plugin):
        call = Attached(model)
        call(inputs)
        twin = Attached(model)
        twin.cache = copy.deepcopy(call.cache)
        for more in later(model, inputs, (1, 3), seed=5):
            call(more)
        other = [twin(more) for more in later(model, inputs, (1, 1))]
        fresh = Attached(model)
        fresh(inputs)
        assert all(
            torch.equal(fresh(more), want) for more, want in zip(later(model, inputs, (1, 1)), other, strict=True)
        )


@pytest.mark.parametrize("family", FEW)
def test_a_turn_may_be_cropped_and_what_came_back_stays(family: str) -> None:
    model, inputs = kit.model_of(family), tiny_inputs(family, (1,))
    length = inputs["input_ids"].shape[1]

    def turns(call: Any, crop: Callable[[int], None]) -> list[Tensor]:
        first, second = (next_turn(model, inputs, family, length + 1, {"input_ids": words(1, 4, s)}) for s in (1, 2))
        call(inputs, image_tokens(family, inputs)[0])
        call(later(model, inputs, (1,))[0], None)
        made = [call(first, None)]
        crop(4)
        return [*made, call(second, None)]

    with attach(model, lazyllm(keep_ratio=0.5, layers=(1, 2, 4))) as handle:
        call = Attached(model)
        got = turns(call, lambda count: call.cache.crop(-count))
        assert sum(sum(report.tokens) for report in handle.stats().revivals if report.call == 2) > 0
        before = [(layer.get_seq_length(), layer.keys.shape) for layer in call.cache.layers]
        with pytest.raises(StateError, match="dropped"):
            call.cache.crop(-5)
        assert [(layer.get_seq_length(), layer.keys.shape) for layer in call.cache.layers] == before
    slow = SlowRevival(model, stages(0.5, (1, 2, 4)))
    for one, other in zip(got, turns(slow, slow.crop), strict=True):
        kit.same(one[0], other)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_a_deeper_crop_is_refused_where_every_layer_lacks_tokens(family: str) -> None:
    """With a drop before layer 0 no layer is whole: those that nothing came back to refuse the crop as well."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1,))
    with attach(model, random_drop(keep_ratio=0.8), lazyllm(keep_ratio=0.5, layers=(1, 2, 4))) as handle:
        call = Attached(model)
        call(inputs)
        for more in later(model, inputs, (1, 4)):
            call(more)
        assert any(sum(report.tokens) for report in handle.stats().revivals if report.call == 2)
        before = [(layer.get_seq_length(), layer.keys.shape) for layer in call.cache.layers]
        with pytest.raises(StateError, match="dropped"):
            call.cache.crop(-5)
        assert [(layer.get_seq_length(), layer.keys.shape) for layer in call.cache.layers] == before
        call.cache.crop(-4)
        assert {layer.get_seq_length() for layer in call.cache.layers} == {inputs["input_ids"].shape[1] + 1}


@pytest.mark.parametrize("family", [*FEW, "qwen3_vl", "mistral3"])
def test_everything_back_in_the_last_layer_is_the_bare_model(family: str) -> None:
    """One stage at the last layer: what enters that layer was computed in full, so its keys and values are the bare
    model's, and once all of them are back so are the logits. With an earlier stage the words between have looked at
    fewer tokens, and stay different."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2))
    bare = [(call := Attached(model))(inputs), *(call(more) for more in later(model, inputs, CALLS))]
    for layers, exact in (((5,), True), ((3,), False)):
        with attach(model, lazyllm(keep_ratio=0.3, layers=layers, revive_ratio=1.0)) as handle:
            made = [(call := Attached(model))(inputs), *(call(more) for more in later(model, inputs, CALLS))]
            assert handle.stats().store_bytes < 4000, "the store is empty but for the list of candidates"
        kit.differs(made[0][:, -1], bare[0][:, -1])
        for one, other in zip(made[1:], bare[1:], strict=True):
            if exact:
                kit.same(one, other)
            else:
                kit.differs(one, other)


def test_turns_alone_and_never() -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1,))
    with attach(model, lazyllm(keep_ratio=0.5, layers=(1, 3), revive="turns")) as handle:
        got = talk(Attached(model), model, inputs)
        reports = handle.stats().revivals
    assert {report.call for report in reports if sum(report.tokens)} == {7}
    slow = SlowRevival(model, stages(0.5, (1, 3)))
    visual = image_tokens("llava", inputs)[0]
    want = [slow(inputs, visual), *(slow(m, None, m["input_ids"].shape[1] > 1) for m in later(model, inputs, CALLS))]
    for one, other in zip(got[1:], want[1:], strict=True):
        kit.same(one[0], other)
    with attach(model, lazyllm(keep_ratio=0.5, layers=(1, 3), revive="never")) as handle:
        talk(Attached(model), model, inputs)
        assert handle.stats().revivals == []
        assert handle.stats().store_bytes == 0


def test_the_books_count_what_is_stored_and_what_came_back() -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1, 2))
    with attach(model, lazyllm(keep_ratio=0.5, layers=(1, 3))) as handle:
        call = Attached(model)
        call(inputs)
        held = []
        for more in [None, *later(model, inputs, (1, 1, 1))]:
            before = [int((handle.kv_positions(layer) >= 0)[:, 0].sum()) for layer in range(6)]
            looked = len(handle.stats().revivals)
            if more is not None:
                call(more)
            after = [int((handle.kv_positions(layer) >= 0)[:, 0].sum()) for layer in range(6)]
            back = {report.layer: sum(report.tokens) for report in handle.stats().revivals[looked:]}
            new = 2 if more is not None else 0
            grown = [b - a - new for a, b in zip(before, after, strict=True)]
            assert grown == [0, back.get(1, 0), back.get(1, 0), *[back.get(3, 0)] * 3]
            stores = [layer.store for layer in call.cache.layers if getattr(layer, "store", None) is not None]
            parts = [t for s in stores for t in (*vars(s.tokens).values(), s.position, s.valid)]
            held.append(sum(t.numel() * t.element_size() for t in parts))
            assert handle.stats().store_bytes == held[-1] > 0
        text = str(handle.stats())
        assert "brought back" in text
        assert f"{held[-1]:,} bytes held" in text
        assert handle.stats().to_dict()["revivals"][0]["layer"] == 1


def test_what_is_refused() -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1,))
    with attach(model, lazyllm(layers=(1,))), pytest.raises(CapabilityError, match="assisted decoding"):
        model.generate(**inputs, max_new_tokens=20, do_sample=False, prompt_lookup_num_tokens=3)
    with pytest.raises(CapabilityError, match="window"):
        attach(kit.model_of("gemma3"), lazyllm())
    deep = kit.model_of("qwen3_vl")
    with attach(deep, lazyllm(layers=(2, 4))), pytest.raises(CapabilityError, match="image features"):
        kit.forward(deep, tiny_inputs("qwen3_vl", (1,)))
    config = model.get_decoder().config
    flash = adapter_for(model)
    before = config._attn_implementation_internal
    config._attn_implementation_internal = "flash_attention_2"
    try:
        with pytest.raises(CapabilityError, match="flash attention"):
            refuse_plugins(flash, (lazyllm(),))
        refuse_plugins(flash, (lazyllm(revive="never"),))
    finally:
        config._attn_implementation_internal = before
    for wrong in ({"revive": "always"}, {"revive_ratio": 0.0}, {"layers": (0, 2)}, {"layers": (3, 2)}):
        with pytest.raises(ConfigError):
            lazyllm(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_other_number_formats(family: str) -> None:
    """bfloat16 runs in its own format, and in float64 the batch meets its rows to nearly all digits."""
    plugin = lazyllm(keep_ratio=0.5, layers=(1, 2, 4))
    model, inputs = kit.model_of(family, "sdpa", torch.bfloat16), tiny_inputs(family, (1, 2)).to(dtype=torch.bfloat16)
    with attach(model, plugin) as handle:
        made = talk(Attached(model), model, inputs)
        assert any(sum(report.tokens) for report in handle.stats().revivals)
    assert all(logits.dtype == torch.bfloat16 and bool(logits.isfinite().all()) for logits in made)
    model, inputs = kit.model_of(family, "sdpa", torch.float64), tiny_inputs(family, (1, 2)).to(dtype=torch.float64)
    run = kit.attached_generate(model, inputs, plugin)
    for index in range(2):
        alone = kit.attached_generate(model, row(inputs, index), plugin)
        kit.same(run.logits[index], alone.logits[0], relative=1e-6)


def test_default_stages() -> None:
    assert [site.layer for site in lazyllm().bind(BindContext("llava", 32)).sites] == [10, 19, 29]
    assert lazyllm(keep_ratio=1.0).revives is False
