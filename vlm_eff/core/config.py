"""Frozen dataclasses to plain dicts and back, and the spec strings of the command line."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from vlm_eff.core.errors import ConfigError, explain

T = TypeVar("T", bound=type)

_PARTS: dict[str, type] = {}


def part(cls: T) -> T:
    """Register a dataclass under its class name so that `from_dict` can rebuild it."""
    known = _PARTS.get(cls.__name__)
    if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ConfigError(
            explain(f"two parts are named {cls.__name__!r}", "one class a name", "Rename one of the two classes")
        )
    _PARTS[cls.__name__] = cls
    return cls


def to_dict(value: Any) -> Any:
    """Turn a part, with all parts inside it, into plain dicts, lists, numbers and strings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        return {"part": type(value).__name__, **fields}
    if isinstance(value, (list, tuple)):
        return [to_dict(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ConfigError(
        explain(
            f"a part holds {value!r} of type {type(value).__name__}",
            "parts, tuples, numbers, strings, booleans and None",
            "Describe the value with a dataclass marked @part",
        )
    )


def from_dict(value: Any) -> Any:
    """Rebuild what `to_dict` made; lists come back as tuples.

    Raises:
        ConfigError: a part name that no imported room defines, or a field the part does not have.
    """
    if isinstance(value, dict):
        fields = dict(value)
        name = fields.pop("part", None)
        cls = _PARTS.get(name) if isinstance(name, str) else None
        if cls is None:
            raise ConfigError(
                explain(f"part {name!r} is not known", ", ".join(sorted(_PARTS)), "Import the room that defines it")
            )
        return build(cls, {key: from_dict(item) for key, item in fields.items()}, what=f"part {name!r}")
    if isinstance(value, (list, tuple)):
        return tuple(from_dict(item) for item in value)
    return value


def build(make: Callable[..., Any], arguments: dict[str, Any], *, what: str) -> Any:
    """Call `make(**arguments)`; an unknown or missing argument is a `ConfigError` that lists the known ones."""
    parameters = inspect.signature(make).parameters
    rest = {name for name, p in parameters.items() if p.kind is inspect.Parameter.VAR_KEYWORD}
    unknown = [] if rest else sorted(set(arguments) - set(parameters))
    missing = sorted(
        name
        for name, p in parameters.items()
        if p.default is inspect.Parameter.empty and name not in arguments and name not in rest
    )
    if unknown or missing:
        got = f"{what} got unknown {unknown}" if unknown else f"{what} lacks {missing}"
        raise ConfigError(explain(got, ", ".join(parameters) or "no arguments", "Correct the argument names"))
    return make(**arguments)


def parse_spec(spec: str) -> tuple[str, dict[str, Any]]:
    """Split a spec such as `"pyramiddrop:layers=(2,4),keep_ratio=0.5,positions=kept"` into name and arguments.

    Values are Python literals (numbers, strings, tuples, lists, True, False, None); a bare word is a string.

    Raises:
        ConfigError: the text after the colon is not a list of `key=value`.
    """
    name, _, tail = spec.partition(":")
    problem = ConfigError(
        explain(
            f"cannot read plugin spec {spec!r}",
            'a name, or a name with arguments such as "fastv:keep_ratio=0.5,layer=2"',
            "Write each argument as key=value with a plain number, word or tuple",
        )
    )
    if not name.strip():
        raise problem
    try:
        call = ast.parse(f"f({tail})", mode="eval").body
    except SyntaxError:
        raise problem from None
    if not isinstance(call, ast.Call) or call.args:
        raise problem
    arguments: dict[str, Any] = {}
    for keyword in call.keywords:
        if keyword.arg is None or keyword.arg in arguments:
            raise problem
        arguments[keyword.arg] = _literal(keyword.value, problem)
    return name.strip(), arguments


def write_spec(name: str, arguments: dict[str, Any]) -> str:
    """The spec that `parse_spec` reads as this name and these arguments.

    Raises:
        ConfigError: a value that no spec can hold, such as an object.
    """
    spec = name + ":" * bool(arguments) + ",".join(f"{key}={value!r}" for key, value in arguments.items())
    try:
        same = parse_spec(spec) == (name, arguments)
    except ConfigError:
        same = False
    if not same:
        raise ConfigError(
            explain(f"{name} with {arguments}", "numbers, strings, tuples, lists, True, False and None", "Use code")
        )
    return spec


def _literal(node: ast.expr, problem: ConfigError) -> Any:
    if isinstance(node, ast.Name):
        return node.id
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError):
        raise problem from None
