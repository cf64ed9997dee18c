"""Attention only among chosen tokens: its arguments, its forms, what it costs."""

from __future__ import annotations

import torch
from torch import Tensor

from vlm_eff.core.errors import InputError, explain
from vlm_eff.kernels.dispatch import Backend, Forms
from vlm_eff.kernels.selected_attention import fast, launch, reference

_FORMS = Forms(
    "selected_attention",
    reference=reference.selected_attention,
    torch=fast.selected_attention,
    triton=launch.selected_attention,
    limits={"triton": launch.limits},
)


def selected_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    index: Tensor,
    valid: Tensor | None = None,
    *,
    scaling: float | None = None,
    first: Tensor | None = None,
    softcap: float | None = None,
    return_lse: bool = False,
    backend: Backend = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Causal attention among chosen tokens and all older keys; tokens that are not chosen take no part and get zeros.

    query: [B, H, Q, Dh]; key: [B, Hkv, S, Dh]; value: [B, Hkv, S, Dv]. The Q queries are the last Q of the S tokens,
    the S - Q before them come from a cache and are seen by every chosen query. Key head h serves H / Hkv query heads.
    index:   [B, K] int64 places of the chosen tokens among the Q, ascending among the valid ones of a row
    valid:   [B, K] bool, False at a filler, whose place means nothing; None: no fillers
    first:   [B] int64 first of the S tokens that is no padding; what lies before sees nothing and is not seen
    scaling: factor of the logits, Dh ** -0.5 if left out; softcap: logits become softcap * tanh(logits / softcap)

    Returns the output [B, H, Q, Dv] in the type of the query, zeros where a token is not chosen or sees nothing, and
    with `return_lse` the natural logarithm of the sum of exponentials [B, H, Q] too, -inf in those rows (float32;
    float64 for a float64 query in the forms of PyTorch). Places keep their order, so this equals attention with every
    other token masked, as row and as column.

    The kernel gathers rows of query, key and value and scatters rows of output while it attends: nothing is copied
    beforehand. Rows without fillers need no memory set to zero either. The form of PyTorch gathers, attends with
    `scaled_dot_product_attention`, and scatters; where fillers, padding or older keys need an explicit mask it does so
    in chunks of rows, so that no mask of K x K is built.

    Cost: with keep = K / Q and no older keys keep^2 of the 2 H Dh Q^2 FLOPs of dense attention and keep of its bytes;
    projections and MLP are not touched. Attention is 1 % of a prefill of 640 tokens, 6 % of 2,944 and a third of
    32,768 (7B models), and no more than that can be saved.

    Source: the attention of ZipVL (arXiv:2410.08584, section 4), of which no code was released.

    Raises:
        InputError: shapes that do not belong together.
        CapabilityError: a backend that cannot run on these arguments.
        ConfigError: no such backend.
    """
    _check(query, key, value, index, valid, first, softcap)
    scaling = query.shape[3] ** -0.5 if scaling is None else scaling
    made: Tensor | tuple[Tensor, Tensor] = _FORMS.run(
        backend,
        query,
        key,
        value,
        index,
        valid,
        scaling=scaling,
        first=first,
        softcap=softcap,
        return_lse=return_lse,
    )
    return made


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    index: Tensor,
    valid: Tensor | None,
    first: Tensor | None,
    softcap: float | None,
) -> None:
    if {query.dim(), key.dim(), value.dim()} != {4} or index.dim() != 2:
        _refuse(
            f"query, key, value and index of {query.dim()}, {key.dim()}, {value.dim()} and {index.dim()} dimensions",
            "[B, H, Q, Dh], [B, Hkv, S, Dh], [B, Hkv, S, Dv] and [B, K]",
        )
    if index.dtype not in (torch.int32, torch.int64):
        _refuse(f"an index of {index.dtype}", "places as int64 or int32")
    batch, heads, rows, width = query.shape
    if key.shape[:3] != value.shape[:3] or key.shape[3] != width or key.shape[0] != batch:
        _refuse(
            f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}", "one batch and width"
        )
    if not key.shape[1] or heads % key.shape[1] or key.shape[2] < rows:
        _refuse(
            f"{heads} query heads over {key.shape[1]} key heads, {rows} queries over {key.shape[2]} keys",
            "a multiple of the key heads, and at least as many keys as queries",
        )
    if index.shape[0] != batch or index.shape[1] > rows:
        _refuse(f"index {tuple(index.shape)} for queries {tuple(query.shape)}", "[B, K] with K at most Q")
    if valid is not None and valid.shape != index.shape:
        _refuse(f"valid {tuple(valid.shape)} for index {tuple(index.shape)}", "the shape of index")
    if first is not None and first.shape != (batch,):
        _refuse(f"first {tuple(first.shape)} for a batch of {batch}", "[B]")
    if softcap is not None and softcap <= 0:
        _refuse(f"softcap={softcap}", "a positive number, or None")


def _refuse(got: str, accepted: str) -> None:
    raise InputError(explain(got, accepted, "See the docstring of selected_attention"))
