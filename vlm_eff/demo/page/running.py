"""Work in a thread of its own, whose news reach the page as they come."""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import gradio as gr

from vlm_eff.demo.page.desk import Desk
from vlm_eff.demo.page.failing import told
from vlm_eff.demo.work.image import BARE, WITH
from vlm_eff.demo.work.watching import Watch

R = TypeVar("R")


@dataclass(frozen=True)
class Heard:
    """An answer that grows: who speaks, and what was said so far."""

    who: str
    text: str


@dataclass(frozen=True)
class Done(Generic[R]):
    """What the work came to."""

    result: R


@dataclass(frozen=True)
class _Failed:
    error: BaseException


def run(desk: Desk, visitor: str, work: Callable[[Watch], R], progress: gr.Progress) -> Iterator[Heard | Done[R]]:
    """Do `work` when the models are free: answers while they grow, then what it came to.

    visitor: `visitor_of(request)`; an iterator that is given up stops the work and waits for its end.

    Raises:
        gr.Error: it cannot be done, failed, or was stopped.
    """
    news: queue.Queue[Heard | Done[R] | _Failed] = queue.Queue()
    stop = threading.Event()
    watch = Watch(lambda share, text: progress(share, desc=text), lambda who, text: news.put(Heard(who, text)), stop)

    def labour() -> None:
        try:
            progress(0, desc="waiting for the model")
            with desk.working(visitor, stop):
                made = work(watch)
            news.put(Done(made))
        except BaseException as error:
            news.put(_Failed(error))

    # gradio finds out whose progress it is by the context, which a new thread would not have
    context = contextvars.copy_context()
    worker = threading.Thread(target=context.run, args=(labour,), name="vlm-eff work", daemon=True)
    worker.start()
    try:
        while True:
            told_now = news.get()
            if isinstance(told_now, _Failed):
                with told():
                    raise told_now.error
            else:
                yield told_now
            if isinstance(told_now, Done):
                return
    finally:
        stop.set()
        worker.join()


def both_answers(
    desk: Desk,
    visitor: str,
    work: Callable[[Watch], R],
    progress: gr.Progress,
    show: Callable[[R], tuple[Any, ...]],
    others: int,
) -> Iterator[tuple[Any, ...]]:
    """What a tab shows while a question is answered bare and with plugins: both answers as they grow, then everything.

    show:   turns the result into all outputs of the tab, of which the answers are the first two
    others: how many outputs stand behind them
    """
    said: dict[str, str] = {}
    for news in run(desk, visitor, work, progress):
        if isinstance(news, Heard):
            said[news.who] = news.text
            yield said.get(BARE, ""), said.get(WITH, ""), *[gr.skip()] * others
        else:
            yield show(news.result)


def result_of(desk: Desk, visitor: str, work: Callable[[Watch], R], progress: gr.Progress) -> R:
    """As `run`, for work whose answers nobody follows."""
    for news in run(desk, visitor, work, progress):
        if isinstance(news, Done):
            return news.result
    raise AssertionError("work ends with a result or an error")


def visitor_of(request: Any) -> str:
    """Who asks: the session of a browser tab or of a client."""
    return str(getattr(request, "session_hash", None) or "nobody")
