"""The methods of the KV cache, one a file."""
