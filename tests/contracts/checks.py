"""The exactness laws as plain functions: each one raises when the law is broken.

Tests call them with many families and methods, saboteurs call them with a broken library and expect them to raise.
Logits are compared, never only text; whoever drops must also differ from the bare run.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tests.contracts import kit
from tests.oracle import decoder_layers
from tests.tiny import row, tiny_inputs, visual_mask
from vlm_eff import attach
from vlm_eff.core.plugin import Plugin

Rows = tuple[int, ...]
# words of an answer: past the sliding window of the row without images, and each step is one more like the last
ANSWER = 6


def keep_all_is_bit_identical(family: str, attn: str, plugin: Plugin, rows: Rows = (1, 2, 0)) -> None:
    """Keeping everything changes no bit, in prefill and in decoding, and gathers nothing."""
    model, inputs = kit.model_of(family, attn), tiny_inputs(family, rows)
    run = kit.attached(model, inputs, plugin)
    assert torch.equal(run.logits, kit.once(kit.bare, model, inputs))
    tokens, logits = kit.once(kit.generate, model, inputs, ANSWER)
    decoded = kit.attached_generate(model, inputs, plugin, steps=ANSWER)
    assert torch.equal(decoded.logits, logits)
    assert torch.equal(decoded.tokens, tokens)
    for handle in (run.handle, decoded.handle):
        assert handle.stats().calls > 0
        last = handle.stats().last
        assert last is not None
        assert last.stages == ()
        assert last.masks_built == 0
        assert set(last.sequence_per_layer) == {inputs["input_ids"].shape[1]}


def drop_equals_mask(
    family: str, attn: str, plugin: Plugin, rows: Rows = (1, 2, 0), pad: str = "left", video: bool | str = False
) -> None:
    """One forward equals the masked run wherever a token is left at the end."""
    model, inputs = kit.model_of(family, attn), tiny_inputs(family, rows, pad=pad, video=video)  # type: ignore[arg-type]
    run = kit.attached(model, inputs, plugin)
    want = kit.reference_logits(model, inputs, plugin, run.handle)
    left = kit.survivors(run.handle, inputs)[-1] & kit.real(inputs)
    kit.same(run.logits[left], want[left])
    text = left & ~visual_mask(inputs)
    seen = torch.tensor([bool(count) for count in rows])
    kit.differs(run.logits[text & seen[:, None]], kit.once(kit.bare, model, inputs)[text & seen[:, None]])


def generate_equals_masked_generate(
    family: str, attn: str, plugin: Plugin, rows: Rows = (1, 2, 0), video: bool | str = False
) -> None:
    """Prefill and every decode step equal the masked run of a left-padded batch."""
    model, inputs = kit.model_of(family, attn), tiny_inputs(family, rows, video=video)  # type: ignore[arg-type]
    run = kit.attached_generate(model, inputs, plugin, steps=ANSWER)
    tokens, logits = kit.reference_generate(model, inputs, plugin, run.handle, ANSWER)
    kit.same(run.logits, logits)
    assert torch.equal(run.tokens, tokens)
    kit.differs(run.logits[:, 0], kit.once(kit.generate, model, inputs, 1)[1][:, 0])


def eager_equals_sdpa(family: str, plugin: Plugin, rows: Rows = (1, 2, 0), pad: str = "left") -> None:
    """Both attention implementations drop the same tokens and compute the same logits."""
    inputs = tiny_inputs(family, rows, pad=pad)  # type: ignore[arg-type]
    runs = {attn: kit.attached(kit.model_of(family, attn), inputs, plugin) for attn in ("sdpa", "eager")}
    for one, other in zip(*(kit.survivors(run.handle, inputs) for run in runs.values()), strict=True):
        assert torch.equal(one, other)
    for layer in range(kit.LAYERS):
        for one, other in zip(*(run.handle.attended(layer) for run in runs.values()), strict=True):
            assert torch.equal(one, other)
    left = kit.survivors(runs["sdpa"].handle, inputs)[-1] & kit.real(inputs)
    kit.same(runs["eager"].logits[left], runs["sdpa"].logits[left])
    kit.differs(runs["sdpa"].logits[left], kit.once(kit.bare, kit.model_of(family), inputs)[left])


def double_equals_masked_double(family: str, plugin: Plugin, rows: Rows = (1, 2, 0)) -> None:
    """In float64 the masked run is met to nearly all digits, so that no systematic error hides in rounding."""
    model = kit.model_of(family, "sdpa", torch.float64)
    inputs = tiny_inputs(family, rows).to(dtype=torch.float64)
    run = kit.attached(model, inputs, plugin)
    left = kit.survivors(run.handle, inputs)[-1] & kit.real(inputs)
    # rotary tables and norms are computed in float32 even here, but equally in both runs; means are float32 on purpose
    relative = 1e-6 if plugin.name == "average_pool" else 1e-11
    kit.same(run.logits[left], kit.reference_logits(model, inputs, plugin, run.handle)[left], relative=relative)
    kit.differs(run.logits[left], kit.once(kit.bare, model, inputs)[left])


def batch_equals_rows(
    family: str, plugin: Plugin, rows: Rows = (1, 2, 0), pad: str = "left", video: bool | str = False
) -> None:
    """A padded batch keeps the same tokens as its rows alone, and computes the same logits."""
    model, inputs = kit.model_of(family), tiny_inputs(family, rows, pad=pad, video=video)  # type: ignore[arg-type]
    batch = kit.attached(model, inputs, plugin)
    width, moved = inputs["input_ids"].shape[1], False
    for index, images in enumerate(rows):
        alone = row(inputs, index)
        length = alone["input_ids"].shape[1]
        shift = width - length if pad == "left" else 0
        span = slice(shift, shift + length)
        if not images:
            kit.same(batch.logits[index, span], kit.once(kit.bare, model, alone)[0])
            continue
        single = kit.attached(model, alone, plugin)
        for layer in range(kit.LAYERS):
            for ask in ("survivors", "attended"):
                in_batch = getattr(batch.handle, ask)(layer)[index]
                inside = in_batch[(in_batch >= shift) & (in_batch < shift + length)] - shift
                assert inside.tolist() == getattr(single.handle, ask)(layer)[0].tolist(), f"row {index}, layer {layer}"
        left = kit.survivors(single.handle, alone)[-1][0]
        kit.same(batch.logits[index, span][left], single.logits[0, left])
        moved |= len(single.handle.attended(kit.LAYERS - 1)[0]) < length
    assert moved, "nothing was dropped"


def only_image_tokens_go(family: str, plugin: Plugin, video: bool | str = False) -> None:
    """Text, padding, separators and newlines are never dropped, kept order ascends, and sets are nested."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2, 0), video=video)  # type: ignore[arg-type]
    run = kit.attached(model, inputs, plugin)
    candidates = image_tokens(family, inputs)
    layers = kit.survivors(run.handle, inputs)
    for mask in layers:
        assert bool((mask | candidates).all()), "something that is no image token was dropped"
    assert all(bool((inner <= outer).all()) for outer, inner in pairwise(layers))
    assert bool((candidates & ~layers[-1]).any()), "nothing was dropped"
    assert bool(layers[-1][2].all()), "a row without images lost tokens"
    for layer in range(kit.LAYERS):
        for kept in run.handle.survivors(layer):
            assert kept.tolist() == sorted(set(kept.tolist()))


def image_tokens(family: str, inputs: object) -> Tensor:
    """Bool [B, S]: placeholders that are no newline, from the true layout."""
    return kit.candidates(inputs)  # type: ignore[arg-type]


def cache_holds_what_is_left(family: str, plugin: Plugin, attn: str = "sdpa", steps: int = 4) -> None:
    """Stored lengths follow the schedule; the handle names every stored position; bytes are those of the tensors."""
    model, inputs = kit.model_of(family, attn), tiny_inputs(family, (1, 2))
    length = inputs["input_ids"].shape[1]
    with attach(model, plugin) as handle:
        cache = kit.forward(model, inputs, use_cache=True).past_key_values
        last = handle.stats().last
        live = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
        assert last is not None
        assert last.kv_bytes == live
        assert last.kv_bytes < last.kv_bytes_bare
        assert cache.get_seq_length() == length
        for layer, stored in enumerate(cache.layers):
            assert stored.keys.shape[-2] == stored.values.shape[-2] == last.kv_tokens[layer]
            _positions_match(handle.kv_positions(layer), handle.survivors(layer), length, _window(model, layer))
        kept = [handle.survivors(layer) for layer in range(kit.LAYERS)]
        kit.generate(model, inputs, steps)
        for layer in range(kit.LAYERS):
            tail = torch.arange(length, length + steps - 1)
            _positions_match(
                handle.kv_positions(layer), [torch.cat([r, tail]) for r in kept[layer]], length, _window(model, layer)
            )


def _window(model: object, layer: int) -> int | None:
    attention = decoder_layers(model)[layer].self_attn  # type: ignore[arg-type]
    window = getattr(attention, "sliding_window", None)
    return None if window is None else window - 1


def _positions_match(got: Tensor, rows: list[Tensor], length: int, window: int | None) -> None:
    """`got` [B, Hkv, S]: the expected positions behind fillers of -1."""
    for row_of_heads, expected in zip(got, rows, strict=True):
        for head in row_of_heads:
            stored = head[head >= 0].tolist()
            if window is None:
                assert stored == expected.tolist()
                assert len(head) == max(len(one) for one in rows)
            else:
                # a sliding layer stores the last entries, of which it may see only those inside its window
                assert stored == expected.tolist()[-len(stored) :]
                assert len(head) == min(window, max(len(one) for one in rows))


def report_is_measured(family: str, plugin: Plugin) -> None:
    """n_eq in the report is the mean count of surviving image tokens over rows and layers."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2, 0))
    run = kit.attached(model, inputs, plugin)
    last, candidates = run.handle.stats().last, image_tokens(family, inputs)
    counts = [(mask & candidates).sum(1).float().mean().item() for mask in kit.survivors(run.handle, inputs)]
    assert last is not None
    assert last.visual == tuple(candidates.sum(1).tolist())
    assert last.visual_per_layer == tuple(counts)
    assert abs(last.n_eq - sum(counts) / len(counts)) < 1e-6
    assert last.n_eq < last.visual_tokens


def mask_and_cache_do_not_matter(family: str, attn: str, plugin: Plugin) -> None:
    """Without padding, no mask is a mask of ones, with a cache or without."""
    model, inputs = kit.model_of(family, attn), tiny_inputs(family, (1,))
    bare = {name: value for name, value in inputs.items() if name != "attention_mask"}
    want = kit.attached(model, inputs, plugin)
    left = kit.survivors(want.handle, inputs)[-1]
    for given in (inputs, bare):
        for use_cache in (True, False):
            run = kit.attached(model, given, plugin, use_cache=use_cache)
            assert torch.equal(kit.survivors(run.handle, inputs)[-1], left)
            kit.same(run.logits[left], want.logits[left])
    kit.same(want.logits[left], kit.reference_logits(model, inputs, plugin, want.handle)[left])
    kit.differs(want.logits[left], kit.bare(model, inputs)[left])


def flops_are_measured(family: str, plugin: Plugin) -> None:
    """The report's analytic FLOPs, bare and attached, are what torch counts in the decoder's layers."""
    model, inputs = kit.model_of(family, "eager"), tiny_inputs(family, (1, 2))
    names = {id(module): name for name, module in model.named_modules()}
    layers = [f"{type(model).__name__}.{names[id(layer)]}" for layer in decoder_layers(model)]

    def measured() -> float:
        with FlopCounterMode(display=False, depth=20) as counter:
            kit.forward(model, inputs)
        counts = counter.get_flop_counts()
        return float(sum(sum(counts[name].values()) for name in layers))

    bare = measured()
    with attach(model, plugin) as handle:
        realised = measured()
    last = handle.stats().last
    assert last is not None
    assert abs(last.flops_bare - bare) <= 0.01 * bare
    assert abs(last.flops - realised) <= 0.01 * realised
    assert last.flops < last.flops_bare
