"""LazyLLM with revival as a plain procedure on full-length matrices: one row, python loops, no cache, no library code.

The state is the hidden state of every token at the input of every layer, noted when it was computed, and for every
layer the set of tokens that are in it. Keys and values are functions of hidden state and place, so each layer can be
run anew at full length, under a mask that shows the tokens that are in it, by the unmodified model's own eager layer.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor

from tests.oracle import decoder_layers

HIDDEN = torch.finfo(torch.float32).min


class SlowRevival:
    """Calls of one conversation of one row. `stages`: layer -> fraction of the visual tokens that belongs there."""

    def __init__(self, model: Any, stages: dict[int, float], revive_ratio: float | None = None) -> None:
        self.model = copy.deepcopy(model)
        self.model.set_attn_implementation("eager")
        self.stages, self.revive_ratio = stages, revive_ratio
        self.count = len(decoder_layers(model))
        self.states: list[dict[int, Tensor]] = [{} for _ in range(self.count + 1)]
        self.inside: list[set[int]] = [set() for _ in range(self.count)]
        self.visual: list[int] = []
        self.fresh: list[int] = []
        self.ropes: list[tuple[Tensor, Tensor]] = []
        self.cache: Any = None
        self.revived: list[dict[int, int]] = []

    def __call__(self, inputs: dict[str, Any], visual: Tensor | None = None, steps: bool = True) -> Tensor:
        """Logits [S, vocabulary] of a call's tokens. `visual` [S]: the candidates of a prefill; `steps`: look back."""
        seen = self._bare(inputs)
        new = list(range(len(self.states[0]), len(self.states[0]) + seen["hidden"].shape[1]))
        for place, position in enumerate(new):
            self.states[0][position] = seen["hidden"][0, place]
        if visual is not None:
            self.fresh = [position for position, is_visual in zip(new, visual.tolist(), strict=True) if is_visual]
            self.visual = self.visual + self.fresh
        running, self.row, back = set(new), {}, {}
        for layer in range(self.count):
            if layer in self.stages:
                running = self._stage(layer, running, set(new), visual is not None, steps, back)
            self.inside[layer] |= running
            self._run(layer, sorted(running), new, seen)
        self.revived.append(back)
        made = torch.stack([self.states[self.count].get(p, torch.zeros_like(seen["hidden"][0, 0])) for p in new])
        with torch.no_grad():
            logits: Tensor = self.model.get_output_embeddings()(self.model.get_decoder().norm(made[None]))[0]
        return logits

    def _stage(
        self, layer: int, running: set[int], new: set[int], prefill: bool, steps: bool, back: dict[int, int]
    ) -> set[int]:
        """Who goes on into `layer`: after a prefill's drop, or with those that come back."""
        here = [p for p in (self.fresh if prefill else self.visual) if p in self.inside[layer - 1]]
        if prefill:
            return running - (set(here) - self._best(here, self.stages[layer], len(self.fresh)))
        back[layer] = 0
        if not steps:
            return running & new
        share = self.stages[layer] if self.revive_ratio is None else self.revive_ratio
        best = self._best(here, share, len(self.visual))
        chosen = best - self.inside[layer]
        back[layer] = len(chosen)
        return (running & new) | chosen

    def _best(self, among: list[int], share: float, started: int) -> set[int]:
        count = min(max(1, math.ceil(share * started - 1e-9)), len(among))
        return set(sorted(among, key=lambda p: (-float(self.row[p]), p))[:count])

    def _run(self, layer: int, running: list[int], new: list[int], seen: dict[str, Any]) -> None:
        total = new[-1] + 1
        states = torch.zeros(1, total, seen["hidden"].shape[2])
        for position in self.inside[layer]:
            states[0, position] = self.states[layer][position]
        mask = torch.full((total, total), HIDDEN)
        for query in range(total):
            for key in range(total):
                if query in new and seen["mask"] is not None:
                    sees = float(seen["mask"][0, 0, query - new[0], key]) == 0
                else:
                    sees = key <= query
                if key == query or (sees and key in self.inside[layer]):
                    mask[query, key] = 0.0
        weights: list[Tensor] = []
        module = decoder_layers(self.model)[layer]
        hook = module.self_attn.register_forward_hook(lambda _, args, output: weights.append(output[1]))
        with torch.no_grad():
            kwargs = seen["kwargs"] | {"attention_mask": mask[None, None], "past_key_values": None}
            out = module(states, **kwargs | {"position_embeddings": (self.cos, self.sin), "position_ids": None})
        hook.remove()
        self.row = weights[0][0, :, new[-1]].mean(0)
        for position in running:
            self.states[layer + 1][position] = out[0, position]
        for place, position in enumerate(seen["pictured"]):
            if layer < len(seen["added"]) and position in running:
                self.states[layer + 1][position] = out[0, position] + seen["added"][layer][place]

    def _bare(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """What the bare model gives its layers in this call: embeddings, rotary tables, masks, added features."""
        seen: dict[str, Any] = {}

        def look(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.update(hidden=args[0], mask=kwargs.get("attention_mask"), rope=kwargs["position_embeddings"])
            seen["kwargs"] = {k: v for k, v in kwargs.items() if k not in ("past_key_values", "use_cache")}

        def enter(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            where = kwargs.get("visual_pos_masks")
            seen["pictured"] = [] if where is None else where[0].nonzero()[:, 0].tolist()
            seen["added"] = kwargs.get("deepstack_visual_embeds") or []

        hooks = [
            decoder_layers(self.model)[0].register_forward_pre_hook(look, with_kwargs=True),
            self.model.get_decoder().register_forward_pre_hook(enter, with_kwargs=True),
        ]
        with torch.no_grad():
            self.cache = self.model(**inputs, past_key_values=self.cache, use_cache=True).past_key_values
        for hook in hooks:
            hook.remove()
        self.ropes.append(seen["rope"])
        self.cos, self.sin = (torch.cat([rope[part] for rope in self.ropes], 1) for part in (0, 1))
        return seen

    def crop(self, count: int) -> None:
        """Forget the last `count` tokens; what came back because of them stays."""
        cut = len(self.states[0]) - count
        self.states = [{p: state for p, state in layer.items() if p < cut} for layer in self.states]
        self.inside = [{p for p in layer if p < cut} for layer in self.inside]
        self.ropes = [(self.cos[:, :cut], self.sin[:, :cut])]
        self.cache.crop(-count)
