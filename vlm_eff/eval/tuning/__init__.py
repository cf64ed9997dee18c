"""The tuner: finds token and cache settings that meet a budget and keep the answer. Start reading at `tune.py`."""
