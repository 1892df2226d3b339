"""The step that attention's backward kernels share: P and dS of a tile, from factors at hand."""

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
        row_terms: the queries' (lse log2 e, delta), of a shape that broadcasts to the tile's; of a
            query that is not there (inf, 0), which makes its P 0.
        real: which keys are there, of such a shape; None where it does not matter.
        words: the tile's dropout words, None without dropout.
    """
    a, b = score_factors
    log2_sum, delta = row_terms
    nothing = tl.zeros((a.shape[0], b.shape[0]), tl.float32)
    s = product(a, tl.trans(b), nothing, WIDEN)
    a, b = slope_factors
    dp = product(a, tl.trans(b), nothing, WIDEN)
    # element by element from here: P, M P and dS of the whole tile need never be held at once
    p = tl.exp2(s * (scale * LOG2_E) - log2_sum)
    if real is not None:
        p = tl.where(real, p, 0.0)
    kept = p
    if words is not None:
        kept = drop(p, words, TRANSPOSED)
    return kept, kept * dp - p * delta
