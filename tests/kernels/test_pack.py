"""Codes survive packing, whatever their width and number."""

import pytest
import torch

from vlm_eff.core.errors import ConfigError
from vlm_eff.kernels.pack import pack, packed_bytes, unpack


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8, 9, 33])
def test_unpack_is_the_inverse_of_pack(bits: int, count: int) -> None:
    codes = torch.randint(0, 2**bits, (2, 3, count), dtype=torch.uint8, generator=torch.Generator().manual_seed(count))
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (2, 3, packed_bytes(count, bits))
    assert packed.shape[-1] == (count * bits + 7) // 8
    assert torch.equal(unpack(packed, bits, count), codes)


def test_the_order_is_that_of_kivi() -> None:
    """The fixture of a low half-word 0xA4E5, which is E5 A4 in memory."""
    packed = pack(torch.tensor([1, 1, 2, 3, 0, 1, 2, 2], dtype=torch.uint8), 2)
    assert packed.tolist() == [0xE5, 0xA4]
    assert packed.view(torch.int16).item() & 0xFFFF == 0xA4E5


def test_one_bit_and_four_bits_start_at_the_little_end() -> None:
    assert pack(torch.tensor([1, 0, 0, 0, 0, 0, 0, 0, 1], dtype=torch.uint8), 1).tolist() == [1, 1]
    assert pack(torch.tensor([3, 12, 7], dtype=torch.uint8), 4).tolist() == [0xC3, 7]


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_code_that_is_too_large_leaves_its_neighbours_alone(bits: int) -> None:
    codes = torch.tensor([0, 255, 0, 0, 0, 0, 0, 0], dtype=torch.uint8)
    assert unpack(pack(codes, bits), bits, 8).tolist() == [0, 2**bits - 1, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("bits", [0, 3, 16, True, "2"])
def test_other_widths_are_refused(bits: int) -> None:
    with pytest.raises(ConfigError, match="Accepted: 1, 2, 4, 8"):
        pack(torch.zeros(4, dtype=torch.uint8), bits)
