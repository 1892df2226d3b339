"""A short run of the fuzzers, the same cases every time; `make fuzz` runs them for ten minutes."""

import os
import random
import subprocess
import sys
from pathlib import Path

from fuzz.mutations import bytewise, in_json, in_safetensors
from search_path import search_path

HERE = Path(__file__).parent


def fuzz(*arguments, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "fuzz", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": search_path(HERE), "OMP_NUM_THREADS": "1", **environment},
    )


def test_every_spoilt_file_is_read_or_refused_in_a_line():
    finished = fuzz("--cases", "25", "--seconds", "200")
    assert finished.returncode == 0, finished.stdout + finished.stderr[-3000:]
    assert "tried " in finished.stdout and "refused" in finished.stdout


def test_what_is_not_refused_is_a_failure_with_its_reproducer(tmp_path):
    """A reader that raises and one that kills the process are reported; the other targets still
    run."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "def load_task(folder): raise KeyError('x')\n"
        "def damage(folder): os.abort()\n"
        "if '--child' in sys.orig_argv:\n"
        "    import spanbert_fast.digests as digests\n"
        "    import spanbert_fast.training.finetuning.run_directory as run\n"
        "    run.load_task, digests.damage = load_task, damage\n"
    )
    names = ["--target", "task.json", "--target", "digests.json", "--target", "texts.txt"]
    finished = fuzz(*names, "--cases", "1", PYTHONPATH=f"{tmp_path}{os.pathsep}{HERE}")
    assert finished.returncode == 1
    assert "task.json: KeyError: 'x'" in finished.stdout
    assert "digests.json: the process ended with -6\n  1 cases; " in finished.stdout
    assert "python -m fuzz --target task.json --case 0" in finished.stdout


def test_a_case_is_the_same_again():
    content = b'{"a": [1, 2, {"b": "text"}], "c": 0.5}'
    packed = len(content).to_bytes(8, "little") + content + b"tensors"
    for mutation, good in ((bytewise, content), (in_json, content), (in_safetensors, packed)):
        made = [mutation(good, random.Random(f"x:{case}")) for case in range(50)]
        assert made == [mutation(good, random.Random(f"x:{case}")) for case in range(50)]
        assert len(set(made)) > 30
