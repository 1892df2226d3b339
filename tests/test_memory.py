"""No input exhausts the machine: each is read or refused in short time, within the memory that
docs/bounds.md states, under RLIMIT_AS in its own process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("memory_cases.py")
REFUSED = {
    **{
        f"line {suffix}": f"line.txt.{suffix}: line 1 must have at most 67,108,864 bytes"
        for suffix in ("gz", "xz", "bz2", "zst")
    },
    "lines xz": "lines.txt.xz: must expand to at most 100 times its size",
    "task file": "lines.txt.xz: must expand to at most 100 times its size",
    "zip bomb": "bomb.pt: must hold at most its size",
    "layers": "config.json: num_hidden_layers must be a whole number in [1, 1024], got 1000000000",
    "vocabulary": "config.json says an encoder of 1,116,",
    "id 2^31": "tokenizer.json: vocab must be an object of tokens",
    "id 2^32": "tokenizer.json: vocab must be an object of tokens",
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    finished = subprocess.run(
        [sys.executable, SCRIPT, tmp_path_factory.mktemp("memory")],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"},
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    return json.loads(finished.stdout)


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_fill_memory_is_refused_in_a_line(outcomes, name):
    outcome = outcomes[name]
    assert outcome.get("refused"), outcome
    assert REFUSED[name] in outcome["message"] and "\n" not in outcome["message"]
    assert outcome["seconds"] < 60, "of the CPU; to read all of the task file takes minutes"


def test_long_lines_and_documents_take_little_memory(outcomes):
    assert int(outcomes["long line"]["result"]) > 1_000_000
    assert outcomes["long documents"]["result"] == "6"
