"""Which branch of the guidance a call of the denoiser belongs to: by what it is told, never by counting calls."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# what a denoiser is told of the prompt, in the order in which it is looked for
_CONDITIONS = (
    "encoder_hidden_states",
    "class_labels",
    "encoder_hidden_states_t5",
    "caption_features",
    "cap_feats",
    "prompt_embeds",
    "text_embeds",
    "encoder_hidden_states_image",
)


class Branches:
    """Numbers the branches of a run in order of appearance.

    A branch is the name of the cache context in which the pipeline calls, where it sets one; else the tensor of text
    embeddings or class labels: the same memory, or, in pipelines that build it again at every step, the same values.
    """

    def __init__(self) -> None:
        self._names: list[tuple[str, str]] = []
        self._known: list[tuple[str, Tensor, int]] = []

    def reset(self) -> None:
        """A new run begins."""
        self._names, self._known = [], []

    def of(self, denoiser: str, context: str | None, named: dict[str, Any]) -> int:
        """Number of the branch of a call; named: the denoiser's arguments by name."""
        if context is not None:
            if (denoiser, context) not in self._names:
                self._names.append((denoiser, context))
            return [name for owner, name in self._names if owner == denoiser].index(context)
        condition = condition_of(named)
        if condition is None:
            return 0
        known = [item for item in self._known if item[0] == denoiser]
        for _, tensor, number in known:
            if _same_memory(tensor, condition):
                return number
        for _, tensor, number in known:
            if tensor.shape == condition.shape and tensor.dtype == condition.dtype and torch.equal(tensor, condition):
                return number
        # the tensor is kept for the run, so that its memory cannot become another branch's
        self._known.append((denoiser, condition, len(known)))
        return len(known)


def condition_of(named: dict[str, Any]) -> Tensor | None:
    """What tells the branches apart, first tensor of those that denoisers call it by."""
    for name in _CONDITIONS:
        value = named.get(name)
        value = value[0] if isinstance(value, list | tuple) and value else value
        if isinstance(value, Tensor):
            return value
    return None


def batched_guidance(latents: Tensor) -> bool:
    """True where both halves of a batch have the same latents [R, ...]: classifier-free guidance in one batch.

    One comparison on the host. Two prompts that start from one noise look the same at the first step, and only there.
    """
    rows = latents.shape[0]
    return rows > 1 and rows % 2 == 0 and torch.equal(latents[: rows // 2], latents[rows // 2 :])


def _same_memory(one: Tensor, other: Tensor) -> bool:
    same = one.data_ptr() == other.data_ptr() and one.shape == other.shape and one.stride() == other.stride()
    return same and one.dtype == other.dtype and one.device == other.device
