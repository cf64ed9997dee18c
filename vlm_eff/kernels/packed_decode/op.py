"""Decode attention over packed entries: its arguments, its forms, what it costs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from vlm_eff.kernels.dispatch import Backend, Forms
from vlm_eff.kernels.packed_decode import fast, launch, reference
from vlm_eff.kernels.packed_decode.pairs import Pair, check

_FORMS = Forms(
    "packed_decode",
    reference=reference.packed_decode,
    torch=fast.packed_decode,
    triton=launch.packed_decode,
    limits={"triton": launch.limits},
    more={"compiled": fast.compiled},
)


def packed_decode(
    query: Tensor,
    segments: Sequence[Pair],
    *,
    scaling: float,
    softcap: float | None = None,
    return_lse: bool = False,
    backend: Backend = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Attend from a few query rows to cache entries in few bits and as they are, without reading the cache back.

    query: [B, H, Q, Dh]; segments: `PackedPair` of `Quantised` keys and values [B, Hkv, P, Dh] and `ExactPair` of
    tensors, P each its own. A segment's bias [B, 1 | Hkv | H, 1 | Q, P] is added to the scaled logits: -inf hides an
    entry (fillers), log m makes it count m times.
    scaling: factor of the logits; softcap: logits become softcap * tanh(logits / softcap) before the bias

    Returns the output [B, H, Q, Dh] in the type of the query, and with `return_lse` the natural logarithm of the sum of
    exponentials [B, H, Q] too, in float32 (float64 for a float64 query in the forms of PyTorch). A row that sees
    nothing gets zeros and -inf. Entries are what `Quantised.read` makes of them in float32.

    The bytes are read as `quantise` laid them out. In the kernel a scale is multiplied into the query (keys by channel)
    or into logits and weights (by token) where one group covers a tile or a whole line, and met number by number in
    smaller groups, which takes two to three times the instructions. The cache is cut into spans, so that one row of a
    long sequence fills a GPU, and a second kernel joins them. `torch` unpacks the codes of a few heads at a time;
    `compiled` is the same through `torch.compile`, on request: the first call of each form compiles it, which took over
    a minute on two shared cores.

    CUDA graphs: launches depend on shapes alone and nothing is asked of the device. A tail that grows changes its
    shape: give it with room for what is to come, and hide what is not there with a bias of -inf.

    Cost: bits + 32 / group of 16 of the bytes of half-precision entries, 4 H Dh FLOPs for each; at 4 bits and 32,768
    entries of 4 key heads of 128 6.3 us against 22.4 us (3 TB/s), 6.2 us of instructions if unpacking took 5.5 for each
    number. A step also reads the weights of the model: at batch 1 a 7B model gains 2 to 9 %, at batch 32 up to 2.3
    times. Where `outliers` are kept or more than 64 query rows share a key head there is no kernel.

    Source: KIVI (arXiv:2402.02750), BitDecoding (arXiv:2503.18773) for the idea of tensor cores at one query row; the
    layout, folds and spans are our own.

    Raises:
        InputError: shapes that do not belong together.
        CapabilityError: a backend that cannot run on these arguments.
    """
    check(query, segments)
    return _FORMS.run(  # type: ignore[no-any-return]
        backend, query, segments, scaling=scaling, softcap=softcap, return_lse=return_lse
    )
