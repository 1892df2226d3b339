"""The step that attention's backward kernels share: P and dS of a tile from loaded factors."""

import triton
import triton.language as tl

from spanbert_fast.kernels.attention_common import LOG2_E
from spanbert_fast.kernels.attention_dropout import drop
from spanbert_fast.kernels.product import product


@triton.jit
def kept_and_slope(
    score_factors,
    slope_factors,
    row_terms,
    real,
    words,
    scale,
    TRANSPOSED: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """(M P, dS / r) of a tile (queries, keys), or TRANSPOSED (keys, queries), in fp32.

    The formulas are those of varlen_attention_backward.py.

    Args:
        score_factors, slope_factors: (a, b) with a b^T = q k^T and = dout v^T, or their transposes.
        row_terms: each query's (lse log2 e, delta), broadcastable to the tile; (inf, 0) past the
            end of the sequence, which makes P 0.
        real: which keys exist, broadcastable to the tile; None where keys need no mask.
        words: the tile's dropout words, None without dropout.
    """
    a, b = score_factors
    log2_sum, delta = row_terms
    nothing = tl.zeros((a.shape[0], b.shape[0]), tl.float32)
    s = product(a, tl.trans(b), nothing, WIDEN)
    a, b = slope_factors
    dp = product(a, tl.trans(b), nothing, WIDEN)
    # elementwise from here on: P, M P and dS of the whole tile are never all in registers
    p = tl.exp2(s * (scale * LOG2_E) - log2_sum)
    if real is not None:
        p = tl.where(real, p, 0.0)
    kept = p
    if words is not None:
        kept = drop(p, words, TRANSPOSED)
    return kept, kept * dp - p * delta
