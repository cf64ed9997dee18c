"""What a plugin would be shown of a cache right behind a prompt."""

from __future__ import annotations

from typing import Any

from vlm_eff.models.kv.layer import compressed_layers
from vlm_eff.models.kv.view import Entries


def entries_behind_prompt(handle: Any, cache: Any) -> dict[int, Entries]:
    """The open entries of every layer."""
    runtime, layers = handle._runtime.cache, compressed_layers(cache)
    book = layers[runtime.layers[0]].book
    view = runtime.compressor.view(layers, book.columns, book.prompt, book.prompt)
    return {layer: view.entries(layer) for layer in view.layers}
