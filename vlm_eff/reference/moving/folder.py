"""Clips as folders of PNG files, made when they are first asked for; each is there in full or not at all."""

from __future__ import annotations

import tempfile
from pathlib import Path

from PIL import Image

from vlm_eff.core.errors import InputError, explain
from vlm_eff.core.files import make_folder, png

from .clips import VERSION, MovingClip, render_clip
from .families import FRAMES


def default_folder() -> Path:
    """Where clips lie unless another folder is named."""
    return Path.home() / ".cache" / "vlm_eff" / "moving-shapes"


def clip_folder(clip: MovingClip, folder: Path) -> Path:
    """The folder of a clip's frames below `folder`; it is written first where it is not there.

    Pictures, not a video file: their pixels are the same with every decoder, and Pillow alone reads them.

    Raises:
        InputError: the folder cannot be written, or holds something else in the place of the clip.
    """
    parent = make_folder(folder / f"v{VERSION}" / clip.split)
    target = parent / f"{clip.number:05d}"
    names = [f"{number:02d}.png" for number in range(FRAMES)]
    if not target.exists():
        _write(clip, target, names)
    found = sorted(file.name for file in target.iterdir()) if target.is_dir() else []
    if found != names:
        got = f"{target} holds {len(found)} files, not the frames of a clip"
        raise InputError(explain(got, f"the {FRAMES} files that were written there", f"Remove {target}"))
    return target


def _write(clip: MovingClip, target: Path, names: list[str]) -> None:
    try:
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as temporary:
            made = make_folder(Path(temporary) / "clip")
            for name, frame in zip(names, render_clip(clip), strict=True):
                (made / name).write_bytes(png(Image.fromarray(frame)))
            try:
                made.rename(target)
            except OSError:
                # another process was faster, with the same frames
                if not target.is_dir():
                    raise
    except OSError as error:
        got = f"{target} cannot be written ({error.strerror})"
        raise InputError(explain(got, "a folder that may be written", "Choose another one")) from None
