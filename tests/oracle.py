"""The mask-only oracle: the unmodified model at full length in which dropped tokens are never attended to again.

Physically removing a token before layer l must equal hiding its key column in every layer >= l, at prefill and at every
decode step. The oracle does only the latter, so it shares no code and no idea with the library under test.

A dropped position keeps its own column (the diagonal), so that no query is left without a key. Its outputs stay
finite, mean nothing, and reach nobody, because every other query hides that column. Rows of padding stay as the model
made them.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

Dropped = dict[int, Tensor]
"""decoder layer -> bool [B, S]: logical positions that are gone from this layer on (cumulative over layers)"""


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    return model.get_decoder().layers


def masked_logits(model: PreTrainedModel, inputs: dict[str, Any], dropped: Dropped, **kwargs: Any) -> Tensor:
    """Logits [B, S, V] of one full-length forward; those at dropped positions are meaningless."""
    with torch.no_grad(), hidden_columns(model, dropped):
        return model(**inputs, **kwargs).logits


def masked_generate(
    model: PreTrainedModel, inputs: dict[str, Any], dropped: Dropped, steps: int, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """Greedy tokens [B, steps] and raw logits [B, steps, V] with the full cache and the dropped columns hidden.

    `kwargs` go to `generate`; with beams or several returned sequences each row of `dropped` serves its expanded rows.
    """
    options = {"max_new_tokens": steps, "min_new_tokens": steps, "do_sample": False} | kwargs
    with torch.no_grad(), hidden_columns(model, dropped):
        out = model.generate(**inputs, **options, output_logits=True, return_dict_in_generate=True)
    return out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits, dim=1)


def attention_rows(
    model: PreTrainedModel, inputs: dict[str, Any], layer: int, dropped: Dropped | None = None
) -> Tensor:
    """Softmaxed attention [B, H, S, S] of a decoder layer, from an eager copy of the (bare) model."""
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    with torch.no_grad(), hidden_columns(eager, dropped or {}):
        return eager(**inputs, output_attentions=True).attentions[layer]


@contextmanager
def hidden_columns(model: PreTrainedModel, dropped: Dropped) -> Iterator[None]:
    """While open, every forward of `model` hides the dropped columns."""
    handles = []
    gone: Tensor | None = None
    try:
        for index, layer in enumerate(decoder_layers(model)):
            if index in dropped:
                gone = dropped[index] if gone is None else gone | dropped[index]
            if gone is not None:
                handles.append(layer.register_forward_pre_hook(_hide(index, gone), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hide(index: int, gone: Tensor) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
    def hook(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        hidden = args[0]
        batch, length = hidden.shape[:2]
        cache = kwargs.get("past_key_values")
        past = 0 if cache is None else cache.get_seq_length(index)
        queries = torch.arange(past, past + length, device=hidden.device)
        mask = kwargs.get("attention_mask")
        if mask is None:
            columns = length if cache is None else cache.get_mask_sizes(length, index)[0]
            mask = explicit_mask(layer.self_attn, queries, columns, hidden)
        # The last column is always the newest token; a sliding layer has dropped columns at the front.
        keys = torch.arange(past + length - mask.shape[-1], past + length, device=hidden.device)
        rows = gone.to(hidden.device).repeat_interleave(batch // gone.shape[0], dim=0)
        hide = torch.zeros(batch, len(keys), dtype=torch.bool, device=hidden.device)
        prompt = keys < rows.shape[1]
        hide[:, prompt] = rows[:, keys[prompt]]
        own = queries[:, None] == keys[None, :]
        hide = hide[:, None, None, :] & ~own
        hidden_value = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        mask = mask.expand(batch, *mask.shape[1:]).masked_fill(hide, hidden_value)
        return args, kwargs | {"attention_mask": mask}

    return hook


def explicit_mask(attention: Any, queries: Tensor, columns: int, hidden: Tensor) -> Tensor:
    """The explicit form [B, 1, Q, K] of a mask that the model left out, which it does only without padding."""
    last = int(queries[-1])
    keys = torch.arange(last + 1 - columns, last + 1, device=queries.device)
    distance = queries[:, None] - keys[None, :]
    seen = distance >= 0 if attention.is_causal else torch.ones_like(distance, dtype=torch.bool)
    window = getattr(attention, "sliding_window", None)
    if window is not None:
        seen &= distance < window
    seen = seen.expand(hidden.shape[0], 1, -1, -1)
    if attention.config._attn_implementation == "eager":
        # Eager attention adds its mask to the scores.
        return torch.zeros(seen.shape, dtype=hidden.dtype, device=hidden.device).masked_fill(
            ~seen, torch.finfo(hidden.dtype).min
        )
    return seen


@contextmanager
def bypassed_tokens(model: PreTrainedModel, bypass: Dropped, past: int = 0) -> Iterator[None]:
    """While open, the positions `bypass[layer]` [B, past + S] take no part in the attention of that one layer in the
    forward that brings the last S of them.

    Nobody sees their columns, and what they bring home from the attention is set to zero before its output projection.
    """
    handles = []
    try:
        for index, gone in bypass.items():
            layer = decoder_layers(model)[index]
            handles.append(layer.register_forward_pre_hook(_hide_in_prefill(index, gone, past), with_kwargs=True))
            handles.append(layer.self_attn.o_proj.register_forward_pre_hook(_zero_rows(gone[:, past:])))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hide_in_prefill(index: int, gone: Tensor, past: int) -> Callable[..., Any]:
    hide = _hide(index, gone)

    def hook(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return hide(layer, args, kwargs) if args[0].shape[1] == gone.shape[1] - past else None

    return hook


def _zero_rows(gone: Tensor) -> Callable[..., Any]:
    def hook(_: Any, args: tuple[Any, ...]) -> Any:
        if args[0].shape[1] != gone.shape[1]:
            return None
        rows = gone.repeat_interleave(args[0].shape[0] // gone.shape[0], dim=0)
        return (args[0].masked_fill(rows[:, :, None], 0.0), *args[1:])

    return hook
