"""Small noisy pictures, each with its number."""

import numpy as np
from PIL import Image


def picture(number: int) -> Image.Image:
    """48 x 48 pixels, the same for one number."""
    return Image.fromarray(np.random.default_rng(number).integers(0, 255, (48, 48, 3), dtype=np.uint8))
