"""Asking every item of a task: a folder a run, a line an item, taken up again after any end.

Start reading at `folder.py`.
"""
