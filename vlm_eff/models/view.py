"""What a plugin sees at a site: the visual candidates that are left, and what was observed of them. Read only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from vlm_eff.core.plugin import Observation
from vlm_eff.models.visual import VisualSpans


@dataclass(frozen=True)
class View:
    """The state of one prefill at the input of a decoder layer.

    spans:          the candidates that are left, with their place in the image
    hidden:         [B, N, D] hidden states of the whole sequence, survivors only
    physical:       [B, V] position of each candidate in `hidden`
    original:       [B] candidates that entered the language model, a row
    image_original: () -> [B, G], the same for every image of a row, 0 where a row has fewer images
    prompt_hash:    () -> a number for each row that depends on its prompt alone, equal for all beams of one prompt
    """

    layer: int
    spans: VisualSpans
    hidden: Tensor
    physical: Tensor
    original: Tensor
    image_original: Callable[[], Tensor]
    prompt_hash: Callable[[], tuple[int, ...]]
    observe: Callable[[Observation], tuple[Tensor, Tensor]]

    def visual_hidden(self) -> Tensor:
        """Hidden states of the candidates [B, V, D]; rows beyond a row's own count hold other tokens."""
        return self.hidden.gather(1, self.physical[:, :, None].expand(-1, -1, self.hidden.shape[-1]))

    def query_logits(self, observation: Observation) -> tuple[Tensor, Tensor]:
        """Attention logits of the last prompt token [B, H, S] over all keys, and each candidate's key column [B, V].

        Float32, with -inf where the query may not look. The observation must be among the plugin's `needs`.
        """
        return self.observe(observation)
