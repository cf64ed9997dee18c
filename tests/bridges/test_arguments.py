"""The syntax of lmms-eval's model arguments: what is ours, what is the base's, and what is refused."""

import json
from pathlib import Path

import pytest

import vlm_eff
from vlm_eff.core.errors import ConfigError, InputError
from vlm_eff.eval.bridges.arguments import read_arguments, read_plugins, split_arguments, split_specs


def test_ours_and_the_rest_are_parted() -> None:
    asked = read_arguments(
        "pretrained=a/b, base=llava_hf,plugin=fastv:keep_ratio=0.5;layer=1+snapkv:keep_ratio=0.2,"
        'on_error=warn,record=out/costs.json,max_frames={"a":1,"b":[2,3]},dtype=float32'
    )
    assert asked.base == "llava_hf"
    assert asked.rest == 'pretrained=a/b,max_frames={"a":1,"b":[2,3]},dtype=float32'
    assert asked.specs == ("fastv:keep_ratio=0.5,layer=1", "snapkv:keep_ratio=0.2")
    assert asked.plugins == tuple(vlm_eff.plugin(spec) for spec in asked.specs)
    assert (asked.on_error, asked.record) == ("warn", Path("out/costs.json"))


def test_without_plugins_the_model_is_bare() -> None:
    asked = read_arguments("base=llava_hf")
    assert (asked.plugins, asked.specs, asked.on_error, asked.record, asked.rest) == ((), (), "raise", None, "")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("fastv", ("fastv",)),
        ("a:x=1;y=two+b", ("a:x=1,y=two", "b")),
        # a plus in a number joins nothing
        ("a:x=1e+5+b:y=+2", ("a:x=1e+5", "b:y=+2")),
        ("a:layers=(2;4);r=0.5 + b", ("a:layers=(2,4),r=0.5", "b")),
    ],
)
def test_specs(text: str, parts: tuple[str, ...]) -> None:
    assert split_specs(text) == parts


def test_commas_inside_brackets_and_quotes_stay() -> None:
    assert split_arguments("a=1,,b=(2,3),c='x,y',d=[1,2], ") == ["a=1", "b=(2,3)", "c='x,y'", "d=[1,2]"]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("pretrained=x", "without base="),
        ("base=a,base=b", "twice"),
        ("base=a,plugin=nothing_like_it", "nothing_like_it"),
        # the base would get `layer`, and might swallow it
        ("base=a,plugin=fastv:keep_ratio=0.5,layer=1", "semicolons"),
        ("base=a,on_error=ignore", "ignore"),
        ("base=a,plugin=fastv+ ", "joined by"),
    ],
)
def test_what_is_refused(text: str, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        read_arguments(text)


def test_presets_hold_specs_and_dicts(tmp_path: Path) -> None:
    plugin = vlm_eff.plugin("fastv:keep_ratio=0.25,layer=1")
    preset = tmp_path / "preset.json"
    preset.write_text(json.dumps({"plugins": ["snapkv:keep_ratio=0.5", plugin.to_dict()]}))
    made, specs = read_plugins("divprune", preset)
    assert made == (vlm_eff.plugin("divprune"), vlm_eff.plugin("snapkv:keep_ratio=0.5"), plugin)
    assert specs == ("divprune", "snapkv:keep_ratio=0.5", "fastv")


@pytest.mark.parametrize("content", ["{", "[]", '{"plugin": []}', "[1]"])
def test_broken_presets(tmp_path: Path, content: str) -> None:
    preset = tmp_path / "preset.json"
    preset.write_text(content)
    with pytest.raises(InputError):
        read_plugins(None, preset)
