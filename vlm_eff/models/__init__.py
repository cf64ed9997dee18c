"""The only room that knows model families: adapters, the runtime that hooks and gathers, observations, cost.

Start reading at `runtime.py` (what happens in one forward pass) and `adapter.py` (what is known of a family).
Methods never import a model; they see a `View` and return an action.
"""
