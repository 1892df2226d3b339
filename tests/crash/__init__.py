"""Kills, signals, full disks and damaged files: `PYTHONPATH=tests python -m crash --help`."""
