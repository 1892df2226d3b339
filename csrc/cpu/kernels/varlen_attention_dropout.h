// Attention's dropout mask in vector registers. Lanes are keys, and one test of a word that 16 keys
// share tells which of them a query keeps. The rule is attention_keep_mask of
// spanbert_fast/reference/dropout.py.
#pragma once

#include "cpu/kernels/philox.h"
#include "cpu/kernels/simd.h"

namespace spanbert_fast::SPANBERT_FAST_ISA {

// For the key j of a block of 64 and a query of the upper (h = 0) or lower (h = 1) half of its 16:
// the bit of the word that both own.
struct KeepBits {
  alignas(64) uint32_t of[2][64];

  constexpr KeepBits() : of() {
    for (int h = 0; h < 2; ++h) {
      for (int j = 0; j < 64; ++j) of[h][j] = uint32_t{1} << (8 * (2 * h + j % 2) + 7 - j / 8);
    }
  }
};
constexpr KeepBits kKeepBits;

// The words of 16 queries x 64 keys; four words make a query's row.
constexpr int64_t kKeepWords = 32;

struct AttentionDropout {
  uint64_t seed;
  uint32_t stream, sequence, threshold;

  // Word 4 (i % 8) + j % 8 / 2 of the queries [query, query + 16) and the keys [key, key + 64).
  void keep_words(int64_t query, int64_t key, uint32_t* words) const {
    const uint32_t first_row = static_cast<uint32_t>(query / 16 * 8);
    const uint32_t first_column = static_cast<uint32_t>(key / 64 * 8);
    for (int at = 0; at < kKeepWords; at += kWidth) {
      const vuint word = lane_numbers() + static_cast<uint32_t>(at);
      const vuint c0 = (word >> 2) + first_row, c1 = (word & 3u) * 2u + first_column;
      const vuint c2 = broadcast(stream), c3 = broadcast(sequence);
      const PhiloxWords a = philox(c0, c1, c2, c3, seed), b = philox(c0, c1 + 1u, c2, c3, seed);
      const vuint bits[8] = {a.word[3], b.word[3], b.word[2], b.word[1],
                             b.word[0], a.word[2], a.word[1], a.word[0]};
      vuint keep = broadcast(~uint32_t{0});
#pragma GCC unroll 8
      for (int bit = 0; bit < 8; ++bit) {
        keep = threshold >> bit & 1 ? bits[bit] & keep : bits[bit] | keep;
      }
      std::memcpy(words + at, &keep, sizeof(keep));
    }
  }
};

// Which lanes of a vector of scores are kept.
class KeepRow {
 public:
  // `query` is the row's place among its 16; `words` are those of its 16 queries and 64 keys.
  SPANBERT_FAST_INLINE_METHOD KeepRow(const uint32_t* words, int64_t query)
      : words_(words + query % 8 * 4), bits_(kKeepBits.of[query / 8 % 2]) {}

  // x in the kept lanes, 0 in the others; lanes are the keys [key, key + kWidth) of the 64.
  SPANBERT_FAST_INLINE_METHOD vfloat apply(vfloat x, int64_t key) const {
    const vuint bits = load_bits<vuint>(bits_ + key);
#if defined(__AVX512F__)
    const __m512i four = _mm512_castsi128_si512(load_bits<__m128i>(words_));
    const __m512i word =
        _mm512_permutexvar_epi32(bit_cast<__m512i>(lane_numbers() >> 1 & 3u), four);
    const __mmask16 kept = _mm512_test_epi32_mask(word, bit_cast<__m512i>(bits));
    return bit_cast<vfloat>(_mm512_maskz_mov_ps(kept, bit_cast<__m512>(x)));
#else
    vuint word;
    for (int lane = 0; lane < kWidth; ++lane) word[lane] = words_[(key + lane) % 8 / 2];
    return keep_where((word & bits) != 0u, x);
#endif
  }

 private:
  const uint32_t* words_;
  const uint32_t* bits_;
};

}  // namespace spanbert_fast::SPANBERT_FAST_ISA
