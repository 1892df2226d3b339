// Dropout of hidden states, as callers tell it to kernels: plain data, no code of any level.
#pragma once

#include <cstdint>

namespace spanbert_fast {

// Which mask: see spanbert_fast/reference/dropout.py. threshold 0 drops nothing.
struct DropoutKey {
  uint64_t seed;
  uint32_t site, threshold;
};

// Floats of scratch memory that a kernel with a norm needs for rows of `hidden_size`: two rows, and
// a byte per element, with whole groups of 256 around the row, that says whether it is kept.
static inline int64_t norm_scratch_size(int64_t hidden_size) {
  return 2 * hidden_size + (hidden_size + 528) / 4 + 1;
}

}  // namespace spanbert_fast
