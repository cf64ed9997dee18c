"""Methods that evict entries of the KV cache."""
