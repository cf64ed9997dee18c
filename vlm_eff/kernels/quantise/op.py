"""Quantising cache entries and packing their codes, in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from vlm_eff.core.errors import InputError, explain
from vlm_eff.kernels.dispatch import Backend, Forms
from vlm_eff.kernels.format import Format
from vlm_eff.kernels.quantise import fast, launch, reference
from vlm_eff.kernels.quantise.stored import Quantised

_FORMS = Forms(
    "quantise",
    reference=reference.quantise,
    torch=fast.quantise,
    triton=launch.quantise,
    limits={"triton": launch.limits},
)


def quantise(x: Tensor, format: Format, valid: Tensor | None = None, *, backend: Backend = "auto") -> Quantised:
    """Quantise cache entries [B, Hkv, P, Dh] once, and pack their codes.

    valid: [B, Hkv, P] bool, False for fillers, which touch no statistics. Groups of channels are formed along the
    entries of a row and head that are valid, in their order, so that a row is stored as it would be alone.
    The last group of a line may be shorter and has statistics of its own. A group of equal numbers is exact. A number
    that is not finite spoils its own group, which is read back as NaN, and no other.

    Statistics are float32; they are rounded to the types they are stored in, and the codes are made with the rounded
    ones, so that reading and writing agree. Lowest values are rounded down and scales up (official codes round to the
    nearest): then every number lies inside its group's grid and is read back within half a step. Codes are rounded
    half to even, as torch rounds. All forms give the same bits.

    Conventions: KIVI (arXiv 2402.02750, section 3; ZipCache, arXiv 2405.14256, section 4.2, for `separable`, where we
    take groups of one head instead of all heads together, so that heads stay independent).

    Cost: no product of matrices; reads the entries once and writes bits / 8 bytes a number and 4 bytes a group in half
    types. The kernel reads them twice where groups of channels are longer than 256 entries, and does neither outliers
    nor groups that do not fill bytes. With `valid`, whether any entry is a filler is asked of the device once.

    Raises:
        InputError: `x` is no floating tensor of four axes, or `valid` does not fit it.
        CapabilityError: `backend` cannot quantise this.
    """
    _check(x, valid)
    if valid is not None and bool(valid.all()):
        valid = None
    made: Quantised = _FORMS.run(backend, x, format, valid)
    return made


def _check(x: Tensor, valid: Tensor | None) -> None:
    if x.dim() != 4 or not x.is_floating_point():
        got = f"a tensor of shape {list(x.shape)} and type {x.dtype}"
        raise InputError(explain(got, "floating numbers [B, Hkv, P, Dh]", "Give keys or values of one layer"))
    if valid is not None and (valid.shape != x.shape[:3] or valid.dtype != torch.bool):
        got = f"valid of shape {list(valid.shape)} and type {valid.dtype} for entries {list(x.shape)}"
        raise InputError(explain(got, "bool [B, Hkv, P]", "Give one truth value for each entry of each head"))
