"""Attention over listed blocks: the public function."""

from __future__ import annotations

import torch
from torch import Tensor

from vlm_eff.core.errors import CapabilityError, InputError, explain
from vlm_eff.kernels.blocks import BlockLists, Rule
from vlm_eff.kernels.dispatch import Backend, Forms
from vlm_eff.kernels.sparse_attention import fast, flex, launch, reference

_FORMS = Forms(
    "sparse_attention",
    reference=reference.sparse_attention,
    torch=fast.sparse_attention,
    triton=launch.sparse_attention,
    limits={"triton": launch.why_not, "flex": flex.why_not, "flash4": flex.why_not_flash},
    more={"flex": flex.sparse_attention, "flash4": flex.with_flash},
)


def sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lists: BlockLists,
    rule: Rule,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    return_lse: bool = False,
    backend: Backend = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention in which each block of queries sees the blocks of keys that are listed for it, and nothing else.

    query: [B, H, Q, Dh]; key, value: [B, Hkv, S, Dh], H a multiple of Hkv; the Q queries are the last of the S
    positions (a prompt behind a cache), Q <= S.
    lists: which blocks and single keys are seen whole or in part, one list for all heads and rows or one for each
    rule: what is seen inside of blocks that are listed in part: `Rule(causal=False)` for regions of a vision tower
    scaling: factor of the logits (default 1 / sqrt(Dh)); softcap: logits become softcap * tanh(logits / softcap)
    return_lse: also the natural logarithm of the sum of exponentials [B, H, Q], float32 (float64 for float64), by which
        attention over other keys can be merged in
    backend: "auto", "reference", "torch", "triton", and on request only
        "flex"    compiled FlexAttention: a compiler and 20 to 90 seconds for the first call; no single keys, and on a
                  CPU no log-sum-exp
        "flash4"  FlashAttention-4 through FlexAttention, where it is installed. Never run by us.

    Returns [B, H, Q, Dh] in the type of the query. A row that sees nothing gets zeros, and -inf as its logarithm.
    There is no backward pass.

    Source: block lists as in FlexAttention and FlashAttention-4 (`full` and `partial`); single keys beside blocks as in
    MInference (arXiv 2407.02490, vertical-slash), which takes one sequence, expanded heads and powers of two for Dh;
    sinks, windows and text that sees all as in Longformer and BigBird.
    Cost: 4 * Dh operations for each pair of a listed block, and on an H100 at best half of its peak. Attention is 1 %
    of a prompt's operations at 640 tokens, 6 % at 2944 and a third at 32768: below about 8000 tokens nobody will
    notice what is spared here. Without the kernel, "torch" is dense attention under a mask in chunks of queries: on a
    CPU lists that all heads share save time from half the pairs on, lists of heads apart cost more than dense causal
    attention does.

    Raises:
        InputError: shapes that do not belong together, or lists of another call.
        CapabilityError: the backend cannot run on these arguments, or a gradient is wanted.
    """
    _check(query, key, value, lists, rule)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value)):
        got = "sparse_attention on tensors that require gradients"
        raise CapabilityError(explain(got, "tensors without", "Call it under torch.no_grad(): it has no backward pass"))
    scaling = query.shape[3] ** -0.5 if scaling is None else scaling
    if scaling <= 0 or (softcap is not None and softcap <= 0):
        raise InputError(explain(f"scaling={scaling}, softcap={softcap}", "numbers above 0", "Leave them out"))
    options = {"scaling": scaling, "softcap": softcap, "return_lse": return_lse}
    return _FORMS.run(backend, query, key, value, lists, rule, **options)


def _check(query: Tensor, key: Tensor, value: Tensor, lists: BlockLists, rule: Rule) -> None:
    shapes = [list(x.shape) for x in (query, key, value)]
    fits = all(len(shape) == 4 for shape in shapes) and shapes[1] == shapes[2]
    fits = fits and shapes[0][0] == shapes[1][0] and shapes[0][3] == shapes[1][3] and shapes[0][2] <= shapes[1][2]
    if not fits or min(map(min, shapes)) < 1 or shapes[0][1] % shapes[1][1]:
        got = f"query, key and value of shapes {shapes[0]}, {shapes[1]}, {shapes[2]}"
        raise InputError(
            explain(got, "[B, H, Q, Dh] and twice [B, Hkv, S, Dh], Q <= S, H a multiple of Hkv", "Give one layer's")
        )
    lists.check(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    rule.check(query.shape[0], key.shape[2])
