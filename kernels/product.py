"""Matrix products of tiles, summed in fp32."""

import triton
import triton.language as tl


@triton.jit
def product(a, b, acc, WIDEN: tl.constexpr):
    """a b + acc in fp32. Factors in fp32 are not rounded to tf32.

    WIDEN: for the interpreter, which multiplies the bits of bf16 as if they were numbers.
    """
    if WIDEN:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")
