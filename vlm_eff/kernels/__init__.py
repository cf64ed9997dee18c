"""Operations on tensors that deserve a fast path: how cache entries are quantised, packed and attended to."""
