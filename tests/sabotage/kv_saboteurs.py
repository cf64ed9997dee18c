"""Broken pieces of the compressed cache, and the contract that has to notice each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tests.contracts import checks_kv as checks
from tests.contracts import checks_kv_cache as caches
from tests.contracts import checks_kv_sets as sets
from tests.contracts.cases import HARD as TOKENS
from tests.contracts.kv_cases import EASY, HARD
from tests.contracts.kv_promises import PROMISES, keeps_everything
from tests.contracts.kv_scripted import SCRIPTED
from tests.sabotage import broken
from tests.sabotage.broken import after, always
from tests.sabotage.saboteurs import Saboteur
from vlm_eff.models.cache_layer import LogicalLayer

KV, MODELS = "vlm_eff.models.kv", "vlm_eff.models"
LAYER, LOGICAL = f"{KV}.layer.CompressedLayer", f"{MODELS}.cache_layer.LogicalLayer"
MASK, SLOTS, PICK = f"{MODELS}.translate.mask_of_heads", f"{MODELS}.slots.Slots", f"{KV}.write._pick"
ENTRIES, HARDEST, RANDOM = f"{KV}.compress.open_entries", HARD["snapkv"], HARD["random_evict"]


def touches_keys(original: Any) -> Any:
    return lambda self, key, value, *args, **kwargs: original(self, key * 1.001, value, *args, **kwargs)


def evicts_at_once(original: Any) -> Any:
    """Entries are evicted before the attention that brings them has seen them."""

    def update(self: Any, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        made = original(self, key, value, *args, **kwargs)
        if key.shape[-2] > 1:
            self.keys[:, :, : key.shape[-2] // 2] = 0.0
            self.values[:, :, : key.shape[-2] // 2] = 0.0
        return made

    return update


def loses_padding(original: Any) -> Any:
    """The mask is made anew from the places of entries, without the model's own."""
    return lambda mask, keys, weight, queries, wanted: original(None, keys, weight, queries, wanted)


def sees_fillers(original: Any) -> Any:
    """Fillers pass for the newest token."""

    def mask_of_heads(mask: Any, keys: Tensor, weight: Any, queries: Any, wanted: Any) -> Any:
        return original(mask, keys.masked_fill(keys < 0, wanted.past), weight, queries, wanted)

    return mask_of_heads


def sees_fillers_in_eager(original: Any) -> Any:
    def mask_of_heads(mask: Any, *rest: Any) -> Any:
        is_additive = isinstance(mask, Tensor) and mask.is_floating_point()
        return (sees_fillers(original) if is_additive else original)(mask, *rest)

    return mask_of_heads


def stays_in_memory(original: Any) -> Any:
    def carry_out(decided: Any, entries: Any, cache: Any, *rest: Any) -> None:
        cache.before = cache.keys
        original(decided, entries, cache, *rest)

    return carry_out


def held_elsewhere(original: Any) -> Any:
    held: list[Any] = []

    def carry_out(decided: Any, entries: Any, cache: Any, *rest: Any) -> None:
        held.append(cache.values)
        original(decided, entries, cache, *rest)

    carry_out.held = held  # type: ignore[attr-defined]
    return carry_out


def leaves_behind(*names: str) -> Any:
    """What a layer holds under `names` does not follow."""

    def make(original: Any) -> Any:
        def move(self: Any, *args: Any) -> None:
            before = {name: getattr(self, name) for name in names}
            original(self, *args)
            for name, value in before.items():
                setattr(self, name, value)

        return move

    return make


def crops_anything(original: Any) -> Any:
    def crop(self: Any, tokens_to_remove: int) -> None:
        count = abs(tokens_to_remove)
        self.keys, self.values = self.keys[:, :, :-count], self.values[:, :, :-count]
        self.slots = replace(self.slots, stop=self.slots.stop - count)

    return crop


def takes_candidates(original: Any) -> Any:
    """Candidates that follow a prompt are part of it."""

    def enter(self: Any, call: Any, index: int, now: Any) -> None:
        original(self, call, index, now)
        if index in self.layers and call.past == 0:
            now.cache.layers[index].book.prompt = call.length

    return enter


def turned_around(original: Any) -> Any:
    """Ties go to the higher index."""
    return lambda scores, count, present: original(scores.flip(1), count, present.flip(1)).flip(1)


KV_SABOTEURS: dict[str, Saboteur] = {
    # ---- exactness
    "entries are touched on their way in": Saboteur(
        f"{LAYER}.update", touches_keys,
        checks.kv_keeping_everything_changes_no_bit, ("llava", "sdpa", keeps_everything("snapkv"))),
    "entries are evicted inside update": Saboteur(
        f"{LAYER}.update", evicts_at_once,
        checks.kv_evicting_equals_hiding, ("llava", "sdpa", HARDEST, (1,))),
    "fillers are taken for entries": Saboteur(
        MASK, sees_fillers, checks.kv_evicting_equals_hiding, ("llava", "sdpa", HARDEST)),
    "multiplicities are not added": Saboteur(
        MASK, lambda original: lambda mask, keys, weight, *rest: original(mask, keys, None, *rest),
        checks.kv_evicting_equals_hiding, ("llava", "sdpa", SCRIPTED["merged"], (1, 2), True)),
    "uneven heads read their neighbours' entries": Saboteur(
        f"{KV}.segments.RaggedSegment.of", after(lambda made: replace(made, start=made.start + 1)),
        checks.kv_evicting_equals_hiding, ("llava", "sdpa", SCRIPTED["uneven"])),
    "packed entries are attended to under the mask of others": Saboteur(
        f"{KV}.attend._added", after(lambda mask: mask.roll(1, -1) if mask is not None else None),
        checks.kv_evicting_equals_hiding, ("llava", "sdpa", SCRIPTED["packed"], (1, 2), True)),
    "packed rows stay where they were": Saboteur(
        f"{KV}.segments.Segment.select", lambda original: lambda self, rows: self,
        caches.kv_rows_follow, ("llava", SCRIPTED["packed"], "reorder_cache", True)),
    "beams leave their places behind": Saboteur(
        f"{LAYER}._take", leaves_behind("held"), caches.kv_rows_follow, ("llava", HARDEST)),
    "repeated rows leave their observations behind": Saboteur(
        f"{LAYER}._take", leaves_behind("book"), caches.kv_rows_follow, ("llava", HARDEST, "batch_repeat_interleave")),
    "settings for longer prompts meet fillers": Saboteur(
        MASK, sees_fillers, checks.kv_defaults_equal_hiding, ("llava", EASY["random_evict"])),
    "candidates are taken for the prompt": Saboteur(
        f"{KV}.runtime.CacheRuntime.enter", takes_candidates, checks.kv_candidates_are_no_prompt, ("llava", HARDEST)),
    "crops of candidates are not noticed": Saboteur(
        f"{SLOTS}.crop", lambda original: lambda self, count: self,
        checks.kv_candidates_equal_hiding, ("internvl", HARDEST)),
    "positions go on from the physical length": Saboteur(
        f"{LOGICAL}.get_seq_length", lambda original: lambda self: self.positions().shape[2],
        checks.kv_turns_equal_hiding, ("llava", "sdpa", HARDEST)),
    "padding is lost in the gathered mask": Saboteur(
        MASK, loses_padding, checks.kv_second_image_equals_hiding, ("llava", HARDEST)),
    "tokens that another plugin left are not counted": Saboteur(
        f"{SLOTS}.grow", lambda original: lambda self, count: self,
        checks.kv_beside_tokens_that_go, ("llava", "sdpa", HARDEST, TOKENS["fastv"])),
    "budgets count padding": Saboteur(
        ENTRIES, after(lambda entries: replace(entries, seen=entries.seen * 0 + int(entries.seen.max()))),
        checks.kv_batch_equals_rows, ("llava", HARDEST)),
    "fillers are seen in eager attention": Saboteur(
        MASK, sees_fillers_in_eager, checks.kv_eager_equals_sdpa, ("llava", HARDEST)),
    "a chunk forgets the rows before it": Saboteur(
        f"{KV}.book.Asked.join", lambda original: lambda self, later: later,
        checks.kv_chunks_equal_one_prompt, ("llava", HARDEST)),
    # ---- sets
    "fillers count as kept": Saboteur(
        PICK, after(lambda picked: replace(picked, position=picked.position.clamp(min=0))),
        sets.kv_budget_is_met, ("llava", HARDEST, PROMISES["snapkv"])),
    "padding is scored and kept": Saboteur(
        ENTRIES, after(lambda entries: replace(entries, present=entries.position >= 0)),
        sets.kv_protected_entries_stay, ("llava", RANDOM, PROMISES["random_evict"])),
    "the window is not protected": Saboteur(
        "vlm_eff.kvcache.protect.Protect.mask", after(lambda mask: mask & False),
        sets.kv_protected_entries_stay, ("llava", HARDEST, PROMISES["snapkv"])),
    "entries get the keys of their neighbours": Saboteur(
        PICK, after(lambda picked: replace(picked, key=picked.key.roll(1, 2))),
        sets.kv_keys_keep_their_phase, ("llava", HARDEST)),
    "entries are moved to where they are stored": Saboteur(
        f"{LOGICAL}.get_seq_length", lambda original: lambda self: self.positions().shape[2],
        sets.kv_keys_keep_their_phase, ("llava", HARDEST)),
    "the score of entries is reversed": Saboteur(
        "vlm_eff.kvcache.scores.WindowMass.__call__", after(lambda scores: -scores),
        sets.kv_set_is_the_definition, ("llava", HARDEST, PROMISES["snapkv"].definition)),
    "rows look at padding": Saboteur(
        f"{KV}.view.looks_at", lambda original: lambda rows, positions, real: original(
            replace(rows, looks=rows.looks | True), positions, real | True),
        sets.kv_set_is_the_definition, ("llava", HARDEST, PROMISES["snapkv"].definition)),
    "a needle is overlooked": Saboteur(
        "vlm_eff.kvcache.scores.WindowMass.__call__", after(lambda scores: -scores),
        sets.kv_needle_is_kept, ("llava", HARDEST)),
    "ties go to the higher index": Saboteur(
        "vlm_eff.kvcache.policy.top_k", turned_around, sets.kv_ties_go_to_the_lower_index, ("llava", HARD["tova"])),
    # ---- the cache in the user's hands
    "a crop leaves what was said": Saboteur(
        f"{SLOTS}.crop", lambda original: lambda self, count: self,
        caches.kv_crop_forgets_the_newest, ("llava", HARDEST)),
    "a crop into compressed entries is carried out": Saboteur(
        f"{LAYER}.crop", crops_anything, caches.kv_crop_forgets_the_newest, ("llava", HARDEST)),
    "the end of a prompt stays when it is cropped": Saboteur(
        f"{KV}.book.Book.crop", always(None), caches.kv_crop_shortens_a_prompt, ("llava", HARDEST)),
    "a reset leaves compressed entries": Saboteur(
        f"{LAYER}.reset", lambda original: LogicalLayer.reset, caches.kv_reset_forgets_everything, ("llava", HARDEST)),
    "copies share their observations": Saboteur(
        f"{KV}.book.Book.__deepcopy__", lambda _: lambda self, memo: self, caches.kv_copies_part, ("llava", HARDEST)),
    "bytes are logical": Saboteur(
        f"{MODELS}.ledger._kv_bytes", after(lambda made: (made[1], made[1])),
        caches.kv_reported_bytes_are_live, ("llava", HARDEST)),
    "evicted entries stay in memory": Saboteur(
        f"{KV}.compress.carry_out", stays_in_memory,
        caches.kv_reported_bytes_are_live, ("llava", HARDEST)),
    "evicted entries are held elsewhere": Saboteur(
        f"{KV}.compress.carry_out", held_elsewhere, caches.kv_evicted_memory_is_freed, ("llava", HARDEST)),
    "every query head has entries of its own": Saboteur(
        f"{LAYER}.positions", after(lambda positions: positions.repeat_interleave(2, 1)),
        caches.kv_groups_share_entries, ("llava", RANDOM)),
    # ---- attach and detach
    "the attention stays tapped for the cache": Saboteur(
        f"{MODELS}.tap._restore", always(None), caches.kv_detach_restores, ("llava", "sdpa", HARDEST)),
    "a pause of the cache is not one": Saboteur(
        f"{MODELS}.runtime.Runtime.active", lambda original: property(lambda self: True, lambda self, value: None),
        caches.kv_pause_is_bare, ("llava", HARDEST)),
    "a bare model may misread a compressed cache": Saboteur(
        f"{LOGICAL}.update", broken.trusts_everybody, caches.kv_cache_needs_its_handle, ("llava", HARDEST)),
    "the last undo is forgotten after a broken step": Saboteur(
        "vlm_eff.core.handle.Undo.run", broken.forgets_first,
        caches.kv_error_in_a_step_is_survived, ("llava", HARDEST)),
    "a score is made on the default device": Saboteur(
        "vlm_eff.kvcache.scores.WindowMass.__call__", after(lambda scores: scores + torch.zeros(1)),
        caches.kv_tensors_stay_on_their_device, (HARDEST,)),
    "threads share the cache's call": Saboteur(
        f"{MODELS}.runtime._CALL", lambda original: broken.OneForAll(),
        caches.kv_threads_do_not_meet, ("llava", HARDEST, 30)),
}  # fmt: skip
