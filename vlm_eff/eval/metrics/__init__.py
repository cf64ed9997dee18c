"""Official metrics as pure functions on strings: a score, what was read from the answer, and how that went.

Start reading at `score.py`.
"""
