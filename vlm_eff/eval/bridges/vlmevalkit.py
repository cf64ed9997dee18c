"""Models of VLMEvalKit with plugins on them, under names of their own.

    from vlm_eff.eval.bridges.vlmevalkit import register
    name = register("llava_next_vicuna_7b", "fastv:keep_ratio=0.5;layer=2")
    runpy.run_module("vlmeval.run", run_name="__main__")     # with --model NAME in sys.argv

VLMEvalKit has no entry points: its models stand in the dict `vlmeval.config.supported_VLM`, and `register` adds one to
it, in the process that runs the benchmark.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import Any

from vlm_eff.core.errors import CapabilityError, ConfigError, VlmEffError, explain
from vlm_eff.core.plugin import Plugin
from vlm_eff.eval.bridges.arguments import check_on_error, read_plugins
from vlm_eff.eval.bridges.watch import RunFailed, Watch, find_module

# what VLMEvalKit asks of a model; `chat`, in tasks of several turns, catches whatever the model raises
_ANSWERS = ("generate", "chat")


def register(
    base: str,
    plugin: str | None = None,
    *,
    preset: str | Path | None = None,
    on_error: str = "raise",
    record: Path | None = None,
    name: str | None = None,
) -> str:
    """Add a model with plugins to VLMEvalKit and return its name, `"<base>+<plugin>"` if none is given.

    base:     a name in `supported_VLM`; its model is built when VLMEvalKit asks for it, and found at `.model`
    plugin:   a spec, several joined by "+", as in `arguments.py`; preset: a JSON file of plugins, after them
    on_error: "raise" ends the process when the model raises, which VLMEvalKit would log and pass over; "warn" lets it
    record:   where the costs of every call are written when the process ends

    Raises:
        CapabilityError: VLMEvalKit is not installed.
        ConfigError: an unknown base, a name that is taken, or plugins that cannot be.
    """
    models = _models()
    if base not in models:
        raise ConfigError(
            explain(f"base {base!r}", "a name in vlmeval.config.supported_VLM", "See them with: vlmutil mlist all")
        )
    plugins, specs = read_plugins(plugin, preset)
    if not plugins:
        raise ConfigError(explain("register without plugins", "a spec or a preset", "Use the base itself to run bare"))
    # a name becomes part of file names
    made = name or "+".join([base, *specs]).replace("/", "_")
    if made in models:
        raise ConfigError(explain(f"the name {made!r}, which is taken", "a name that is free", "Give another name"))
    # a partial, as all of them are: VLMEvalKit looks at their keywords
    models[made] = partial(_built, base, plugins, check_on_error(on_error), record)
    return made


def _models() -> dict[str, Any]:
    try:
        from vlmeval.config import supported_VLM
    except ImportError as error:
        raise CapabilityError(
            explain(
                f"VLMEvalKit cannot be imported ({error})",
                "a clone of VLMEvalKit, or the package ms-vlmeval, in this environment",
                "Install it apart from lmms-eval: they want different versions of antlr4",
            )
        ) from None
    found: dict[str, Any] = supported_VLM
    return found


def _built(base: str, plugins: tuple[Plugin, ...], on_error: str, record: Path | None, **arguments: Any) -> Any:
    try:
        if arguments.get("use_vllm"):
            raise CapabilityError(
                explain("use_vllm with plugins", "a model that runs in this process", "Leave --use-vllm out")
            )
        model = _models()[base](**arguments)
        watch = Watch(find_module(model, base), plugins, on_error=on_error, record=record)
    except VlmEffError as error:
        # as an exception it would be logged, and the command would leave with exit code 0
        raise RunFailed(f"vlm_eff: {error}") from error
    for answer in _ANSWERS:
        if getattr(model, answer, None) is not None:
            setattr(model, answer, _answering(getattr(model, answer), watch, base))
    # VLMEvalKit has no place for costs
    atexit.register(watch.write, base)
    model.vlm_eff_watch = watch
    return model


def _answering(answer: Callable[..., Any], watch: Watch, base: str) -> Callable[..., Any]:
    @wraps(answer)
    def answered(*args: Any, **kwargs: Any) -> Any:
        with watch.judged(1, base):
            return answer(*args, **kwargs)

    return answered
