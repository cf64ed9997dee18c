"""The page as a whole: its tabs, and how it is served."""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import gradio as gr

from vlm_eff import __version__
from vlm_eff.core.errors import InputError, explain
from vlm_eff.core.plugin import Plugin
from vlm_eff.demo.page import compare_tab, diffusion_tab, image_tab, kv_tab, video_tab
from vlm_eff.demo.page.desk import Desk
from vlm_eff.demo.page.running import visitor_of
from vlm_eff.demo.page.uploads import LARGEST_FILE
from vlm_eff.demo.tour.tables import PHOTOGRAPH_NOTE
from vlm_eff.eval.loading import first_line
from vlm_eff.eval.painter import Painter
from vlm_eff.eval.subject import Subject
from vlm_eff.reference.machine import describe_device

# in the order in which they stand on the page
TABS = (image_tab, video_tab, kv_tab, diffusion_tab, compare_tab)
_WAITING = 16
_FORGET_S = 3600
# whose last pictures are held at once
_VISITORS = 64
LOOPBACK = "127.0.0.1"


def build(desk: Desk) -> gr.Blocks:
    """The page over one model; nothing is served yet."""
    with gr.Blocks(
        title="vlm-eff", analytics_enabled=False, fill_width=True, delete_cache=(_FORGET_S, _FORGET_S)
    ) as page:
        gr.Markdown(_head(desk))
        with gr.Tabs():
            for tab in TABS:
                tab.add(desk)
        with gr.Accordion("About this page", open=False):
            gr.Markdown(_about(desk))
        page.unload(_leaving(desk))
    page.queue(max_size=_WAITING)
    return page


def _leaving(desk: Desk) -> Callable[[gr.Request], None]:
    def leave(request: gr.Request) -> None:
        desk.stop(visitor_of(request))

    return leave


def make_desk(
    subject: Subject,
    *,
    painter: Callable[[str, tuple[int, ...]], Painter] | None = None,
    painter_name: str = "",
    offered: Mapping[str, Plugin] | None = None,
) -> Desk:
    """A desk with a fresh folder of its own for what visitors download."""
    folder = Path(tempfile.mkdtemp(prefix="vlm-eff-page-"))
    return Desk(subject, folder, painter, painter_name, offered or {})


def serve(
    desk: Desk,
    *,
    host: str = LOOPBACK,
    port: int | None = None,
    browser: bool = False,
    told: Callable[[str], object] = lambda address: None,
) -> None:
    """Serve the page until it is interrupted; `told` is given its address.

    Nothing is shared beyond `host`, nothing outside the desk's folder and the uploads is ever handed out.

    Raises:
        InputError: the address cannot be served at.
    """
    page = open_page(desk, host=host, port=port, browser=browser)
    told(str(page.local_url))
    try:
        page.block_thread()
    finally:
        shutil.rmtree(desk.folder, ignore_errors=True)


def open_page(desk: Desk, *, host: str = LOOPBACK, port: int | None = None, browser: bool = False) -> gr.Blocks:
    """Start serving in a thread; `close()` of what is returned ends it. Raises as `serve` does."""
    _check_host(host, port)
    page = build(desk)
    try:
        page.launch(
            server_name=host,
            server_port=port,
            inbrowser=browser,
            prevent_thread_lock=True,
            share=False,
            quiet=True,
            show_error=True,
            max_file_size=LARGEST_FILE,
            allowed_paths=[str(desk.folder)],
            ssr_mode=False,
            footer_links=[],
            enable_monitoring=False,
            state_session_capacity=_VISITORS,
            theme=gr.themes.Default(font="sans-serif", font_mono="monospace"),
        )
    except OSError as error:
        raise _not_there(host, port, error) from None
    return page


def _check_host(host: str, port: int | None) -> None:
    """Raise `InputError` where nothing can listen; gradio would try every port, and then wait."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(place)
    except OSError as error:
        raise _not_there(host, port, error) from None


def _not_there(host: str, port: int | None, error: OSError) -> InputError:
    where = f"{host}, port {port if port is not None else 'any'}"
    accepted = "an address and a free port of this machine"
    return InputError(explain(f"{where} cannot be served at ({first_line(error)})", accepted, "Name another"))


def _head(desk: Desk) -> str:
    named = f"## vlm-eff {__version__}: the same model, less work\n**{desk.subject.name}**, unmodified, on "
    said = f"{named}{describe_device(desk.subject.device)}."
    return f"{said} {PHOTOGRAPH_NOTE}" if desk.subject.name == "bundled model" else said


def _about(desk: Desk) -> str:
    return (
        f"Family of the model: {desk.family}. One piece of work runs at a time, so that timed runs are alone; others "
        f"wait, at most {_WAITING}. Answers are greedy. Uploads of up to {LARGEST_FILE} are kept for an hour in a "
        "folder of the server. n_eq: visual tokens averaged over the decoder's layers. FLOPs are the decoder's. KV "
        "bytes are what the cache holds when the answer is there, or behind the prompt where nothing compresses it."
    )
