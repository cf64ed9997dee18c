"""Cache entries as few coefficients each and one basis: the best for the queries that will read them.

What matters of a key is its product with queries. With S the mean of q q^T, the error (k - k')^T S (k - k') is the mean
squared error of logits; with S = L L^T the best r directions are the first singular vectors of K L (Eckart and Young).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_eff.core.errors import ConfigError, InputError, explain
from vlm_eff.importance.keep import check_ratio

# entries that are turned into float64 at a time hold at most this many numbers (32 MiB)
_BLOCK = 1 << 22


@dataclass(frozen=True)
class LowRank:
    """Entries x [B, Hkv, P, Dh] as `coefficients` @ `basis`; beyond a row and head's own rank all is 0.

    coefficients: [B, Hkv, P, r] in the dtype of x, 0 for fillers; basis: [B, Hkv, r, Dh]
    encoder:      [B, Hkv, Dh, r] makes the coefficients of further entries; `without_encoder` lets go of it
    rank:         [B, Hkv] int64 directions used, at most r
    spectrum:     [B, Hkv, Dh] float32 (float64 if x is) squared error that each direction takes away, descending: what
                  is lost is the sum from `rank` on
    """

    coefficients: Tensor
    basis: Tensor
    encoder: Tensor | None
    rank: Tensor
    spectrum: Tensor

    def read(self) -> Tensor:
        """The entries [B, Hkv, P, Dh], multiplied out in float32 or the wider dtype of x."""
        made = _wide(self.coefficients) @ _wide(self.basis)
        return made.to(self.coefficients.dtype)

    def logits(self, queries: Tensor) -> Tensor:
        """Products of queries [B, Hkv, Q, Dh] with the entries [B, Hkv, Q, P], without making the entries."""
        return (_wide(queries) @ _wide(self.basis).mT) @ _wide(self.coefficients).mT

    def project(self, new: Tensor, valid: Tensor | None = None, metric: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Coefficients [B, Hkv, N, r] of further entries `new` [B, Hkv, N, Dh] on this basis, and what they miss.

        valid:  [B, N] or [B, Hkv, N] which of them exist; others get 0
        metric: [B, Hkv, Dh, Dh] what the second value is measured in: that of `factorise`. None: plain distance, where
                a basis made in a metric may miss more than all, because it does not try where no query looks
        The second value [B, Hkv] is the fraction of the energy of `new` that the basis does not hold, 0 where there are
        none. Factorise anew when it grows.

        Raises:
            ConfigError: after `without_encoder`.
        """
        if self.encoder is None:
            got, accepted = "a LowRank without encoder", "one that has it"
            raise ConfigError(explain(got, accepted, "Project before without_encoder()"))
        x = _wide(_clean(new, valid))
        made = (x @ _wide(self.encoder)).to(self.coefficients.dtype)
        missed, total = (_energy(t, metric) for t in (x - _wide(made) @ _wide(self.basis), x))
        return made, torch.where(total > 0, missed / torch.where(total > 0, total, 1.0), 0.0)

    def without_encoder(self) -> LowRank:
        """The same entries, which can be read and no longer added to."""
        return LowRank(self.coefficients, self.basis, None, self.rank, self.spectrum)

    @property
    def stored_numbers(self) -> int:
        """Numbers of a row and head that have to stay in memory; the spectrum can go once it was looked at."""
        width = self.basis.shape[3]
        return stored_numbers(self.coefficients.shape[2], width, self.basis.shape[2], encoder=self.encoder is not None)


def query_metric(queries: Tensor, valid: Tensor | None = None, epsilon: float = 1e-4) -> Tensor:
    """Mean of q q^T over query rows, S [B, Hkv, Dh, Dh], float32 (float64 if queries are), plus epsilon * tr(S) / Dh I.

    queries: [B, Hkv, n * R, Dh] of the n query heads that share a KV head, rotated as the keys are
    valid:   [B, n * R] or [B, Hkv, n * R] which rows count; None: all. For keys of one modality give the rows of the
             others (the reading of arXiv surveys' joint cross-modal low rank that has an optimum).
    The identity where no row counts, or all are 0: then all directions matter alike.
    """
    x = _clean(queries, valid).double()
    rows = x.new_full(x.shape[:2], x.shape[2]) if valid is None else _spread(valid, x).sum(2).to(x.dtype)
    made = (x.mT @ x) / rows.clamp(min=1)[:, :, None, None]
    trace = made.diagonal(dim1=2, dim2=3).mean(-1)[:, :, None, None]
    one = torch.eye(x.shape[3], dtype=x.dtype, device=x.device)
    made = torch.where(trace > 0, made + epsilon * trace * one, one)
    return made.to(torch.promote_types(queries.dtype, torch.float32))


def factorise(
    x: Tensor,
    metric: Tensor | None = None,
    *,
    rank: int | None = None,
    energy: float | None = None,
    weights: Tensor | None = None,
    valid: Tensor | None = None,
) -> LowRank:
    """The best `LowRank` of keys or values `x` [B, Hkv, P, Dh], for each row and KV head on its own.

    metric:  [B, Hkv, Dh, Dh] positive semi-definite, see `query_metric`; 1e-9 of its mean eigenvalue is added, so
             that blind directions stay finite. None: plain distance, a plain SVD
    rank:    directions to keep, at most Dh
    energy:  in (0, 1]: as few directions as hold this fraction of the energy in the metric. Rows and heads differ then;
             r is the largest, and the others are filled with zeros: they read the same in any batch, and take the
             memory of the largest. Give one of `rank` and `energy`
    weights: [B, Hkv, P] of at least 0: how often the squared error of an entry counts (attention it received, for
             values); None: once
    valid:   [B, P] or [B, Hkv, P] which entries exist; others read as 0 and have no influence
    Directions without energy are not kept, so that fewer entries than `rank`, equal ones and zeros are no special case.
    Works through the Dh x Dh matrix of second moments in float64 instead of an SVD of P lines: the same directions,
    whatever P is; energies below 1e-13 of the largest are rounding. The metric's scale is divided out, so that
    coefficients are about as large as entries and fit into half precision.
    Cost: 2 P Dh^2 + P Dh r multiply-adds and one eigenproblem of Dh a row and head; at most 32 MiB in float64 and one
    copy of x in float32 are alive.

    Raises:
        ConfigError: unless exactly one of `rank` (at least 1) and `energy` is given.
        InputError:  for a metric that is not positive semi-definite.
    """
    _check(rank, energy)
    root, scale = _root(metric, x)
    values, vectors = torch.linalg.eigh(root.mT @ _moments(x, weights, valid) @ root)
    spectrum, directions = values.flip(-1).clamp(min=0), vectors.flip(-1)
    own = _ranks(spectrum, rank, energy)
    width = int(own.max()) if own.numel() else 0
    used = torch.arange(width, device=x.device) < own[:, :, None]
    directions = directions[..., :width] * used[:, :, None]
    # B = V^T L^-1, the solution of B L = V^T
    basis = torch.linalg.solve_triangular(root, directions.mT, upper=False, left=False)
    encoder = root @ directions
    work = torch.promote_types(x.dtype, torch.float32)
    coefficients = _clean(x, valid).to(work) @ encoder.to(work)
    return LowRank(coefficients.to(x.dtype), basis.to(x.dtype), encoder.to(x.dtype), own, (spectrum * scale).to(work))


def stored_numbers(entries: int, width: int, rank: int, tail: int = 0, *, encoder: bool = False) -> int:
    """Numbers that a row and head holds: r (n + Dh), r Dh more with the encoder, and `tail` whole entries beside."""
    return rank * (entries + width * (2 if encoder else 1)) + tail * width


def _moments(x: Tensor, weights: Tensor | None, valid: Tensor | None) -> Tensor:
    """Sum of w x x^T [B, Hkv, Dh, Dh] in float64, a block of entries at a time."""
    made = torch.zeros(*x.shape[:2], x.shape[3], x.shape[3], dtype=torch.float64, device=x.device)
    size = max(1, _BLOCK // max(1, x.shape[0] * x.shape[1] * x.shape[3]))
    for start in range(0, x.shape[2], size):
        part = slice(start, start + size)
        block = _clean(x[:, :, part], None if valid is None else valid[..., part]).double()
        if weights is None:
            made += block.mT @ block
        else:
            weight = _clean(weights[:, :, part, None], None if valid is None else valid[..., part]).double()
            made += block.mT @ (block * weight)
    return made


def _root(metric: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor]:
    """L of the metric brought to a mean eigenvalue of 1 [B, Hkv, Dh, Dh], and what it was [B, Hkv, 1]."""
    one = torch.eye(x.shape[3], dtype=torch.float64, device=x.device)
    if metric is None:
        scale = torch.ones(*x.shape[:2], 1, dtype=torch.float64, device=x.device)
        return one.expand(*x.shape[:2], -1, -1), scale
    wide = (metric.double() + metric.double().mT) / 2
    scale = wide.diagonal(dim1=2, dim2=3).mean(-1)[:, :, None]
    # a metric that sees nothing would make all errors equal: nothing to choose by
    scale, wide = torch.where(scale > 0, scale, 1.0), torch.where(scale[..., None] > 0, wide, one)
    # far below what float32 can say of a metric, and enough to divide by
    root, wrong = torch.linalg.cholesky_ex(wide / scale[..., None] + 1e-9 * one)
    if bool(wrong.any()):
        got, accepted = "a metric with a negative direction", "positive semi-definite ones, [B, Hkv, Dh, Dh]"
        raise InputError(explain(got, accepted, "Make it by query_metric, or as a sum of q q^T"))
    return root, scale


def _ranks(spectrum: Tensor, rank: int | None, energy: float | None) -> Tensor:
    """Directions that each row and head keeps [B, Hkv]."""
    rounding = torch.finfo(spectrum.dtype).eps * max(1, spectrum.shape[-1]) * 4
    full = (spectrum > rounding * spectrum[..., :1]).sum(-1)
    if rank is not None:
        return full.clamp(max=rank)
    reached = spectrum.cumsum(-1)
    wanted = (energy or 0.0) * reached[..., -1:]
    return ((reached < wanted * (1 - rounding)).sum(-1) + 1).minimum(full)


def _energy(x: Tensor, metric: Tensor | None) -> Tensor:
    """Sum of x^T S x over the entries of each row and head [B, Hkv]."""
    return (x * (x if metric is None else x @ metric.to(x.dtype))).sum((2, 3))


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _spread(valid: Tensor, x: Tensor) -> Tensor:
    """[B, P] or [B, Hkv, P] -> [B, Hkv, P]."""
    return (valid if valid.ndim == 3 else valid[:, None]).expand(x.shape[:3])


def _clean(x: Tensor, valid: Tensor | None) -> Tensor:
    """`x` [B, Hkv, P, D] with zeros where nothing exists, whatever stands there."""
    return x if valid is None else x.masked_fill(~_spread(valid, x)[..., None], 0.0)


def _check(rank: int | None, energy: float | None) -> None:
    whole = isinstance(rank, int) and not isinstance(rank, bool) and rank > 0
    if (rank is None) == (energy is None) or (rank is not None and not whole):
        got, accepted = f"rank={rank!r}, energy={energy!r}", "one of them: rank of at least 1, or energy in (0, 1]"
        raise ConfigError(explain(got, accepted, "Give rank=16, or energy=0.95"))
    check_ratio("energy", energy)
