"""FLOPs of a real call, counted where they happen: tower, projector, decoder, head, and what plugins add.

`torch.utils.flop_counter` counts; hooks say which part of the model is at work. Multiplications with addition count
twice, causal attention is not halved, norms, activations and softmax count nothing. Operations that torch's dispatcher
never sees count nothing either: kernels of this library are registered with their formulas.
"""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from functools import partial
from typing import Any

from torch.utils.flop_counter import FlopCounterMode

from vlm_eff.core.handle import Undo
from vlm_eff.models import seams
from vlm_eff.models.adapter import Adapter
from vlm_eff.models.aside import is_aside
from vlm_eff.models.cost import PartFlops


class CountFlops:
    """Counts the FLOPs of what runs inside, on one model; a context manager that may be used once.

    with CountFlops(adapter) as counted:
        model(**inputs)
    counted.take().decoder
    """

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        self._undo = Undo()
        self._inside: list[str] = []
        self._sums: Counter[str] = Counter()
        self._counter = _Counter(self)

    def take(self) -> PartFlops:
        """What was counted since the beginning or the last call of this method."""
        made, self._sums = PartFlops(**self._sums), Counter()
        return made

    def add(self, flops: float) -> None:
        """Note FLOPs of whatever is at work now."""
        part = "overhead" if is_aside() else self._inside[-1] if self._inside else "projector"
        self._sums[part] += flops

    def __enter__(self) -> CountFlops:
        adapter = self._adapter
        parts = [("embedding", adapter.tower), ("decoder", adapter.decoder), ("head", adapter.head)]
        parts += [("blocks", block) for block in adapter.blocks]
        for name, module in parts:
            seams.before(module, partial(self._enter, name), self._undo)
            seams.after(module, self._leave, self._undo)
        self._counter.__enter__()
        return self

    def _enter(self, name: str, *call: Any) -> None:
        self._inside.append(name)

    def _leave(self, *call: Any) -> None:
        self._inside.pop()

    def __exit__(self, *exception: Any) -> None:
        self._counter.__exit__(*exception)
        self._undo.run()


class _Counter(FlopCounterMode):
    def __init__(self, owner: CountFlops) -> None:
        super().__init__(display=False)
        # we know by ourselves which part is at work
        self.mod_tracker = nullcontext()
        self._owner = owner

    def _count_flops(self, func_packet: Any, out: Any, args: Any, kwargs: Any) -> Any:
        if func_packet in self.flop_registry:
            self._owner.add(self.flop_registry[func_packet](*args, **kwargs, out_val=out))
        return out
