"""Stand-ins for pieces of the library, each broken in one way: `make(original) -> replacement`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vlm_eff.core.action import Keep
from vlm_eff.models.token_map import TokenMap

Make = Callable[[Any], Any]
"""the original -> what stands in for it"""


def after(change: Callable[[Any], Any]) -> Make:
    """The original with its result changed."""
    return lambda original: lambda *args, **kwargs: change(original(*args, **kwargs))


def always(value: Any) -> Make:
    return lambda original: lambda *args, **kwargs: value


def prop(change: Callable[[Any], Any]) -> Make:
    """A property with its value changed."""
    return lambda original: property(lambda self: change(original.fget(self)))


def unsorted(original: Any) -> Any:
    def narrow(self: TokenMap, keep: Any) -> Any:
        made, order = original(self, keep)
        return replace(made, index=_swap(made.index)), _swap(order)

    return narrow


def _swap(index: Any) -> Any:
    return torch.cat([index[:, :3], index[:, 3:5].flip(1), index[:, 5:]], 1)


def fillers_last(original: Any) -> Any:
    """Rows are padded at the end, and say that they are not."""

    def narrow(self: TokenMap, keep: Any) -> Any:
        made, order = original(self, keep)
        return replace(made, valid=torch.ones_like(made.valid), ragged=False), order

    return narrow


def forgets_columns(original: Any) -> Any:
    def map_mask(mask: Any, keys: Any, valid: Any, queries: Any, total: int, length: int) -> Any:
        if mask is None:
            return None
        made = mask[..., -keys.shape[1] :]
        return made if queries is None or mask.dim() == 2 else made[:, :, -queries.size :]

    return map_mask


def ignores_fillers(original: Any) -> Any:
    return lambda mask, keys, valid, queries, total, length: original(mask, keys, None, queries, total, length)


def drops_text(original: Any) -> Any:
    """The mask of what goes also marks the slot before the first candidate."""

    def mask(self: Any, length: int) -> Any:
        made = original(self, length)
        return made | made.roll(-1, 1)

    return mask


def tap_without_mask(original: Any) -> Any:
    def install(attention: Any, sink: Any, undo: Any) -> None:
        from transformers import AttentionMaskInterface

        before = set(AttentionMaskInterface._global_mapping)
        original(attention, sink, undo)
        for name in set(AttentionMaskInterface._global_mapping) - before:
            del AttentionMaskInterface._global_mapping[name]

    return install


def global_random(original: Any) -> Any:
    return lambda self, view: torch.rand(view.spans.slot.shape)


def numbered_rows(original: Any) -> Any:
    return lambda self: tuple(range(self.rows))


def ignores_padding(original: Any) -> Any:
    return lambda self: torch.full((self.rows,), self.length - 1 - self.entry.unverified)


def ignores_candidates(original: Any) -> Any:
    return lambda self: original(self) + self.entry.unverified


class OneForAll:
    """A context variable that all threads share."""

    def __init__(self) -> None:
        self._value: Any = None

    def get(self) -> Any:
        return self._value

    def set(self, value: Any) -> None:
        self._value = value


def forgets_undo(original: Any) -> Any:
    """Hooks after modules stay on."""
    return lambda module, call, undo: original(module, call, type(undo)())


def forgets_first(original: Any) -> Any:
    def run(self: Any) -> None:
        self._actions = self._actions[1:]
        original(self)

    return run


def leaves_on_error(original: Any) -> Any:
    return lambda self, *exception: None if exception[0] is not None else original(self, *exception)


def trusts_everybody(original: Any) -> Any:
    """A cache layer that takes tokens without being told which."""

    def update(self: Any, keys: Any, values: Any, *args: Any, **kwargs: Any) -> Any:
        if self.ticket is None:
            self.ticket = lambda slots: slots.grow(keys.shape[-2])
        return original(self, keys, values, *args, **kwargs)

    return update


def forgets_slots(original: Any) -> Any:
    def move(self: Any, rows: Any) -> None:
        slots = self.slots
        original(self, rows)
        self.slots = slots

    return move


def forgets_past(original: Any) -> Any:
    return lambda self, survivors, last, shift: original(
        replace(self, stop=max(self.stop - 1, 0)), survivors, last, shift
    )


def physical(original: Any) -> Any:
    return lambda self: self.slots.stored


def touches(original: Any) -> Any:
    return lambda self, index, args, kwargs: ((args[0] * 1.001,), kwargs)


def always_drops(original: Any) -> Any:
    def at(self: Any, site: Any, view: Any) -> Keep:
        every = torch.arange(1, view.spans.slot.shape[1])[None].expand(len(view.spans.slot), -1)
        return Keep(every, view.spans.valid[:, 1:])

    return at


def rounds(original: Any) -> Any:
    """Something small goes through float32."""
    return lambda self, tensor: original(self, tensor.float().to(tensor.dtype))


def additive_masks_unread(original: Any) -> Any:
    def hide(logits: Any, source: Any, slots: Any) -> Any:
        is_additive = isinstance(source.mask, torch.Tensor) and source.mask.is_floating_point()
        return original(logits, replace(source, mask=None, window=None) if is_additive else source, slots)

    return hide


def previous_layer(original: Any) -> Any:
    def row(self: Any, layer: int) -> Any:
        made = original(self, layer)
        return replace(made, layer=made.layer - 1) if self.when == "inside" else replace(made, rope=False)

    return row


def with_rotation(original: Any) -> Any:
    return lambda self, layer: replace(original(self, layer), rope=True)


def no_shift(original: Any) -> Any:
    return after(lambda made: (made[0], torch.zeros_like(made[1])))(original)


def gaps_stay(original: Any) -> Any:
    """Positions with gaps where they should have been numbered anew."""

    def renumber(call: Any, position_ids: Any, survivors: Any, past: Any) -> Any:
        made, shift = original(call, position_ids, survivors, past)
        return position_ids.expand_as(made), shift

    return renumber


def shifted(original: Any) -> Any:
    return lambda y, x, height, width, *shape: original((y - 1).clamp(min=0), x, height, width, *shape)


def column_major(original: Any) -> Any:
    def add(self: Any, slots: Any, y: Any, x: Any) -> None:
        original(self, slots, x, y)

    return add


def one_layer_more(original: Any) -> Any:
    return lambda layer, tokens, keys: original(layer, tokens, keys * 1.1 + 3)


def before_instead_of_got(original: Any) -> Any:
    def note(self: Any, call: Any, plugin: str, layer: int, before: Any) -> None:
        original(self, call, plugin, layer, before)
        call.stages[-1] = replace(call.stages[-1], got=before)

    return note


def forgets_an_image(original: Any) -> Any:
    """The second call does not find its image."""
    calls: list[int] = []

    def find(*args: Any) -> Any:
        calls.append(1)
        return None if len(calls) == 2 else original(*args)

    return find


def everybody_attends(original: Any) -> Any:
    return lambda self, run, module, states, mask, kwargs: run(module, *states, mask, **kwargs)


def outputs_in_front(original: Any) -> Any:
    """The short output is not put back to where its tokens are."""

    def attend(self: Any, run: Any, module: Any, states: Any, mask: Any, kwargs: Any) -> Any:
        output, weights = original(self, run, module, states, mask, kwargs)
        short = self.tokens.gather(output)
        return torch.cat([short, output.new_zeros(*output[:, short.shape[1] :].shape)], 1), weights

    return attend


def last_tokens_bypass(original: Any) -> Any:
    def among(call: Any, layer: int, action: Any) -> Any:
        made = original(call, layer, action)
        noted = call.attended[layer]
        call.attended[layer] = replace(noted, index=noted.index[:, :-1], valid=noted.valid[:, :-1])
        return made

    return among


def everybody_counts(original: Any) -> Any:
    return lambda adapter, tokens, keys, rows, queries=None: original(adapter, tokens, keys, rows)


def hides_the_past(original: Any) -> Any:
    def map_mask(mask: Any, keys: Any, valid: Any, queries: Any, total: int, length: int) -> Any:
        made = original(mask, keys, valid, queries, total, length)
        if made is None:
            return None
        past = keys.shape[1] - queries.size
        return torch.cat([made[..., :past] & False, made[..., past:]], -1)

    return map_mask


def attends_to_the_new(original: Any) -> Any:
    """Older keys are taken for padding."""

    def attend(query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Any:
        older = torch.full((query.shape[0],), key.shape[2] - query.shape[2])
        return original(query, key, *args, **kwargs | {"first": older})

    return attend


def everything_is_real(original: Any) -> Any:
    return lambda self: torch.ones_like(original(self))


def begins_at_once(original: Any) -> Any:
    return lambda mask, real: torch.zeros(len(real), dtype=torch.long)


def everything_is_a_video(original: Any) -> Any:
    """Images get frame numbers too."""

    def next_image(self: Any, *, video: bool = False) -> None:
        original(self, video=True)

    return next_image


def by_length(original: Any) -> Any:
    """Takes whatever has the full length for untouched; fillers of a ragged batch can give it that length."""

    def full_length(call: Any, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        maps = {present.size: present for present in call.maps.values()}
        return tuple(one if one.shape[1] == call.length else maps[one.shape[1]].scatter(one) for one in states)

    return full_length


def asks_one_plugin(original: Any) -> Any:
    """Once a plugin has dropped something, no other one is asked in that call."""

    def ask(self: Any, call: Any, index: int, plugin: Any, *rest: Any) -> Any:
        others = [stage for stage in call.stages if stage.plugin != plugin.name]
        return None if others else original(self, call, index, plugin, *rest)

    return ask
