"""Metrics of generated pictures, against closed forms and by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from vlm_eff.core.errors import InputError
from vlm_eff.eval.generated import class_accuracy, frechet_distance, precision_recall, psnr
from vlm_eff.eval.shape_quality import cycle_of_classes, real_against_real, shape_quality
from vlm_eff.reference.diffusion.shapes import draw_shapes, stream


def normal(count: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whitened(count: int, width: int) -> torch.Tensor:
    """Rows whose mean is exactly 0 and whose covariance is exactly the identity."""
    rows = normal(count, width)
    rows = rows - rows.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(rows.T))
    return rows @ vectors @ torch.diag(values.rsqrt())


def test_frechet_distance_of_known_gaussians() -> None:
    rows = whitened(50, 4)
    scales, shift = torch.tensor([1.0, 2.0, 3.0, 0.5]).double(), torch.tensor([0.0, 1.0, 0.0, -2.0]).double()
    # diagonal covariances: |m|^2 + sum (s1 - s2)^2
    expected = 5.0 + ((scales - 1) ** 2).sum().item()
    assert frechet_distance(rows, rows * scales + shift) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(rows, rows) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_with_covariances_that_do_not_commute() -> None:
    rows = whitened(60, 3)
    first, second = rows @ normal(3, 3, 1), rows @ normal(3, 3, 2)
    product = torch.cov(first.T) @ torch.cov(second.T)
    cross = torch.linalg.eigvals(product).real.clamp(min=0).sqrt().sum()
    expected = (torch.cov(first.T).trace() + torch.cov(second.T).trace() - 2 * cross).item()
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(first, second) == pytest.approx(frechet_distance(second, first), rel=1e-8)
    # saboteur: the trace of the product of roots is no Frechet distance
    wrong = torch.cov(first.T).trace() + torch.cov(second.T).trace() - 2 * product.trace().sqrt()
    assert abs(wrong.item() - expected) > 1e-3


def test_fewer_pictures_than_features_are_no_trouble() -> None:
    found = frechet_distance(normal(5, 20, 1).float(), normal(5, 20, 2).float())
    assert math.isfinite(found) and found > 0


def test_precision_and_recall_by_hand() -> None:
    real = torch.tensor([[0.0], [1.0], [2.0], [10.0]])
    generated = torch.tensor([[0.5], [1.5], [30.0]])
    # reach of the real with one neighbour: 1, 1, 1, 8; of the generated: 1, 1, 28.5
    precision, recall = precision_recall(real, generated, neighbours=1)
    assert precision == pytest.approx(2 / 3)
    assert recall == 1.0
    assert precision_recall(real, real[:3] + 100, neighbours=1) == (0.0, 0.0)
    # a generator that gives one picture only is precise and recalls little
    precision, recall = precision_recall(torch.arange(20.0)[:, None], torch.full((20, 1), 4.0), neighbours=3)
    assert precision == 1.0 and recall == pytest.approx(1 / 20)


def test_class_accuracy_and_psnr_by_hand() -> None:
    assert class_accuracy(torch.tensor([[1.0, 0], [0, 1], [3, 2], [0, 9]]), torch.tensor([0, 1, 1, 1])) == 0.75
    reference = torch.zeros(2, 3, 4, 4)
    found = psnr(reference, torch.stack([torch.full((3, 4, 4), 0.2), torch.zeros(3, 4, 4)]))
    assert found[0].item() == pytest.approx(20.0, abs=1e-5)
    assert math.isinf(found[1].item())


def test_what_does_not_belong_together_is_refused() -> None:
    with pytest.raises(InputError, match="at least two rows"):
        frechet_distance(torch.zeros(4, 3), torch.zeros(4, 2))
    with pytest.raises(InputError, match="neighbours"):
        precision_recall(torch.zeros(3, 2), torch.zeros(9, 2))
    with pytest.raises(InputError, match="one class for each row"):
        class_accuracy(torch.zeros(3, 2), torch.zeros(2))
    with pytest.raises(InputError, match="same shape"):
        psnr(torch.zeros(2, 3), torch.zeros(1, 3))
    with pytest.raises(InputError, match="positive"):
        psnr(torch.zeros(2, 3), torch.zeros(2, 3), value_range=0)


def test_real_pictures_are_near_real_ones_and_damaged_ones_are_not() -> None:
    real = real_against_real(200)
    assert real.accuracy > 0.99 and real.precision > 0.85 and real.recall > 0.85
    labels = torch.tensor(cycle_of_classes(200))
    pictures = draw_shapes(labels, stream(9, "test"))
    blurred = shape_quality(F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, stride=1), labels)
    assert blurred.frechet > 3 * real.frechet
    # saboteur: one class where ten were asked for
    narrow = shape_quality(draw_shapes(torch.zeros_like(labels), stream(9, "test")), labels)
    assert narrow.accuracy == 0.1
    assert narrow.precision > 0.8 and narrow.recall < 0.3 and narrow.frechet > 10 * real.frechet
