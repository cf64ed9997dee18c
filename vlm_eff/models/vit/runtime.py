"""What happens in one run of a vision tower with plugins attached.

Block, before    ask the plugins; bring hidden states, masks, bounds and rotary tables to what is left
Attention        sizes as a bias on keys
Norm of the MLP  ask the plugins that act inside the block; the MLP runs on what they leave
MLP, after       its output back to all tokens of the block, so that the residual sum fits
Block, after     hidden states of what is left, and back to full length: whatever reads between the blocks or behind
                 them (captured hidden states, DeepStack, projectors, pooling heads) sees every token in its place
"""

from __future__ import annotations

import inspect
import time
from collections import defaultdict
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from vlm_eff.core.errors import CapabilityError, explain
from vlm_eff.core.handle import Undo
from vlm_eff.core.plugin import Plugin
from vlm_eff.core.tower import TowerSite
from vlm_eff.models import seams
from vlm_eff.models.vit import inputs as tower_inputs
from vlm_eff.models.vit.cells import image_cells
from vlm_eff.models.vit.kind import Tower
from vlm_eff.models.vit.ledger import TowerLedger
from vlm_eff.models.vit.run import Pending, Run, add_bias, key_bias, narrow_mask, shorten
from vlm_eff.models.vit.state import Tokens, reduce, settle, spread
from vlm_eff.models.vit.view import TowerView

_RUN: ContextVar[Run | None] = ContextVar("vlm_eff_tower_run", default=None)
_GIVEN: ContextVar[tuple[object, dict[str, Any]] | None] = ContextVar("vlm_eff_tower_given", default=None)


class TowerRuntime:
    """Carries out the tower actions of plugins, while `active()` of the handle's runtime says so.

    `tell` is given which patches stayed, in the tower's order [P, 1], behind the last block of each run.
    """

    def __init__(self, tower: Tower, plugins: tuple[Plugin, ...]) -> None:
        self.tower = tower
        self.ledger = TowerLedger(tower)
        self._active: Callable[[], bool] = lambda: True
        self.tell: Callable[[Tensor], None] = lambda kept: None
        self._at: dict[tuple[int, str], list[tuple[TowerSite, Plugin]]] = defaultdict(list)
        for plugin in plugins:
            for site in plugin.sites:
                if isinstance(site, TowerSite):
                    self._at[(site.block, site.when)].append((site, plugin))
        sites = [site for found in self._at.values() for site, _ in found]
        self._looked = {s.block if s.when == "inside" else s.block - 1 for s in sites if s.sees == "attention"}
        self._pixels = any(site.sees == "pixels" for site in sites)
        self._first = min([site.block for site in sites] + [block for block in self._looked if block >= 0], default=0)

    # ---------------------------------------------------------------- installation

    def install(self, active: Callable[[], bool], undo: Undo) -> None:
        """Put the hooks on; each pushes how to take it off."""
        tower, self._active = self.tower, active
        if self._at:
            _refuse_flash(tower)
        seams.before(tower.root, self._root_before, undo)
        if self._pixels:
            seams.before(tower.patcher, self._patcher_before, undo)
        hooked = list(range(self._first, tower.num_blocks))
        for index in hooked:
            seams.before(tower.blocks[index], self._hook(self._block_before, index), undo)
            if self._at.get((index, "inside")):
                seams.before(tower.norms[index], self._hook(self._norm_before, index), undo)
                seams.after(tower.mlps[index], self._hook(self._mlp_after, index), undo)
            seams.after(tower.blocks[index], self._hook(self._block_after, index), undo)
        tower.watch(tower, hooked, self._bias, self._saw, undo)

    def _hook(self, call: Any, index: int) -> Any:
        return lambda module, *seen: call(index, *seen)

    # ---------------------------------------------------------------- entering

    def _run(self) -> Run | None:
        run = _RUN.get()
        return run if run is not None and run.owner is self else None

    def _root_before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        _RUN.set(None)
        bound = inspect.signature(module.forward).bind_partial(*args).arguments
        # pixels are not kept here: grids and sizes are all that the layout needs
        given = {name: value for name, value in {**bound, **kwargs}.items() if name in tower_inputs.NAMES}
        _GIVEN.set((self, given))

    def _patcher_before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = _GIVEN.get()
        names = given[1] if given is not None and given[0] is self else {}
        _GIVEN.set((self, names | {"pixels": args[0] if args else next(iter(kwargs.values()))}))

    def _begin(self, hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Run:
        found = _GIVEN.get()
        given = found[1] if found is not None and found[0] is self else {}
        full = tower_inputs.layout(self.tower, hidden, given)
        run = Run(self, Tokens.all(full, hidden.device), inputs=given, pixels=given.get("pixels"))
        run.window = tower_inputs.windows(self.tower, full, given)
        run.padding = tower_inputs.padding(_mask_of(args, kwargs), full)
        self.ledger.begin(run)
        return run

    # ---------------------------------------------------------------- inside

    def _block_before(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if index == self._first:
            _RUN.set(None)
            if not self._active():
                return None
            hidden = args[0] if args else kwargs["hidden_states"]
            _RUN.set(self._begin(hidden, args, kwargs))
        run = self._run()
        if run is None:
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
        run.cursor, run.pending = 0, None
        padded = self._padded(run, hidden)
        for site, plugin in self._at.get((index, "before"), ()):
            action = self._ask(run, plugin, site, index - 1, padded)
            if action is not None:
                size, run.tokens = run.tokens.size, run.tokens.after(action, padded)
                run.fused = run.fused or getattr(action, "fuse", None) is not None
                padded = reduce(action, padded, size)
                run.history[index] = run.tokens
        run.attended[index] = run.processed[index] = run.tokens.now
        kwargs = self._translate(run, index, dict(kwargs))
        if not run.tokens.reduced:
            return None
        made = run.tokens.now.pack(padded)
        return ((made, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": made})

    def _ask(self, run: Run, plugin: Plugin, site: TowerSite, looked: int, padded: Tensor) -> Any:
        started = time.perf_counter()
        action = plugin.at(site, self._view(run, site.block, looked, padded))
        run.deciding += time.perf_counter() - started
        return action

    def _padded(self, run: Run, hidden: Tensor) -> Tensor:
        """States of what is left [I, T, D] from what a block is given."""
        tokens = run.tokens
        if hidden is run.emitted:
            assert run.short is not None
            return run.short
        padded = tokens.full.pad(hidden)
        if not tokens.reduced:
            return padded
        if run.fused:
            raise CapabilityError(
                explain(
                    "hidden states that were changed between two blocks of the tower, with a fused token among them",
                    "towers whose blocks follow each other directly",
                    "Use the method without fusing",
                )
            )
        return padded.gather(1, tokens.place[:, :, None].expand(-1, -1, padded.shape[2]))

    def _translate(self, run: Run, index: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Bounds and rotary tables of a packed tower, for what is left."""
        bounds, tables = kwargs.get("cu_seqlens"), kwargs.get("position_embeddings")
        if not run.tokens.reduced:
            if bounds is not None:
                run.borders[index] = (bounds, bounds)
            return kwargs
        if bounds is None and tables is None:
            return kwargs
        places = run.flat_places()
        if bounds is not None:
            kwargs["cu_seqlens"] = shorten(bounds, places)
            run.borders[index] = (bounds, kwargs["cu_seqlens"])
        if tables is not None:
            kwargs["position_embeddings"] = tuple(table[..., places, :] for table in tables)
        return kwargs

    def _saw(self, index: int, pair: Any) -> None:
        run = self._run()
        if run is not None and index in self._looked:
            run.seen.setdefault(index, []).append(pair())

    def _bias(self, index: int, mask: Tensor | None, like: Tensor, count: int) -> Tensor | None:
        run = self._run()
        if run is None or not run.tokens.reduced:
            return None
        tokens = run.tokens
        start, run.cursor = run.cursor, run.cursor + count
        if mask is not None and mask.shape[-1] != count:
            mask = narrow_mask(mask, run, self.tower.batched)
        bias = key_bias(tokens, like)
        if bias is None:
            return mask
        if self.tower.batched:
            return add_bias(mask, bias[:, None, None])
        return add_bias(mask, tokens.now.pack(bias).flatten()[None, None, None, start : start + count])

    def _norm_before(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        run = self._run()
        if run is None or run.pending is not None:
            return None
        padded = run.tokens.now.pad(args[0])
        for site, plugin in self._at[(index, "inside")]:
            action = self._ask(run, plugin, site, index, padded)
            if action is None:
                continue
            after = run.tokens.after(action, padded)
            run.pending = Pending(action, padded, after)
            run.processed[index] = after.now
            return (after.now.pack(reduce(action, padded, run.tokens.size)), *args[1:]), kwargs
        return None

    def _mlp_after(self, index: int, args: Any, kwargs: Any, output: Tensor) -> Any:
        run = self._run()
        if run is None or run.pending is None:
            return None
        run.pending.mlp_ran = True
        return run.tokens.now.pack(spread(run.pending.action, run.pending.after.now.pad(output)))

    def _block_after(self, index: int, args: Any, kwargs: Any, output: Any) -> Any:
        run = self._run()
        if run is None:
            return None
        hidden, pending = (output[0] if isinstance(output, tuple) else output), run.pending
        made = None
        if pending is not None:
            if not pending.mlp_ran:
                raise _not_pre_norm(self.tower.blocks[index])
            made = settle(pending.action, pending.before, run.tokens.now.pad(hidden), run.tokens.size)
            run.fused = run.fused or getattr(pending.action, "fuse", None) is not None
            run.tokens, run.pending = pending.after, None
            run.history[index] = run.tokens
        elif run.tokens.reduced:
            made = run.tokens.now.pad(hidden)
        emitted = None
        if made is not None:
            run.short, run.emitted = made, run.tokens.full.pack(run.tokens.restore(made))
            emitted = run.emitted
        if index == self.tower.num_blocks - 1:
            self.tell(run.kept(self.tower.prefix))
            run.close()
        if emitted is None:
            return None
        return (emitted, *output[1:]) if isinstance(output, tuple) else emitted

    # ---------------------------------------------------------------- what plugins see

    def _view(self, run: Run, index: int, looked: int, padded: Tensor) -> TowerView:
        tokens = run.tokens
        borders = run.borders.get(looked)
        whole = borders is None or len(borders[0]) - 1 == len(tokens.full.lengths)
        return TowerView(
            block=index,
            hidden=padded,
            valid=tokens.now.valid,
            counts=tuple(tokens.now.lengths),
            original=tuple(length - self.tower.prefix for length in tokens.full.lengths),
            prefix=self.tower.prefix,
            size=tokens.size,
            place=tokens.place,
            window=run.gathered(run.window),
            apart=None if whole else run.gathered(run.window),
            padding=run.gathered(run.padding),
            attention=lambda: self._attention(run, looked),
            cells=lambda: image_cells(self.tower, run.pixels, run.inputs, tokens.full.lengths),
        )

    def _attention(self, run: Run, block: int) -> tuple[Tensor, Tensor]:
        """Queries and keys of a block [I, H, T, Dh]."""
        pairs = run.seen[block]
        if self.tower.batched:
            return pairs[-1]
        made = [torch.cat([pair[which] for pair in pairs], 2)[0].transpose(0, 1) for which in (0, 1)]
        now = run.tokens.now
        query, key = (now.pad(part[None] if getattr(now, "batched", False) else part).transpose(1, 2) for part in made)
        return query, key


def _mask_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[1] if len(args) > 1 else kwargs.get("attention_mask")


def _refuse_flash(tower: Tower) -> None:
    name = str(getattr(tower.config, "_attn_implementation", ""))
    if "flash" in name:
        raise CapabilityError(
            explain(
                f"a tower plugin on a tower with attention {name!r}, which takes no bias on keys",
                "eager and sdpa towers",
                'Load the model with attn_implementation={"vision_config": "sdpa"}',
            )
        )


def _not_pre_norm(block: nn.Module) -> CapabilityError:
    return CapabilityError(
        explain(
            f"{type(block).__name__}, whose MLP does not follow its second norm",
            "pre-norm blocks",
            "Use a plugin that acts before blocks or behind the tower",
        )
    )
