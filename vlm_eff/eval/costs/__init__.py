"""What a call costs: time, memory, tokens, FLOPs and energy, by one definition each, and the bench that compares.

What lives here: definitions (`docs/costs.md` says them in words), their measuring, the paired comparison of arms.
Start reading at `costs.py`, then `measure.py`, `bench.py`.
"""
