"""Showing compared runs: cells of tables, plots, one HTML page, Markdown.

Start reading at `page.py`.
"""
