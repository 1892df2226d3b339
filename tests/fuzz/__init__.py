"""Mutated files for every reader: `PYTHONPATH=tests python -m fuzz --help`."""
