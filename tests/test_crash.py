"""A few cases of the crash tests; `make check-crash` runs all of them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from search_path import search_path

HERE = Path(__file__).parent


@pytest.mark.skipif(shutil.which("cc") is None, reason="its counter of calls is C")
def test_what_is_killed_or_finds_no_space_goes_on_as_if_nothing_had_happened():
    options = "--job prepare --job finetune --kills 3 --signals 0 --full-disks 1 --no-damage"
    finished = subprocess.run(
        [sys.executable, "-m", "crash", *options.split()],
        capture_output=True,
        text=True,
        timeout=400,
        env={**os.environ, "PYTHONPATH": search_path(HERE), "OMP_NUM_THREADS": "1"},
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr[-2000:]
    table = [line.rsplit(maxsplit=4) for line in finished.stdout.splitlines()]
    tried = {row[0]: row[1:] for row in table if len(row) == 5 and row[1].isdigit()}
    assert tried["two runs in one directory"] == ["2", "0", "0", "0"]
    assert tried["disk full"] == ["2", "0", "0", "0"]
    assert tried["kill -9 in the final export"] == ["1", "0", "0", "0"]
