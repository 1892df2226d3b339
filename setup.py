"""Builds `spanbert_fast._C` and maps the top-level `kernels/` folder into the package.

Environment: SPANBERT_FAST_NO_EXTENSION=1 installs the pure-PyTorch package (no compiler needed);
SPANBERT_FAST_SANITIZE=1 builds with -fsanitize=address,undefined (see `make check-sanitize`).
"""

import os
import sys
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


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
    flags = ["-std=c++20", "-O3", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unused-parameter"]
    # at::parallel_for is OpenMP's, inlined: without the flag it runs on one thread.
    flags.append("-fopenmp")
    link = ["-fopenmp"]
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
        depends=[str(path.relative_to(ROOT)) for path in sorted((ROOT / "csrc").glob("*.h"))],
        include_dirs=[str(ROOT / "csrc")],
        define_macros=macros,
        extra_compile_args={"cxx": cxx, "nvcc": nvcc} if with_cuda else cxx,
        extra_link_args=link,
    )
    return {"ext_modules": [module], "cmdclass": {"build_ext": BuildExtension}}


setup(
    packages=[*find_packages(include=["spanbert_fast", "spanbert_fast.*"]), "spanbert_fast.kernels"],
    # The name `kernels` belongs to another package; ours is only ever `spanbert_fast.kernels`.
    package_dir={"spanbert_fast.kernels": "kernels"},
    **extension(),
)
