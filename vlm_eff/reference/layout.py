"""The names, colours, sizes and the grid that scenes and questions share."""

from __future__ import annotations

IMAGE_SIZE = 96
GRID = 3
CELL_SIZE = IMAGE_SIZE // GRID
SPLITS = ("train", "validation", "test")
SHAPES = ("circle", "rectangle", "triangle", "star", "cross", "ring")
SIZES = {"small": 7, "large": 13}  # radius in pixels
# the names and values of easy-VQA, so that both sources teach the same words
COLOURS = {
    "black": (0, 0, 0), "blue": (0, 0, 255), "brown": (165, 42, 42), "gray": (128, 128, 128),
    "green": (0, 255, 0), "red": (255, 0, 0), "teal": (0, 128, 128), "yellow": (255, 255, 0),
}  # fmt: skip
WORDS = (
    "cat", "dog", "sun", "car", "cup", "hat", "box", "key", "bus", "egg", "bed", "map", "pen", "ant", "bee",
    "cow", "fox", "jam", "leg", "net", "owl", "pig", "rat", "sea", "tea", "van", "web", "zoo", "ice", "arm",
)  # fmt: skip
CELLS = tuple(f"{row} {column}" for row in ("top", "middle", "bottom") for column in ("left", "center", "right"))


def cell_index(box: tuple[int, int, int, int]) -> tuple[int, int]:
    """Return row and column of the grid cell that holds the centre of a box."""
    left, top, right, bottom = box
    return (top + bottom) // 2 // CELL_SIZE, (left + right) // 2 // CELL_SIZE


def cell_name(box: tuple[int, int, int, int]) -> str:
    """Return the name, such as "top left", of the grid cell that holds the centre of a box."""
    row, column = cell_index(box)
    return CELLS[row * GRID + column]
