// Sets of bits in 64-bit words, for host and device: bit i is in word i / 64.
#pragma once

#include <cstdint>

#include "philox.h"

namespace spanbert_fast {

SPANBERT_HOST_DEVICE int count_bits(uint64_t word) {
#ifdef __CUDA_ARCH__
  return __popcll(word);
#else
  return __builtin_popcountll(word);
#endif
}

SPANBERT_HOST_DEVICE int lowest_bit(uint64_t word) {  // of a word that is not 0
#ifdef __CUDA_ARCH__
  return __ffsll(word) - 1;
#else
  return __builtin_ctzll(word);
#endif
}

SPANBERT_HOST_DEVICE int highest_bit(uint64_t word) {  // of a word that is not 0
#ifdef __CUDA_ARCH__
  return 63 - __clzll(word);
#else
  return 63 - __builtin_clzll(word);
#endif
}

SPANBERT_HOST_DEVICE bool test_bit(const uint64_t* bits, int i) {
  return bits[i >> 6] >> (i & 63) & 1;
}

SPANBERT_HOST_DEVICE void set_bit(uint64_t* bits, int i) {
  bits[i >> 6] |= uint64_t{1} << (i & 63);
}

enum BitValue { kClear, kSet };

// The first i >= from whose bit has this value, in a set of so many words; 64 * words if there is
// none.
SPANBERT_HOST_DEVICE int next_bit(const uint64_t* bits, int from, int words, BitValue value) {
  const uint64_t flip = value == kSet ? 0 : ~uint64_t{0};
  int w = from >> 6;
  if (w >= words) return 64 * words;
  uint64_t rest = (bits[w] ^ flip) >> (from & 63) << (from & 63);
  while (rest == 0) {
    if (++w == words) return 64 * words;
    rest = bits[w] ^ flip;
  }
  return 64 * w + lowest_bit(rest);
}

// The place of the set bit with this rank (from 0), in a word that has enough set bits.
SPANBERT_HOST_DEVICE int select_bit(uint64_t word, int rank) {
  int place = 0;
  for (int half = 32; half > 0; half /= 2) {
    const int in_lower_half = count_bits(word & ((uint64_t{1} << half) - 1));
    if (rank >= in_lower_half) {
      rank -= in_lower_half;
      word >>= half;
      place += half;
    }
  }
  return place;
}

}  // namespace spanbert_fast
