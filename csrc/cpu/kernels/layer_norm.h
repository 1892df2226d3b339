// LayerNorm of a row in scratch memory, shared by the kernels with a norm.
#pragma once

#include "cpu/kernels/simd.h"

namespace spanbert_fast::SPANBERT_FAST_ISA {

struct RowStatistics {
  float mean, rstd;
};

// mean and 1 / sqrt(variance + eps) of z (size,), whose sum is `total`. The variance takes a second
// pass over the row, which is in cache, so that a large mean cancels none of its digits.
SPANBERT_FAST_INLINE RowStatistics
row_statistics(const float* z, int64_t size, float total, float eps) {
  const float mean = total / size;
  vfloat squares = {};
  for_vectors(size, [&](int64_t c, auto count) SPANBERT_FAST_INLINE_BODY {
    const vfloat centred = first_lanes(load(z + c, count) - mean, count);
    squares += centred * centred;
  });
  return {mean, 1.0f / __builtin_sqrtf(sum(squares) / size + eps)};
}

// dz of a row in the backward: rstd (g - mean(g) - n mean(g n)) for g = dy weight and
// n = (z - mean) rstd.
struct RowBackward {
  float rstd, mean_g, mean_gn;

  SPANBERT_FAST_INLINE_METHOD vfloat dz(vfloat g, vfloat n) const {
    return (g - mean_g - n * mean_gn) * rstd;
  }
};

}  // namespace spanbert_fast::SPANBERT_FAST_ISA
