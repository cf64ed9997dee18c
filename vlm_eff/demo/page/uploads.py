"""What visitors may bring: pictures and clips, of limited size, opened here and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageOps

from vlm_eff.core.errors import InputError, explain

# of one file, on its way to the page
LARGEST_FILE = "64mb"
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MOST_PICTURES = 8
_MOST_PIXELS = 100_000_000
# larger ones are scaled down before the model's processor sees them
LONGEST_SIDE = 2048


def pictures(paths: Sequence[str] | None) -> list[Image.Image]:
    """Read uploaded pictures.

    Raises:
        InputError: none, too many, or one that cannot be read.
    """
    if not paths:
        raise InputError(explain("no picture", "one picture or more", "Upload one, or choose one of the examples"))
    if len(paths) > MOST_PICTURES:
        got = f"{len(paths)} pictures"
        raise InputError(explain(got, f"at most {MOST_PICTURES} for one question", "Take some of them away"))
    return [picture(path) for path in paths]


def picture(path: str) -> Image.Image:
    """Read an uploaded picture as RGB, turned as its camera says, its longer side at most 2,048 pixels.

    Raises:
        InputError: no picture, damaged, or of too many pixels.
    """
    name = Path(path).name
    accepted = f"{', '.join(PICTURES)} of up to {_MOST_PIXELS // 1_000_000} megapixels"
    try:
        with Image.open(path) as found:
            if found.width * found.height > _MOST_PIXELS:
                got = f"{name} has {found.width} x {found.height} pixels"
                raise InputError(explain(got, accepted, "Scale it down first"))
            # a JPEG is decoded at a fraction of its size where that is enough
            found.draft("RGB", (LONGEST_SIDE, LONGEST_SIDE))
            turned = ImageOps.exif_transpose(found).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, InputError):
            raise
        empty = Path(path).is_file() and Path(path).stat().st_size == 0
        got = f"{name} is empty" if empty else f"{name} cannot be read as a picture"
        raise InputError(explain(got, accepted, "Upload another file")) from None
    turned.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    return turned
