"""The handle of an attached model: it owns the undo stack and everything the plugins keep."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from vlm_eff.core.errors import StateError, explain

if TYPE_CHECKING:
    from torch import Tensor

    from vlm_eff.core.plugin import Plugin
    from vlm_eff.core.report import Stats, VisualTokens


class HandleNeverFired(UserWarning):
    """A handle was taken off without its hooks ever having run."""


class Undo:
    """A stack of actions that take things back, run in reverse; one that fails does not stop the others."""

    def __init__(self) -> None:
        self._actions: list[Callable[[], object]] = []

    def push(self, action: Callable[[], object]) -> None:
        """Remember how to take the newest change back."""
        self._actions.append(action)

    def run(self) -> None:
        """Take everything back; afterwards raise the first error, if there was one."""
        first: Exception | None = None
        while self._actions:
            try:
                self._actions.pop()()
            except Exception as error:
                first = first or error
        if first is not None:
            raise first


class Runtime(Protocol):
    """What the handle asks of the runtime in `models/`."""

    active: bool
    weights: dict[str, Any]
    penalties: list[Tensor]

    def stats(self) -> Stats: ...
    def reset(self) -> None: ...
    def survivors(self, layer: int) -> list[Tensor]: ...
    def attended(self, layer: int) -> list[Tensor]: ...
    def visual(self, layer: int) -> list[VisualTokens]: ...
    def kv_positions(self, layer: int) -> Tensor: ...
    def kv_modalities(self, layer: int) -> Tensor: ...
    def kv_contents(self, layer: int) -> tuple[Tensor, Tensor, Tensor | None]: ...
    def tower_groups(self, block: int) -> list[tuple[Tensor, Tensor]]: ...


class Handle:
    """Plugins on one model instance, from `attach` until `detach`; a context manager.

    After `detach` the model has the hooks, attributes, classes, config and attention implementation it had before.
    """

    def __init__(self, plugins: tuple[Plugin, ...], runtime: Runtime, undo: Undo) -> None:
        self.plugins = plugins
        self._runtime = runtime
        self._undo = undo
        self._attached = True

    @property
    def attached(self) -> bool:
        """True until `detach`."""
        return self._attached

    def detach(self) -> None:
        """Take the plugins off. May be called again; warns when the model was never called in between."""
        if not self._attached:
            return
        self._attached = False
        self._runtime.active = False
        self._undo.run()
        if self._runtime.stats().calls == 0:
            names = ", ".join(plugin.name for plugin in self.plugins)
            warnings.warn(
                f"vlm_eff: {names} was attached but its hooks never ran: nothing was saved. Call the model that was "
                "given to attach(), inside the with block.",
                HandleNeverFired,
                stacklevel=2,
            )

    @contextmanager
    def paused(self) -> Iterator[Handle]:
        """Run the bare model inside the block, for A/B comparison, without detaching."""
        self._require_attached("pause")
        before, self._runtime.active = self._runtime.active, False
        try:
            yield self
        finally:
            self._runtime.active = before

    def reset(self) -> None:
        """Forget all reports and maps, as if just attached."""
        self._runtime.reset()

    def stats(self) -> Stats:
        """What was asked, got and realised since attach or `reset`; readable after `detach` too."""
        return self._runtime.stats()

    def survivors(self, layer: int) -> list[Tensor]:
        """Sequence positions of the last prefill still present at decoder `layer`, one tensor [n] a row."""
        return self._runtime.survivors(layer)

    def attended(self, layer: int) -> list[Tensor]:
        """Sequence positions that took part in the attention of `layer` in the last prefill, one tensor [n] a row.

        These are the survivors, unless a plugin let some of them bypass the attention.
        """
        return self._runtime.attended(layer)

    def visual(self, layer: int) -> list[VisualTokens]:
        """Where the visual tokens of the last prefill lie in their images, and which are left at `layer`; one a row."""
        return self._runtime.visual(layer)

    def kv_positions(self, layer: int) -> Tensor:
        """Logical positions that the cache of `layer` stores after the last call [B, Hkv, S]; -1 for none."""
        return self._runtime.kv_positions(layer)

    def kv_modalities(self, layer: int) -> Tensor:
        """What `layer` stores after the last call [B, Hkv, S] int8, in the order of `kv_positions`.

        0 text, 1 image, 2 video, -1 for padding and where there is no entry. Only for plugins of the cache.
        """
        return self._runtime.kv_modalities(layer)

    def kv_contents(self, layer: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values [B, Hkv, S, Dh] as `layer` attends to them, in the order of `kv_positions`, unpacked.

        The third is what is added to the logits [B, Hkv, S]: the log of the number of tokens that an entry stands for,
        or None. Only for plugins of the cache, and as long as the cache is in use.
        """
        return self._runtime.kv_contents(layer)

    def tower_groups(self, block: int) -> list[tuple[Tensor, Tensor]]:
        """What became of the tokens of each image behind tower `block`, in the last run of the tower.

        One pair an image (or frame): [N] number of the token that each of the bare tower's tokens is part of, -1 where
        it was dropped; and [T] the original place of every token that is left.
        """
        return self._runtime.tower_groups(block)

    @property
    def weights(self) -> dict[str, Any]:
        """Learned weights of the plugins, torch modules by plugin name; `weights["victor"].save(path)` writes them."""
        return self._runtime.weights

    def parameters(self) -> Iterator[Any]:
        """The plugins' own parameters, for an optimiser; those of the model are not among them."""
        for module in self._runtime.weights.values():
            yield from module.parameters()

    def penalty(self) -> Tensor | None:
        """What the last forward call adds to a training loss [], with its gradient; None when nothing."""
        total = None
        for penalty in self._runtime.penalties:
            total = penalty if total is None else total + penalty
        return total

    def _require_attached(self, what: str) -> None:
        if not self._attached:
            raise StateError(explain(f"cannot {what}: the handle is detached", "an attached handle", "Attach again"))

    def __enter__(self) -> Handle:
        self._require_attached("enter")
        return self

    def __exit__(self, *exception: Any) -> None:
        if exception[0] is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", HandleNeverFired)
                self.detach()
            return
        self.detach()

    def __repr__(self) -> str:
        state = "attached" if self._attached else "detached"
        return f"Handle({', '.join(plugin.name for plugin in self.plugins)}; {state})"
