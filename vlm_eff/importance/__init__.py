"""Pure functions on tensors: scores of tokens, and how a score becomes a selection. Only torch is imported here.

Start reading at `select.py`; `keep.py` is the only place where a ratio becomes a count.
"""
