"""Builds `spanbert_fast._C` and maps the top-level `kernels/` folder into the package.

One binary serves every PyTorch from 2.11 on: it is written for the stable ABI.

Environment:
    SPANBERT_FAST_NO_EXTENSION=1  installs the pure-PyTorch package; no compiler is needed.
    SPANBERT_FAST_CUDA=0 or 1     leaves out the CUDA sources, or insists on them; by default an
                                  editable install has them beside a PyTorch with CUDA, a wheel
                                  wherever there is a toolkit.
    SPANBERT_FAST_LEVELS          "native" builds the instruction sets of this CPU alone, "all"
                                  every one, "avx2,amx" these and the baseline; the default is
                                  native for an editable install, else all.
    SPANBERT_FAST_SANITIZE        "address,undefined" or "thread": builds with these sanitizers.
    SPANBERT_FAST_TORCH           the folder of a `torch` package to build against; by default the
                                  one that this Python finds. It is never imported.
"""

import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent

# csrc/cpu/kernels/*.cpp are compiled once for each level (csrc/cpu/dispatch.h says why), all other
# sources once, for any CPU of the architecture. A level: its flags, and the macros by which the
# compiler tells that a CPU has it.
LEVELS = {"baseline": ([], [])}
if platform.machine() in ("x86_64", "AMD64"):
    AVX2 = ["-mavx2", "-mfma", "-mf16c"]
    AVX512 = [*AVX2, *("-mavx512" + part for part in ("f", "bw", "vl", "dq"))]
    AVX512 += ["-mprefer-vector-width=512"]
    LEVELS["avx2"] = (AVX2, ["__AVX2__", "__FMA__"])
    LEVELS["avx512"] = (AVX512, ["__AVX512BW__", "__AVX512VL__", "__AVX512DQ__"])
    LEVELS["avx512_bf16"] = ([*AVX512, "-mavx512bf16"], ["__AVX512BF16__"])
    # The matrix unit's instructions are written out in tile_unit.h: no compiler flag is needed.
    MATRIX_UNIT = "-DSPANBERT_FAST_MATRIX_UNIT"
    LEVELS["amx"] = ([*AVX512, "-mavx512bf16", MATRIX_UNIT], ["__AMX_BF16__", "__AMX_TILE__"])
elif platform.machine() == "aarch64":
    LEVELS["neon_bf16"] = (["-march=armv8.6-a+bf16"], ["__ARM_FEATURE_BF16_VECTOR_ARITHMETIC"])
# The kernels that are compiled for a level; it takes all others from the level below.
OWN_KERNELS = {"amx": ("varlen_attention.cpp",)}

TORCH_TARGET_VERSION = "0x020b000000000000"  # 2.11, the first whose stable ABI has all that we use
CUDA_ARCHITECTURES = (80, 90, 100, 120)


def native_levels(compiler: list[str]) -> list[str]:
    """The levels that this CPU has, told by the compiler's macros for it."""
    flag = "-mcpu=native" if platform.machine() == "aarch64" else "-march=native"
    command = [*compiler, flag, "-dM", "-E", "-x", "c++", os.devnull]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return list(LEVELS)
    macros = {line.split()[1] for line in done.stdout.splitlines()}
    return [level for level, (_, needed) in LEVELS.items() if macros.issuperset(needed)]


def chosen_levels(chosen: str, compiler: list[str]) -> list[str]:
    """The levels that SPANBERT_FAST_LEVELS asks for, in rising order."""
    if chosen == "native":
        return native_levels(compiler)
    names = set(LEVELS) if chosen == "all" else {"baseline", *chosen.split(",")}
    if unknown := sorted(names - set(LEVELS)):
        sys.exit(
            f"spanbert-fast: SPANBERT_FAST_LEVELS must be native, all or some of "
            f"{', '.join(LEVELS)}, got {', '.join(unknown)}"
        )
    return [level for level in LEVELS if level in names]


def cuda_toolkit() -> Path | None:
    """The folder of a CUDA toolkit: CUDA_HOME, that of the nvcc on the PATH (which may be a wrapper
    that calls the real one), or that of the nvidia-cuda-nvcc wheels."""
    if home := os.environ.get("CUDA_HOME"):
        return Path(home) if (Path(home) / "bin/nvcc").exists() else None
    if nvcc := shutil.which("nvcc"):
        done = subprocess.run(
            [nvcc, "--dryrun", "-c", "-x", "cu", os.devnull, "-o", os.devnull],
            capture_output=True,
            text=True,
        )
        for line in done.stderr.splitlines():
            name, _, value = line.removeprefix("#$ ").partition("=")
            if name == "TOP" and (Path(value) / "bin/nvcc").exists():
                return Path(value).resolve()
    for folder in ("nvidia/cu13", "nvidia/cuda_nvcc"):
        found = Path(sysconfig.get_paths()["purelib"]) / folder
        if (found / "bin/nvcc").exists():
            return found
    return None


class Torch:
    """The PyTorch package to build against: its folder, version, and the CUDA that it was built
    for, or None."""

    def __init__(self):
        if named := os.environ.get("SPANBERT_FAST_TORCH"):
            self.folder = Path(named)
        else:
            spec = importlib.util.find_spec("torch")
            self.folder = Path(spec.origin).parent if spec and spec.origin else None
        if self.folder is None or not (self.folder / "version.py").exists():
            sys.exit(
                "spanbert-fast: building needs a torch package: install it first and use "
                "`pip install --no-build-isolation`, or set SPANBERT_FAST_NO_EXTENSION=1"
            )
        values: dict = {}
        exec((self.folder / "version.py").read_text(encoding="utf-8"), values)
        self.version, self.cuda = str(values["__version__"]), values.get("cuda")


def wanted_cuda(torch: Torch, editable: bool) -> Path | None:
    """The toolkit to build the CUDA sources with; None for the CPU part alone."""
    asked = os.environ.get("SPANBERT_FAST_CUDA", "")
    if asked == "0" or (asked != "1" and editable and torch.cuda is None):
        return None
    toolkit = cuda_toolkit()
    if toolkit is None and (asked == "1" or torch.cuda is not None):
        hint = "set CUDA_HOME to the folder that has bin/nvcc, or SPANBERT_FAST_CUDA=0"
        if asked == "1":
            sys.exit(f"spanbert-fast: no CUDA toolkit was found: {hint}")
        print(f"spanbert-fast: no CUDA toolkit, the span sampler runs on the CPU alone: {hint}")
    return toolkit


class BuildWithNinja(build_ext):
    """Compiles every source, the kernels level by level, and links them, on all cores."""

    def run(self) -> None:
        self.editable = bool(self.inplace or self.editable_mode)  # inplace is reset while it builds
        super().run()

    def build_extension(self, ext) -> None:
        torch, editable = Torch(), self.editable
        cxx = shlex.split(os.environ.get("CXX", "c++"))
        toolkit = wanted_cuda(torch, editable)
        folder = Path(self.build_temp).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        output.parent.mkdir(parents=True, exist_ok=True)
        flags, link = self.flags(torch, toolkit), [f"-L{torch.folder / 'lib'}"]
        link += ["-ltorch_cpu", "-ldl"]
        if sanitizers := os.environ.get("SPANBERT_FAST_SANITIZE"):
            # -O1 keeps the reports' line numbers honest; the first report ends the run.
            flags += ["-O1", "-g", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
            # GCC's own intrinsics use undefined registers on purpose, and would warn
            flags += ["-fno-omit-frame-pointer", "-Wno-uninitialized"]
            link.append(f"-fsanitize={sanitizers}")
        includes = [ROOT / "csrc", torch.folder / "include", sysconfig.get_paths()["include"]]
        flags += [f"-I{path}" for path in includes]

        edges = []

        def compile(source: Path, rule: str, extra: list[str], where: str) -> None:
            target = folder / where / (source.name + ".o")
            edges.append((target, rule, source, extra))

        chosen = os.environ.get("SPANBERT_FAST_LEVELS", "native" if editable else "all")
        levels = chosen_levels(chosen, cxx)
        for level in reversed(levels):  # the widest levels compile longest, so they start first
            for source in sorted(ROOT.glob("csrc/cpu/kernels/*.cpp"), key=lambda p: p.name)[::-1]:
                if source.name in OWN_KERNELS.get(level, (source.name,)):
                    isa = [f"-DSPANBERT_FAST_ISA={level}", "-ffp-contract=fast", *LEVELS[level][0]]
                    compile(source, "cxx", isa, level)
        for pattern in ("csrc/*.cpp", "csrc/cpu/*.cpp", "csrc/sample_spans/*.cpp"):
            for source in sorted(ROOT.glob(pattern)):
                compile(source, "cxx", [], source.parent.name)
        if toolkit is not None:
            link += [f"-L{toolkit / 'lib64'}", f"-L{toolkit / 'lib'}", "-lcudart_static", "-lrt"]
            link.append("-lpthread")
            for source in sorted(ROOT.glob("csrc/cuda/*.cu")):
                compile(source, "nvcc", [], "cuda")
        nvcc = str(toolkit / "bin/nvcc") if toolkit else "nvcc"
        self.write_ninja(folder / "build.ninja", cxx, nvcc, flags, link, edges, output)
        subprocess.run([self.ninja(), "-C", str(folder), "--quiet"], check=True)

    @staticmethod
    def ninja() -> str:
        beside = Path(sys.executable).with_name("ninja")
        return str(beside) if beside.exists() else shutil.which("ninja") or "ninja"

    @staticmethod
    def flags(torch: Torch, toolkit: Path | None) -> list[str]:
        flags = ["-std=c++20", "-O3", "-g0", "-fPIC", "-fvisibility=hidden"]
        flags += ["-Wall", "-Wextra", "-Wno-unused-parameter"]
        if os.environ.get("SPANBERT_FAST_WERROR") == "1":
            flags.append("-Werror")
        flags.append(f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}")
        flags.append(f'-DSPANBERT_FAST_TORCH_VERSION="{torch.version}"')
        return flags + (["-DSPANBERT_FAST_WITH_CUDA"] if toolkit else [])

    @staticmethod
    def write_ninja(path, cxx, nvcc, flags, link, edges, output) -> None:
        architectures = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in CUDA_ARCHITECTURES]
        newest = CUDA_ARCHITECTURES[-1]  # later chips compile its PTX
        architectures.append(f"-gencode=arch=compute_{newest},code=compute_{newest}")
        cuda = ["-std=c++20", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden"]
        cuda += [f"-I{ROOT / 'csrc'}", *architectures]
        depends = ["  depfile = $out.d", "  deps = gcc"]
        lines = [
            "rule cxx",
            f"  command = {shlex.join([*cxx, *flags])} $extra -MMD -MF $out.d -c $in -o $out",
            *depends,
            "rule nvcc",
            f"  command = {shlex.join([nvcc, *cuda])} -MMD -MF $out.d -c $in -o $out",
            *depends,
            "rule link",
            f"  command = {shlex.join(cxx)} -shared $in -o $out {shlex.join(link)}",
        ]

        def escaped(path: Path) -> str:
            return re.sub(r"([$ :])", r"$\1", str(path))

        for target, rule, source, extra in edges:
            lines.append(f"build {escaped(target)}: {rule} {escaped(source.resolve())}")
            lines.append(f"  extra = {shlex.join(extra)}")
        objects = " ".join(escaped(target) for target, *_ in edges)
        lines += [f"build {escaped(output)}: link {objects}", ""]
        text = "\n".join(lines)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def extension() -> dict:
    """Keyword arguments for setup(): the C++ sources, and the CUDA ones where they can be built."""
    if os.environ.get("SPANBERT_FAST_NO_EXTENSION") == "1":
        return {}
    Torch()  # raises at once if there is no PyTorch
    # the sdist needs the sources of every device, whatever this machine can build
    patterns = ("csrc/*.cpp", "csrc/cpu/*.cpp", "csrc/cpu/kernels/*.cpp", "csrc/sample_spans/*.cpp")
    sources = [str(p.relative_to(ROOT)) for pattern in patterns for p in sorted(ROOT.glob(pattern))]
    module = Extension("spanbert_fast._C", sources, language="c++")
    return {"ext_modules": [module], "cmdclass": {"build_ext": BuildWithNinja}}


setup(
    packages=[
        *find_packages(include=["spanbert_fast", "spanbert_fast.*"]),
        "spanbert_fast.kernels",
    ],
    # The name `kernels` belongs to another package; ours is only ever `spanbert_fast.kernels`.
    package_dir={"spanbert_fast.kernels": "kernels"},
    **extension(),
)
