"""Scores from one row of attention logits."""

import torch

from vlm_eff.importance.attention import row_scores

LOGITS = torch.tensor([[[1.0, 2.0, float("-inf"), 0.0], [0.0, 0.0, float("-inf"), 3.0]]])
COLUMNS = torch.tensor([[1, 2, 3]])
THERE = torch.ones(1, 3, dtype=torch.bool)


def test_over_all_keys_is_the_mean_softmax() -> None:
    want = LOGITS.softmax(-1).mean(1)[:, [1, 2, 3]]
    torch.testing.assert_close(row_scores(LOGITS, COLUMNS, THERE, over="all"), want)


def test_over_visual_keys_shares_out_among_them_in_each_head() -> None:
    want = LOGITS[:, :, [1, 2, 3]].softmax(-1).mean(1)
    got = row_scores(LOGITS, COLUMNS, THERE, over="visual")
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(got.sum(1), torch.ones(1))


def test_candidates_that_do_not_exist_score_zero_and_take_no_share() -> None:
    valid = torch.tensor([[True, True, False]])
    got = row_scores(LOGITS, COLUMNS, valid, over="visual")
    assert got[0, 2] == 0
    torch.testing.assert_close(got[:, :2], LOGITS[:, :, [1, 2]].softmax(-1).mean(1))


def test_rows_without_candidates_and_rows_that_see_none_are_finite() -> None:
    hidden = torch.full((1, 2, 4), float("-inf"))
    for over in ("all", "visual"):
        assert row_scores(hidden, COLUMNS, THERE, over=over).tolist() == [[0, 0, 0]]  # type: ignore[arg-type]
        assert row_scores(LOGITS, COLUMNS, ~THERE, over=over).tolist() == [[0, 0, 0]]  # type: ignore[arg-type]
