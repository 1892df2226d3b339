"""The normal distribution, for GELU: the tail's relative error is small, as in the C++ kernels."""

import triton
import triton.language as tl


@triton.jit
def normal(x, SHORT: tl.constexpr):
    """(cdf(x), bell(x) = exp(-x^2 / 2)) of an fp32 tile.

    cdf(-|x|) = bell(x) t P(t), t = 1 / (1 + p |x|), with P fitted for the least relative error:
    1.4e-7, or 3.5e-5 with SHORT, which is enough where results are rounded to 16 bits.
    """
    bell = tl.exp2(x * x * -0.721347520)
    if SHORT:
        t = 1.0 / (tl.abs(x) * 0.38 + 1.0)
        p = t * -0.0899285898 + 0.188877061
        p = p * t + 0.0919792503
        p = p * t + 0.157829642
        p = p * t + 0.15122512
    else:
        t = 1.0 / (tl.abs(x) * 0.3 + 1.0)
        p = t * 0.035565339 - 0.156778529
        p = p * t + 0.205679134
        p = p * t - 0.0531163551
        p = p * t + 0.128288954
        p = p * t + 0.0999883562
        p = p * t + 0.120743088
        p = p * t + 0.119629942
    tail = p * t * bell
    return tl.where(x < 0.0, tail, 1.0 - tail), bell


@triton.jit
def gelu(x, SHORT: tl.constexpr):
    """x cdf(x)."""
    cdf, _ = normal(x, SHORT)
    return x * cdf


@triton.jit
def gelu_slope(x, SHORT: tl.constexpr):
    """d(x cdf(x)) / dx = cdf(x) + x bell(x) / sqrt(2 pi)."""
    cdf, bell = normal(x, SHORT)
    return cdf + x * bell * 0.398942280
