// The normal distribution, for GELU.
#pragma once

#include "cpu/kernels/simd.h"

namespace spanbert_fast::SPANBERT_FAST_ISA {

// 1 / x to 2e-7; x is neither 0, infinite nor subnormal.
SPANBERT_FAST_INLINE vfloat reciprocal(vfloat x) {
#if defined(__AVX512F__)
  const vfloat guess = bit_cast<vfloat>(_mm512_rcp14_ps(bit_cast<__m512>(x)));
#elif defined(__AVX2__)
  const vfloat guess = bit_cast<vfloat>(_mm256_rcp_ps(bit_cast<__m256>(x)));
#else
  return 1.0f / x;
#endif
#if defined(__AVX2__)
  return guess * (2.0f - x * guess);  // a Newton step doubles the 12 or 14 bits
#endif
}

// cdf(x), and bell(x) = exp(-x^2 / 2). The tail is
// cdf(-|x|) = bell(x) t P(t), t = 1 / (1 + p |x|), with P fitted for the least relative error:
// 1.4e-7, and 3.5e-5 for the 16-bit formats.
struct Normal {
  vfloat cdf, bell;
};

template <class Format>
SPANBERT_FAST_INLINE Normal normal(vfloat x) {
  const vfloat bell = exp2<Format>(x * x * -0x1.715476p-1f);
  vfloat t, p;
  if constexpr (sizeof(Format) == 2) {
    t = reciprocal(abs(x) * 0.38f + 1.0f);
    p = t * -0x1.7058f6p-4f + 0x1.82d1fap-3f;
    p = p * t + 0x1.78bf3cp-4f;
    p = p * t + 0x1.433c30p-3f;
    p = p * t + 0x1.35b584p-3f;
  } else {
    t = reciprocal(abs(x) * 0.3f + 1.0f);
    p = t * 0x1.2359ecp-5f - 0x1.41151ap-3f;
    p = p * t + 0x1.a53b1ap-3f;
    p = p * t - 0x1.b321120p-5f;
    p = p * t + 0x1.06bc5cp-3f;
    p = p * t + 0x1.998d64p-4f;
    p = p * t + 0x1.ee904ep-4f;
    p = p * t + 0x1.ea0116p-4f;
  }
  const vfloat tail = p * t * bell;
  return {where(x < 0.0f, tail, 1.0f - tail), bell};
}

}  // namespace spanbert_fast::SPANBERT_FAST_ISA
