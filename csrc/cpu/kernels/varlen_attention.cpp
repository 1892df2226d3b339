// Softmax attention of one head of one sequence, and its gradients (arXiv 1706.03762, 3.2). Blocks
// of scores stay in cache, and the backward computes them again, as in arXiv 2205.14135. With
// S = scale q k^T, P = exp(S - lse), the dropout mask M and the scale r of kept elements:
//
//     out = r (P M) v        dv = r (P M)^T dout         dS = P (r M (dout v^T) - delta)
//     dq = scale dS k        dk = scale dS^T q           delta = sum over d of dout out
//
// Lanes are always keys. Scores are in base 2: the scale includes log2(e).
#include "cpu/kernels/varlen_attention.h"

#include "cpu/kernels/varlen_attention_backward.h"
#include "cpu/kernels/varlen_attention_forward.h"
#if defined(SPANBERT_FAST_MATRIX_UNIT)
#include "cpu/kernels/varlen_attention_matrix_unit.h"
#endif

namespace spanbert_fast::SPANBERT_FAST_ISA {
namespace {

#if defined(SPANBERT_FAST_MATRIX_UNIT)
using BfloatKind = BfloatTiles;
#elif defined(__AVX512BF16__) || defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
using BfloatKind = BfloatPair;
#else
using BfloatKind = Single;
#endif

}  // namespace

const VarlenAttentionKernels varlen_attention_kernels = {
    {{&forward<BfloatKind, bfloat16>, &forward<Single, float16>, &forward<Single, float>}},
    {{&backward<BfloatKind, bfloat16>, &backward<Single, float16>, &backward<Single, float>}},
    {{&sum_dq<bfloat16>, &sum_dq<float16>, &sum_dq<float>}},
};

}  // namespace spanbert_fast::SPANBERT_FAST_ISA
