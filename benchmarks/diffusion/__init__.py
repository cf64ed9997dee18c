"""What the diffusion benchmarks compare."""
