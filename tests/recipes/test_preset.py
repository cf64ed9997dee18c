"""Presets come back as they were written, and nothing else is taken for one."""

import json
from pathlib import Path
from typing import Any

import pytest

import vlm_eff
from tests.tiny import tiny_inputs
from tests.tiny.models import tiny_vlm
from vlm_eff.core.errors import CapabilityError, ConfigError, InputError
from vlm_eff.core.plugin import BindContext
from vlm_eff.core.recipe import Recipe
from vlm_eff.eval.bridges.arguments import read_plugins
from vlm_eff.recipes.preset import Preset, load_preset, read_preset, save_preset
from vlm_eff.recipes.search_space import Space

PARAMS = {
    "where": "both", "tokens": 1.0, "entry": "visionzip", "decoder": "pyramiddrop", "stages": 2, "first": 1, "step": 1,
    "drop_0": 0.2, "drop_1": 0.3, "drop_2": 0.5, "cache": "both", "evict": "pyramidkv", "cache_fill": 1.0,
    "spread": 0.5, "bits": "kivi:bits=4",
}  # fmt: skip
PLUGINS = Space(4, 144, 156, tokens=0.5, cache=0.25).plugins(PARAMS)
ABOUT = {"task": {"name": "scenes"}, "validation": {"accuracy": 0.9}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return save_preset(tmp_path / "tuned.json", Preset("tuned", PLUGINS, 4, "a model", ABOUT))


def test_it_comes_back_as_it_was_written(path: Path) -> None:
    found = read_preset(path)
    assert found == Preset(
        "tuned", PLUGINS, 4, "a model", {"task": {"name": "scenes"}, "validation": {"accuracy": 0.9}}
    )
    recipe = vlm_eff.plugin(str(path))
    assert recipe == load_preset(path) == Recipe("tuned", PLUGINS, 4)
    assert isinstance(recipe, Recipe) and tuple(recipe) == PLUGINS
    # the harness bridges take the same file
    assert read_plugins(None, path)[0] == PLUGINS


def test_it_is_attached_to_models_of_its_depth_alone(path: Path) -> None:
    recipe = vlm_eff.plugin(str(path))
    model = tiny_vlm("llava", layers=4)
    with vlm_eff.attach(model, recipe) as handle:
        model(**tiny_inputs("llava", (1,)))
        assert len(handle.plugins) == 4
    for one in (recipe, Recipe("around it", (recipe,))):
        with pytest.raises(CapabilityError, match=r"4 layers, on one of 6.*Accepted.*Tune again"):
            vlm_eff.attach(tiny_vlm("llava", layers=6), one)
        with pytest.raises(CapabilityError, match="on one of 8"):
            one.bind(BindContext("llava", 8))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "something else"}, "does not call itself one"),
        ({"format": 2}, "format 2, not 1"),
        ({"num_layers": True}, "num_layers=True"),
        ({"name": None}, "missing or damaged"),
        ({"plugins": []}, "no plugins"),
        ({"plugins": [{"part": "NoSuchPart"}]}, "NoSuchPart"),
        ({"plugins": [{"part": "Keep", "ratio": 0.5}]}, "a Keep where a plugin belongs"),
        ({"plugins": [{"part": "TokenReducer", "method": "x", "stages": []}]}, "cannot be made"),
    ],
)
def test_other_files_are_refused(path: Path, change: dict[str, Any], said: str) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigError, match=said) as caught:
        vlm_eff.plugin(str(path))
    assert "Accepted: a file written by vlm-eff tune" in str(caught.value)


@pytest.mark.parametrize("text", ["", "[1, 2", "[]", "\x00"])
def test_damaged_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "cut.json").write_text(text)
    with pytest.raises(ConfigError, match="no preset"):
        load_preset(tmp_path / "cut.json")
    with pytest.raises(ConfigError, match="no preset"):
        load_preset(tmp_path / "missing.json")


def test_it_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="folder"):
        save_preset(tmp_path / "nowhere" / "tuned.json", Preset("tuned", PLUGINS, 4, "a model"))
    unwritable = Preset("tuned", PLUGINS, 4, "a model", {"value": object()})
    with pytest.raises(TypeError):
        save_preset(tmp_path / "tuned.json", unwritable)
    assert not list(tmp_path.iterdir())
