"""The extension's CPU kernels as the ops' implementations on the CPU."""

from collections.abc import Callable

import torch

from spanbert_fast._extension import _C


# ops whose CPU implementation is in the extension
compiled_ops: set[str] = set()


def register_cpu_kernel(op: torch.library.CustomOpDef, name: str, composite: Callable) -> None:
    """Make the extension's function `name` the CPU implementation of the custom op `op`.

    It gets the op's arguments as they come. Where any of them is float64 the op runs `composite`,
    its implementation out of PyTorch's own operators: the kernels have no float64, whose use is to
    check gradients. Without the extension nothing is registered, and the op's default runs.
    """
    if _C is None:
        return
    kernel = getattr(_C, name)
    compiled_ops.add(name.removesuffix("_fwd").removesuffix("_bwd"))

    def implementation(*args):
        wide = any(isinstance(a, torch.Tensor) and a.dtype == torch.float64 for a in args)
        return (composite if wide else kernel)(*args)

    op.register_kernel("cpu", implementation)
