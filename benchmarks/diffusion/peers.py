"""Caches and merges that others offer, put on and taken off as their documentation says.

DeepCache, tomesd and cache-dit are no dependencies: put them on the path for the run, such as by
`pip install --target peers --no-deps DeepCache tomesd cache-dit` and `PYTHONPATH=peers`. Without them, rows say so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def deep_cache(interval: int) -> Any:
    """DeepCache's helper for Stable Diffusion, shallowest branch."""

    @contextmanager
    def opened(pipe: Any) -> Iterator[None]:
        from DeepCache import DeepCacheSDHelper

        helper = DeepCacheSDHelper(pipe=pipe)
        helper.set_params(cache_interval=interval, cache_branch_id=0)
        helper.enable()
        try:
            yield
        finally:
            helper.disable()

    return opened


def tome_sd(ratio: float) -> Any:
    """tomesd on the highest resolution."""

    @contextmanager
    def opened(pipe: Any) -> Iterator[None]:
        import tomesd

        tomesd.apply_patch(pipe, ratio=ratio)
        try:
            yield
        finally:
            tomesd.remove_patch(pipe)

    return opened


def _hooked(apply: Any, names: tuple[str, ...]) -> Any:
    """A cache of diffusers on a transformer whose pipeline sets no cache context: one is set around every call."""

    @contextmanager
    def opened(pipe: Any) -> Iterator[None]:
        from diffusers.hooks import HookRegistry
        from diffusers.hooks.hooks import CacheContext, _set_cache_context

        root = pipe.transformer
        apply(root)
        registry = HookRegistry.check_if_exists_or_initialize(root)
        registry.invalidate_child_registries_cache()
        before = root.register_forward_pre_hook(lambda *_: _set_cache_context(root, CacheContext("batched")))
        original = pipe.scheduler.set_timesteps

        # the pipeline resets caches at the end of a run only when its model has them by class
        def fresh(*args: Any, **kwargs: Any) -> Any:
            registry.reset_stateful_hooks(recurse=True)
            return original(*args, **kwargs)

        pipe.scheduler.set_timesteps = fresh
        try:
            yield
        finally:
            before.remove()
            del pipe.scheduler.set_timesteps
            for name in names:
                registry.remove_hook(name, recurse=True)

    return opened


def enabled(config: Any) -> Any:
    """A cache of diffusers on a transformer that has them by class, whose pipeline names its cache contexts."""

    @contextmanager
    def opened(pipe: Any) -> Iterator[None]:
        pipe.transformer.enable_cache(config)
        try:
            yield
        finally:
            pipe.transformer.disable_cache()

    return opened


def first_block(threshold: float) -> Any:
    """diffusers' FirstBlockCache."""
    from diffusers.hooks import FirstBlockCacheConfig, apply_first_block_cache

    return _hooked(
        lambda root: apply_first_block_cache(root, FirstBlockCacheConfig(threshold=threshold)),
        ("fbc_leader_block_hook", "fbc_block_hook"),
    )


def taylor_seer(interval: int) -> Any:
    """diffusers' TaylorSeerCache on attention and MLP: by itself it finds no attention named `attn1`."""
    import torch
    from diffusers.hooks import TaylorSeerCacheConfig, apply_taylorseer_cache

    def apply(root: Any) -> None:
        config = TaylorSeerCacheConfig(
            cache_interval=interval,
            disable_cache_before_step=3,
            max_order=1,
            taylor_factors_dtype=torch.float32,
            cache_identifiers=[r"transformer_blocks\.\d+\.(attn1|ff)"],
        )
        apply_taylorseer_cache(root, config)

    return _hooked(apply, ("taylorseer_cache",))


def cache_dit(threshold: float) -> Any:
    """cache-dit's DBCache with one computed block in front."""

    @contextmanager
    def opened(pipe: Any) -> Iterator[None]:
        import cache_dit as library

        config = library.DBCacheConfig(
            Fn_compute_blocks=1, Bn_compute_blocks=0, max_warmup_steps=1, residual_diff_threshold=threshold
        )
        library.enable_cache(pipe, cache_config=config)
        try:
            yield
        finally:
            library.disable_cache(pipe)

    return opened
