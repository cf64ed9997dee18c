"""Links around the forward of a module: one hook of ours in diffusers' registry, removed in any order, without a trace.

diffusers' own registry loses the `new_forward` of the next hook when one that is not outermost is removed (0.42.1).
So a module has one hook of ours with all our links inside, which takes itself out properly and puts itself
right when another hook's removal has cut it off. accelerate wraps the same forward: its offloading takes its hooks off
and puts them on again behind every run, whenever it was switched on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from vlm_eff.core.handle import Undo

Forward = Callable[..., Any]
Link = Callable[[nn.Module, Forward, tuple[Any, ...], dict[str, Any]], Any]
NAME = "vlm_eff"
_GONE = object()
# where a module has its forward, and where accelerate keeps what it found there
_PLACES = ("forward", "_old_forward")


class Chain:
    """The links of one module; the first is outermost.

    A link is called as `link(module, inner, args, kwargs)` and calls `inner(*args, **kwargs)`, or does not.
    """

    def __init__(self, module: nn.Module) -> None:
        from diffusers.hooks import HookRegistry

        self.module = module
        self.links: list[tuple[int, Link]] = []
        self._forward = module.__dict__.get("forward", _GONE)
        self._fresh = not hasattr(module, "_diffusers_hook")
        self.registry = HookRegistry.check_if_exists_or_initialize(module)
        self.hook = _hook(self)
        self.registry.register_hook(self.hook, NAME)
        self._ours = self.hook.fn_ref.forward
        # what others find as the module's forward, and may keep inside theirs
        self._outside = module.forward

    def run(self, inner: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the links, and `inner` inside them."""
        call = inner
        for _, link in reversed(self.links):
            call = functools.partial(_call, link, self.module, call)
        return call(*args, **kwargs)

    def mend(self) -> None:
        """Come back into the module's forward where the removal of another hook has cut us off."""
        ref = self.hook.fn_ref
        if ref.forward is not self._ours:
            ref.original_forward, ref.forward = ref.forward, self._ours
        if self._holders():
            return
        # accelerate has gone, or gone and come back: where the bare forward stands, nobody keeps us
        kept = vars(self.module)
        name = "_old_forward" if "_old_forward" in kept else "forward"
        found = kept.get(name, self.module.forward)
        if self._is_bare(found):
            ref.original_forward = found
            setattr(self.module, name, self._outside)

    def remove(self) -> None:
        """Take the hook out, and all that came with it."""
        registry, module = self.registry, self.module
        self.mend()
        # whoever keeps us in a way that nobody can see calls what is inside, and no more
        self.links = []
        inside = self.hook.fn_ref.original_forward
        for holder, name in self._holders():
            setattr(holder, name, inside)
        if registry.hooks.get(NAME) is self.hook:
            index = registry._hook_order.index(NAME)
            del registry.hooks[NAME]
            registry._hook_order.pop(index)
            registry._fn_refs.pop(index)
        if vars(module).get("forward") is inside and self._is_bare(inside) and inside is not self._forward:
            del module.forward
        if not registry.hooks and self._fresh:
            vars(module).pop("_diffusers_hook", None)

    def _holders(self) -> list[tuple[Any, str]]:
        """Where our forward stands: in the module, in accelerate's place there, or in a hook above ours."""
        places: list[tuple[Any, str]] = [(self.module, name) for name in _PLACES if name in vars(self.module)]
        # where a hook runs a forward of its own, what it wraps stands in `original_forward`
        places += [(ref, name) for ref in self.registry._fn_refs for name in ("forward", "original_forward")]
        return [(holder, name) for holder, name in places if getattr(holder, name) is self._outside]

    def _is_bare(self, forward: Any) -> bool:
        own = getattr(forward, "__self__", None) is self.module
        return own and getattr(forward, "__func__", None) is type(self.module).forward


def _call(link: Link, module: nn.Module, inner: Forward, *args: Any, **kwargs: Any) -> Any:
    return link(module, inner, args, kwargs)


def _hook(chain: Chain) -> Any:
    from diffusers.hooks.hooks import BaseState, ModelHook, StateManager

    class Nothing(BaseState):  # type: ignore[misc]
        def reset(self, *args: Any, **kwargs: Any) -> None:
            pass

    class ChainHook(ModelHook):  # type: ignore[misc]
        # stateful, so that pipelines tell it the name of each guidance branch
        _is_stateful = True

        def __init__(self) -> None:
            super().__init__()
            self.contexts = StateManager(Nothing)
            self.called: nn.Module | None = None

        def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
            self.called = module
            return args, kwargs

        def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            called, self.called = self.called, None
            if called is not None and called is not chain.module:
                # a deep copy carries this hook along, with the original's forward inside
                return type(called).forward(called, *args, **kwargs)
            inner: Any = self.fn_ref.original_forward
            return chain.run(inner, args, kwargs)

        def reset_state(self, module: nn.Module) -> nn.Module:
            self.contexts.reset()
            return module

        def __deepcopy__(self, memo: dict[int, Any]) -> Any:
            return self

    return ChainHook()


class Chains:
    """The chains of one handle."""

    def __init__(self) -> None:
        self._chains: dict[nn.Module, Chain] = {}

    def around(self, module: nn.Module, link: Link, undo: Undo, *, order: int = 0) -> None:
        """Put a link around the module's forward; smaller `order` is farther outside, equal ones in order of calls."""
        chain = self._chains.get(module)
        if chain is None:
            chain = self._chains[module] = Chain(module)
            undo.push(functools.partial(self._drop, module))
        chain.links.append((order, link))
        chain.links.sort(key=lambda item: item[0])

    def mend(self) -> None:
        """See `Chain.mend`, for all."""
        for chain in self._chains.values():
            chain.mend()

    def context(self, module: nn.Module) -> str | None:
        """Name of the cache context in which the pipeline is calling `module`; None when it sets none."""
        chain = self._chains.get(module)
        context = None if chain is None else chain.hook.contexts._context
        return None if context is None else str(context.name)

    def settled(self) -> None:
        """Tell registries above ours that hooks have come or gone: they remember which modules have any."""
        for chain in self._chains.values():
            chain.registry.invalidate_child_registries_cache()

    def _drop(self, module: nn.Module) -> None:
        self._chains.pop(module).remove()
