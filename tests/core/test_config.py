"""Plain dicts, spec strings and the registry."""

import json
from dataclasses import dataclass
from typing import Any

import pytest

from vlm_eff.core import config, registry
from vlm_eff.core.config import build, from_dict, parse_spec, part, to_dict, write_spec
from vlm_eff.core.errors import ConfigError, VlmEffError
from vlm_eff.core.registry import Registry


@part
@dataclass(frozen=True)
class Inner:
    size: int = 3
    names: tuple[str, ...] = ("a", "b")


@part
@dataclass(frozen=True)
class Outer:
    inner: Inner
    ratio: float | None = None
    many: tuple[Inner, ...] = ()


def test_parts_survive_json() -> None:
    made = Outer(Inner(5), 0.25, (Inner(1), Inner(2, ())))
    assert from_dict(json.loads(json.dumps(to_dict(made)))) == made


def test_an_unknown_part_is_named() -> None:
    with pytest.raises(ConfigError, match="'Nowhere' is not known"):
        from_dict({"part": "Nowhere"})
    with pytest.raises(ConfigError, match="None is not known"):
        from_dict({"size": 3})


def test_an_unknown_field_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown \['sise'\].*size, names"):
        from_dict({"part": "Inner", "sise": 3})
    with pytest.raises(ConfigError, match=r"lacks \['inner'\]"):
        from_dict({"part": "Outer"})


def test_what_is_no_plain_value_is_refused() -> None:
    with pytest.raises(ConfigError, match="of type set"):
        to_dict(Outer(Inner(), {1}))  # type: ignore[arg-type]


OTHERS = {"other class": {"__qualname__": "Elsewhere.Inner"}, "other module": {"__module__": "elsewhere"}}


@pytest.mark.parametrize("attributes", OTHERS.values(), ids=OTHERS)
def test_two_parts_of_one_name_are_refused(attributes: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "_PARTS", dict(config._PARTS))
    with pytest.raises(ConfigError, match="two parts are named 'Inner'"):
        part(type("Inner", (), attributes))


@pytest.mark.parametrize(
    ("spec", "name", "arguments"),
    [
        ("fastv", "fastv", {}),
        (" fastv ", "fastv", {}),
        ("fastv:", "fastv", {}),
        ("fastv:layer=3", "fastv", {"layer": 3}),
        ("p:layers=(2, 4),ratio=0.5,word=kept", "p", {"layers": (2, 4), "ratio": 0.5, "word": "kept"}),
        ("p:layers=[2,4],on=True,below=-1", "p", {"layers": [2, 4], "on": True, "below": -1}),
        ("p:off=False,nothing=None", "p", {"off": False, "nothing": None}),
        ("p:word='a,b=c:d'", "p", {"word": "a,b=c:d"}),
    ],
)
def test_specs_are_read(spec: str, name: str, arguments: dict[str, Any]) -> None:
    assert parse_spec(spec) == (name, arguments)


UNREADABLE = [
    "",
    ":",
    ":layer=2",
    "f:2",
    "f:layer",
    "f:layer=",
    "f:a=b.c",
    "f:a=g()",
    "f:**{}",
    "f:a=1)+(b",
    "f:a=1;b=2",
]
UNREADABLE += ["f:a=[x for x in (1,)]", "f:a=__import__('os')", "f:layer=2,layer=3"]


@pytest.mark.parametrize("spec", UNREADABLE, ids=repr)
def test_what_is_no_spec_is_refused_and_never_run(spec: str) -> None:
    with pytest.raises(ConfigError, match="cannot read plugin spec"):
        parse_spec(spec)


def test_build_reports_missing_arguments() -> None:
    def make(first: int, second: int = 2) -> int:
        return first + second

    assert build(make, {"first": 1}, what="make") == 3
    with pytest.raises(ConfigError, match=r"make lacks \['first'\].*first, second"):
        build(make, {}, what="make")


def test_a_registry_takes_a_name_once_and_hints() -> None:
    names: Registry[int] = Registry("number")
    names.add("three", 3)
    names.add("four", 4)
    assert list(names) == ["four", "three"]
    assert "three" in names
    assert names.get("three") == 3
    with pytest.raises(ConfigError, match="registered twice"):
        names.add("three", 5)
    with pytest.raises(ConfigError, match=r"no number 'thre'.*Did you mean 'three'"):
        names.get("thre")
    with pytest.raises(ConfigError, match="four, three"):
        names.get("zzzzz")


@dataclass
class Point:
    """An entry point of somebody else."""

    name: str
    value: Any

    def load(self) -> Any:
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


def test_methods_of_others_are_loaded_and_broken_ones_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    import vlm_eff
    from vlm_eff.tokens import fastv

    def theirs(keep_ratio: float = 0.5) -> Any:
        return fastv(keep_ratio=keep_ratio)

    points = [Point("theirs", theirs), Point("broken", ImportError("no such thing")), Point("fastv", theirs)]
    monkeypatch.setattr(registry.metadata, "entry_points", lambda group: points if group == "vlm_eff.plugins" else [])
    monkeypatch.setattr(registry.METHODS, "_values", dict(registry.METHODS._values))
    monkeypatch.setattr(registry, "BROKEN_ENTRY_POINTS", {})
    known = vlm_eff.methods()
    assert known["theirs"].room == "third party"
    assert known["fastv"].room == "tokens"
    assert "broken" not in known
    assert "no such thing" in registry.BROKEN_ENTRY_POINTS["broken"]
    assert vlm_eff.plugin("theirs:keep_ratio=0.25") == fastv(keep_ratio=0.25)


def test_a_method_that_returns_no_plugin_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.METHODS, "_values", dict(registry.METHODS._values))
    registry.METHODS.add("wrong", registry.Method("wrong", lambda: 3, "tokens", "", ""))  # type: ignore[arg-type,return-value]
    with pytest.raises(ConfigError, match="returned int"):
        registry.make_plugin("wrong")


def test_every_error_is_ours_and_the_python_kind() -> None:
    from vlm_eff.core import errors

    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert all(issubclass(kind, VlmEffError) for kind in kinds)
    assert issubclass(errors.ConfigError, ValueError)
    assert issubclass(errors.UnsupportedModelError, TypeError)


def test_a_spec_is_written_as_it_is_read() -> None:
    arguments = {
        "keep_ratio": 0.25,
        "layers": (2, 4),
        "rule": "nearest",
        "faithful": True,
        "levels": [0, 2],
        "rank": None,
    }
    assert parse_spec(write_spec("dart", arguments)) == ("dart", arguments)
    assert write_spec("fastv", {}) == "fastv"
    with pytest.raises(ConfigError, match="Use code"):
        write_spec("fastv", {"layer": object()})
