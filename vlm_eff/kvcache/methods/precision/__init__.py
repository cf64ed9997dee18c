"""Methods that store entries of the KV cache in few bits."""
