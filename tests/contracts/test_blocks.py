"""Sparse prefill obeys the laws: exactness against a mask of pairs, batches, turns, decoding, restored models."""

from __future__ import annotations

from functools import wraps

import pytest
import torch

from tests.contracts import checks, checks_blocks, checks_life, kit
from tests.contracts import checks_modes as modes
from tests.contracts.cases import HARD, SPARSE_CASES
from tests.tiny import FAMILIES, VIDEO_FAMILIES, tiny_inputs
from vlm_eff import attach, methods
from vlm_eff.core.errors import CapabilityError, ConflictError
from vlm_eff.models import attend_blocks
from vlm_eff.models.family import causal_families
from vlm_eff.tokens import cross_modal_window, zipvl_attention

CAUSAL = causal_families()
EASY = {name: easy for name, (easy, _, _) in SPARSE_CASES.items()}
TOUGH = {name: hard for name, (_, hard, _) in SPARSE_CASES.items()}
BATCHES = {"one": ((1,), "left"), "ragged-left": ((1, 2, 0), "left"), "ragged-right": ((1, 2, 0), "right")}
# plain, newlines, three-axis positions with DeepStack
FEW = ("llava", "llava_next", "qwen3_vl")
attentions = pytest.mark.parametrize("attn", ["sdpa", "eager"])
pairs = pytest.mark.parametrize(("family", "name"), [(family, name) for family in CAUSAL for name in SPARSE_CASES])
two = pytest.mark.parametrize(("family", "name"), [(family, name) for family in FEW[::2] for name in SPARSE_CASES])
few = pytest.mark.parametrize(("family", "name"), [(family, name) for family in FEW for name in SPARSE_CASES])


@attentions
@two
def test_seeing_everything_changes_no_bit(family: str, name: str, attn: str) -> None:
    checks.keep_all_is_bit_identical(family, attn, SPARSE_CASES[name][2])


@pairs
def test_blocks_equal_a_mask_of_pairs(family: str, name: str) -> None:
    checks.drop_equals_mask(family, "sdpa", TOUGH[name])


@pytest.mark.parametrize("batch", BATCHES)
@attentions
@two
def test_blocks_equal_a_mask_of_pairs_in_every_batch(family: str, name: str, attn: str, batch: str) -> None:
    checks.drop_equals_mask(family, attn, TOUGH[name], *BATCHES[batch])


@two
def test_blocks_equal_a_mask_of_pairs_in_tiles_of_the_kernel(family: str, name: str) -> None:
    checks.drop_equals_mask(family, "sdpa", EASY[name])


@pytest.mark.parametrize("name", SPARSE_CASES)
@pytest.mark.parametrize("video", [True, "mixed"])
@pytest.mark.parametrize("family", [family for family in VIDEO_FAMILIES if family in CAUSAL])
def test_blocks_equal_a_mask_of_pairs_on_video(family: str, video: bool | str, name: str) -> None:
    checks.drop_equals_mask(family, "sdpa", TOUGH[name], (1, 2, 0), "right", video)


@two
def test_decoding_goes_on_in_full(family: str, name: str) -> None:
    checks.generate_equals_masked_generate(family, "sdpa", TOUGH[name])


@two
def test_eager_equals_sdpa(family: str, name: str) -> None:
    checks.eager_equals_sdpa(family, TOUGH[name])


@two
def test_blocks_equal_a_mask_of_pairs_in_float64(family: str, name: str) -> None:
    checks.double_equals_masked_double(family, TOUGH[name])


@pytest.mark.parametrize("pad", ["left", "right"])
@few
def test_a_batch_equals_its_rows(family: str, name: str, pad: str) -> None:
    checks_blocks.a_row_does_not_depend_on_its_batch(family, TOUGH[name], pad)


@few
def test_nobody_is_dropped(family: str, name: str) -> None:
    checks_blocks.nobody_is_dropped(family, TOUGH[name])


@pytest.mark.parametrize("name", SPARSE_CASES)
@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "mistral3"])
def test_a_second_image_on_the_same_cache(family: str, name: str) -> None:
    checks_blocks.turns_attend_by_pair(family, TOUGH[name])


@pytest.mark.parametrize("name", SPARSE_CASES)
@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_candidates_do_not_move_the_choice(family: str, name: str) -> None:
    checks_blocks.candidates_attend_in_full(family, TOUGH[name])


@pytest.mark.parametrize("name", SPARSE_CASES)
@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_beams(family: str, name: str) -> None:
    modes.several_rows_a_prompt(family, TOUGH[name], num_beams=2)


@pytest.mark.parametrize("name", SPARSE_CASES)
@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_detach_restores(family: str, name: str) -> None:
    checks_life.detach_restores(family, "sdpa", TOUGH[name])


@pytest.mark.parametrize("name", SPARSE_CASES)
def test_text_alone_is_untouched(name: str) -> None:
    modes.text_after_an_image("llava", TOUGH[name])


def test_threads_do_not_meet() -> None:
    checks_life.threads_do_not_meet("llava", TOUGH["vertical_slash"])


@pytest.mark.parametrize("computed", [True, False])
@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_vl"])
def test_what_is_computed_is_reported(family: str, computed: bool) -> None:
    plugin = cross_modal_window(window=3, sinks=1, layers=(0, 2, 5), tile=(1, 1))
    checks_blocks.what_is_computed_is_reported(family, plugin, computed)


def test_a_window_that_leaves_nothing_out_is_the_bare_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """One key short of the prompt, and that one a sink: computed in blocks, and equal to the bare model."""
    model, inputs, calls = kit.model_of("llava"), tiny_inputs("llava", (2,)), []
    attend = attend_blocks.sparse_attention
    counting = wraps(attend)(lambda *args, **kwargs: calls.append(1) or attend(*args, **kwargs))
    monkeypatch.setattr(attend_blocks, "sparse_attention", counting)
    plugin = cross_modal_window(window=inputs["input_ids"].shape[1] - 1, sinks=1, tile=(8, 4))
    run = kit.attached(model, inputs, plugin)
    last = run.handle.stats().last
    assert last is not None
    assert set(last.listed_per_layer) == {1.0}
    assert len(calls) == kit.LAYERS
    kit.same(run.logits, kit.bare(model, inputs), relative=1e-5)


@pytest.mark.parametrize("name", SPARSE_CASES)
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in CAUSAL])
def test_families_that_look_ahead_are_refused(family: str, name: str) -> None:
    """The method table does not name them, and attach says why."""
    assert not methods()[name].serves(family)
    checks_life.refused(family, CapabilityError, "what comes after them", lambda model, _: attach(model, TOUGH[name]))


def test_the_other_families_look_back_alone() -> None:
    """What the table says of families is what their masks say: no query sees a later key."""
    for family in CAUSAL:
        model, inputs = kit.model_of(family, "eager"), tiny_inputs(family, (1, 2))
        with torch.no_grad():
            weights = model(**inputs, output_attentions=True).attentions
        real = kit.real(inputs)
        for layer in weights:
            assert float(layer.triu(1).amax((1, 3))[real].max()) == 0.0


def test_masks_of_pairs_are_refused() -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1,))
    length = inputs["input_ids"].shape[1]
    given = dict(inputs) | {"attention_mask": torch.ones(1, 1, length, length).tril().bool()}
    with attach(model, TOUGH["top_blocks"]), pytest.raises(CapabilityError, match="mask of pairs"):
        kit.forward(model, given)


def test_two_plugins_on_who_attends_are_refused() -> None:
    with pytest.raises(ConflictError, match="pairs of tokens"):
        attach(kit.model_of("llava"), TOUGH["top_blocks"], zipvl_attention())


@few
def test_blocks_among_survivors_equal_a_mask_of_pairs(family: str, name: str) -> None:
    checks_blocks.blocks_among_survivors(family, HARD["pyramiddrop"], TOUGH[name])


def test_bfloat16_runs() -> None:
    model = kit.model_of("llava", "sdpa", torch.bfloat16)
    inputs = tiny_inputs("llava", (1, 2)).to(dtype=torch.bfloat16)
    run = kit.attached(model, inputs, TOUGH["cross_modal_window"])
    want = kit.reference_logits(model, inputs, TOUGH["cross_modal_window"], run.handle)
    real = kit.real(inputs)
    kit.same(run.logits[real].float(), want[real].float(), relative=0.15)
