"""One decoder layer's inputs, with the dimensions that follow the sequence named."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vlm_eff.core.errors import CapabilityError, explain
from vlm_eff.models.token_map import TokenMap

# keyword arguments of a decoder layer that do not follow the sequence, or that the layer does not read
_IGNORED = frozenset(
    {"past_key_values", "use_cache", "labels", "logits_to_keep", "image_sizes", "return_dict", "output_attentions",
     "output_hidden_states", "num_items_in_batch", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k",
     "pixel_attention_mask", "image_hidden_states", "mm_token_type_ids", "token_type_ids", "attention_mask",
     "position_embeddings", "position_ids"}
)  # fmt: skip


@dataclass
class LayerCall:
    """Arguments of one call of a decoder layer; `hidden` [B, N, D] stays the first positional one."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def hidden(self) -> Tensor:
        """Hidden states at the layer's input [B, N, D]."""
        made: Tensor = self.args[0]
        return made

    @property
    def mask(self) -> Any:
        """The attention mask the model made, at full length."""
        return self.kwargs.get("attention_mask")

    @property
    def rope(self) -> tuple[Tensor, Tensor] | None:
        """Rotary cosines and sines [B or 1, S, Dh]."""
        return self.kwargs.get("position_embeddings")

    @property
    def cache(self) -> Any:
        """The Hugging Face cache, or None."""
        return self.kwargs.get("past_key_values")

    def check(self, length: int) -> None:
        """Raise `CapabilityError` for a tensor argument that may follow the sequence and is not known."""
        if len(self.args) != 1:
            raise CapabilityError(
                explain(
                    f"a decoder layer that takes {len(self.args)} positional arguments",
                    "layers that take the hidden states alone by position",
                    "Register an adapter for this model; see docs/add-a-model.md",
                )
            )
        for name, value in self.kwargs.items():
            if name not in _IGNORED and isinstance(value, Tensor) and length in value.shape:
                raise CapabilityError(
                    explain(
                        f"a decoder layer argument {name!r} of shape {tuple(value.shape)} that may follow the sequence",
                        "attention_mask, position_ids, position_embeddings",
                        "Report the model, or write an adapter; see docs/add-a-model.md",
                    )
                )

    def gather_positions(self, survivors: TokenMap, *, keep: bool) -> None:
        """Gather position ids of the survivors, or leave them out where they would be misread.

        Flash attention takes a gap in the positions of one row for the border of a packed sequence; the rotation is in
        the rotary tables already, so it loses nothing without them.
        """
        position_ids = self.kwargs.get("position_ids")
        if isinstance(position_ids, Tensor) and position_ids.dim() == 2:
            self.kwargs["position_ids"] = survivors.gather(position_ids) if keep else None
