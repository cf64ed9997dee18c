"""How good generated pictures are: as a set against real ones, one by one against their classes or a fuller run.

Numbers of sets are biased by how many pictures there are, so each belongs beside the same number for two sets of real
pictures of the same size. Comparisons with the same seed (`psnr`) are reliable at any size.
"""

from __future__ import annotations

import torch

from vlm_eff.core.errors import InputError, explain


def frechet_distance(real: torch.Tensor, generated: torch.Tensor) -> float:
    """Return the Frechet distance between Gaussians fitted to two sets of features, [N, D] and [M, D]; 0 is best.

    |m1 - m2|^2 + trace(C1 + C2 - 2 (C1 C2)^(1/2)). Paper Heusel et al. 2017, section 3, with the caller's features
    instead of Inception's, so it compares only with distances in the same features. Computed in float64; the root
    comes from symmetric matrices, so it is never complex and needs no correction for singular ones.

    Raises:
        InputError: not two matrices of the same width with at least two rows each.
    """
    first, second = _features(real, generated)
    shift = first.mean(0) - second.mean(0)
    one, two = torch.cov(first.T), torch.cov(second.T)
    values, vectors = torch.linalg.eigh(one)
    root = vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ two @ root).clamp(min=0).sqrt().sum()
    return max(0.0, float(shift.square().sum() + one.trace() + two.trace() - 2 * cross))


def precision_recall(real: torch.Tensor, generated: torch.Tensor, neighbours: int = 3) -> tuple[float, float]:
    """Return precision and recall of generated features [M, D] against real ones [N, D], each in 0 to 1; 1 is best.

    Precision is the share of generated pictures that lie within the reach of some real one, recall the share of real
    ones within the reach of some generated one; the reach of a picture is the distance to its k-th nearest neighbour
    in its own set. Paper Kynkaanniemi et al. 2019, section 2, with the caller's features. Two sets of real pictures
    reach less than 1.

    Raises:
        InputError: not two matrices of the same width with more than `neighbours` rows each.
    """
    first, second = _features(real, generated)
    if not 1 <= neighbours < min(len(first), len(second)):
        raise InputError(
            explain(
                f"{neighbours} neighbours among {len(first)} and {len(second)} pictures",
                "at least 1, and fewer than there are pictures in either set",
                "Give more pictures or fewer neighbours",
            )
        )
    apart = torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")
    precision = (apart <= _reach(first, neighbours)[:, None]).any(0)
    recall = (apart <= _reach(second, neighbours)[None, :]).any(1)
    return float(precision.double().mean()), float(recall.double().mean())


def class_accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the share of rows of logits [N, C] whose largest entry is that of their class [N].

    Raises:
        InputError: shapes that do not belong together, or no rows.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise InputError(
            explain(
                f"logits {list(logits.shape)} and labels {list(labels.shape)}",
                "[N, C] and [N] with N of at least 1",
                "Give one class for each row",
            )
        )
    return float((logits.argmax(-1) == labels.to(logits.device)).double().mean())


def psnr(reference: torch.Tensor, generated: torch.Tensor, value_range: float = 2.0) -> torch.Tensor:
    """Return the peak signal-to-noise ratio of each picture in decibels, [B], from two batches [B, ...].

    10 log10(value_range^2 / mean squared error): how closely a faster run follows the full one from the same noise.
    Infinite where both are equal. The range is 2 for pictures in -1 to 1.

    Raises:
        InputError: batches of different shapes, or a range that is not positive.
    """
    if reference.shape != generated.shape or reference.ndim < 2:
        raise InputError(
            explain(
                f"batches {list(reference.shape)} and {list(generated.shape)}",
                "two batches of the same shape [B, ...]",
                "Compare runs with the same seeds and sizes",
            )
        )
    if not value_range > 0:
        raise InputError(explain(f"value_range={value_range}", "a positive number", "Give the width of the range"))
    error = (reference.double() - generated.double()).flatten(1).square().mean(1)
    return 10 * torch.log10(value_range**2 / error)


def _reach(features: torch.Tensor, neighbours: int) -> torch.Tensor:
    """Return the distance of every row to its k-th nearest other row."""
    apart = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    # the nearest of all is the row itself
    return apart.kthvalue(neighbours + 1, dim=1).values


def _features(real: torch.Tensor, generated: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if (
        real.ndim != 2
        or generated.ndim != 2
        or real.shape[1] != generated.shape[1]
        or min(map(len, (real, generated))) < 2
    ):
        raise InputError(
            explain(
                f"features {list(real.shape)} and {list(generated.shape)}",
                "[N, D] and [M, D] with at least two rows each",
                "Flatten the features and use the same network for both",
            )
        )
    return real.detach().double().cpu(), generated.detach().double().cpu()
