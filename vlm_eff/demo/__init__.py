"""Looking at what plugins do: a tour in the terminal and a page in the browser.

What lives here: choosing pictures and questions, and showing results. What does not: measuring (`vlm_eff.eval`).
`tour/` is what `python -m vlm_eff.demo` prints and writes; `page/` is the page of `vlm-eff demo`, and `work/` what that
page computes, without a browser. Start reading at `tour/command.py` and `page/app.py`.
"""
