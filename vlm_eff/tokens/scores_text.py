"""Scores that hold the visual tokens against the words of the question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vlm_eff.core.config import part
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.plugin import Observation
from vlm_eff.importance.keep import check_choice
from vlm_eff.importance.similarity import normalised
from vlm_eff.models.view import View

# what CDPruner adds, so that the least relevant token is not worth nothing
_LEAST = 1e-6


@part
@dataclass(frozen=True)
class TextRelevance:
    """How much each candidate has to do with the text after the image, from hidden states alone.

    Mean cosine of the candidate to the words, spread over [0, 1] by the least and largest of the row's own tokens.
    sign:     "negative" turns it round: less alike is more relevant, as CDPruner takes it; "positive" does not
    exponent: None takes the relevance as it is (plus 1e-6); a number a in [0, 1) takes exp(r * a / (2 - 2 * a)), where
              0 makes all tokens equal
    Where no text follows the image all tokens are equally relevant.
    """

    sign: Literal["negative", "positive"] = "negative"
    exponent: float | None = None

    def __post_init__(self) -> None:
        check_choice("sign", self.sign, ("negative", "positive"))
        share = self.exponent
        number = isinstance(share, (int, float)) and not isinstance(share, bool)
        if share is not None and (not number or not 0 <= share < 1):
            raise ConfigError(
                explain(f"relevance_weight={share!r}", "a fraction in [0, 1), or None", "Give a smaller weight")
            )

    def needs(self, layer: int) -> tuple[Observation, ...]:
        return ()

    def __call__(self, view: View) -> Tensor:
        words, valid = view.text(), view.spans.valid
        if not words.slot.shape[1]:
            return valid.float()
        # the mean of cosines is the cosine to the mean of unit vectors, but for its length
        states = normalised(view.hidden_at(words)).masked_fill(~words.valid[:, :, None], 0.0)
        mean = states.sum(1) / words.count.clamp(min=1)[:, None]
        alike = (normalised(view.visual_hidden()) @ mean[:, :, None])[:, :, 0]
        relevance = spread(-alike if self.sign == "negative" else alike, valid)
        if self.exponent is None:
            made = relevance + _LEAST
        else:
            made = (relevance * (self.exponent / (2 * (1 - self.exponent)))).exp()
        return torch.where((words.count > 0)[:, None], made, 1.0).masked_fill(~valid, 0.0)


def spread(values: Tensor, valid: Tensor) -> Tensor:
    """Values [B, V] moved and scaled so that each row's least is 0 and its largest 1; all 1 where they are equal."""
    least = values.masked_fill(~valid, torch.inf).amin(1, keepdim=True)
    width = values.masked_fill(~valid, -torch.inf).amax(1, keepdim=True) - least
    return torch.where(width > 0, (values - least) / width.clamp(min=torch.finfo(torch.float32).tiny), 1.0)
