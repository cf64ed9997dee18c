"""Comparing runs that asked the same items: paired differences with intervals, tests, and what must not be compared.

Start reading at `comparison.py`.
"""
