"""The demo's results as one HTML file, pictures included."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from importlib.resources import files

import jinja2
from PIL import Image

import vlm_eff
from vlm_eff.demo.tour.asking import Asked, Score
from vlm_eff.demo.tour.tables import PHOTOGRAPH_NOTE, share, time_of, verdict

_SIDE = 240


def page(asked: Sequence[Asked], scores: Sequence[Sequence[Score]], model: str) -> str:
    """Render the page: one section a question, then an accuracy table a task."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["inline"] = inline
    template = environment.from_string(files("vlm_eff.demo.tour").joinpath("page.html.j2").read_text(encoding="utf-8"))
    return template.render(
        asked=asked,
        scores=scores,
        model=model,
        version=vlm_eff.__version__,
        note=PHOTOGRAPH_NOTE,
        verdict=verdict,
        time_of=time_of,
        share=share,
    )


def inline(image: Image.Image) -> str:
    """A picture as a data URL, at most 240 pixels on its longer side."""
    small = image.convert("RGB")
    small.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
