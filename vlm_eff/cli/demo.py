"""`vlm-eff demo`: the page in the browser."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import vlm_eff
from vlm_eff.cli.output import progress, say
from vlm_eff.core.errors import CapabilityError, explain
from vlm_eff.eval.loading import load_subject, quiet_libraries
from vlm_eff.eval.painter import SMALL, Painter, load_painter

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class DemoOptions:
    """What the command line said."""

    model: str | None
    diffusion: str | None
    offered: Sequence[str]
    host: str
    port: int | None
    browser: bool
    dtype: str
    device: str
    attention: str


def run_demo(options: DemoOptions) -> None:
    """Load the model and serve the page until somebody presses Ctrl-C.

    Raises:
        CapabilityError: gradio is not installed.
    """
    if importlib.util.find_spec("gradio") is None:
        raise CapabilityError(
            explain("the page without gradio", "an installation that has it", 'Install it: pip install "vlm-eff[demo]"')
        )
    offered = {spec: vlm_eff.plugin(spec) for spec in options.offered}
    quiet_libraries()
    with progress("loading the model"):
        subject = load_subject(options.model, dtype=options.dtype, device=options.device, attention=options.attention)
    painter, name = _painter(options)
    from vlm_eff.demo.page.app import make_desk, serve

    desk = make_desk(subject, painter=painter, painter_name=name, offered=offered)
    if options.host not in _LOOPBACK:
        say(f"the page is open to everybody who reaches {options.host}: it has no passwords")
    serve(
        desk,
        host=options.host,
        port=options.port,
        browser=options.browser,
        told=lambda address: say(f"the page is at {address} until Ctrl-C"),
    )


def _painter(options: DemoOptions) -> tuple[Callable[[str, tuple[int, ...]], Painter] | None, str]:
    name = options.diffusion or SMALL[0]
    if importlib.util.find_spec("diffusers") is None:
        if options.diffusion is not None:
            raise CapabilityError(
                explain(
                    "--diffusion without diffusers",
                    "an installation that has it",
                    'Install it: pip install "vlm-eff[diffusion]"',
                )
            )
        return None, ""

    loaded: list[Painter] = []
    if options.diffusion is not None:
        # a wrong name is told now, not to whoever draws first; what it shall draw is said then
        first = "" if name in SMALL else "a picture"
        with progress("loading the pipeline"):
            loaded.append(load_painter(name, prompt=first, dtype=options.dtype, device=options.device))

    def make(prompt: str, classes: tuple[int, ...]) -> Painter:
        # the small pipeline is loaded when somebody first draws, and stays
        if not loaded:
            loaded.append(
                load_painter(name, prompt=prompt, classes=classes, dtype=options.dtype, device=options.device)
            )
        return loaded[0].asking(prompt=prompt, classes=classes)

    return make, name
