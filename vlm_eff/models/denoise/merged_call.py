"""A module of a block on merged tokens: fewer go in, and each token gets back what its place has computed."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from vlm_eff.core.denoise import MergeTokens
from vlm_eff.kernels.merge import merge_tokens
from vlm_eff.models.denoise.chain import Forward
from vlm_eff.models.denoise.rows import Streams, take_call

_INPUT = "hidden_states"
# tables of rotary positions: one for all rows [S, Dh], or [1, S, 1, Dh], which may differ from row to row
_TABLES = ("image_rotary_emb", "rotary_emb")
# projections of other streams than the image's
_OTHERS = ("add_", "to_add", "_ip")


def by_name(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """A call of a block or of a part of it, by name."""
    named = dict(kwargs)
    if args:
        named |= inspect.signature(type(module).forward).bind_partial(module, *args).arguments
        named.pop("self", None)
    return named


def why_not(named: dict[str, Any], tokens: tuple[int, int], text: int) -> str | None:
    """Why this call of a module cannot run on merged tokens; tokens: rows and tokens of the block's image."""
    hidden = named.get(_INPUT)
    if not isinstance(hidden, Tensor) or hidden.dim() != 3 or hidden.shape[1] != text + tokens[1]:
        return "of another shape"
    if hidden.shape[0] != tokens[0]:
        return "of other rows"
    other = named.get("encoder_hidden_states")
    masked = named.get("attention_mask") is not None
    # in cross attention the mask is one of the text
    return "masked" if masked and (other is None or named["attention_mask"].shape[-1] != other.shape[1]) else None


def merged(inner: Forward, named: dict[str, Any], merge: MergeTokens, text: int) -> Any:
    """Call `inner` on merged tokens.

    named: its arguments; `hidden_states` [R, text + N, C]
    Returns its output with N tokens of the image in the first stream.
    """
    hidden = named[_INPUT]
    fewer = merge_tokens(hidden[:, text:], merge.into, merge.home.shape[1])[0]
    call = {**named, _INPUT: torch.cat([hidden[:, :text], fewer], 1) if text else fewer}
    table = next((name for name in _TABLES if named.get(name) is not None), None)
    if table is None:
        made = Streams(inner(**call))
    elif named[table][0].dim() == 2:
        front = named[table][0].shape[0] - merge.into.shape[1]
        made = _row_by_row(inner, call, (table, front), merge.home)
    else:
        # [1, S, 1, Dh] -> [R, K, 1, Dh]
        made = Streams(inner(**{**call, table: tuple(one[0][merge.home] for one in named[table])}))
    first = made.tensors[0]
    places = merge.into[:, :, None].expand(-1, -1, first.shape[2])
    back = first[:, text:].gather(1, places)
    return made.around((torch.cat([first[:, :text], back], 1) if text else back, *made.tensors[1:]))


def _row_by_row(inner: Forward, call: dict[str, Any], tables: tuple[str, int], home: Tensor) -> Streams:
    """Models whose table [S, Dh] serves all rows: rows that have merged other tokens are called one by one.

    tables: name of the argument, and the tokens of the text, which come first in it
    """
    name, text = tables
    rows, made = home.shape[0], []
    for row in range(rows):
        alone = torch.tensor([row], device=home.device)
        one = take_call((), call, alone, rows)[1] if rows > 1 else call
        index = torch.cat([torch.arange(text, device=home.device), home[row] + text])
        made.append(Streams(inner(**{**one, name: tuple(table[index.to(table.device)] for table in call[name])})))
    if rows == 1:
        return made[0]
    return Streams(made[0].around(tuple(torch.cat(parts) for parts in zip(*(m.tensors for m in made), strict=True))))


def saved_flops(kind: str, module: nn.Module, named: dict[str, Any], merge: MergeTokens) -> int:
    """FLOPs (2 a multiply-add) that a module needs less on merged tokens: its projections and its attention."""
    rows, tokens = merge.into.shape
    left = merge.home.shape[1]
    linear = 0
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear) and not any(other in name for other in _OTHERS):
            across = kind == "cross" and name.startswith(("to_k", "to_v", "to_kv"))
            linear += 0 if across else part.in_features * part.out_features
    saved = 2 * rows * (tokens - left) * linear
    if kind == "mlp":
        return saved
    width = int(module.inner_dim)
    other = named.get("encoder_hidden_states")
    beside = 0 if other is None else int(other.shape[1])
    if kind == "cross":
        return saved + 4 * rows * width * (tokens - left) * beside
    # a single stream has the text in front of the image, a joint one beside it
    beside += int(named[_INPUT].shape[1]) - tokens
    return saved + 4 * rows * width * ((tokens + beside) ** 2 - (left + beside) ** 2)
