"""`python -m vlm_eff.demo`: the bundled model asked with and without plugins, as a table and an HTML page.

What lives here: choosing pictures and questions, and showing results. What does not: measuring (`vlm_eff.eval`).
Start reading at `__main__.py`.
"""
