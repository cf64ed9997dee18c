"""The model `vlm_eff` of lmms-eval: any of its transformers backends, with plugins put on the model it builds.

    lmms-eval --model vlm_eff --model_args "base=llava_hf,pretrained=DIR,plugin=fastv:keep_ratio=0.5;layer=2" ...

lmms-eval finds it by the entry point `vlm_eff` of the group `lmms_eval.models`. What is returned to it is the base
backend itself, so that ranks, caches and tasks are the base's own. Tested with lmms-eval 0.7.3.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from vlm_eff.core.errors import ConfigError, VlmEffError, explain
from vlm_eff.eval.bridges.arguments import Asked, read_arguments

MODEL_ID = "vlm_eff"
_HERE = "vlm_eff.eval.bridges.lmms_models"
# what lmms-eval asks of a backend; whoever generates has to have called `generate`
_ANSWERS = ("generate_until", "generate_until_multi_round", "loglikelihood")
_ELSEWHERE = ("vllm", "sglang")


def manifest() -> Any:
    """What the entry point gives to lmms-eval: the model's id, and a class for each of its two kinds of task."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(MODEL_ID, simple_class_path=f"{_HERE}.VlmEffSimple", chat_class_path=f"{_HERE}.VlmEffChat")


def build(arguments: str, config: dict[str, Any] | None, *, simple: bool) -> Any:
    """The base backend with plugins on its model, as lmms-eval's `create_from_arg_string` wants it.

    config: what lmms-eval adds: batch_size, max_batch_size, device
    simple: the backend's class for tasks of text and pictures; else the one for chat messages, where it has one

    Raises:
        RunFailed: arguments, a base or a model that cannot be used.
    """
    from vlm_eff.eval.bridges.watch import RunFailed

    try:
        asked = read_arguments(arguments)
        _refuse_base(asked.base)
        return _watched(asked, _base(asked, config, simple))
    except VlmEffError as error:
        # as an exception it would be printed, and the command would leave with exit code 0
        raise RunFailed(f"vlm_eff: {error}") from error


def _base(asked: Asked, config: dict[str, Any] | None, simple: bool) -> Any:
    from lmms_eval.models import get_model, list_available_models

    if asked.base not in list_available_models(include_aliases=True):
        raise ConfigError(explain(f"base={asked.base!r}", "a model id of lmms-eval", "See them with: lmms-eval models"))
    return get_model(asked.base, force_simple=simple).create_from_arg_string(asked.rest, config)


def _watched(asked: Asked, backend: Any) -> Any:
    from vlm_eff.eval.bridges.watch import Watch, find_module

    watch = Watch(find_module(backend, asked.base), asked.plugins, on_error=asked.on_error, record=asked.record)
    for name in _ANSWERS:
        setattr(backend, name, _answering(backend, watch, name))
    clean = backend.clean

    def _clean() -> None:
        watch.close()
        clean()

    backend.clean = _clean
    # for who drives lmms-eval from Python and wants the calls one by one
    backend.vlm_eff_watch = watch
    return backend


def _answering(backend: Any, watch: Any, name: str) -> Callable[[Any], Any]:
    answer = getattr(backend, name)

    @wraps(answer)
    def answered(requests: Any) -> Any:
        from lmms_eval.models.model_utils.gen_metrics import get_logged_metrics_history

        watch.reset()
        logged = len(get_logged_metrics_history())
        try:
            with watch.judged(0 if name == "loglikelihood" else len(requests), name):
                answers = answer(requests)
        finally:
            # a failed run keeps the costs of the calls that did not fail
            watch.note_passes()
            watch.write(name)
        _publish(watch, totals=len(get_logged_metrics_history()) == logged)
        return answers

    return answered


def _publish(watch: Any, *, totals: bool) -> None:
    """Hand means to lmms-eval, which prints them in its throughput summary as `avg_<name>`.

    totals: also tokens and seconds; backends that log these themselves would have them counted twice
    """
    from lmms_eval.models.model_utils.gen_metrics import log_metrics

    tokens, seconds = (watch.tokens, watch.seconds) if totals else (0, 0.0)
    log_metrics(
        total_elapsed_time=seconds,
        total_gen_tokens=tokens,
        avg_speed=tokens / seconds if seconds else 0.0,
        additional_metrics=watch.means(),
    )


def _refuse_base(name: str) -> None:
    if name == MODEL_ID or any(part in name for part in _ELSEWHERE):
        why = "is this bridge itself" if name == MODEL_ID else "runs its model in an engine of its own"
        raise ConfigError(
            explain(
                f"base={name!r}, which {why}",
                "a backend that runs a transformers model in this process, such as llava_hf or qwen2_5_vl",
                "Choose another base",
            )
        )
