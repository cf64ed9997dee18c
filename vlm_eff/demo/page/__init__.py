"""The page in the browser: controls and what they show. What is shown is computed in `vlm_eff.demo.work`.

Start reading at `app.py`. A tab is a file with `add(desk)`; every event has an `api_name`, and its inputs are plain:
files, text and numbers.
"""
