"""Lists of blocks: for each block of queries the blocks of keys it sees whole, those it sees in part, single keys."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_eff.core.errors import InputError, explain
from vlm_eff.kernels.blocks.rule import Rule


@dataclass(frozen=True)
class BlockLists:
    """What each block of queries sees: key blocks whole, and key blocks and single keys in part, by a `Rule`.

    Block a of queries holds rows a * rows to (a + 1) * rows, block b of keys likewise with `columns`; the last of each
    may be shorter. The first four tensors are FlexAttention's `kv_num_blocks`, `kv_indices` and FlashAttention-4's
    `block_sparse_tensors`. The first axis may be 1 (one list for all rows of the batch), the second too (all heads).

    full_count:   [B | 1, H | 1, NQ] int32, how many entries of `full_index` count
    full_index:   [B | 1, H | 1, NQ, N] int32, N <= NK; entries past the count are not read
    part_count, part_index: the same for blocks inside which the rule decides
    column_count: [B | 1, H | 1, NQ] int32, column_index: [B | 1, H | 1, NQ, NV] int32 single keys, ascending, in no
                  listed block (vertical lines); inside them the rule decides too. Both or none.

    Promises, which cost a stop of the device to check (`check(..., values=True)`): no block is listed twice, indices
    lie in range, a last block of fewer keys is listed in part. And what nobody checks: a block listed whole is
    seen whole, so one that reaches over the diagonal or over left padding belongs among those seen in part.
    """

    full_count: Tensor
    full_index: Tensor
    part_count: Tensor
    part_index: Tensor
    rows: int
    columns: int
    column_count: Tensor | None = None
    column_index: Tensor | None = None

    @classmethod
    def of_masks(cls, full: Tensor, part: Tensor, rows: int, columns: int) -> BlockLists:
        """Lists of the blocks that are True in `full` and in `part` [B | 1, H | 1, NQ, NK], ascending, without a sync.

        Cost: a sort of NK flags for each block of queries; once a prompt, for all layers that share the pattern.
        """
        count, index = [], []
        for mask in (full, part):
            count.append(mask.sum(-1, dtype=torch.int32))
            # a stable sort of "not listed" brings listed blocks to the front in their order
            index.append((~mask).to(torch.int8).argsort(dim=-1, stable=True).to(torch.int32))
        return cls(count[0], index[0], count[1], index[1], rows, columns)

    @property
    def batch(self) -> int:
        """Rows of the batch that have lists of their own (1: shared)."""
        return self.full_count.shape[0]

    @property
    def heads(self) -> int:
        """Heads that have lists of their own (1: shared)."""
        return self.full_count.shape[1]

    @property
    def tensors(self) -> list[Tensor]:
        """Every tensor that is there."""
        named = (self.full_count, self.full_index, self.part_count, self.part_index)
        return [tensor for tensor in (*named, self.column_count, self.column_index) if tensor is not None]

    def check(self, batch: int, heads: int, query_length: int, key_length: int, *, values: bool = False) -> None:
        """Raise InputError unless the lists fit a call of these sizes.

        values: also read what is listed (stops a GPU until it has caught up: for tests and for building).
        """
        query_blocks, key_blocks = -(-query_length // self.rows), -(-key_length // self.columns)
        if (self.column_count is None) != (self.column_index is None):
            raise InputError(explain("one tensor of single keys", "both or none", "Give column_count and column_index"))
        for tensor in self.tensors:
            shape = list(tensor.shape)
            fits = tensor.dtype == torch.int32 and tensor.is_contiguous()
            fits &= len(shape) in (3, 4) and shape[0] in (1, batch) and shape[1] in (1, heads)
            fits &= shape[:3] == list(self.full_count.shape) and shape[2] == query_blocks
            if not fits:
                got = f"a list of shape {shape} and type {tensor.dtype} for {batch} rows, {heads} heads, {query_length}"
                got += f" queries in blocks of {self.rows}"
                wanted = f"contiguous int32 [{batch} or 1, {heads} or 1, {query_blocks}, ...], all alike"
                raise InputError(explain(got, wanted, "Build the lists for this call"))
        if values:
            self._check_values(key_length, key_blocks)

    def _check_values(self, key_length: int, key_blocks: int) -> None:
        lists = [(self.full_count, self.full_index, key_blocks), (self.part_count, self.part_index, key_blocks)]
        if self.column_count is not None and self.column_index is not None:
            lists.append((self.column_count, self.column_index, key_length))
        for count, index, limit in lists:
            named = index[self._listed(count, index)]
            wide = bool(((count < 0) | (count > index.shape[-1])).any())
            if wide or bool(((named < 0) | (named >= limit)).any()):
                got = f"counts up to {int(count.max())} of {index.shape[-1]} entries, indices up to {int(index.max())}"
                raise InputError(
                    explain(got, f"indices below {limit}, counts of what is there", "Build the lists anew")
                )
        times = [self._count(*each).repeat_interleave(self.columns, -1)[..., :key_length] for each in lists[:2]]
        times += [self._count(*each) for each in lists[2:]]
        if bool((torch.stack(times).sum(0) > 1).any()):
            raise InputError(explain("a key listed twice", "disjoint lists", "List every block and key once"))
        ragged = key_length % self.columns
        if ragged and bool((lists[0][1][self._listed(*lists[0][:2])] == key_blocks - 1).any()):
            got = f"the last key block, of {ragged} keys, listed as seen whole"
            raise InputError(explain(got, f"whole blocks of {self.columns} keys", "List it in part"))

    def mask(
        self,
        query_length: int,
        key_length: int,
        rule: Rule,
        *,
        begin: int = 0,
        end: int | None = None,
        keys: Tensor | None = None,
    ) -> Tensor:
        """The lists and the rule as a mask [B | 1, H | 1, end - begin, S], True where a query sees a key.

        begin, end: only these of the Q rows (default: all). keys: [N] int64, only these of the S keys.
        Cost: a byte a pair, so ask for a chunk of rows at a time.
        """
        end = query_length if end is None else end
        device = self.full_count.device
        keys = torch.arange(key_length, device=device) if keys is None else keys
        full, part = self._chunk(key_length, begin, end, keys)
        row = torch.arange(begin, end, device=device) // self.rows - begin // self.rows
        seen = rule.allowed(query_length, key_length, begin=begin, end=end, keys=keys, device=device)
        return full[:, :, row] | (part[:, :, row] & seen)

    def keys(self, key_length: int, begin: int, end: int) -> Tensor:
        """Which keys are listed for any of the rows begin to end, of any head and row of the batch: bool [S]."""
        every = torch.arange(key_length, device=self.full_count.device)
        full, part = self._chunk(key_length, begin, end, every)
        return (full | part).flatten(0, 2).any(0)

    def _chunk(self, key_length: int, begin: int, end: int, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Which keys are listed whole and in part for the blocks of rows begin to end: [B | 1, H | 1, blocks, N]."""
        rows, blocks = slice(begin // self.rows, -(-end // self.rows)), -(-key_length // self.columns)
        full, part = (
            (self._count(count[:, :, rows], index[:, :, rows], blocks) > 0)[..., keys // self.columns]
            for count, index in ((self.full_count, self.full_index), (self.part_count, self.part_index))
        )
        if self.column_count is not None and self.column_index is not None:
            single = self._count(self.column_count[:, :, rows], self.column_index[:, :, rows], key_length)
            part = part | (single[..., keys] > 0)
        return full, part

    def density(self, key_length: int, query_length: int | None = None) -> Tensor:
        """Pairs of queries and keys that are computed, as a share of what a dense causal pass computes [B | 1, H | 1].

        A block counts whole, a single key as one column. query_length: Q, if it is not S. Dense causal attention counts
        Q * S - Q * (Q - 1) / 2 pairs, so that lists of everything come out a little above 1 (without a causal rule: up
        to 2). A tensor, so that nothing waits for the device.
        """
        queries = key_length if query_length is None else query_length
        pairs = (self.full_count.long() + self.part_count.long()) * self.columns
        if self.column_count is not None:
            pairs = pairs + self.column_count
        dense = queries * key_length - queries * (queries - 1) / 2
        return pairs.sum(-1) * self.rows / dense

    def _listed(self, count: Tensor, index: Tensor) -> Tensor:
        """Which entries of an index count, as its mask."""
        return torch.arange(index.shape[-1], device=index.device) < count[..., None]

    def _count(self, count: Tensor, index: Tensor, limit: int) -> Tensor:
        """How often each of `limit` blocks or keys is listed [B | 1, H | 1, NQ, limit]."""
        times = torch.zeros(*index.shape[:3], limit + 1, dtype=torch.int32, device=index.device)
        place = index.masked_fill(~self._listed(count, index), limit).long()
        return times.scatter_add_(-1, place, torch.ones_like(index))[..., :limit]
