"""What a plugin sees at a site: the visual candidates that are left, and what was observed of them. Read only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from vlm_eff.core.plugin import LayerKeys, QueryRow, TowerAttention
from vlm_eff.models.visual import VisualSpans


class Observed(Protocol):
    """Answers the observations of one view; `Observer.at` makes it."""

    def query_logits(self, wanted: QueryRow) -> tuple[Tensor, Tensor]: ...
    def layer_keys(self, wanted: LayerKeys) -> Tensor: ...
    def tower(self, wanted: TowerAttention) -> Tensor: ...


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
    observed: Observed

    def visual_hidden(self) -> Tensor:
        """Hidden states of the candidates [B, V, D]; columns beyond a row's own count hold other tokens."""
        return self.hidden.gather(1, self.physical[:, :, None].expand(-1, -1, self.hidden.shape[-1]))

    def query_logits(self, wanted: QueryRow) -> tuple[Tensor, Tensor]:
        """Attention logits of the last prompt token [B, H, S] over all keys, and each candidate's key column [B, V].

        Float32, with -inf where the query may not look. The observation must be among the plugin's `needs`.
        """
        return self.observed.query_logits(wanted)

    def layer_keys(self, wanted: LayerKeys) -> Tensor:
        """Keys of the candidates [B, V, Hkv, Dh]; columns beyond a row's own count hold other tokens."""
        return self.observed.layer_keys(wanted)

    def tower(self, wanted: TowerAttention) -> Tensor:
        """Tower attention of each candidate [B, V] float32, mean over the patches it is made from."""
        return self.observed.tower(wanted)
