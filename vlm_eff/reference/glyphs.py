"""A 5x7 pixel font, so that scenes look the same with every Pillow version."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

GLYPH_WIDTH = 5
GLYPH_HEIGHT = 7

# one hex byte a column, lowest bit is the top row
_COLUMNS = {
    "0": "3E5149453E", "1": "00427F4000", "2": "4261514946", "3": "2141454B31", "4": "1814127F10",
    "5": "2745454539", "6": "3C4A494930", "7": "0171090503", "8": "3649494936", "9": "064949291E",
    "A": "7E1111117E", "B": "7F49494936", "C": "3E41414122", "D": "7F4141221C", "E": "7F49494941",
    "F": "7F09090901", "G": "3E4149497A", "H": "7F0808087F", "I": "00417F4100", "J": "2040413F01",
    "K": "7F08142241", "L": "7F40404040", "M": "7F020C027F", "N": "7F0408107F", "O": "3E4141413E",
    "P": "7F09090906", "Q": "3E4151215E", "R": "7F09192946", "S": "4649494931", "T": "01017F0101",
    "U": "3F4040403F", "V": "1F2040201F", "W": "3F4038403F", "X": "6314081463", "Y": "0708700807",
    "Z": "6151494543",
}  # fmt: skip

CHARACTERS = tuple(_COLUMNS)


@lru_cache(maxsize=4096)
def text_mask(text: str, scale: int, gap: int) -> np.ndarray:
    """Return the boolean picture [height, width] of a text, `scale` pixels a dot, `gap` pixels between letters."""
    unknown = sorted(set(text.upper()) - set(_COLUMNS))
    if unknown:
        raise ValueError(f"got characters {unknown}; the font has {''.join(CHARACTERS)}; write the text with those")
    pieces: list[np.ndarray] = []
    for character in text.upper():
        columns = np.frombuffer(bytes.fromhex(_COLUMNS[character]), dtype=np.uint8)
        dots = (columns[None, :] >> np.arange(GLYPH_HEIGHT, dtype=np.uint8)[:, None]) & 1
        if pieces:
            pieces.append(np.zeros((GLYPH_HEIGHT * scale, gap), dtype=bool))
        pieces.append(np.kron(dots, np.ones((scale, scale), dtype=np.uint8)).astype(bool))
    return np.concatenate(pieces, axis=1)
