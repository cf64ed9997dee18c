"""What attach and the runtime refuse, with the reason: never a silent no-op, never a silent fallback."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from vlm_eff.core.cache import CacheSite, LogitSite
from vlm_eff.core.errors import CapabilityError, CompiledModelError, ConflictError, InputError, explain
from vlm_eff.core.plugin import Plugin, TowerObservation
from vlm_eff.core.tower import TowerSite
from vlm_eff.models.adapter import Adapter
from vlm_eff.models.ranks import check_heads, is_spread


def refuse_compiled(model: Any) -> None:
    """Raise `CompiledModelError` when any part of the model was compiled: its hooks would not run."""
    modules = model.modules() if isinstance(model, nn.Module) else ()
    for module in modules:
        if _is_compiled(module):
            raise CompiledModelError(
                explain(
                    f"{type(module).__name__} was compiled before attach, and torch.compile ignores later hooks",
                    "a model that is not compiled",
                    "Attach to the uncompiled model; compile the vision tower or single MLPs afterwards if you like",
                )
            )


def _is_compiled(module: nn.Module) -> bool:
    """True after `torch.compile(module)`, `module.compile()` or `module.forward = torch.compile(module.forward)`."""
    whole = getattr(module, "_compiled_call_impl", None) or getattr(module, "_compiled_call", None)
    # what torch.compile returns of a function names the one it was given; so does what torch.compiler.disable returns
    named = getattr(module.forward, "_torchdynamo_orig_callable", None)
    forward = named is not None and not getattr(module.forward, "_torchdynamo_disable", False)
    return whole is not None or forward or type(module).__name__ == "OptimizedModule"


def refuse_plugins(adapter: Adapter, plugins: Sequence[Plugin]) -> None:
    """Raise `CapabilityError` for what a plugin asks and this family cannot carry."""
    for plugin in plugins:
        if plugin.revives:
            _refuse_revival(adapter, plugin)
        if plugin.causal and (adapter.family.both_ways or not adapter.ordered):
            raise CapabilityError(
                explain(
                    f"{plugin.name} on a {adapter.name} model, where images see what comes after them",
                    "families in which a token sees nothing but what comes before it",
                    "Use a method that drops tokens, such as pyramiddrop()",
                )
            )
        if plugin.positions == "reindexed" and adapter.family.multi_axis_rope:
            raise CapabilityError(
                explain(
                    f'{plugin.name} with positions="reindexed" on {adapter.name}, whose positions have three axes',
                    'positions="kept" on multi-axis rotary families',
                    'Use positions="kept"',
                )
            )


def _refuse_revival(adapter: Adapter, plugin: Plugin) -> None:
    config = adapter.decoder.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    sliding = kinds != {"full_attention"} or getattr(config, "sliding_window", None) is not None
    flash = "flash" in config._attn_implementation
    if sliding or flash:
        got = "layers that forget all but a window" if sliding else "flash attention, which takes no mask by position"
        raise CapabilityError(
            explain(
                f"{plugin.name} with revival on a {adapter.name} model with {got}",
                "full attention through sdpa or eager",
                'Use revive="never"' + ("" if sliding else ', or load the model with attn_implementation="sdpa"'),
            )
        )


def refuse_spread(adapter: Adapter, plugins: Sequence[Plugin]) -> None:
    """Raise `CapabilityError` for what cannot be decided alike on ranks that share a model."""
    mesh = getattr(adapter.top, "_device_mesh", None)
    stages = mesh["pp"].size() if mesh is not None and "pp" in (mesh.mesh_dim_names or ()) else 1
    if stages > 1:
        raise _spread(f"a model in {stages} pipeline stages, of which each has some of the layers", "all layers")
    looks = [plugin.name for plugin in plugins if any(isinstance(need, TowerObservation) for need in plugin.needs)]
    looks += [plugin.name for plugin in plugins if any(isinstance(site, TowerSite) for site in plugin.sites)]
    if looks:
        refuse_spread_tower(adapter.tower)
    ranks = adapter.ranks
    if not ranks.several:
        return
    if adapter.top.training:
        raise _spread("a model in training mode, and scores of several ranks carry no gradients", "eval mode")
    plan = getattr(adapter.top, "_tp_plan", None) or {}
    if "sequence_parallel" in plan.values():
        raise _spread("a plan that splits the sequence over ranks", "hidden states that are whole on every rank")
    for layer in adapter.layers:
        check_heads(layer.self_attn, ranks)


def refuse_spread_tower(tower: nn.Module) -> None:
    """Raise `CapabilityError` for a lone tower whose heads are spread over ranks."""
    if is_spread(tower):
        raise _spread("a vision tower whose heads are spread over ranks", "a whole tower on every rank")


def _spread(got: str, accepted: str) -> CapabilityError:
    return CapabilityError(explain(got, accepted, "Load the model so, see docs/scale.md, or leave the plugin out"))


def refuse_latent(layers: Sequence[nn.Module], plugins: Sequence[Plugin]) -> None:
    """Raise `CapabilityError` for plugins of the cache on attention that does not cache plain keys and values."""
    cached = [plugin.name for plugin in plugins if any(isinstance(site, CacheSite) for site in plugin.sites)]
    parts = ("k_proj", "v_proj", "num_key_value_groups")
    strange = [
        type(layer.self_attn).__name__ for layer in layers if not all(hasattr(layer.self_attn, p) for p in parts)
    ]
    if cached and strange:
        raise CapabilityError(
            explain(
                f"{cached[0]} on {strange[0]}, which caches something else than keys and values of its heads",
                "attention with k_proj, v_proj and key heads; not latent attention (MLA)",
                "Leave the plugin out",
            )
        )


def refuse_together(plugins: Sequence[Plugin]) -> None:
    """Raise `ConflictError` where one plugin brings tokens back into a cache that another one compresses."""
    back = [plugin.name for plugin in plugins if plugin.revives]
    cached = [
        plugin.name for plugin in plugins if any(isinstance(site, CacheSite | LogitSite) for site in plugin.sites)
    ]
    if back and cached:
        raise ConflictError(
            explain(
                f"{back[0]!r}, which brings tokens back into the cache, with {cached[0]!r}, which compresses it",
                "one of the two",
                'Use revive="never", or leave the plugin of the cache out',
            )
        )


def refuse_training(module: nn.Module, plugins: Sequence[Plugin]) -> None:
    """Raise `CapabilityError` in training mode, unless every plugin can learn there."""
    if not module.training:
        return
    fixed = [plugin.name for plugin in plugins if not plugin.trains]
    if fixed:
        raise CapabilityError(
            explain(
                f"the model is in training mode, and {', '.join(fixed)} cannot be trained",
                "a model in eval mode, or plugins that learn, such as victor()",
                "Call model.eval() first",
            )
        )
    if any(getattr(part, "gradient_checkpointing", False) for part in module.modules()):
        raise CapabilityError(
            explain(
                "gradient checkpointing, which runs layers a second time without what was decided in the first",
                "training with all activations kept",
                "Call model.gradient_checkpointing_disable()",
            )
        )


def refuse_cache(cache: Any) -> None:
    """Raise `CapabilityError` for caches whose tensors have one fixed length, or that are paged."""
    if cache is None:
        return
    paged = type(cache).__name__.startswith("Paged")
    if paged or getattr(cache, "is_compileable", False):
        raise CapabilityError(
            explain(
                f"a cache of type {type(cache).__name__}",
                "dynamic caches, sliding and offloaded ones too",
                'Leave cache_implementation unset, or set it to "dynamic"',
            )
        )


def refuse_missing_placeholders(got_images: bool, found: bool) -> None:
    """Raise `InputError` when pixels came with a prompt that has no place for them."""
    if got_images and not found:
        raise InputError(
            explain(
                "images or video with a prompt that holds no visual placeholder",
                "a prompt with one placeholder an image",
                "Build the prompt with processor.apply_chat_template, or write the image token into the text",
            )
        )


def is_split(encoded: dict[str, Any]) -> bool:
    """True when a call brings one chunk of a prompt whose images were encoded before.

    transformers hands each chunk its own rows of the encoded images and leaves the tower's own output out of them.
    """
    pooled = (one for one in encoded.values() if getattr(one, "pooler_output", None) is not None)
    return any(getattr(one, "last_hidden_state", None) is None for one in pooled)


def refuse_split_prompt() -> None:
    """Raise `CapabilityError` for a prompt in chunks: its last token is not there to be asked."""
    raise CapabilityError(
        explain(
            "a prompt whose images are prefilled in chunks, with a plugin that drops visual tokens",
            "prompts prefilled in one call",
            "Leave prefill_chunk_size unset: a chunk cannot be scored before the question is seen",
        )
    )
