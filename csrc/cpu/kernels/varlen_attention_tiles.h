// The matrix products of attention, and their operands.
//
// Operands are matrices of dwords. A dword holds one float (Single), or two bfloat16 that are
// neighbours along the contraction (BfloatPair). Otherwise both kinds are treated alike:
//
//     c[m][n] = sum over k of a[m][k] * b[k][n]        a: broadcast, any strides; b: rows of n
//
// A level with a matrix unit adds a kind of its own (varlen_attention_matrix_unit.h).
#pragma once

#include "cpu/kernels/simd.h"

namespace spanbert_fast::SPANBERT_FAST_ISA {

// The accumulators of a tile fill the vector registers: 24 of 32, or 12 of 16.
constexpr int kTileRows = 6;
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTileVectors = 4;
#else
constexpr int kTileVectors = 2;
#endif

constexpr int64_t kKeys = 64;  // keys of a block, which is one column block of scores

SPANBERT_FAST_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
SPANBERT_FAST_INLINE int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

template <class X>
SPANBERT_FAST_INLINE void store_bits(void* to, X x) {
  std::memcpy(to, &x, sizeof(x));
}

// ---- The two kinds of operands

struct Single {
  static constexpr int kPair = 1;   // elements in a dword
  static constexpr int kDepth = 1;  // contractions are padded to a multiple of this
  struct Unit {};                   // an object that a thread holds while it computes products

  SPANBERT_FAST_INLINE vfloat multiply_add(vfloat sum, vuint a, vuint b) {
    return sum + bit_cast<vfloat>(a) * bit_cast<vfloat>(b);
  }

  // kWidth dwords of a token's row with `count` elements left; the rest is zero.
  template <class T>
  SPANBERT_FAST_INLINE vuint row(const T* from, int64_t count) {
    return bit_cast<vuint>(count >= kWidth ? load(from) : load(from, count < 0 ? 0 : count));
  }

  // kWidth dwords of two tokens' rows, with tokens along the contraction.
  SPANBERT_FAST_INLINE void store_tokens(uint32_t* to, vuint token, vuint) {
    store_bits(to, token);
  }

  // Two vectors that are neighbours in a row of P or dS, with keys along the contraction.
  SPANBERT_FAST_INLINE void store_keys(uint32_t* to, vfloat left, vfloat right) {
    store_bits(to, left);
    store_bits(to + kWidth, right);
  }

  // One vector each of two neighbouring rows, `stride` apart, with queries along the contraction.
  SPANBERT_FAST_INLINE void store_queries(
      uint32_t* to, int64_t stride, vfloat upper, vfloat lower) {
    store_bits(to, upper);
    store_bits(to + stride, lower);
  }
};

#if defined(__AVX512BF16__)

struct BfloatPair {
  static constexpr int kPair = 2;
  static constexpr int kDepth = 2;
  struct Unit {};

  SPANBERT_FAST_INLINE vfloat multiply_add(vfloat sum, vuint a, vuint b) {
    return bit_cast<vfloat>(
        _mm512_dpbf16_ps(bit_cast<__m512>(sum), bit_cast<__m512bh>(a), bit_cast<__m512bh>(b)));
  }

  SPANBERT_FAST_INLINE vuint row(const bfloat16* from, int64_t count) {
    const __mmask32 lanes = count >= 32 ? ~0u : count <= 0 ? 0u : (1u << count) - 1;
    return bit_cast<vuint>(_mm512_maskz_loadu_epi16(lanes, from));
  }

  SPANBERT_FAST_INLINE void store_tokens(uint32_t* to, vuint token, vuint next) {
    const vuint low = lane_pairs(), high = low + 0x00100010u;
    const __m512i a = bit_cast<__m512i>(token), b = bit_cast<__m512i>(next);
    store_bits(to, _mm512_permutex2var_epi16(a, bit_cast<__m512i>(low), b));
    store_bits(to + kWidth, _mm512_permutex2var_epi16(a, bit_cast<__m512i>(high), b));
  }

  SPANBERT_FAST_INLINE void store_keys(uint32_t* to, vfloat left, vfloat right) {
    store_bits(to, narrow_two(left, right));
  }

  SPANBERT_FAST_INLINE void store_queries(uint32_t* to, int64_t, vfloat upper, vfloat lower) {
    // lane i of the upper row is element i, of the lower row element 16 + i
    const vuint order = lane_numbers() * 0x00010001u + 0x00100000u;
    const __m512i both = narrow_two(upper, lower);
    store_bits(to, _mm512_permutexvar_epi16(bit_cast<__m512i>(order), both));
  }

 private:
  // elements i and 32 + i, for i < 16: each pair comes from two registers
  SPANBERT_FAST_INLINE vuint lane_pairs() { return lane_numbers() * 0x00010001u + 0x00200000u; }

  SPANBERT_FAST_INLINE __m512i narrow_two(vfloat first, vfloat second) {
    return bit_cast<__m512i>(
        _mm512_cvtne2ps_pbh(bit_cast<__m512>(second), bit_cast<__m512>(first)));
  }
};

#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)

struct BfloatPair {
  static constexpr int kPair = 2;
  static constexpr int kDepth = 2;
  struct Unit {};

  SPANBERT_FAST_INLINE vfloat multiply_add(vfloat sum, vuint a, vuint b) {
    return bit_cast<vfloat>(vbfdotq_f32(
        bit_cast<float32x4_t>(sum), bit_cast<bfloat16x8_t>(a), bit_cast<bfloat16x8_t>(b)));
  }

  SPANBERT_FAST_INLINE vuint row(const bfloat16* from, int64_t count) {
    constexpr int64_t kElements = 2 * kWidth;
    if (count >= kElements) return load_bits<vuint>(from);
    vuint lanes = {};
    if (count > 0) std::memcpy(&lanes, from, count * sizeof(bfloat16));
    return lanes;
  }

  SPANBERT_FAST_INLINE void store_tokens(uint32_t* to, vuint token, vuint next) {
    const uint16x8_t a = bit_cast<uint16x8_t>(token), b = bit_cast<uint16x8_t>(next);
    store_bits(to, vzip1q_u16(a, b));
    store_bits(to + kWidth, vzip2q_u16(a, b));
  }

  SPANBERT_FAST_INLINE void store_keys(uint32_t* to, vfloat left, vfloat right) {
    store_bits(to, narrow_two(left, right));
  }

  SPANBERT_FAST_INLINE void store_queries(uint32_t* to, int64_t, vfloat upper, vfloat lower) {
    const uint16x8_t both = narrow_two(upper, lower);
    store_bits(to, vzip1q_u16(both, vextq_u16(both, both, kWidth)));
  }

 private:
  SPANBERT_FAST_INLINE uint16x8_t narrow_two(vfloat first, vfloat second) {
    return vcombine_u16(
        bit_cast<uint16x4_t>(narrow(first, bfloat16{})),
        bit_cast<uint16x4_t>(narrow(second, bfloat16{})));
  }
};

#endif

// ---- The product

struct Broadcast {  // a[m][k] = data[m * row_stride + k * column_stride]
  const uint32_t* data;
  int64_t row_stride, column_stride;
};

// One tile: kRows x (kVectors kWidth) floats of c = factor a b, or of c += a b.
template <class Kind, int kRows, int kVectors>
__attribute__((noinline)) void tile(
    Broadcast a, const uint32_t* b, int64_t b_stride, int64_t k, float factor, bool add, float* c,
    int64_t c_stride) {
  vfloat sum[kRows][kVectors] = {};
  for (int64_t i = 0; i < k; ++i, b += b_stride) {
    vuint right[kVectors];
#pragma GCC unroll 4
    for (int n = 0; n < kVectors; ++n) right[n] = load_bits<vuint>(b + n * kWidth);
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
      const vuint left = broadcast(a.data[m * a.row_stride + i * a.column_stride]);
#pragma GCC unroll 4
      for (int n = 0; n < kVectors; ++n) {
        sum[m][n] = Kind::multiply_add(sum[m][n], left, right[n]);
      }
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < kVectors; ++n) {
      float* to = c + m * c_stride + n * kWidth;
      store(to, add ? load(to) + sum[m][n] : sum[m][n] * factor);
    }
  }
}

template <class Kind, int kVectors, int kRows = kTileRows>
SPANBERT_FAST_INLINE void tile_of_rows(
    int64_t rows, Broadcast a, const uint32_t* b, int64_t b_stride, int64_t k, float factor,
    bool add, float* c, int64_t c_stride) {
  if constexpr (kRows > 1) {
    if (rows < kRows) {
      return tile_of_rows<Kind, kVectors, kRows - 1>(
          rows, a, b, b_stride, k, factor, add, c, c_stride);
    }
  }
  tile<Kind, kRows, kVectors>(a, b, b_stride, k, factor, add, c, c_stride);
}

// c (m, n) = factor a b, or c += a b; n is a multiple of 32, k counts dwords.
template <class Kind>
void product(
    int64_t m, int64_t n, int64_t k, Broadcast a, const uint32_t* b, int64_t b_stride, float* c,
    int64_t c_stride, float factor, bool add) {
  constexpr int64_t kColumns = kTileVectors * kWidth;
  const int64_t groups = (m + kTileRows - 1) / kTileRows;
  for (int64_t column = 0; column < n; column += kColumns) {
    for (int64_t group = 0, row = 0; group < groups; ++group) {
      const int64_t rows = m / groups + (group < m % groups);  // as equal as possible
      const Broadcast rows_of_a{a.data + row * a.row_stride, a.row_stride, a.column_stride};
      float* to = c + row * c_stride + column;
      if (n - column >= kColumns) {
        tile_of_rows<Kind, kTileVectors>(
            rows, rows_of_a, b + column, b_stride, k, factor, add, to, c_stride);
      } else {
        tile_of_rows<Kind, kTileVectors / 2>(
            rows, rows_of_a, b + column, b_stride, k, factor, add, to, c_stride);
      }
      row += rows;
    }
  }
}

// ---- Operands from token rows: `tokens` rows of `size` elements, `stride` apart; padded_size is
// `size` rounded up to a multiple of 32, filled with zeros.

// Prefetches the same token's row of the next head, which in the usual layouts follows this one.
// Rows are KiBs apart, too far for a hardware prefetcher.
template <class T>
SPANBERT_FAST_INLINE void prefetch_next_head(const T* row, int64_t size) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t c = 0; c < size; c += kLine) __builtin_prefetch(row + size + c, 0, 2);
}

// a (tokens, padded_size / kPair): head_dim along the contraction.
template <class Kind, class T>
void pack_rows(
    const T* from, int64_t stride, int64_t tokens, int64_t size, int64_t padded_size,
    uint32_t* to) {
  for (int64_t token = 0; token < tokens; ++token, from += stride) {
    prefetch_next_head(from, size);
    for (int64_t c = 0; c < padded_size; c += kWidth * Kind::kPair, to += kWidth) {
      store_bits(to, Kind::row(from + c, size - c));
    }
  }
}

// rows[i][j] <-> rows[j][i]
SPANBERT_FAST_INLINE void transpose(vuint rows[kWidth]) {
#if defined(__AVX512F__)
  // Four times: rows i and i + 8, interleaved, become rows 2i and 2i + 1.
  const vuint low = (lane_numbers() >> 1) + (lane_numbers() & 1u) * 16u, high = low + 8u;
  for (int round = 0; round < 4; ++round) {
    vuint mixed[16];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      const __m512i a = bit_cast<__m512i>(rows[i]), b = bit_cast<__m512i>(rows[i + 8]);
      const __m512i first = bit_cast<__m512i>(low), second = bit_cast<__m512i>(high);
      mixed[2 * i] = bit_cast<vuint>(_mm512_permutex2var_epi32(a, first, b));
      mixed[2 * i + 1] = bit_cast<vuint>(_mm512_permutex2var_epi32(a, second, b));
    }
    std::memcpy(rows, mixed, sizeof(mixed));
  }
#else
  uint32_t from[kWidth][kWidth], to[kWidth][kWidth];
  std::memcpy(from, rows, sizeof(from));
  for (int i = 0; i < kWidth; ++i) {
    for (int j = 0; j < kWidth; ++j) to[j][i] = from[i][j];
  }
  std::memcpy(rows, to, sizeof(to));
#endif
}

// b (blocks of kKeys tokens, padded_size / kPair, kKeys): head_dim along the contraction.
template <class Kind, class T>
void pack_transposed(
    const T* from, int64_t stride, int64_t tokens, int64_t size, int64_t padded_size,
    uint32_t* to) {
  const int64_t width = padded_size / Kind::kPair;
  for (int64_t block = 0; block < tokens; block += kKeys, to += width * kKeys) {
    for (int64_t first = 0; first < kKeys; first += kWidth) {
      for (int64_t c = 0; c < width; c += kWidth) {
        vuint rows[kWidth];
        for (int64_t i = 0; i < kWidth; ++i) {
          const int64_t token = block + first + i;
          const T* row = from + (token < tokens ? token : 0) * stride;
          const int64_t count = token < tokens ? size - c * Kind::kPair : 0;
          if (c == 0) prefetch_next_head(row, size);
          rows[i] = count > 0 ? Kind::row(row + c * Kind::kPair, count) : vuint{};
        }
        transpose(rows);
        for (int64_t i = 0; i < kWidth; ++i) store_bits(to + (c + i) * kKeys + first, rows[i]);
      }
    }
  }
}

// b (tokens / kPair rounded up, padded_size): tokens along the contraction, zeros to its kDepth.
template <class Kind, class T>
void pack_tokens(
    const T* from, int64_t stride, int64_t tokens, int64_t size, int64_t padded_size,
    uint32_t* to) {
  for (int64_t token = 0; token < tokens; token += Kind::kPair, from += Kind::kPair * stride) {
    const bool alone = token + 1 == tokens;
    const T* next = alone ? from : from + stride;
    prefetch_next_head(from, size);
    prefetch_next_head(next, size);
    for (int64_t c = 0; c < padded_size; c += kWidth * Kind::kPair, to += kWidth * Kind::kPair) {
      Kind::store_tokens(
          to, Kind::row(from + c, size - c), Kind::row(next + c, alone ? 0 : size - c));
    }
  }
  const int64_t missing = round_up(tokens, Kind::kDepth) - round_up(tokens, Kind::kPair);
  if (missing > 0) std::memset(to, 0, missing / Kind::kPair * padded_size * sizeof(uint32_t));
}

}  // namespace spanbert_fast::SPANBERT_FAST_ISA
