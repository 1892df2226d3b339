"""The extension's CPU kernels as the ops' implementations on the CPU."""

from collections.abc import Callable

import torch

from spanbert_fast._extension import _C

_library = torch.library.Library("spanbert_fast", "FRAGMENT")

# ops whose CPU implementation is in the extension
compiled_ops: set[str] = set()


def register_cpu_kernel(name: str, composite: Callable) -> None:
    """Make the extension's function `name` the CPU implementation of the custom op of that name.

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

    # A custom op's own `register_kernel` does the same, but imports torch._dynamo (seconds) at the
    # first call and looks for aliased outputs at every one; ours never are.
    _library.impl(name, implementation, "CPU")
