"""The settings at which methods of the KV cache are compared: kept shares, and bits."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import vlm_eff
from vlm_eff.core.cache import CacheSite
from vlm_eff.core.plugin import Plugin
from vlm_eff.core.registry import Method

SHARES = (0.5, 0.2, 0.1, 0.05)
BITS = (8, 4, 2)
# a prompt of the bundled model has about 155 tokens, of which 5 % are 8: windows made for thousands would be all of it
SMALL = {"window": 4, "recent": 4}
# arguments beside the share; a method whose window is no part of its budget keeps it
EVICTION: dict[str, dict[str, Any]] = {"scissorhands": {"recent": 4}}
# arguments at each column; several numbers of bits stand for entries that matter and those that do not
PRECISION: dict[str, dict[int, dict[str, Any]]] = {
    "kivi": {bits: {"bits": bits, "residual": 32} for bits in BITS},
    "zipvl_kv": {bits: {"high_bits": bits, "low_bits": bits // 2} for bits in BITS},
    "saliency_precision": {bits: {"bits_budget": float(bits), "window": 4} for bits in BITS},
    "visual_quant": {bits: {"bits": bits} for bits in BITS},
}
# methods that have neither a share nor bits: the argument that makes them smaller
OTHERS: dict[str, tuple[dict[str, Any], ...]] = {
    "cross_modal_low_rank": ({"rank": 16}, {"rank": 8}, {"rank": 4}),
}
# variants of the baseline that leave one modality alone: what they say of the share is of the other one
ONE_MODALITY = ("visual", "text")


@dataclass(frozen=True)
class KVSetting:
    """One row of the comparison.

    kind: "evict", "bits" or "other"; column: a kept share, bits, or 0 where the method has neither
    label: the method, with what makes it a variant
    """

    kind: str
    label: str
    column: float
    spec: str
    plugin: Plugin


def kv_settings(methods: tuple[str, ...] | None = None) -> list[KVSetting]:
    """Every registered method of the cache at every setting; `methods` leaves only these."""
    made: list[KVSetting] = []
    for method in vlm_eff.methods().values():
        if method.room == "kvcache" and (methods is None or method.name in methods):
            made += _of(method)
    return made


def _of(method: Method) -> list[KVSetting]:
    known = inspect.signature(method.make).parameters
    name = method.name
    if name in OTHERS:
        return [_setting("other", name, 0, method, arguments) for arguments in OTHERS[name]]
    if "keep_ratio" in known:
        fixed = EVICTION.get(name)
        if fixed is None:
            fixed = {key: size for key, size in SMALL.items() if key in known and _larger(known[key].default, size)}
        made = [_setting("evict", name, share, method, {"keep_ratio": share, **fixed}) for share in SHARES]
        if "only" in known:
            for only in ONE_MODALITY:
                label = f"{name}, {only} entries only"
                made += [
                    _setting("evict", label, share, method, {"keep_ratio": share, "only": only}) for share in SHARES
                ]
        return made
    by_bits = PRECISION.get(name)
    if by_bits is None and "bits" in known:
        by_bits = {bits: {"bits": bits} for bits in BITS}
    if by_bits is not None:
        return [_setting("bits", name, bits, method, arguments) for bits, arguments in by_bits.items()]
    return [_setting("other", name, 0, method, {})]


def _larger(default: Any, size: int) -> bool:
    return isinstance(default, int) and not isinstance(default, bool) and default > size


def _setting(kind: str, label: str, column: float, method: Method, arguments: dict[str, Any]) -> KVSetting:
    spec = method.name + ":" * bool(arguments) + ",".join(f"{key}={value}" for key, value in arguments.items())
    return KVSetting(kind, label, column, spec, vlm_eff.plugin(spec))


def acts_on_cache_alone(plugin: Plugin) -> bool:
    """True when a plugin is asked between forward passes and nowhere else."""
    return bool(plugin.sites) and all(isinstance(site, CacheSite) for site in plugin.sites)
