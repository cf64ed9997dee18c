"""Attention inputs read where they are used: a delegating attention function, selected for one text model only.

Registered for attention and for its mask under one private name: without the mask function transformers builds no mask
at all. The base function does the work, so logits stay bit-identical; the tap only keeps references.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vlm_eff.core.errors import CapabilityError, explain
from vlm_eff.core.handle import Undo
from vlm_eff.models.aside import Aside

_NUMBER = itertools.count()


class TapName(str):
    """Name of a tap; a deep copy of the config it stands in gets the base's name, for the copy is nobody's to tap."""

    base: str

    def __deepcopy__(self, memo: dict[int, Any]) -> str:
        return self.base

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (self.base,)


class Instead(Protocol):
    """Attends in place of the base function, which it is given as `run`."""

    def attend(
        self, run: Callable[..., Any], module: nn.Module, states: tuple[Tensor, Tensor, Tensor], mask: Any, kwargs: Any
    ) -> Any: ...


Sink = Callable[[int, Tensor, Tensor, Any, dict[str, Any]], Instead | None]


def install_tap(attention: dict[int, nn.Module], sink: Sink, undo: Undo) -> None:
    """Call `sink(layer, query, key, mask, kwargs)` whenever one of the `attention` modules (by layer) attends.

    query: [B, H, Q, Dh], key: [B, Hkv, S, Dh], both after rotation and after the cache. What the sink returns attends
    in place of the base function; None lets the base function do it.

    Raises:
        CapabilityError: the modules do not share one config, or use an attention function that is not registered.
    """
    modules = list(attention.values())
    config = modules[0].config
    layer_of = {id(module): layer for layer, module in attention.items()}
    base_name = config._attn_implementation
    base = _base_function(base_name, modules)

    def tap(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any) -> Any:
        # a model built from the same config object passes through
        if (layer := layer_of.get(id(module))) is not None:
            with Aside():
                instead = sink(layer, query, key, attention_mask, kwargs)
            if instead is not None:
                return instead.attend(base(module), module, (query, key, value), attention_mask, kwargs)
        return base(module)(module, query, key, value, attention_mask, **kwargs)

    # transformers looks for "flash" in the name to choose its flash-only paths
    name = TapName(f"efftap_flash{next(_NUMBER)}" if "flash" in base_name else f"efftap{next(_NUMBER)}")
    # taps may lie over one another, those of the cache over those of the tokens
    name.base = getattr(base_name, "base", base_name)
    AttentionInterface.register(name, tap)
    undo.push(lambda: AttentionInterface._global_mapping.pop(name, None))
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[base_name])
    undo.push(lambda: AttentionMaskInterface._global_mapping.pop(name, None))
    config._attn_implementation_internal = name
    undo.push(lambda: _restore(config, name, base_name))


def _base_function(name: str, modules: Iterable[nn.Module]) -> Callable[[nn.Module], Callable[..., Any]]:
    if name in ALL_ATTENTION_FUNCTIONS:
        return lambda module: ALL_ATTENTION_FUNCTIONS[name]
    eager = {type(m): getattr(sys.modules[type(m).__module__], "eager_attention_forward", None) for m in modules}
    if name != "eager" or None in eager.values():
        raise CapabilityError(
            explain(
                f"attention implementation {name!r}",
                "eager, sdpa and flash_attention_*",
                'Load the model with attn_implementation="sdpa"',
            )
        )
    return lambda module: eager[type(module)]  # type: ignore[return-value]


def _restore(config: Any, ours: str, before: str) -> None:
    # somebody may have chosen another implementation meanwhile: theirs stays
    if config._attn_implementation_internal == ours:
        config._attn_implementation_internal = before
