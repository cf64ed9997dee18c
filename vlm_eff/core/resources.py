"""Who writes what: the resources of a model that plugins change, and the check that each has one writer."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING

from vlm_eff.core.errors import ConflictError, explain

if TYPE_CHECKING:
    from vlm_eff.core.plugin import Plugin


class Resource(Enum):
    """Something of a model that at most one plugin may change."""

    TOWER_TOKENS = "tokens inside the vision tower"
    ENTRY_TOKENS = "visual tokens entering the language model"
    DECODER_TOKENS = "visual tokens between decoder layers"
    CACHE_ENTRIES = "entries of the KV cache"
    CACHE_FORM = "form in which entries of the KV cache are stored"
    LOGITS = "attention logits of the language model"
    ATTENTION_TOKENS = "visual tokens, or pairs of tokens, that take part in a decoder layer's attention"
    DENOISER_STEPS = "evaluations of the denoiser"
    GUIDANCE = "the unconditional half of the guidance"
    DENOISER_TOKENS = "tokens inside the denoiser"
    SCHEDULER = "scheduler of the pipeline"
    LATENTS = "latents that a run starts from"


def check_conflicts(plugins: Sequence[Plugin]) -> None:
    """Raise `ConflictError` when two plugins write one resource."""
    owner: dict[Resource, Plugin] = {}
    for plugin in plugins:
        for resource in sorted(plugin.writes, key=lambda item: item.name):
            other = owner.setdefault(resource, plugin)
            if other is not plugin:
                raise ConflictError(
                    explain(
                        f"plugins {other.name!r} and {plugin.name!r} both change the {resource.value}",
                        "one writer a resource",
                        "Attach one of the two, or attach them one after the other",
                    )
                )
