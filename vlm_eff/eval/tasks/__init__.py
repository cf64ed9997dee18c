"""Questions to ask: what an item is, and readers of the official files of image and video benchmarks.

Start reading at `item.py`. Nothing here unpickles.
"""
