"""Builds `spanbert_fast._C` and maps the top-level `kernels/` folder into the package.

Environment: SPANBERT_FAST_NO_EXTENSION=1 installs the pure-PyTorch package (no compiler needed);
SPANBERT_FAST_SANITIZE=1 builds with -fsanitize=address,undefined (see `make check-sanitize`).
"""

import os
import platform
import sys
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

# csrc/cpu/kernels/*.cpp are compiled once for each of these (csrc/cpu/dispatch.h says why); all
# other sources once, for any CPU of the architecture.
ISA_FLAGS = {"baseline": []}
if platform.machine() in ("x86_64", "AMD64"):
    ISA_FLAGS["avx2"] = ["-mavx2", "-mfma", "-mf16c"]
    ISA_FLAGS["avx512"] = [
        *ISA_FLAGS["avx2"],
        *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mprefer-vector-width=512"),
    ]
    ISA_FLAGS["avx512_bf16"] = [*ISA_FLAGS["avx512"], "-mavx512bf16"]
    # The matrix unit's instructions are written out in tile_unit.h: no compiler flag is needed.
    ISA_FLAGS["amx"] = [*ISA_FLAGS["avx512_bf16"], "-DSPANBERT_FAST_MATRIX_UNIT"]
# The kernels that a level has a form of its own of; it takes the others from avx512_bf16.
OWN_KERNELS = {"amx": ("varlen_attention.cpp",)}


def with_isa_levels(build_ext: type) -> type:
    """`build_ext` that also compiles the kernels, level by level, and links them in."""

    class BuildWithIsaLevels(build_ext):
        def build_extension(self, ext) -> None:
            flags = ext.extra_compile_args
            flags = flags["cxx"] if isinstance(flags, dict) else flags
            sources = sorted(ROOT.glob("csrc/cpu/kernels/*.cpp"))
            ext.extra_objects = []
            for level, isa_flags in ISA_FLAGS.items():
                own = OWN_KERNELS.get(level)
                kernels = [p for p in sources if own is None or p.name in own]
                kernels = [str(path.relative_to(ROOT)) for path in kernels]
                ext.extra_objects += self.compiler.compile(
                    kernels,
                    output_dir=str(Path(self.build_temp) / level),
                    macros=[("SPANBERT_FAST_ISA", level)],
                    include_dirs=[str(ROOT / "csrc")],
                    extra_postargs=[*flags, "-ffp-contract=fast", *isa_flags],
                    depends=ext.depends,
                )
            super().build_extension(ext)

    return BuildWithIsaLevels


def extension() -> dict:
    """Keyword arguments for setup(): the C++ sources, and the CUDA ones where they can be built."""
    if os.environ.get("SPANBERT_FAST_NO_EXTENSION") == "1":
        return {}
    try:
        import torch
    except ModuleNotFoundError:
        sys.exit(
            "spanbert-fast: building needs an installed torch: install it first and use "
            "`pip install --no-build-isolation`, or set SPANBERT_FAST_NO_EXTENSION=1"
        )
    from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension

    with_cuda = torch.version.cuda is not None and CUDA_HOME is not None
    sources = [*sorted((ROOT / "csrc").glob("*.cpp")), *sorted((ROOT / "csrc/cpu").glob("*.cpp"))]
    flags = ["-std=c++20", "-O3", "-g0", "-fvisibility=hidden"]
    flags += ["-Wall", "-Wextra", "-Wno-unused-parameter"]
    link = []
    if sys.platform == "linux":
        # at::parallel_for is compiled here; without OpenMP it would run on one thread.
        flags += ["-fopenmp"]
        link += ["-fopenmp"]
    if os.environ.get("SPANBERT_FAST_SANITIZE") == "1":
        # -O1 keeps the reports' line numbers honest; the first report of either kind ends the run.
        flags += ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
        flags += ["-fno-omit-frame-pointer"]
        link += ["-fsanitize=address,undefined"]
    macros = [("SPANBERT_FAST_TORCH_VERSION", f'"{torch.__version__}"')]
    cxx, nvcc = list(flags), ["-std=c++20", "-O3", "--threads=2"]
    if with_cuda:
        sources += sorted((ROOT / "csrc/cuda").glob("*.cu"))
        macros.append(("SPANBERT_FAST_WITH_CUDA", None))
    kind = CUDAExtension if with_cuda else CppExtension
    module = kind(
        "spanbert_fast._C",
        [str(path.relative_to(ROOT)) for path in sources],
        include_dirs=[str(ROOT / "csrc")],
        # without ninja a kernel alone that has changed would be compiled and not linked
        depends=[
            str(path.relative_to(ROOT))
            for pattern in ("csrc/**/*.h", "csrc/cpu/kernels/*.cpp")
            for path in sorted(ROOT.glob(pattern))
        ],
        define_macros=macros,
        extra_compile_args={"cxx": cxx, "nvcc": nvcc} if with_cuda else cxx,
        extra_link_args=link,
    )
    return {"ext_modules": [module], "cmdclass": {"build_ext": with_isa_levels(BuildExtension)}}


setup(
    packages=[
        *find_packages(include=["spanbert_fast", "spanbert_fast.*"]),
        "spanbert_fast.kernels",
    ],
    # The name `kernels` belongs to another package; ours is only ever `spanbert_fast.kernels`.
    package_dir={"spanbert_fast.kernels": "kernels"},
    **extension(),
)
