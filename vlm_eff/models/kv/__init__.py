"""The KV cache between forward passes: layers that store less than they have seen, and the runtime that writes them."""
