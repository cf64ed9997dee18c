"""Methods that represent entries of the KV cache in another way."""
