"""What becomes of the tokens: dropped, or pooled into those that stay."""
