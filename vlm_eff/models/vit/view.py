"""What a plugin sees at a site inside a vision tower. Read only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from vlm_eff.core.tower import Cells


@dataclass(frozen=True)
class TowerView:
    """The tokens of one run of a tower; I images (frames of a video count one by one), T tokens left in the fullest.

    block:    0-based
    hidden:   [I, T, D] residual stream
    valid:    [I, T] False where an image has fewer tokens; None when all have T
    counts:   tokens left in each image; original: patches (without `prefix`) of each image in the bare tower
    prefix:   leading tokens that are no patches and are never reduced
    size:     [I, T] how many original tokens each one stands for
    place:    [I, T] original place of each token in its image
    window:   [I, T] ascending numbers of the windows that some blocks attend in; None: no such blocks
    apart:    [I, T] the same for the attention that is seen; None when the whole image attends together
    padding:  [I, T] True for patches that hold no image; None when there are none
    cells:    () -> the pixels of each image, cell by cell, where the site asks for pixels
    windowed: windows must stay together, so that no new token can be put behind the others
    """

    block: int
    hidden: Tensor
    valid: Tensor | None
    counts: tuple[int, ...]
    original: tuple[int, ...]
    prefix: int
    size: Tensor
    place: Tensor
    window: Tensor | None
    apart: Tensor | None
    padding: Tensor | None
    attention: Callable[[], tuple[Tensor, Tensor]]
    cells: Callable[[], list[Cells]]

    @property
    def group(self) -> Tensor | None:
        """[I, T] ascending numbers of groups whose tokens may be merged with each other; None: any may."""
        if self.window is not None or self.padding is None:
            return self.window
        return self.padding.long()

    @property
    def windowed(self) -> bool:
        """Some blocks attend inside windows."""
        return self.window is not None

    def query_key(self) -> tuple[Tensor, Tensor]:
        """Queries and keys [I, H, T, Dh] as the attention used them."""
        return self.attention()
