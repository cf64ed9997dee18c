"""Attention of one layer in listed blocks alone: pairs of tokens that a pattern leaves out are not computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vlm_eff.core.action import AttendBlocks
from vlm_eff.core.errors import CapabilityError, explain
from vlm_eff.kernels.blocks import BlockLists, Rule, cross_modal
from vlm_eff.kernels.dispatch import chosen
from vlm_eff.kernels.sparse_attention import sparse_attention
from vlm_eff.models.adapter import Adapter
from vlm_eff.models.aside import Aside
from vlm_eff.models.call import Call, find_ids
from vlm_eff.models.ranks import Ranks


@dataclass(frozen=True)
class Attending:
    """What a pattern is shown of a layer: no padding, no filler.

    query: [B, H, Q, Dh], key: [B, Hkv, S, Dh], after rotation; the queries are the last Q of S tokens
    text:  [B, S] False at tokens of this call's images and videos, with what parts their rows and tiles. What earlier
           turns left in the cache counts as text
    first: number of the first key head that is shown, of the `heads` of the layer
    """

    layer: int
    query: Tensor
    key: Tensor
    text: Tensor
    scaling: float | None
    first: int
    heads: int


class BlockPattern(Protocol):
    """Says which blocks of a layer are computed; a frozen part.

    shared: the lists do not depend on queries, keys and layer, so that layers share them
    """

    @property
    def shared(self) -> bool: ...
    def lists(self, attending: Attending) -> tuple[BlockLists, Rule] | None:
        """Lists and rule, or None where everything is seen."""


@dataclass(frozen=True)
class Part:
    """Queries that are computed together with the keys they may see, without padding.

    rows: of the batch; full: they see everything, whatever the pattern says
    """

    rows: slice
    queries: slice | Tensor
    keys: slice | Tensor
    full: bool = False

    def take(self, states: Tensor, which: slice | Tensor) -> Tensor:
        """Of states [B, H, L, Dh] those of this part."""
        return states[self.rows, :, which]


@dataclass(frozen=True)
class ByBlocks:
    """Attends in the blocks that `pattern` lists; visual: [B, N] tokens of the layer that are visual."""

    call: Call
    layer: int
    pattern: BlockPattern
    visual: Tensor
    ranks: Ranks

    def attend(
        self, run: Callable[..., Any], module: nn.Module, states: tuple[Tensor, Tensor, Tensor], mask: Any, kwargs: Any
    ) -> Any:
        """Attend in blocks, or run the attention function `run` where the pattern lets everything through.

        states: query [B, H, Q, Dh], key and value [B, Hkv, S, Dh] after the cache. Returns the output [B, Q, H, Dh] and
        no weights. Layers with a sliding window are `run`.
        """
        query, key, value = states
        call, window = self.call, kwargs.get("sliding_window")
        if window is not None and window < key.shape[2]:
            return run(module, query, key, value, mask, **kwargs)
        options = {"scaling": kwargs.get("scaling"), "softcap": kwargs.get("softcap")}
        parts = call.shared("parts", (mask, key.shape[2]), lambda: _parts(call, mask, query, key.shape[2]))
        listed = [None if part.full else self._lists(part, query, key, options["scaling"]) for part in parts]
        if all(one is None for one in listed):
            return run(module, query, key, value, mask, **kwargs)
        output = query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[3])
        shares, spared, computed = [], True, 0
        for part, found in zip(parts, listed, strict=True):
            some = (part.take(query, part.queries), part.take(key, part.keys), part.take(value, part.keys))
            one = found or call.shared("whole", (part,), partial(_everything, some[1], some[0].shape[2]))
            made = sparse_attention(*some, *one, **options)
            assert isinstance(made, Tensor)
            output[part.rows, part.queries] = made.transpose(1, 2)
            spared &= chosen(sparse_attention, *some, *one, **options, return_lse=False) not in ("reference", "torch")
            computed += some[0].shape[0] * some[0].shape[2] * some[1].shape[2]
            shares.append(_share(one[0], some[0].shape[0], some[0].shape[2], some[1].shape[2]))
        if not spared:
            # padding is left out all the same
            call.again[self.layer] = computed / (query.shape[0] * query.shape[2] * key.shape[2])
        whole = query.shape[0] * _pairs(query.shape[2], key.shape[2])
        call.listed[self.layer] = (torch.stack(shares).sum() / whole, spared)
        return output, None

    def _lists(self, part: Part, query: Tensor, key: Tensor, scaling: float | None) -> tuple[BlockLists, Rule] | None:
        past = key.shape[2] - query.shape[2]

        def make() -> tuple[BlockLists, Rule] | None:
            text = torch.nn.functional.pad(~self.visual[part.rows], (past, 0), value=True)[:, part.keys]
            some = (part.take(query, part.queries), part.take(key, part.keys))
            first = self.ranks.first_key(key.shape[1])
            with Aside():
                return self.pattern.lists(Attending(self.layer, *some, text, scaling, first, self.ranks.keys))

        return self.call.shared("lists", (self.pattern, part, self.visual), make) if self.pattern.shared else make()


def by_blocks(adapter: Adapter, call: Call, layer: int, action: AttendBlocks) -> ByBlocks:
    """What an action means in the layer that attends now."""
    mask = call.entry.mask
    if call.log_weight is not None or (mask is not None and not (isinstance(mask, Tensor) and mask.dim() == 2)):
        got = "soft weights of tokens" if call.log_weight is not None else "an attention mask of pairs of tokens"
        raise CapabilityError(
            explain(f"{got} in a layer that attends in blocks", "a mask [B, S], or none", "Leave one of the two out")
        )
    survivors = call.present()
    visual = call.shared("visual", (survivors,), lambda: _visual(adapter, call))
    return ByBlocks(call, layer, action.pattern, visual, adapter.ranks)


def _visual(adapter: Adapter, call: Call) -> Tensor:
    """Tokens of images and videos, newlines and tile separators among them, of those that are present [B, N]."""
    survivors = call.present()
    found = find_ids(adapter, call.entry, call.real(), (*adapter.tokens, *adapter.video_tokens))
    made = found.gather(1, survivors.index)
    return made if survivors.registers is None else made & ~survivors.registers.mark


def _parts(call: Call, mask: Tensor | None, query: Tensor, keys: int) -> list[Part]:
    """The batch whole where nothing is padding, else row by row; the lists of a row then do not depend on padding.

    Rows without pictures see everything, as they do alone. So do candidates of assisted decoding, and nobody's choice
    depends on them.
    """
    assert call.original is not None
    rows, queries = query.shape[0], query.shape[2]
    waiting, valid = call.entry.unverified, _valid(mask, queries, keys)
    pictured = (call.original.count > 0).tolist()
    if (valid is None or bool(valid.all())) and all(pictured):
        return _split(slice(None), torch.arange(queries), torch.arange(keys), waiting, full=False)
    if valid is None:
        valid = torch.ones(1, keys, dtype=torch.bool, device=query.device)
    parts = []
    for row, flags in enumerate(valid.expand(rows, -1)):
        there = flags.nonzero()[:, 0]
        asking = there[there >= keys - queries] - (keys - queries)
        parts += _split(slice(row, row + 1), asking, there, waiting, full=not pictured[row])
    return parts


def _split(rows: slice, asking: Tensor, there: Tensor, waiting: int, *, full: bool) -> list[Part]:
    """The part of the prompt, and the part of what waits to be verified behind it; none without queries."""
    if full or not waiting:
        return [Part(rows, _run(asking), _run(there), full)] if len(asking) else []
    prompt = Part(rows, _run(asking[:-waiting]), _run(there[:-waiting]))
    return [prompt, Part(rows, _run(asking[-waiting:]), _run(there), full=True)]


def _valid(mask: Tensor | None, queries: int, keys: int) -> Tensor | None:
    """Keys that are no padding and no filler [B | 1, S], from the mask of the layer; None for all.

    Raises:
        CapabilityError: a mask that hides more, or less, than later tokens and padding.
    """
    if mask is None:
        return None
    if mask.dim() == 2:
        return mask[:, -keys:].bool()
    seen = (mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2)[:, 0]
    weighs = mask.dtype != torch.bool and bool((mask[:, 0].masked_fill(~seen, 0.0) != 0).any())
    # the last row, padding or not, sees every key that is one
    valid = seen[:, -1]
    wanted = valid.cumsum(1)[:, -queries:]
    odd = mask.shape[1] != 1 or mask.shape[-1] != keys or weighs
    if odd or bool(((seen.sum(-1) != wanted) & valid[:, -queries:]).any()):
        raise CapabilityError(
            explain(
                "a mask that is not causal with padding alone",
                "prompts whose tokens see all that comes before them",
                "Leave the plugin out",
            )
        )
    return valid


def _everything(key: Tensor, queries: int) -> tuple[BlockLists, Rule]:
    """Lists of all that comes before."""
    text = torch.ones(1, key.shape[2], dtype=torch.bool, device=key.device)
    return cross_modal(text, window=1, sinks=0, query_length=queries)


def _share(lists: BlockLists, rows: int, queries: int, keys: int) -> Tensor:
    """Pairs of tokens that are listed in `rows` rows of the batch, mean over heads []."""
    # blocks at the diagonal reach over it, as they do in a dense kernel
    return lists.density(keys, queries).double().clamp(max=1.0).mean() * (rows * _pairs(queries, keys))


def _run(index: Tensor) -> slice | Tensor:
    """Ascending places as a slice where they are an unbroken run, so that nothing is copied."""
    first, last = int(index[0]), int(index[-1])
    return slice(first, last + 1) if last - first + 1 == len(index) else index


def _pairs(queries: int, keys: int) -> float:
    """Pairs of a causal pass over Q queries at the end of S keys."""
    return queries * keys - queries * (queries - 1) / 2
