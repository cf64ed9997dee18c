"""Building: whole or not at all, once, and read again before anybody may use it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import LlavaForConditionalGeneration

import vlm_eff
from tests.reference.smol.parts import tiny_decoder, tiny_model, tiny_tokenizer, tiny_tower
from vlm_eff.core.errors import ConfigError, InputError, StateError
from vlm_eff.eval import loading
from vlm_eff.reference.scenes import make_scene, render
from vlm_eff.reference.smol import build, low_rank, shipped, stamp
from vlm_eff.reference.smol.build import build_smol


@pytest.fixture
def tiny_parts(monkeypatch, tmp_path) -> Path:
    """Stands tiny parts in for the packages and for what is shipped; returns the folder of the latter."""
    folder = tmp_path / "shipped"
    folder.mkdir()
    ship(folder)
    monkeypatch.setattr(build, "load_tower", tiny_tower)
    monkeypatch.setattr(build, "load_decoder", lambda: tiny_decoder(len(tiny_tokenizer())))
    monkeypatch.setattr(build, "load_tokenizer", tiny_tokenizer)
    monkeypatch.setattr(build, "apply_shipped", lambda model: shipped.apply_shipped(model, folder))
    monkeypatch.setattr(stamp, "SHIPPED", folder)
    return folder


def ship(folder: Path, seed: int = 0) -> None:
    model, _ = tiny_model()
    torch.manual_seed(seed)
    for factor in low_rank.insert(model.model.language_model, 2):
        torch.nn.init.normal_(factor, std=0.2)
    shipped.write_shipped(model, folder)


def test_a_model_is_built_once_and_loads_by_its_name(tiny_parts, tmp_path, monkeypatch) -> None:
    place = tmp_path / "cache" / "smol"
    built = build_smol(place)
    assert built.fresh and built.folder == place and built.bytes > 10_000
    assert not build_smol(place).fresh
    assert [path.name for path in place.parent.iterdir()] == ["smol"], "nothing is left beside it"
    monkeypatch.setattr(loading, "smol_folder", lambda: place)
    subject = loading.load_subject("smol")
    assert type(subject.model) is LlavaForConditionalGeneration and subject.name == "smol"
    inputs = subject.inputs([render(make_scene(0, "test"))], "what color is the circle?")
    assert int((inputs["input_ids"] == subject.model.config.image_token_index).sum()) == 81
    with vlm_eff.attach(subject.model, vlm_eff.plugin("fastv:keep_ratio=0.5,layer=1")) as handle:
        subject.answer(inputs, max_new_tokens=2)
        assert handle.stats().prefills[0].n_eq < 81


def test_shipped_changes_are_merged_in(tiny_parts, tmp_path) -> None:
    built = build_smol(tmp_path / "smol", "float32")
    model = LlavaForConditionalGeneration.from_pretrained(built.folder)
    assert not any("low_rank" in name for name in model.state_dict())
    name = "layers.0.self_attn.q_proj.weight"
    before = tiny_decoder(len(tiny_tokenizer())).model.state_dict()[name]
    assert (model.model.language_model.state_dict()[name] - before).abs().max() > 0.01


@pytest.mark.parametrize("where", ["_check", "write_stamp"])
def test_an_interrupted_build_leaves_nothing(tiny_parts, tmp_path, monkeypatch, where) -> None:
    def stop(*_) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(build, where, stop)
    place = tmp_path / "cache" / "smol"
    with pytest.raises(KeyboardInterrupt):
        build_smol(place)
    assert list(place.parent.iterdir()) == []


def test_a_model_that_reads_back_differently_is_not_kept(tiny_parts, tmp_path, monkeypatch) -> None:
    place = tmp_path / "cache" / "smol"
    save = LlavaForConditionalGeneration.save_pretrained

    def spoil(model, folder) -> None:
        with torch.no_grad():
            weight = model.model.vision_tower.layernorm.bias
            weight += 1
            save(model, folder)
            weight -= 1

    monkeypatch.setattr(LlavaForConditionalGeneration, "save_pretrained", spoil)
    with pytest.raises(StateError, match="layernorm"):
        build_smol(place)
    assert not place.exists()


def test_new_shipped_weights_and_another_dtype_replace_a_folder(tiny_parts, tmp_path, monkeypatch) -> None:
    place = tmp_path / "smol"
    build_smol(place)
    assert build_smol(place, "bfloat16").fresh
    ship(tiny_parts, seed=1)
    monkeypatch.setattr(loading, "smol_folder", lambda: place)
    with pytest.raises(InputError, match="vlm-eff reference build smol"):
        loading.load_subject("smol")
    assert build_smol(place, "bfloat16").fresh
    assert loading.load_subject("smol", dtype="auto").model.dtype == torch.float32


def test_folders_of_others_stay(tiny_parts, tmp_path, monkeypatch) -> None:
    place = tmp_path / "mine"
    place.mkdir()
    (place / "thesis.txt").write_text("x")
    with pytest.raises(InputError, match="not built here"):
        build_smol(place)
    assert (place / "thesis.txt").read_text() == "x"
    shutil.rmtree(place)
    place.mkdir()
    assert build_smol(place).fresh, "an empty folder may be used"
    (place / stamp.STAMP).write_text(json.dumps([]))
    with pytest.raises(InputError, match="not built here"):
        build_smol(place)
    with pytest.raises(ConfigError, match="float16, bfloat16, float32"):
        build_smol(tmp_path / "other", "int4")


def test_no_model_says_what_to_run(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(loading, "smol_folder", lambda: tmp_path / "nothing")
    with pytest.raises(InputError, match="Run: vlm-eff reference build smol"):
        loading.load_subject("smol")
