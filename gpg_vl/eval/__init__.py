"""Measuring a model: tasks, scorers, statistics, and the program `python -m gpg_vl.eval`."""
