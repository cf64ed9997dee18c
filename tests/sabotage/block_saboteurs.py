"""Broken pieces of sparse prefill, one at a time, and the contract check that has to notice each."""

from __future__ import annotations

from typing import Any

import torch

from tests.contracts import checks, checks_blocks
from tests.contracts.cases import HARD, SPARSE_CASES
from tests.sabotage import broken
from tests.sabotage.broken import Make
from tests.sabotage.saboteurs import Saboteur
from vlm_eff.core.action import Attend
from vlm_eff.models.attend_blocks import Part
from vlm_eff.tokens import cross_modal_window

WINDOW, STREAMING, BLOCKS, SLASH = (
    SPARSE_CASES[name][1] for name in ("cross_modal_window", "streaming_heads", "top_blocks", "vertical_slash")
)
HERE, PATTERNS = "vlm_eff.models.attend_blocks", "vlm_eff.tokens.sparse_prefill"


def _drops(_: Any) -> Any:
    def at(self: Any, site: Any, view: Any) -> Attend:
        index = torch.zeros(len(view.spans.slot), 1, dtype=torch.long)
        return Attend(index, view.spans.valid.gather(1, index))

    return at


def _sees_padding(_: Any) -> Any:
    return lambda *_: [Part(slice(None), slice(None), slice(None))]


def _nobody_waits(original: Any) -> Any:
    return lambda rows, asking, there, waiting, *, full: original(rows, asking, there, 0, full=full)


def _flags_of_the_first(original: Any) -> Any:
    def visual(adapter: Any, call: Any) -> Any:
        survivors, call.survivors = call.present(), None
        flags = original(adapter, call)[:, : survivors.size]
        call.survivors = survivors
        return flags

    return visual


def _one_more(name: str) -> Make:
    def make(original: Any) -> Any:
        return lambda *args, **kwargs: original(*args, **kwargs | {name: kwargs[name] + 1})

    return make


BLOCK_SABOTEURS: dict[str, Saboteur] = {
    "the window is one too long": Saboteur(
        f"{PATTERNS}.blocks.cross_modal", _one_more("window"), checks.drop_equals_mask, ("llava", "sdpa", WINDOW)),
    "one more sink": Saboteur(
        f"{PATTERNS}.blocks.streaming", _one_more("sinks"),
        checks.drop_equals_mask, ("llava", "sdpa", STREAMING)),
    "one more slash": Saboteur(
        f"{PATTERNS}.blocks.vertical_slash", _one_more("slashes"), checks.drop_equals_mask, ("llava", "sdpa", SLASH)),
    "tokens go instead of pairs": Saboteur(
        f"{PATTERNS}.SparsePrefill.at", _drops, checks_blocks.nobody_is_dropped, ("llava", WINDOW)),
    "blocks begin in the padding": Saboteur(
        f"{HERE}._parts", _sees_padding, checks_blocks.a_row_does_not_depend_on_its_batch, ("llava", BLOCKS)),
    "the cache is not counted": Saboteur(
        "vlm_eff.kernels.blocks.grid.Grid.past", lambda original: property(lambda grid: 0),
        checks_blocks.turns_attend_by_pair, ("llava", WINDOW)),
    "blocks are chosen for candidates too": Saboteur(
        f"{HERE}._split", _nobody_waits, checks_blocks.candidates_attend_in_full, ("llava", SLASH)),
    "survivors are taken for the first tokens": Saboteur(
        f"{HERE}._visual", _flags_of_the_first,
        checks_blocks.blocks_among_survivors, ("llava", HARD["pyramiddrop"], WINDOW)),
    "what is hidden counts as spared": Saboteur(
        "vlm_eff.models.ledger.decoder_flops", broken.everybody_counts, checks_blocks.what_is_computed_is_reported,
        ("llava", cross_modal_window(window=3, sinks=1, layers=(0, 2, 5), tile=(1, 1)), True)),
}  # fmt: skip
