"""A tiny LLaVA whose later layers lie on another device, as `device_map` lays them, against one on the CPU."""

from __future__ import annotations

import copy
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module

from tests.scale.far import FAR, send, two_devices
from tests.scale.spread_heads import METHODS, build, differences, run
from tests.tiny import tiny_inputs
from vlm_eff.models import runtime

# the device that is not there cannot take gradients: `sensitivity` is left out
TRIED = (
    "fastv", "sparsevlm", "victor", "fastervlm", "lazyllm, revived", "vertical_slash", "zipvl", "h2o", "vl_cache",
    "kivi", "cross_modal_low_rank", "hessian", "prefixkv", "fastv + snapkv",
)  # fmt: skip
BORDER = 2


def two_places(model: Any) -> Any:
    """A copy whose layers from `BORDER` on lie on `FAR`, with the hooks that accelerate puts there."""
    made = copy.deepcopy(model)
    decoder = made.get_decoder()
    for index, layer in enumerate(decoder.layers):
        place = FAR if index >= BORDER else torch.device("cpu")
        if place is FAR:
            send(layer)
        add_hook_to_module(layer, AlignDevicesHook(execution_device=place, skip_keys="past_key_values"))
    add_hook_to_module(decoder.norm, AlignDevicesHook(execution_device="cpu"))
    return made


def compare() -> dict[str, Any]:
    """What is wrong, by method, and whether state that stays behind is found out."""
    model, inputs = build(), tiny_inputs("llava", (1, 2))
    spread, wrong = two_places(model), {}
    for name in TRIED:
        want = run(model, inputs, METHODS[name])
        with two_devices():
            found = differences(run(spread, inputs, METHODS[name]), want)
        if found:
            wrong[name] = found
    asked = runtime.execution_device
    runtime.execution_device = lambda module: None
    try:
        with two_devices():
            run(spread, inputs, METHODS["pyramiddrop"])
        behind = "nothing"
    except RuntimeError as error:
        behind = str(error)
    finally:
        runtime.execution_device = asked
    return {"wrong": wrong, "behind": behind}
