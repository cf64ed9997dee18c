"""Victor: what registers see and who sees them, what is stored, learned, saved and refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from tests.contracts import checks_cache, kit
from tests.contracts import checks_modes as modes
from tests.contracts.checks_life import leaves_nothing
from tests.contracts.snapshot import assert_unchanged, snapshot
from tests.tiny import FAMILIES, row, tiny_inputs, tiny_vlm, visual_layout
from vlm_eff import attach, plugin
from vlm_eff.core.config import from_dict
from vlm_eff.core.errors import CapabilityError, ConfigError, ConflictError, StateError
from vlm_eff.models.learned import LearnedWeights
from vlm_eff.tokens import fastv, random_drop, uniform_grid, victor, zipvl_attention

FEW = ("llava", "llava_next", "qwen2_vl", "qwen3_vl", "gemma3", "paligemma")
LAYER, COUNT = 2, 3
TEST = victor(COUNT, LAYER, untrained=True, seed=3)


def by_hand(model: PreTrainedModel, inputs: Any, vectors: Tensor, layer: int) -> Tensor:
    """Logits [1, S + R, V] of a LLaVA whose prompt embeddings have the registers IN the sequence, by its own classes.

    The text model gets embeddings, explicit rotary positions and an explicit mask; nothing is hooked.
    """
    with torch.no_grad():
        seen: list[Tensor] = []
        hook = model.get_decoder().register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
        )
        model(**inputs)
        hook.remove()
        visual = kit.candidates(inputs)[0].nonzero()[:, 0]
        end, length = int(visual[-1]) + 1, inputs["input_ids"].shape[1]
        hidden = torch.cat([seen[0][:, :end], vectors[None], seen[0][:, end:]], 1)
        positions = torch.arange(length)
        positions = torch.cat([positions[:end], visual[-len(vectors) :], positions[end:]])[None]
        decoder = model.get_decoder()
        tables = decoder.rotary_emb(hidden, positions)
        causal = torch.ones(hidden.shape[1], hidden.shape[1], dtype=torch.bool).tril()
        late = causal.clone()
        late[:, visual] = False
        late |= torch.eye(len(late), dtype=torch.bool)
        for index, block in enumerate(decoder.layers):
            mask = (late if index >= layer else causal)[None, None]
            hidden = block(hidden, attention_mask=mask, position_embeddings=tables)
        logits: Tensor = model.lm_head(decoder.norm(hidden))
        return logits


@pytest.mark.parametrize("layer", [1, 2, 5, 6])
def test_it_is_the_model_with_registers_in_the_sequence(layer: int) -> None:
    """Layer 6 of 6 is prefix tuning: registers are there and nothing is dropped."""
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1,))
    run = kit.attached(model, inputs, victor(COUNT, layer, untrained=True))
    vectors = run.handle.weights["victor"].registers.detach()
    want = by_hand(model, inputs, vectors, layer)
    visual = kit.candidates(inputs)[0]
    end = int(visual.nonzero()[-1]) + 1
    text = torch.cat([want[:, : end - int(visual.sum())], want[:, end + COUNT :]], 1)
    kit.same(run.logits[:, ~visual], text)
    kit.differs(run.logits[:, -1], kit.bare(model, inputs)[:, -1])
    if layer == 6:
        kit.same(run.logits[:, visual], want[:, :end][:, visual[:end]])
    else:
        carriers = visual.nonzero()[-COUNT:, 0]
        kit.same(run.logits[:, carriers], want[:, end : end + COUNT])


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_registers_without_dropping_equal_the_longer_model(family: str, attn: str) -> None:
    """At the number of layers nothing is dropped, in prefill and decoding, whatever the family."""
    model, inputs, all_layers = (
        kit.model_of(family, attn),
        tiny_inputs(family, (1, 2, 0)),
        victor(COUNT, 6, untrained=True),
    )
    run = kit.attached_generate(model, inputs, all_layers)
    tokens, logits = kit.reference_generate(model, inputs, all_layers, run.handle)
    kit.same(run.logits, logits)
    assert torch.equal(run.tokens, tokens)
    kit.differs(run.logits[:2, 0], kit.generate(model, inputs, 1)[1][:2, 0])


@pytest.mark.parametrize("family", FEW)
def test_visual_tokens_do_not_see_registers(family: str) -> None:
    """Before the drop nothing ahead of the registers changes; with a prefix seen both ways it must."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2))
    bare, run = kit.bare(model, inputs), kit.attached(model, inputs, victor(COUNT, 6, untrained=True))
    for index, mask in enumerate(kit.candidates(inputs)):
        ahead = kit.real(inputs)[index].clone()
        ahead[int(mask.nonzero()[-1]) + 1 :] = False
        if family == "paligemma":
            kit.differs(run.logits[index, ahead], bare[index, ahead])
        else:
            kit.same(run.logits[index, ahead], bare[index, ahead])


@pytest.mark.parametrize("pad", ["left", "right"])
@pytest.mark.parametrize("family", FEW)
def test_every_layer_may_be_the_one(family: str, pad: str) -> None:
    """Layers among DeepStack features and on sliding layers; more registers than the last image has tokens."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 3, 0), pad=pad)  # type: ignore[arg-type]
    most = int(kit.candidates(inputs).sum(1)[:2].min())
    for layer, count in ((1, 1), (2, most), (3, 2), (4, most - 1), (5, 4)):
        made = victor(count, layer, untrained=True, seed=layer)
        run = kit.attached(model, inputs, made)
        left = kit.survivors(run.handle, inputs)[-1] & kit.real(inputs)
        kit.same(run.logits[left], kit.reference_logits(model, inputs, made, run.handle)[left])


@pytest.mark.parametrize("video", [True, "mixed"])
@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_vl", "qwen3_vl"])
def test_videos_get_registers_too(family: str, video: Any) -> None:
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2, 0), video=video)
    run = kit.attached(model, inputs, TEST)
    left = kit.survivors(run.handle, inputs)[-1] & kit.real(inputs)
    kit.same(run.logits[left], kit.reference_logits(model, inputs, TEST, run.handle)[left])


# ------------------------------------------------------------------ what is stored and counted


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_store_what_the_paper_says(family: str) -> None:
    """S + R entries before the layer, S + R - V from it on; a sliding layer has room for R guests."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2))
    length, visual = inputs["input_ids"].shape[1], kit.candidates(inputs)
    with attach(model, TEST) as handle:
        cache = kit.forward(model, inputs, use_cache=True).past_key_values
        report = handle.stats().last
        assert report is not None
        assert cache.get_seq_length() == length
        # the row that keeps most decides: all rows share one tensor
        rest = int((~visual).sum(1).max()) + COUNT
        for index, layer in enumerate(cache.layers):
            want = length + COUNT if index < LAYER else rest
            window = getattr(model.get_decoder().layers[index].self_attn, "sliding_window", None)
            if window is not None:
                want = min(window - 1 + (COUNT if index < LAYER else 0), want)
            assert layer.keys.shape[-2] == report.kv_tokens[index] == want
            carriers = [mask.nonzero()[-COUNT:, 0] for mask in visual]
            for stored, mask, own in zip(handle.kv_positions(index)[:, 0], visual, carriers, strict=True):
                named = stored[stored >= 0].tolist()
                everything = (torch.arange(length) if index < LAYER else (~mask).nonzero()[:, 0]).tolist()
                if window is None:
                    assert sorted(named) == sorted(everything + own.tolist())
        tokens = float(visual.sum(1).float().mean())
        assert report.visual_per_layer == (tokens + COUNT,) * LAYER + (float(COUNT),) * (kit.LAYERS - LAYER)
        assert report.n_eq == pytest.approx(report.n_eq_asked)
        assert report.sequence_per_layer[0] == length + COUNT


@pytest.mark.parametrize("family", FEW)
def test_survivors_name_the_carriers(family: str) -> None:
    """Outside, lengths stay what they were: the registers are reported on the places of the last visual tokens."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2, 0))
    handle = kit.attached(model, inputs, TEST).handle
    layers = kit.survivors(handle, inputs)
    for index, mask in enumerate(kit.candidates(inputs)):
        want = torch.ones_like(mask)
        for layer in range(kit.LAYERS):
            if layer == LAYER:
                want[mask] = False
                want[mask.nonzero()[-COUNT:, 0]] = True
            assert torch.equal(layers[layer][index], want)
            assert int(handle.visual(layer)[index].kept.sum()) == int((want & mask).sum())


def test_steps_beyond_the_window_are_right() -> None:
    checks_cache.guests_leave_the_window_whole(victor(4, 4, untrained=True))


# ------------------------------------------------------------------ turns, beams, caches


@pytest.mark.parametrize("mode", [{"num_beams": 3, "num_return_sequences": 2}, {"num_return_sequences": 2}])
@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "gemma3"])
def test_several_rows_a_prompt(family: str, mode: dict[str, Any]) -> None:
    modes.several_rows_a_prompt(family, TEST, **mode, do_sample="num_beams" not in mode)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "gemma3", "paligemma"])
def test_a_later_turn_and_a_later_image(family: str) -> None:
    """After two images in two calls on one cache, words given at once and one by one end in the same logits."""
    model = kit.model_of(family)
    first, later = tiny_inputs(family, (1, 1), text=(6, 6)), tiny_inputs(family, (1, 1), text=(6, 6), seed=8)
    length = first["input_ids"].shape[1]
    turn = modes.next_turn(model, first, family, length, later)
    words = {"input_ids": modes.words(2, 5, 4)}
    more = modes.next_turn(model, turn, family, length + later["input_ids"].shape[1], words)

    def talk(*, step: bool) -> Tensor:
        cache = DynamicCache(config=model.config.get_text_config())
        for inputs in (first, turn):
            kit.forward(model, inputs, past_key_values=cache, use_cache=True)
        if not step:
            return kit.forward(model, more, past_key_values=cache, use_cache=True).logits[:, -1]
        for column in range(5):
            before = length + later["input_ids"].shape[1] + column
            one = {"input_ids": words["input_ids"][:, column : column + 1]}
            single = modes.next_turn(model, more, family, before, one)
            logits = kit.forward(model, single, past_key_values=cache, use_cache=True).logits
        return logits[:, -1]

    with attach(model, TEST) as handle:
        at_once, in_steps = talk(step=False), talk(step=True)
        stored = handle.kv_positions(kit.LAYERS - 1)
    if family != "paligemma":
        # paligemma reads what comes in one call in both directions
        kit.same(in_steps, at_once)
    kit.differs(at_once, talk(step=False))
    assert stored.shape[0] == 2


def test_a_cache_in_the_users_hands() -> None:
    checks_cache.a_cache_needs_its_handle("llava", TEST)


def test_a_reset_cache_forgets_its_room() -> None:
    model, inputs = kit.model_of("gemma3"), tiny_inputs("gemma3", (1,))
    with attach(model, TEST):
        cache = kit.forward(model, inputs, use_cache=True).past_key_values
        assert {layer.extra for layer in cache.layers[:LAYER]} == {COUNT}
        window = cache.layers[0].sliding_window
        cache.reset()
        assert cache.layers[0].sliding_window == window - COUNT


# ------------------------------------------------------------------ learning


def trained(model: Any, inputs: Any, handle: Any) -> Tensor:
    """Loss of one call with the answer supervised."""
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -3:] = inputs["input_ids"][:, -3:]
    loss: Tensor = model(**inputs, labels=labels, use_cache=False).loss
    return loss


@pytest.mark.parametrize("family", FAMILIES)
def test_only_registers_learn_when_the_model_is_frozen(family: str) -> None:
    model, inputs = tiny_vlm(family).requires_grad_(False), tiny_inputs(family, (1, 2, 0))
    with attach(model, TEST) as handle:
        loss = trained(model, inputs, handle)
        loss.backward()
        gradients = [parameter.grad for parameter in handle.parameters()]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert len(gradients) == 1
    assert gradients[0] is not None
    assert bool((gradients[0].abs().sum(1) > 0).all()), "a register learns nothing"


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_the_gradient_is_the_slope(family: str) -> None:
    model, inputs = tiny_vlm(family, dtype=torch.float64).requires_grad_(False), tiny_inputs(family, (1, 2))
    inputs = inputs.to(dtype=torch.float64)
    with attach(model, TEST) as handle:
        vectors = handle.weights["victor"].double().registers
        trained(model, inputs, handle).backward()
        direction = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        expected = float((vectors.grad * direction).sum())
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                vectors += sign * 1e-5 * direction
                losses.append(float(trained(model, inputs, handle)))
                vectors -= sign * 1e-5 * direction
    # norms are computed in float32 even here
    assert (losses[0] - losses[1]) / 2e-5 == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_steps_lower_the_loss_with_the_model_frozen_or_not(mode: str) -> None:
    model, inputs = tiny_vlm("llava"), tiny_inputs("llava", (1, 2))
    model.train(mode == "train")
    made = victor(COUNT, LAYER, untrained=mode == "eval")
    with attach(model, made) as handle:
        parameters: list[nn.Parameter] = [*handle.parameters()]
        if mode == "train":
            parameters += model.parameters()
        else:
            model.requires_grad_(False)
        optimiser = torch.optim.Adam(parameters, lr=0.01)
        losses = []
        for _ in range(6):
            loss = trained(model, inputs, handle)
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            losses.append(float(loss.detach()))
        assert losses[-1] < losses[0]
        # training over, the same handle generates
        model.eval()
        kit.generate(model, inputs, 3)


def test_training_mode_needs_plugins_that_learn() -> None:
    model = tiny_vlm("llava").train()
    with pytest.raises(CapabilityError, match=r"training mode, and fastv cannot be trained"):
        attach(model, fastv())
    model.activation_checkpointing_enable()
    before = snapshot(model)
    with pytest.raises(CapabilityError, match="gradient checkpointing"):
        attach(model, victor())
    assert_unchanged(before, model)


def test_attaching_and_learning_leave_the_model_alone() -> None:
    model, inputs = tiny_vlm("llava"), tiny_inputs("llava", (1, 2))

    def act() -> None:
        state = torch.get_rng_state()
        with attach(model, victor(COUNT, LAYER, untrained=True)) as handle:
            assert torch.equal(torch.get_rng_state(), state)
            loss = trained(model, inputs, handle)
            torch.autograd.grad(loss, [*handle.parameters()])
            with handle.paused():
                kit.bare(model, inputs)

    leaves_nothing(model, inputs, act)


# ------------------------------------------------------------------ weights on their own


@pytest.fixture
def saved(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "registers.safetensors"
    with attach(tiny_vlm("llava"), victor(COUNT, LAYER, untrained=True, seed=9)) as handle:
        handle.weights["victor"].save(path)
        kit.bare(handle._runtime.adapter.top, tiny_inputs("llava"))  # type: ignore[attr-defined]
    yield path


def test_weights_come_back(saved: Path) -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1, 2))
    want = kit.attached(model, inputs, victor(COUNT, LAYER, untrained=True, seed=9)).logits
    loaded = victor(COUNT, LAYER, weights=str(saved))
    assert torch.equal(kit.attached(model, inputs, loaded).logits, want)
    assert plugin(f"victor:registers={COUNT},layer={LAYER},weights='{saved}'") == loaded
    assert from_dict(loaded.to_dict()) == loaded
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


@pytest.mark.parametrize(
    ("family", "change", "match"),
    [
        ("llava", {"registers": 4}, "registers 3 instead of 4"),
        ("llava", {"layer": 3}, "layer 2 instead of 3"),
        ("llava", {"init": "pooled"}, "init normal instead of pooled"),
        ("qwen2_vl", {}, "model_type llava instead of qwen2_vl"),
    ],
)
def test_weights_of_something_else_are_refused(saved: Path, family: str, change: dict[str, Any], match: str) -> None:
    settings = {"registers": COUNT, "layer": LAYER} | change
    model = kit.model_of(family)
    before = snapshot(model)
    with pytest.raises(ConfigError, match=match):
        attach(model, victor(**settings, weights=str(saved)))
    assert_unchanged(before, model)


def test_files_that_are_no_weights_are_refused(saved: Path, tmp_path: Path) -> None:
    model = kit.model_of("llava")
    (tmp_path / "text").write_text("registers")
    LearnedWeights().save(tmp_path / "empty")
    for name, match in (("none", "no such file"), ("text", "no safetensors file"), ("empty", "made for width None")):
        with pytest.raises(ConfigError, match=match):
            attach(model, victor(COUNT, LAYER, weights=str(tmp_path / name)))


# ------------------------------------------------------------------ the warm start


def test_a_pooled_start_is_the_mean_of_each_region() -> None:
    """25 tokens of 5 x 5 cannot be cut in 4 equal squares: rows and columns 0-2 and 3-4."""
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1,))
    made = victor(4, 6, init="pooled", untrained=True)
    seen: dict[str, Tensor] = {}
    layer = model.get_decoder().layers[0]
    with attach(model, made) as handle:
        hook = layer.register_forward_pre_hook(lambda module, args: seen.update(long=args[0]))
        kit.forward(model, inputs)
        with handle.paused():
            hook.remove()
            hook = layer.register_forward_pre_hook(lambda module, args: seen.update(bare=args[0]))
            kit.forward(model, inputs)
            hook.remove()
    cells = visual_layout("llava", inputs)[0]
    slots = kit.candidates(inputs)[0].nonzero()[:, 0].tolist()
    for number in range(4):
        inside = [
            slot
            for slot, cell in zip(slots, cells, strict=True)
            if (cell["y"] >= 3) == bool(number // 2) and (cell["x"] >= 3) == bool(number % 2)
        ]
        want = seen["bare"][0, inside].mean(0)
        assert torch.allclose(seen["long"][0, slots[-1] + 1 + number], want, atol=1e-5)


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen3_vl"])
def test_a_pooled_start_does_not_depend_on_the_batch(family: str) -> None:
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2, 0), pad="right")
    made = victor(6, 2, init="pooled", untrained=True)
    batch = kit.attached(model, inputs, made).logits
    for index in (0, 1):
        alone = row(inputs, index)
        left = kit.survivors(kit.attached(model, alone, made).handle, alone)[-1][0]
        single = kit.attached(model, alone, made).logits
        kit.same(batch[index, : len(left)][left], single[0, left])
    kit.differs(batch[:2, -8:], kit.attached(model, inputs, victor(6, 2, untrained=True)).logits[:2, -8:])


# ------------------------------------------------------------------ refusals


def test_untrained_registers_are_refused_outside_training() -> None:
    with pytest.raises(CapabilityError, match=r"victor without weights.*untrained=True"):
        attach(kit.model_of("llava"), victor())


def test_more_registers_than_visual_tokens_are_refused() -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1,))
    with attach(model, victor(25, untrained=True)):
        kit.forward(model, inputs)
    with (
        attach(model, victor(26, untrained=True)),
        pytest.raises(CapabilityError, match="26 register tokens for a row with 25 visual tokens"),
    ):
        kit.forward(model, inputs)


@pytest.mark.parametrize("bad", [{"registers": 0}, {"layer": 0}, {"layer": True}, {"registers": 2.0}, {"init": "zero"}])
def test_values_that_make_no_sense_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        victor(**bad)


def test_a_layer_behind_the_decoder_is_refused() -> None:
    with pytest.raises(CapabilityError, match="layer 7"):
        attach(kit.model_of("llava"), victor(layer=7, untrained=True))


@pytest.mark.parametrize(
    "other", [fastv(), random_drop(), uniform_grid(layer=4), zipvl_attention()], ids=lambda other: other.name
)
def test_no_other_plugin_drops_beside_it(other: Any) -> None:
    with pytest.raises(ConflictError, match="victor"):
        attach(kit.model_of("llava"), TEST, other)


def test_a_cache_with_registers_is_not_cropped_into_the_image() -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1,))
    with attach(model, TEST):
        cache = kit.forward(model, inputs, use_cache=True).past_key_values
        behind = inputs["input_ids"].shape[1] - 1 - int(kit.candidates(inputs)[0].nonzero()[-1])
        with pytest.raises(StateError, match="cropped"):
            cache.crop(-behind - 1)
        cache.crop(-behind)
        assert {layer.get_seq_length() for layer in cache.layers} == {inputs["input_ids"].shape[1] - behind}
