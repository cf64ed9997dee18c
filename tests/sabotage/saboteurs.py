"""Broken pieces of the library, one at a time, and the contract check that has to notice each."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

from tests.contracts import (
    checks,
    checks_bypass,
    checks_cache,
    checks_life,
    checks_modes,
    checks_sets,
    checks_together,
    checks_video,
)
from tests.contracts.cases import BYPASS_CASES, EASY, HARD, HARDEST, KEEP_ALL
from tests.contracts.checks_life import Pipe
from tests.sabotage import broken
from tests.sabotage.broken import Make, after, always
from tests.tiny import tiny_vlm
from vlm_eff import attach
from vlm_eff.core.errors import CapabilityError
from vlm_eff.models.slots import Slots
from vlm_eff.tokens import fastv, random_drop


@dataclass(frozen=True)
class Saboteur:
    """`target` (dotted) is replaced by `make(original)`; then `check(*args)` has to raise."""

    target: str
    make: Make
    check: Callable[..., None]
    args: tuple[Any, ...]


LLAVA_RIGHT = ("llava", HARD["fastv"], (1, 2, 0), "right")
ZIPVL = BYPASS_CASES["zipvl_attention"][1]
MODELS, CORE, TOKENS = "vlm_eff.models", "vlm_eff.core", "vlm_eff.tokens"
MASK, SLOTS, LAYER = f"{MODELS}.translate.map_mask", f"{MODELS}.slots.Slots", f"{MODELS}.cache_layer.LogicalLayer"
MAP, GUARD = f"{MODELS}.token_map.TokenMap", f"{MODELS}.cache_layer.GuardedLayer"

SABOTEURS: dict[str, Saboteur] = {
    # ---- exactness
    "one token always goes": Saboteur(
        f"{TOKENS}.reducer.TokenReducer.at", broken.always_drops,
        checks.keep_all_is_bit_identical, ("llava", "sdpa", KEEP_ALL["uniform_grid"])),
    "survivors are unsorted": Saboteur(
        f"{MAP}.narrow", broken.unsorted, checks.drop_equals_mask, ("llava", "sdpa", HARD["random_drop"], (1,))),
    "fillers are taken for tokens": Saboteur(
        f"{MAP}.narrow", broken.fillers_last, checks.drop_equals_mask, ("llava", "eager", HARD["random_drop"])),
    "mask columns are forgotten": Saboteur(
        MASK, broken.forgets_columns, checks.drop_equals_mask, ("llava", "sdpa", HARD["random_drop"])),
    "fillers are not hidden": Saboteur(
        MASK, broken.ignores_fillers, checks.drop_equals_mask, ("idefics3", "sdpa", HARD["random_drop"])),
    "output stays short": Saboteur(
        f"{MODELS}.runtime.Runtime._decoder_after", always(None),
        checks.drop_equals_mask, ("llava", "sdpa", HARD["random_drop"])),
    "DeepStack layers stay short": Saboteur(
        f"{MODELS}.runtime.Runtime._layer_after", always(None),
        checks.drop_equals_mask, ("qwen3_vl", "sdpa", HARDEST)),
    "bypassing tokens attend all the same": Saboteur(
        f"{MODELS}.attend.Among.attend", broken.everybody_attends,
        checks.drop_equals_mask, ("llava", "sdpa", ZIPVL)),
    "who bypasses gets the output of others": Saboteur(
        f"{MODELS}.attend.Among.attend", broken.outputs_in_front,
        checks.drop_equals_mask, ("llava", "sdpa", ZIPVL)),
    "words bypass": Saboteur(
        f"{MODELS}.runtime.among", broken.last_tokens_bypass, checks_bypass.only_image_tokens_bypass, ("llava", ZIPVL)),
    "saved attention is not reported": Saboteur(
        f"{MODELS}.ledger.decoder_flops", broken.everybody_counts,
        checks_bypass.attention_alone_is_saved, ("llava", ZIPVL)),
    "earlier turns are no keys": Saboteur(
        f"{MODELS}.attend.map_mask", broken.hides_the_past,
        checks_bypass.earlier_turns_are_keys, ("llava", ZIPVL, "eager")),
    "earlier turns are no keys of the operation": Saboteur(
        f"{MODELS}.attend.selected_attention", broken.attends_to_the_new,
        checks_bypass.earlier_turns_are_keys, ("llava", ZIPVL)),
    "padding is chosen": Saboteur(
        f"{MODELS}.attend.Among._real", broken.everything_is_real,
        checks.drop_equals_mask, ("llava", "sdpa", ZIPVL)),
    "images that look ahead are taken for causal": Saboteur(
        f"{MODELS}.attend.plain_first", broken.begins_at_once,
        checks.drop_equals_mask, ("gemma3", "sdpa", ZIPVL)),
    "registers see those behind them": Saboteur(
        f"{MODELS}.masks.hide_registers", lambda original: lambda mask, queries: mask,
        checks.drop_equals_mask, ("llava", "sdpa", HARD["victor"])),
    "registers take up what stood at full length": Saboteur(
        f"{MODELS}.runtime.return_guests", lambda original: lambda survivors, full, before: survivors.gather(full),
        checks.drop_equals_mask, ("qwen3_vl", "sdpa", HARD["victor"], (1,))),
    "registers push tokens out of the window": Saboteur(
        f"{LAYER}.make_room", always(None),
        checks_cache.guests_leave_the_window_whole, (HARD["victor"],)),
    "the means are not written": Saboteur(
        f"{MODELS}.apply._write", lambda original: lambda action, hidden, survivors, spans: hidden,
        checks.drop_equals_mask, ("llava", "sdpa", HARD["average_pool"])),
    "the tap has no mask function": Saboteur(
        f"{MODELS}.observer.install_tap", broken.tap_without_mask,
        checks.drop_equals_mask, ("llava", "sdpa", HARD["fastv"])),
    "lengths are physical": Saboteur(
        f"{LAYER}.get_seq_length", broken.physical,
        checks.generate_equals_masked_generate, ("llava", "sdpa", EASY["random_drop"], (1, 2))),
    "mask sizes are physical": Saboteur(
        f"{LAYER}.get_mask_sizes", lambda original: lambda self, count: (self.slots.stored + count, 0),
        checks.generate_equals_masked_generate, ("llava", "eager", EASY["random_drop"], (1, 2))),
    "decoded tokens are not counted": Saboteur(
        f"{SLOTS}.grow", lambda original: lambda self, count: self,
        checks.generate_equals_masked_generate, ("llava", "sdpa", HARD["fastv"])),
    "additive masks are not read": Saboteur(
        f"{MODELS}.observe._hide", broken.additive_masks_unread, checks.eager_equals_sdpa, ("gemma3", HARD["fastv"])),
    "float32 creeps in": Saboteur(
        f"{MAP}.scatter", broken.rounds, checks.double_equals_masked_double, ("llava", HARD["fastv"])),
    "padding is taken for the question": Saboteur(
        f"{MODELS}.call.Call._query_slot", broken.ignores_padding, checks.batch_equals_rows, LLAVA_RIGHT),
    "a word is dropped with the image": Saboteur(
        f"{MODELS}.visual.VisualSpans.mask", broken.drops_text, checks.only_image_tokens_go, ("llava", HARD["fastv"])),
    "newlines are taken for image tokens": Saboteur(
        f"{MODELS}.call._is_newline", after(lambda found: found & False),
        checks.only_image_tokens_go, ("llava_next", HARD["fastv"])),
    "stored positions are off by one": Saboteur(
        f"{SLOTS}.append", after(lambda slots: replace(slots, start=slots.start + 1, stop=slots.stop + 1)),
        checks.cache_holds_what_is_left, ("llava", HARD["fastv"])),
    "the report repeats what was there before": Saboteur(
        f"{MODELS}.ledger.Ledger.stage", broken.before_instead_of_got,
        checks.report_is_measured, ("llava", HARD["fastv"])),
    "masks are not read": Saboteur(
        MASK, after(lambda mask: None if mask is None else torch.zeros_like(mask)),
        checks.mask_and_cache_do_not_matter, ("llava", "eager", HARD["fastv"])),
    "FLOPs are guessed": Saboteur(
        f"{MODELS}.cost.layer_flops", broken.one_layer_more,
        checks.flops_are_measured, ("llava", EASY["uniform_grid"])),
    # ---- sets
    "the score is reversed": Saboteur(
        f"{TOKENS}.scores.paid_scores", after(lambda scores: -scores),
        checks_sets.fastv_keeps_its_definition, ("llava", "sdpa", 2, 0.4)),
    "the layer is off by one": Saboteur(
        f"{TOKENS}.scores.QueryAttention._row", broken.previous_layer,
        checks_sets.fastv_keeps_its_definition, ("llava", "sdpa", 3, 0.4)),
    "the stage looks without rotation": Saboteur(
        f"{TOKENS}.scores.QueryAttention._row", broken.previous_layer,
        checks_sets.pyramiddrop_keeps_its_definition, ("llava", "sdpa", (1, 2, 4), 0.6)),
    "the ratio is of what is left": Saboteur(
        "vlm_eff.importance.keep.Keep.of_count", lambda original: lambda self, first, now: original(self, now, now),
        checks_sets.pyramiddrop_keeps_its_definition, ("llava", "sdpa", (1, 2, 4), 0.6)),
    "the grid is not kept": Saboteur(
        f"{TOKENS}.select.stride_grid", after(lambda grid: grid & False),
        checks_sets.feather_keeps_its_definition, ("llava", "sdpa", (1, 3), 0.3, 2)),
    "the rotation stays in": Saboteur(
        f"{TOKENS}.scores.QueryAttention._row", broken.with_rotation, checks_sets.feather_ignores_positions, ()),
    "windows begin a row too late": Saboteur(
        f"{TOKENS}.reduce.pool.pool_cells", broken.shifted,
        checks_sets.pooling_keeps_seats, ("llava_next", HARD["average_pool"])),
    "rows and columns are exchanged": Saboteur(
        f"{MODELS}.visual.CellWriter.cells", broken.column_major,
        checks_sets.spans_are_the_true_layout, ("llava", (1, 2, 0))),
    "frames are not parted": Saboteur(
        f"{MODELS}.visual.CellWriter.cells", broken.column_major, checks_sets.close_frames_are_told_apart, ()),
    "the global generator is used": Saboteur(
        f"{TOKENS}.scores.RandomScore.__call__", broken.global_random,
        checks_sets.random_choice_is_the_prompts, ("llava",)),
    "beams draw their own sets": Saboteur(
        f"{MODELS}.call.Call.prompt_hash", broken.numbered_rows, checks_sets.beams_share_one_choice, ("llava",)),
    "decoding is not shifted": Saboteur(
        f"{MODELS}.runtime.renumber", broken.no_shift,
        checks_sets.reindexed_entry_equals_a_shorter_prompt, (random_drop(positions="reindexed"),)),
    "positions keep their gaps": Saboteur(
        f"{MODELS}.runtime.renumber", broken.gaps_stay, checks_sets.reindexed_pyramid_equals_the_official_loop, ()),
    # ---- attach and detach
    "a hook is not taken off": Saboteur(
        f"{MODELS}.seams.after", broken.forgets_undo,
        checks_life.detach_restores, ("llava", "sdpa", HARD["random_drop"])),
    "the attention stays tapped": Saboteur(
        f"{MODELS}.tap._restore", always(None), checks_life.detach_restores, ("llava", "sdpa", HARD["fastv"])),
    "an error leaves everything on": Saboteur(
        f"{CORE}.handle.Handle.__exit__", broken.leaves_on_error,
        checks_life.error_in_block_restores, ("llava", HARD["fastv"])),
    "the last undo is forgotten": Saboteur(
        f"{CORE}.handle.Undo.run", broken.forgets_first,
        checks_life.error_in_forward_restores, ("llava", HARD["fastv"])),
    "the last undo is forgotten after a broken plugin": Saboteur(
        f"{CORE}.handle.Undo.run", broken.forgets_first, checks_life.error_in_plugin_restores, ("llava",)),
    "two writers are not refused": Saboteur(
        f"{MODELS}.attach.check_conflicts", always(None),
        checks_life.refused, ("llava", Exception, "both change", lambda model, _: attach(model, fastv(), fastv()))),
    "a layer too many is noticed late": Saboteur(
        f"{CORE}.plugin.BindContext.check_layer", always(None),
        checks_life.refused, ("llava", CapabilityError, "layer 6", lambda model, _: attach(model, fastv(layer=6)))),
    "detach takes nothing off": Saboteur(
        f"{CORE}.handle.Undo.run", always(None), checks_life.detach_any_number_of_times, ("llava", HARD["fastv"])),
    "a pause is not one": Saboteur(
        f"{MODELS}.runtime.Runtime.active", lambda original: property(lambda self: True, lambda self, value: None),
        checks_life.paused_is_bare, ("llava", "sdpa", HARD["fastv"])),
    "a copy drives the original's runtime": Saboteur(
        f"{MODELS}.seams.HookFunction.__deepcopy__", lambda original: lambda self, memo: self,
        checks_life.copy_is_bare, ("llava", HARD["random_drop"])),
    "two taps share a name": Saboteur(
        f"{MODELS}.tap._NUMBER", lambda original: itertools.repeat(0),
        checks_life.two_models_do_not_meet, ("llava", "idefics3", (HARD["fastv"], HARD["feather"]))),
    "threads share the call": Saboteur(
        f"{MODELS}.runtime._CALL", lambda original: broken.OneForAll(),
        checks_life.threads_do_not_meet, ("llava", HARD["fastv"], 30)),
    # ---- modes
    "beams lose their places": Saboteur(
        f"{SLOTS}.select", lambda original: lambda self, rows: Slots.plain(len(rows), self.stop, self.index.device),
        partial(checks_modes.several_rows_a_prompt, num_beams=2), ("llava", HARDEST)),
    "a second question starts too early": Saboteur(
        f"{LAYER}.get_seq_length", broken.physical, checks_modes.second_turn_of_text, ("llava", EASY["random_drop"])),
    "a second image forgets the first": Saboteur(
        f"{SLOTS}.append", broken.forgets_past, checks_modes.second_turn_with_an_image, ("llava", HARDEST)),
    "text is touched": Saboteur(
        f"{MODELS}.runtime.Runtime._layer_before", broken.touches,
        checks_modes.text_after_an_image, ("llava", HARD["random_drop"])),
    "a copied cache forgets its gaps": Saboteur(
        f"{SLOTS}.__deepcopy__",
        lambda _: lambda self, memo: Slots.plain(len(self.index), self.stop, self.index.device),
        checks_modes.prefix_is_reused, ("llava", HARDEST)),
    "a crop is not noticed": Saboteur(
        f"{SLOTS}.crop", lambda original: lambda self, count: self,
        checks_modes.prompt_lookup_equals_greedy, ("llava", HARD["fastv"])),
    "candidates are taken for the question": Saboteur(
        f"{MODELS}.call.Call._query_slot", broken.ignores_candidates,
        checks_modes.candidates_do_not_move_the_choice, ("llava", HARD["fastv"])),
    "places are drawn": Saboteur(
        f"{TOKENS}.scores.GridSpread.__call__", broken.global_random,
        checks_modes.decoding_without_a_cache, ("llava", HARD["uniform_grid"])),
    "embeddings are not looked at": Saboteur(
        f"{MODELS}.call._placeholders", after(lambda found: (found[0] & False, found[1])),
        checks_modes.embeddings_instead_of_ids, ("llava", HARD["random_drop"])),
    "embeddings are shifted": Saboteur(
        f"{MODELS}.call._placeholders",
        lambda original: lambda adapter, entry, embeds: tuple(
            one.roll(1, 1) if entry.ids is None else one for one in original(adapter, entry, embeds)
        ),
        checks_modes.embeddings_keep_what_ids_keep, ("llava", EASY["uniform_grid"])),
    "labels are not looked at": Saboteur(
        f"{MODELS}.runtime.check_labels", always(None), checks_modes.loss_equals_the_masked_loss, ("llava", HARDEST)),
    "hidden states cost the output": Saboteur(
        f"{MODELS}.runtime.Runtime._decoder_after", always(None),
        checks_modes.hidden_states_come_back, ("llava", HARDEST)),
    "the second plugin is not asked": Saboteur(
        f"{MODELS}.runtime.Runtime._ask", broken.asks_one_plugin,
        checks_together.plugins_together_equal_masking, ("llava", EASY["uniform_grid"], HARDEST)),
    "two plugins and tokens that are not counted": Saboteur(
        f"{SLOTS}.grow", lambda original: lambda self, count: self,
        checks_together.plugins_together_decode_as_masked, ("llava", EASY["uniform_grid"], HARDEST)),
    "hidden states stay short": Saboteur(
        f"{MODELS}.call.Call.full_length", lambda original: lambda self, states: states,
        checks_modes.hidden_states_are_logical, ("llava", HARDEST)),
    "a hidden state is put back by its length alone": Saboteur(
        f"{MODELS}.call.Call.full_length", broken.by_length,
        checks_modes.hidden_states_equal_those_of_rows, ("llava", HARDEST)),
    "logits that are asked for are taken for candidates": Saboteur(
        f"{MODELS}.runtime.find_spans", broken.forgets_an_image,
        checks_modes.all_logits_drop_the_same, ("llava", HARD["uniform_grid"])),
    "wrappers are not opened": Saboteur(
        f"{MODELS}.adapter.unwrap", lambda original: lambda model: model,
        checks_modes.wrapped_equals_plain, ("llava", HARDEST, Pipe, lambda pipe: pipe.model, tiny_vlm("llava"))),
    # ---- videos
    "images lose tokens to a method for videos": Saboteur(
        f"{TOKENS}.select_video._with_images", lambda original: lambda kept, spans: kept,
        checks_video.images_are_left_alone, ("llava", HARD["evs"])),
    "images beside a video are taken for its frames": Saboteur(
        f"{MODELS}.visual.CellWriter.next_image", broken.everything_is_a_video,
        checks_video.only_video_tokens_go, ("qwen2_5_vl", HARD["vcast"])),
    # ---- caches
    "cropping into the image is not refused": Saboteur(
        f"{SLOTS}.crop", lambda original: lambda self, count: replace(self, stop=self.stop - count),
        checks_cache.crop_stops_at_the_image, ("llava", EASY["uniform_grid"])),
    "a refused crop is carried out": Saboteur(
        f"{GUARD}.crop", lambda original: lambda self, count: DynamicLayer.crop(self, count),
        checks_cache.a_refused_crop_changes_nothing, ("llava", HARDEST)),
    "a bare model may misread the cache": Saboteur(
        f"{LAYER}.update", broken.trusts_everybody, checks_cache.a_cache_needs_its_handle, ("llava", HARDEST)),
    "reordered rows keep the places of others": Saboteur(
        f"{LAYER}.reorder_cache", broken.forgets_slots, checks_cache.cache_rows_follow, ("llava", HARDEST)),
    "selected rows keep the places of others": Saboteur(
        f"{LAYER}.batch_select_indices", broken.forgets_slots, checks_cache.cache_rows_follow, ("llava", HARDEST)),
    "repeated rows keep the places of others": Saboteur(
        f"{LAYER}.batch_repeat_interleave", broken.forgets_slots, checks_cache.cache_rows_follow, ("llava", HARDEST)),
}  # fmt: skip
