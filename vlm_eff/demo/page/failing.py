"""What a visitor is told when something cannot be done: one sentence, never a traceback."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import gradio as gr

from vlm_eff.core.errors import Stopped, VlmEffError

P = ParamSpec("P")
R = TypeVar("R")
_LOG = logging.getLogger("vlm_eff.demo")


@contextmanager
def told() -> Iterator[None]:
    """Turn errors into messages on the page; what is no mistake of the visitor is logged with its traceback."""
    try:
        yield
    except Stopped:
        raise gr.Error("Stopped.", title="Stopped", duration=4, print_exception=False) from None
    except VlmEffError as error:
        raise gr.Error(str(error), title="That does not work", duration=None, print_exception=False) from None
    except gr.Error:
        raise
    except Exception as error:
        _LOG.exception("a piece of work failed")
        first = (str(error).strip() or "no message").splitlines()[0]
        said = f"The model or a plugin failed: {type(error).__name__}: {first}. The model is as it was before."
        raise gr.Error(said, title="Failed", duration=None, print_exception=False) from None


def telling(handler: Callable[P, R]) -> Callable[P, R]:
    """A handler whose errors become messages, see `told`."""

    @functools.wraps(handler)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        with told():
            return handler(*args, **kwargs)

    return guarded
