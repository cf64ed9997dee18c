"""Broken pieces of the tower runtime, and the tower contract that has to notice each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from tests.contracts import checks_towers as checks
from tests.contracts.tower_cases import TOWER_HARD, TOWER_NOTHING
from tests.sabotage.broken import after, always
from tests.sabotage.saboteurs import Saboteur

VIT = "vlm_eff.models.vit"
RUNTIME, RUN, STATE = f"{VIT}.runtime", f"{VIT}.runtime.TowerRuntime", f"{VIT}.state"
TOME = TOWER_HARD["tome"]


def forgets_sizes(original: Any) -> Any:
    return lambda tokens, like: original(replace(tokens, proportional=False), like)


def batch_wide(original: Any) -> Any:
    """The best pairs of the whole batch are merged instead of the best of each image."""

    def rank(best: Any) -> Any:
        order = (-best).flatten().argsort(stable=True)
        return torch.empty_like(order).scatter_(0, order, torch.arange(len(order))).view_as(best) // len(best)

    return rank


def in_order(original: Any) -> Any:
    """Bias columns are those of the first image."""
    return lambda self, index, mask, like, count: (
        (setattr(self._run(), "cursor", 0) if self._run() else None) or original(self, index, mask, like, count)
    )


def forgets_the_second(original: Any) -> Any:
    """Runs after the first are nobody's."""
    calls: list[int] = []

    def begin(*args: Any) -> Any:
        made = original(*args)
        calls.append(1)
        return made if len(calls) == 1 else replace(made, owner=None)

    return begin


def taps_sdpa_alone(original: Any) -> Any:
    def install(attention: Any, sink: Any, undo: Any) -> None:
        if next(iter(attention.values())).config._attn_implementation == "sdpa":
            original(attention, sink, undo)

    return install


TOWER_SABOTEURS: dict[str, Saboteur] = {
    "an idle tower plugin is not idle": Saboteur(
        f"{RUN}._block_after",
        lambda original: lambda self, index, args, kwargs, output: output * 1.001,
        checks.nothing_is_bit_identical,
        ("llava", "sdpa", TOWER_NOTHING["tome"]),
    ),
    "sizes do not weigh": Saboteur(
        f"{RUNTIME}.key_bias", forgets_sizes, checks.full_length_oracle, ("llava", "sdpa", TOME)
    ),
    "members get nothing back": Saboteur(
        f"{STATE}.Tokens.restore",
        lambda original: (
            lambda self, hidden: torch.nn.functional.pad(hidden, (0, 0, 0, self.slot.shape[1] - hidden.shape[1]))
        ),
        checks.full_length_oracle,
        ("llava", "sdpa", TOME),
    ),
    "the biases of all images are the first's": Saboteur(
        f"{RUN}._bias", in_order, checks.full_length_oracle, ("qwen2_vl", "sdpa", TOME)
    ),
    "borders stay long": Saboteur(
        f"{RUNTIME}.shorten",
        lambda original: lambda borders, places: borders.clamp(max=len(places)),
        checks.full_length_oracle,
        ("qwen2_vl", "sdpa", TOME),
    ),
    "windows mix": Saboteur(
        f"{VIT}.inputs.windows", always(None), checks.full_length_oracle, ("qwen2_5_vl", "sdpa", TOME)
    ),
    "rotary tables are cut": Saboteur(
        f"{VIT}.run.Run.flat_places",
        after(lambda places: places.sort().values * 0 + torch.arange(len(places))),
        checks.full_length_oracle,
        ("qwen3_vl", "sdpa", TOME),
    ),
    "dropped tokens come back empty": Saboteur(
        f"{STATE}.Tokens.restore",
        lambda original: lambda self, hidden: original(replace(self, parked=None), hidden),
        checks.drop_equals_hiding,
        ("llava", "sdpa", TOWER_HARD["zero_tprune"]),
    ),
    "images of a batch compete": Saboteur(
        "vlm_eff.importance.bipartite._rank", batch_wide, checks.tower_batch_equals_rows, ("llava", TOME)
    ),
    "eager gets no bias": Saboteur(
        f"{RUNTIME}.add_bias",
        lambda original: lambda mask, bias: None if mask is None else original(mask, bias),
        checks.full_length_oracle,
        ("internvl", "eager", TOME),
    ),
    "a hook of the tower stays": Saboteur(
        f"{RUNTIME}.seams.after",
        lambda original: lambda module, call, undo: original(module, call, type(undo)()),
        checks.tower_detach_restores,
        ("llava", TOME),
    ),
    "a group is lost": Saboteur(
        f"{VIT}.ledger.TowerLedger.groups",
        after(lambda groups: [(slot, place[:-1]) for slot, place in groups]),
        checks.sizes_are_conserved,
        ("llava", TOME),
    ),
    "tower FLOPs are guessed": Saboteur(
        f"{VIT}.ledger.block_flops",
        lambda original: lambda *sizes: original(*sizes) ** 1.02,
        checks.flops_are_measured,
        ("llava", TOME),
    ),
    "the tower is not attached beside others": Saboteur(
        "vlm_eff.models.runtime.tower_runtime", always(None), checks.composes, ("llava", TOME)
    ),
    "only a whole forward is seen": Saboteur(
        f"{RUN}._begin", forgets_the_second, checks.generation_equals_forward, ("llava", TOME)
    ),
    "attention implementations differ": Saboteur(
        f"{VIT}.hugging_face.install_tap", taps_sdpa_alone, checks.tower_eager_equals_sdpa, ("llava", TOME)
    ),
}
