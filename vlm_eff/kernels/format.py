"""In which form cache entries are quantised, and how many bits that form takes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from vlm_eff.core.config import part
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.kernels.pack import check_bits, packed_bytes


@part
@dataclass(frozen=True)
class Format:
    """How numbers are quantised: asymmetric, between the lowest and the highest of a group.

    bits:      1, 2, 4 or 8 for each number
    axis:      "token": a group lies along the width of one entry; "channel": along the entries of one channel
    group:     numbers in a group; None: the whole width, or all entries
    separable: token groups of numbers divided by the root of their channel's largest magnitude, one vector for each
               row and head (channel-separable token-wise quantisation of ZipCache, arXiv 2405.14256)
    shrink:    the range of a group is shrunk about its middle by this factor (0, 1] and what lies outside is clipped;
               CalibQuant (arXiv 2502.14882) takes 0.5 for keys and 0.3 for values at 1 bit
    outliers:  fraction [0, 1) of each group, rounded up, that is kept exactly: the farthest from the group's median
               (dense-and-sparse of KVQuant, arXiv 2401.18079)

    Raises:
        ConfigError: a value outside of the above, or `separable` with channel groups.
    """

    bits: Literal[1, 2, 4, 8]
    axis: Literal["token", "channel"]
    group: int | None = None
    separable: bool = False
    shrink: float = 1.0
    outliers: float = 0.0

    def __post_init__(self) -> None:
        check_bits(self.bits)
        whole = isinstance(self.group, int) and not isinstance(self.group, bool) and self.group >= 1
        checks = {
            "axis": (self.axis in ("token", "channel"), "'token' or 'channel'"),
            "group": (self.group is None or whole, "None or a whole number of at least 1"),
            "separable": (isinstance(self.separable, bool), "True or False"),
            "shrink": (_number(self.shrink) and 0 < self.shrink <= 1, "a factor in (0, 1]"),
            "outliers": (_number(self.outliers) and 0 <= self.outliers < 1, "a fraction in [0, 1)"),
        }
        for name, (fine, accepted) in checks.items():
            if not fine:
                raise ConfigError(explain(f"{name}={getattr(self, name)!r}", accepted, f"Correct {name}"))
        if self.separable and self.axis == "channel":
            raise ConfigError(
                explain(
                    "separable=True with axis='channel'",
                    "separable=True with axis='token'",
                    "Leave it out: channel groups have a scale for each channel anyway",
                )
            )

    @property
    def highest(self) -> int:
        """The largest code."""
        return int(2**self.bits - 1)

    def size(self, length: int) -> int:
        """Numbers in a full group of a line of `length` numbers; at least 1."""
        return max(min(self.group or length, length), 1)

    def kept(self, numbers: int) -> int:
        """Numbers of a group of `numbers` that are kept exactly."""
        return min(math.ceil(self.outliers * numbers - 1e-9), numbers)


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def stored_types(format: Format, dtype: torch.dtype) -> tuple[torch.dtype, torch.dtype]:
    """Types in which scale and lowest value of a group are stored, for numbers of type `dtype`.

    float32 for float32 and float64. For half types the scale is a bfloat16 (16 bits that neither overflow nor underflow
    where a float16 would) and the lowest value has the type of the numbers, one of which it is. Where it is none of
    them (`separable`, `shrink`) it is rounded, and 8 bits are too fine for that: float32.
    """
    if dtype not in (torch.float16, torch.bfloat16):
        return torch.float32, torch.float32
    made_up = format.separable or format.shrink < 1
    return torch.bfloat16, torch.float32 if made_up and format.bits == 8 else dtype


def place_type(size: int) -> torch.dtype:
    """Type in which the place of an outlier in a group of `size` numbers is stored; -1 is no place."""
    return torch.int16 if size <= torch.iinfo(torch.int16).max else torch.int32


def effective_bits(
    format: Format, count: int, width: int, dtype: torch.dtype = torch.float16, fillers: bool = False
) -> float:
    """Bits a number really takes when `count` entries of `width` numbers are stored in `format`, everything included.

    dtype: type the numbers had; fillers: whether some of the entries of the call were fillers, whose places channel
    groups must know. For fp16 this is bits + 32 / group, and bits + 32 / count for whole channels. Rows that have
    fewer entries than the longest one of a batch take as much as that one.
    """
    lines, length = (count, width) if format.axis == "token" else (width, count)
    if not count * width:
        return 0.0
    size = format.size(length)
    groups = -(-length // size)
    scale, lowest = (kind.itemsize for kind in stored_types(format, dtype))
    total = lines * (packed_bytes(length, format.bits) + groups * (scale + lowest))
    total += lines * groups * format.kept(size) * (place_type(size).itemsize + dtype.itemsize)
    total += width * min(dtype.itemsize, 4) if format.separable else 0
    total += packed_bytes(count, 1) if fillers and format.axis == "channel" and format.group else 0
    return 8 * total / (count * width)
