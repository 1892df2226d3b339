"""The Triton kernels as the ops' implementations on NVIDIA GPUs."""

import importlib
import importlib.util
from collections.abc import Callable

import torch

_library = torch.library.Library("spanbert_fast", "FRAGMENT")

# ops whose CUDA implementation is a Triton kernel
triton_ops: set[str] = set()


def register_cuda_kernel(name: str, composite: Callable) -> None:
    """Make the function `name` of the op's module in `spanbert_fast.kernels` the CUDA
    implementation of the custom op of that name.

    It takes the op's arguments as they come. Where any of them is float64 the op runs `composite`,
    its implementation out of PyTorch's own operators. Triton is imported at the first call; where
    it is not installed nothing is registered, and the op's default runs.
    """
    if importlib.util.find_spec("triton") is None:
        return
    op = name.removesuffix("_fwd").removesuffix("_bwd")
    triton_ops.add(op)

    def implementation(*args):
        if any(isinstance(a, torch.Tensor) and a.dtype == torch.float64 for a in args):
            return composite(*args)
        module = importlib.import_module(f"spanbert_fast.kernels.{op}")
        # Triton launches on the current device, whichever the tensors' is
        device = next(a.device for a in args if isinstance(a, torch.Tensor) and a.is_cuda)
        with torch.cuda.device(device):
            return getattr(module, name)(*args)

    _library.impl(name, implementation, "CUDA")
