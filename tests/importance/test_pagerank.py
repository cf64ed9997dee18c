"""Weighted PageRank: properties that follow from its definition."""

import torch

from vlm_eff.importance.pagerank import joined_heads, weighted_pagerank


def graph(tokens: int = 7, images: int = 2) -> torch.Tensor:
    return torch.randn(images, tokens, tokens, generator=torch.Generator().manual_seed(0)).mul(2).softmax(-1)


def test_even_graphs_rank_evenly() -> None:
    """Doubly stochastic: everybody receives as much as they give."""
    turn = torch.eye(5).roll(1, 0)
    even = 0.5 * turn + 0.3 * turn.T + 0.2 / 5
    torch.testing.assert_close(weighted_pagerank(even[None], 40), torch.full((1, 5), 0.2))


def test_scores_are_a_distribution_at_the_fixed_point() -> None:
    scores = weighted_pagerank(graph(), 60)
    assert (scores >= 0).all()
    torch.testing.assert_close(scores.sum(1), torch.ones(2))
    moved = (scores[:, None] @ graph())[:, 0]
    assert (moved - scores).abs().max() < 1e-6
    # the same as the left eigenvector of eigenvalue one
    values, vectors = torch.linalg.eig(graph()[0].T)
    eigen = vectors[:, values.real.argmax()].real
    torch.testing.assert_close(scores[0], eigen / eigen.sum(), atol=1e-5, rtol=1e-4)


def test_one_step_is_what_is_received() -> None:
    torch.testing.assert_close(weighted_pagerank(graph(), 1), graph().mean(1))


def test_tokens_that_do_not_exist_change_nothing() -> None:
    small = graph(5, 1)
    wide = torch.nn.functional.pad(small, (0, 2, 0, 2))
    valid = torch.tensor([[True] * 5 + [False] * 2])
    scores = weighted_pagerank(wide, 9, valid)
    torch.testing.assert_close(scores[:, :5], weighted_pagerank(small, 9))
    assert (scores[:, 5:] == 0).all()


def test_heads_outside_the_variance_are_left_out() -> None:
    flat, good, spike = torch.full((1, 4), 0.25), torch.tensor([[0.4, 0.3, 0.2, 0.1]]), torch.eye(4)[:1]
    valid = torch.ones(1, 4, dtype=torch.bool)
    torch.testing.assert_close(joined_heads([flat, good, spike], 0.01, 0.7, valid), good * 4)
    # none passes: all count
    both = joined_heads([flat, spike], 0.01, 0.7, valid)
    torch.testing.assert_close(both, ((flat * 4) ** 2 / 2 + (spike * 4) ** 2 / 2).sqrt())
