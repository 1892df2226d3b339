"""The source distribution is complete on every machine: it can be built and tested."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# the parts of the checkout that belong into it
KINDS = {
    "csrc": (".cpp", ".h", ".cu"),
    "kernels": (".py", ".json"),
    "spanbert_fast": (".py", ".typed"),
    "tests": (".py", ".cpp", ".c"),
    "tools": (".py",),
    "examples": (".py",),
    "benchmarks": (".py",),
    "docs": (".md",),
}
PAPERS = (
    "README.md LICENSE CHANGELOG.md CONTRACTS.md Makefile constraints.txt pyproject.toml setup.py"
)


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    """Built from a copy, so that the checkout stays clean."""
    folder = tmp_path_factory.mktemp("sdist")
    source = folder / "source"
    ignored = shutil.ignore_patterns(".*", "build", "dist", "runs", "*.so", "*.egg-info", "__pyc*")
    shutil.copytree(ROOT, source, ignore=ignored)
    build = "from setuptools.build_meta import build_sdist; import sys; build_sdist(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", build, str(folder)],
        cwd=source,
        check=True,
        capture_output=True,
        env={**os.environ, "PYTHONSAFEPATH": "1", "SPANBERT_FAST_CUDA": "0"},
    )
    return next(folder.glob("*.tar.gz"))


def test_it_holds_what_the_checkout_holds(sdist):
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    wanted = set(PAPERS.split())
    for folder, suffixes in KINDS.items():
        found = {p for p in (ROOT / folder).rglob("*") if p.suffix in suffixes}
        assert found, folder
        wanted |= {str(p.relative_to(ROOT)) for p in found if "__pycache__" not in p.parts}
    assert wanted <= held, sorted(wanted - held)
    assert any(name.endswith(".cu") for name in held)
    assert not [name for name in held if name.endswith((".so", ".pyc"))]


@pytest.mark.skipif(
    os.environ.get("SPANBERT_FAST_TEST_SDIST") != "1",
    reason="compiles for minutes: make check-sdist",
)
def test_the_extension_is_built_from_it(sdist, tmp_path):
    """It builds the CPU part at one level, and checks the ops against the reference."""
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    source = next(tmp_path.iterdir())
    target = tmp_path / "target"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
        + ["--target", str(target), str(source)],
        check=True,
        env={**os.environ, "SPANBERT_FAST_CUDA": "0", "SPANBERT_FAST_LEVELS": "baseline"},
    )
    check = (
        f"import sys; sys.path.insert(0, {str(target)!r})\n"
        "from spanbert_fast._extension import _C\n"
        f"assert _C.__file__.startswith({str(target)!r}), _C.__file__\n"
        "assert _C.isa_level() == 'baseline'\n"
        "from spanbert_fast.cli import main\n"
        "sys.exit(main(['env', '--check']))\n"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
