"""Tokens merged inside the blocks of a denoiser: in front of a module fewer, behind it all of them again."""

from __future__ import annotations

import time
from typing import Any

from torch import Tensor, nn

from vlm_eff.core.denoise import DenoisePlugin, MergeTokens, TokenSite
from vlm_eff.core.errors import CapabilityError, explain
from vlm_eff.core.handle import Undo
from vlm_eff.models.denoise.chain import Forward, Link
from vlm_eff.models.denoise.guidance_change import GuidanceChange
from vlm_eff.models.denoise.merged_call import by_name, merged, saved_flops, why_not
from vlm_eff.models.denoise.runtime import DenoiseRuntime
from vlm_eff.models.denoise.token_blocks import SUPPORTED, Grid, TokenBlock, root_grid, token_levels
from vlm_eff.models.denoise.view import Call, TokenView

# outside of what predicts the denoiser's output, and inside of what skips a module
_LISTENING, _MERGING = -50, 50


class _Open:
    """A block that is running: its tokens, and how its plugin merges them once somebody asks."""

    def __init__(self, view: TokenView, text: int) -> None:
        self.view, self.text = view, text
        self.asked = False
        self.merge: MergeTokens | None = None


class MergeDriver:
    """Asks a plugin once a block and call, when the first of the block's modules runs.

    Leaves alone what it cannot merge, and says so in the report: masked attention, tokens on no grid, modules that run
    for fewer rows than their block.
    """

    def __init__(self, runtime: DenoiseRuntime, site: TokenSite, plugin: DenoisePlugin) -> None:
        self._runtime, self._site, self._plugin = runtime, site, plugin
        self._grids: list[Grid | None] = []
        self._open: _Open | None = None
        self._notes: dict[Any, Any] = {}
        self._change = GuidanceChange(runtime) if site.guidance else None
        self._tokens = [0, 0]

    def install(self, undo: Undo) -> None:
        chains = self._runtime.chains
        for denoiser in self._runtime.denoising.denoisers.values():
            levels = token_levels(denoiser)
            count = sum(len(level.blocks) for level in levels)
            if not any(kind in self._site.kinds for lv in levels for b in lv.blocks for kind, _ in b.parts):
                got = f"{self._plugin.name} on {type(denoiser).__name__}, where no block has {self._site.kinds}"
                raise CapabilityError(explain(got, SUPPORTED, "Use another method on this pipeline"))
            chains.around(denoiser, self._root(), undo, order=_LISTENING)
            number = 0
            for level in levels:
                if level.parent is not None:
                    chains.around(level.parent, self._parent, undo)
                for block in level.blocks:
                    chains.around(block.module, self._block(block, number, count), undo)
                    number += 1
                    for kind, module in block.parts:
                        if kind in self._site.kinds:
                            chains.around(module, self._part(kind), undo, order=_MERGING)

    def began(self) -> None:
        """Nothing of another run is known."""
        self._notes, self._tokens = {}, [0, 0]
        if self._change is not None:
            self._change.forget()

    def ended(self) -> None:
        """What was known of the run is freed."""
        self.began()

    # ---------------------------------------------------------------- links

    def _root(self) -> Link:
        def link(module: nn.Module, inner: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            call = self._runtime.call
            if call is None or not self._runtime.active:
                return inner(*args, **kwargs)
            self._grids.append(root_grid(module, call.named, call.latents, self._notes))
            try:
                if self._change is None:
                    return inner(*args, **kwargs)
                return self._change.link(module, inner, args, kwargs)
            finally:
                self._grids.pop()

        return link

    def _parent(self, module: nn.Module, inner: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden = by_name(module, args, kwargs)["hidden_states"]
        self._grids.append((1, int(hidden.shape[-2]), int(hidden.shape[-1])))
        try:
            return inner(*args, **kwargs)
        finally:
            self._grids.pop()

    def _block(self, block: TokenBlock, number: int, blocks: int) -> Link:
        def link(module: nn.Module, inner: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            call = self._runtime.call
            if call is None or not self._runtime.active:
                return inner(*args, **kwargs)
            named = by_name(module, args, kwargs)
            text = int(named["encoder_hidden_states"].shape[1]) if block.joint else 0
            before, self._open = self._open, self._view(named["hidden_states"], number, blocks, call, text)
            try:
                return inner(*args, **kwargs)
            finally:
                self._open = before

        return link

    def _part(self, kind: str) -> Link:
        def link(module: nn.Module, inner: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            opened = self._open
            if opened is None or not self._runtime.active:
                return inner(*args, **kwargs)
            named = by_name(module, args, kwargs)
            rows, tokens = opened.view.tokens.shape[:2]
            problem = why_not(named, (rows, tokens), opened.text)
            merge = self._merge(opened) if problem is None else None
            if merge is None:
                self._note(tokens, tokens, problem)
                return inner(*args, **kwargs)
            self._note(tokens, merge.home.shape[1], None)
            self._runtime.cheaper(saved_flops(kind, module, named, merge))
            return merged(inner, named, merge, opened.text)

        return link

    # ---------------------------------------------------------------- asking

    def _view(self, tokens: Tensor, number: int, blocks: int, call: Call, text: int) -> _Open | None:
        grid = self._grids[-1] if self._grids else None
        if grid is None or grid[0] * grid[1] * grid[2] != tokens.shape[1]:
            self._note(tokens.shape[1], tokens.shape[1], "on no grid")
            return None
        first = self._grids[0] or grid
        level = round((first[1] * first[2] / (grid[1] * grid[2])) ** 0.5)
        # UNets go down before they come up
        finest = self._notes.setdefault("finest", level)
        change = None if self._change is None else self._change.of(call.step.index, grid, tokens.shape[0])
        return _Open(TokenView(tokens, grid, number, blocks, level, finest, call, change, self._notes), text)

    def _merge(self, opened: _Open) -> MergeTokens | None:
        if not opened.asked:
            started = time.perf_counter()
            opened.merge, opened.asked = self._plugin.at(self._site, opened.view), True
            self._runtime.ledger.now.deciding_ms += 1000 * (time.perf_counter() - started)
            if opened.merge is not None:
                self._runtime.cheaper(-opened.merge.flops)
        return opened.merge

    def _note(self, tokens: int, left: int, problem: str | None) -> None:
        """ "tokens": share of tokens on which the modules asked for have computed; and how often at which size."""
        notes = self._runtime.ledger.now.notes
        self._tokens[0] += tokens
        self._tokens[1] += left
        notes["tokens"] = self._tokens[1] / self._tokens[0]
        name = f"tokens {tokens} to {left}" if left < tokens else f"tokens {tokens} left {problem or 'as they are'}"
        notes[name] = notes.get(name, 0) + 1
