"""Putting plugins on a model: all of them or none, on this instance only, undone in full on detach or failure."""

from __future__ import annotations

import weakref
from typing import Any

from torch import nn

from vlm_eff.core.errors import ConfigError, ConflictError, explain
from vlm_eff.core.handle import Handle, Undo
from vlm_eff.core.plugin import BindContext, Plugin
from vlm_eff.core.recipe import Recipe
from vlm_eff.core.resources import check_conflicts
from vlm_eff.models import refusals
from vlm_eff.models.adapter import adapter_for
from vlm_eff.models.denoise.attach import denoise_runtime, refuse_denoise_plugins
from vlm_eff.models.denoise.pipeline import is_denoiser, is_pipeline
from vlm_eff.models.learned import make_learned
from vlm_eff.models.place import home_of
from vlm_eff.models.runtime import Runtime
from vlm_eff.models.vit.attach import LoneTower, lone_tower
from vlm_eff.models.vit.kind import Tower

_ATTACHED: weakref.WeakKeyDictionary[nn.Module, weakref.ref[Handle]] = weakref.WeakKeyDictionary()


def attach(model: Any, *plugins: Plugin) -> Handle:
    """Put plugins on an unmodified model and return the handle that takes them off again.

    model:   a transformers vision-language model, a transformers pipeline, or a PEFT-wrapped model; or a vision tower
             alone (timm, open_clip, transformers) for plugins that act inside it. In eval mode, unless all can learn.
             Or a diffusers pipeline, for plugins of the room `diffusion`
    plugins: what to do, such as `fastv()`; each resource of the model has at most one writer. A recipe, such as
             `zipvl()`, stands for its plugins

    Raises:
        ConfigError: nothing to attach, or something that is no plugin.
        UnsupportedModelError: the model's family has no adapter.
        CompiledModelError: the model was compiled before, so hooks would be ignored.
        CapabilityError: the model cannot carry a plugin (layer that does not exist, training mode, positions).
        ConflictError: two plugins write one resource, or the model carries a handle already.
    After any of these the model is as it was.
    """
    _check_plugins(plugins)
    recipes = [plugin for plugin in plugins if isinstance(plugin, Recipe)]
    plugins = tuple(one for plugin in plugins for one in (plugin if isinstance(plugin, Recipe) else (plugin,)))
    if is_pipeline(model) or is_denoiser(model):
        return _attach_pipeline(model, plugins)
    refuse_denoise_plugins(type(model).__name__, plugins)
    refusals.refuse_compiled(model)
    tower = lone_tower(model)
    return _attach_tower(tower, plugins) if tower is not None else _attach_vlm(model, plugins, recipes)


def _attach_pipeline(pipe: Any, plugins: tuple[Plugin, ...]) -> Handle:
    runtime, bound = denoise_runtime(pipe, plugins)
    return _install(runtime, bound, tuple(runtime.denoising.denoisers.values()))


def _attach_vlm(model: Any, plugins: tuple[Plugin, ...], recipes: list[Recipe]) -> Handle:
    adapter = adapter_for(model)
    for recipe in recipes:
        recipe.check_made_for(adapter.num_layers)
    refusals.refuse_compiled(adapter.top)
    refusals.refuse_training(adapter.top, plugins)
    context = BindContext(
        adapter.name,
        adapter.num_layers,
        len(adapter.blocks),
        adapter.class_token,
        adapter.width,
        adapter.cache_layers,
        int(adapter.decoder.config.num_key_value_heads),
        adapter.top.training,
    )
    bound = tuple(plugin.bind(context) for plugin in plugins)
    check_conflicts(bound)
    refusals.refuse_plugins(adapter, bound)
    refusals.refuse_together(bound)
    refusals.refuse_spread(adapter, bound)
    refusals.refuse_latent([adapter.layers[index] for index in adapter.cache_layers], bound)
    device = home_of(adapter.layers[0])
    return _install(Runtime(adapter, bound, make_learned(bound, context, device)), bound, (adapter.core, adapter.tower))


def _attach_tower(tower: Tower, plugins: tuple[Plugin, ...]) -> Handle:
    refusals.refuse_training(tower.root, plugins)
    refusals.refuse_spread_tower(tower.root)
    context = BindContext(tower.name, 0, tower.num_blocks, tower.prefix > 0)
    bound = tuple(plugin.bind(context) for plugin in plugins)
    check_conflicts(bound)
    return _install(LoneTower(tower, bound), bound, (tower.root,))


def _install(runtime: Any, bound: tuple[Plugin, ...], owned: tuple[nn.Module, ...]) -> Handle:
    for module in owned:
        _refuse_second(module)
    undo = Undo()
    try:
        runtime.install(undo)
    except BaseException:
        undo.run()
        raise
    handle = Handle(bound, runtime, undo)
    # as long as the hooks are on the model the handle lives, held or not: a second attach has to find it
    runtime.handle = handle
    undo.push(lambda: setattr(runtime, "handle", None))
    for module in owned:
        _ATTACHED[module] = weakref.ref(handle)
    return handle


def _check_plugins(plugins: tuple[Any, ...]) -> None:
    if not plugins:
        raise ConfigError(explain("attach was given no plugin", "one plugin or more", "Pass one, such as fastv()"))
    for plugin in plugins:
        if not isinstance(plugin, Plugin):
            raise ConfigError(
                explain(
                    f"attach was given {plugin!r}",
                    "plugins, such as fastv()",
                    'Call the method function; for a spec string use vlm_eff.plugin("fastv:keep_ratio=0.5")',
                )
            )


def _refuse_second(core: nn.Module) -> None:
    known = _ATTACHED.get(core)
    handle = known() if known is not None else None
    if handle is not None and handle.attached:
        raise ConflictError(
            explain(f"the model already carries {handle!r}", "one handle a model", "Detach it, or attach all together")
        )
