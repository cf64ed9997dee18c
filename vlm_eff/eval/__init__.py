"""What a method costs and what it saves: paired timing, comparisons, records, pictures of what was kept.

What lives here: everything that measures or shows. What does not: anything that changes a model.
Start reading at `compare.py`.
"""
