// Philox4x32 with 7 rounds in vector registers, one call per lane, and the dropout flags of hidden
// states computed from it, by the rule of spanbert_fast/reference/dropout.py.
//
// Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 4.3.
#pragma once

#include "cpu/kernels/dropout.h"
#include "cpu/kernels/simd.h"

namespace spanbert_fast::SPANBERT_FAST_ISA {

struct PhiloxWords {
  vuint word[4];
};

// The 64-bit products with m of the even lanes (0, 2, ...) of a; odd lanes are ignored.
SPANBERT_FAST_INLINE vulong multiply_even(vuint a, uint32_t m) {
#if defined(__AVX512F__)
  return bit_cast<vulong>(_mm512_mul_epu32(bit_cast<__m512i>(a), _mm512_set1_epi32(m)));
#elif defined(__AVX2__)
  return bit_cast<vulong>(_mm256_mul_epu32(bit_cast<__m256i>(a), _mm256_set1_epi32(m)));
#elif defined(__SSE2__)
  return bit_cast<vulong>(_mm_mul_epu32(bit_cast<__m128i>(a), _mm_set1_epi32(m)));
#else
  return (bit_cast<vulong>(a) & 0xffffffffu) * uint64_t{m};
#endif
}

SPANBERT_FAST_INLINE void multiply(vuint a, uint32_t m, vuint& high, vuint& low) {
  const vulong even = multiply_even(a, m);
  const vulong odd = multiply_even(bit_cast<vuint>(bit_cast<vulong>(a) >> 32), m);
  constexpr uint64_t kLow = 0xffffffffu;
  high = bit_cast<vuint>((even >> 32) | (odd & ~kLow));
  low = bit_cast<vuint>((even & kLow) | (odd << 32));
}

SPANBERT_FAST_INLINE PhiloxWords philox(vuint c0, vuint c1, vuint c2, vuint c3, uint64_t seed) {
  constexpr int kRounds = 7;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#pragma GCC unroll 7
  for (int round = 0; round < kRounds; ++round) {
    vuint high0, low0, high1, low1;
    multiply(c0, 0xD2511F53u, high0, low0);
    multiply(c2, 0xCD9E8D57u, high1, low1);
    c0 = high1 ^ c1 ^ k0;
    c2 = high0 ^ c3 ^ k1;
    c1 = low1;
    c3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// The flags of elements [256 group, 256 group + 256) of a matrix counted row by row: 0xff where
// the element is kept, 0 where it is dropped.
SPANBERT_FAST_INLINE void keep_group(DropoutKey key, int64_t group, uint8_t* keep) {
  const uint64_t first_call = 16 * static_cast<uint64_t>(group);
  const vuint high = broadcast(static_cast<uint32_t>(first_call >> 32));
  const vuint stream = broadcast(key.site << 16 | 0xffffu), zero = {};
  const vbytes limit = static_cast<uint8_t>(key.threshold) - vbytes{};
  for (int lane = 0; lane < 16; lane += kWidth) {
    const vuint low = lane_numbers() + (static_cast<uint32_t>(first_call) + lane);
    const PhiloxWords random = philox(low, high, stream, zero, key.seed);
    for (int w = 0; w < 4; ++w) {
      const auto kept = bit_cast<vbytes>(random.word[w]) >= limit;
      std::memcpy(keep + 64 * w + 4 * lane, &kept, sizeof(kept));
    }
  }
}

// Dropout of the rows of one matrix.
struct HiddenDropout {
  DropoutKey key;
  int64_t hidden_size;
  uint8_t* buffer;  // of norm_scratch_size
  float scale;      // of kept elements

  SPANBERT_FAST_INLINE_METHOD HiddenDropout(DropoutKey key_, int64_t hidden_size_, void* buffer_)
      : key(key_),
        hidden_size(hidden_size_),
        buffer(static_cast<uint8_t*>(buffer_)),
        scale(256.0f / (256 - key_.threshold)) {
    if (key.threshold == 0) std::memset(buffer, 0xff, hidden_size);
  }

  // The flags of a row; its buffer may be read one vector beyond the last flag.
  SPANBERT_FAST_INLINE_METHOD const uint8_t* keep_row(int64_t row) const {
    if (key.threshold == 0) return buffer;
    const int64_t first = row * hidden_size, group = first / 256, offset = first % 256;
    for (int64_t done = 0; done < offset + hidden_size; done += 256) {
      keep_group(key, group + done / 256, buffer + done);
    }
    return buffer + offset;
  }
};

// The masks of the lanes, from kWidth flags.
SPANBERT_FAST_INLINE vint keep_mask(const uint8_t* keep) {
  return widen_signed(load_bits<vflags>(keep));
}

}  // namespace spanbert_fast::SPANBERT_FAST_ISA
