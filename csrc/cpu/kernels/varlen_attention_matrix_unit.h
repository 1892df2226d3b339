// Attention's products on the matrix unit. Operands are BfloatPair's, from which tiles are loaded
// directly. The difference is that a contraction runs to the next multiple of 32 elements, for
// which operands are padded with zeros.
#pragma once

#include "cpu/kernels/tile_unit.h"
#include "cpu/kernels/varlen_attention_tiles.h"

namespace spanbert_fast::SPANBERT_FAST_ISA {

struct BfloatTiles : BfloatPair {
  static constexpr int kDepth = 2 * kTileSide;
  using Unit = TileUnit;
};

// The tile of `a` at row m and dword k. If its dwords are not contiguous along the contraction (P
// and dS with queries along it), it is transposed.
SPANBERT_FAST_INLINE void load_left_tile(Broadcast a, int64_t m, int64_t k, uint32_t* scratch) {
  const uint32_t* from = a.data + m * a.row_stride + k * a.column_stride;
  if (a.column_stride == 1) return tile_load<4>(from, a.row_stride);
  vuint rows[kTileSide];
  for (int i = 0; i < kTileSide; ++i) rows[i] = load_bits<vuint>(from + i * a.column_stride);
  transpose(rows);
  std::memcpy(scratch, rows, sizeof(rows));
  tile_load<4>(scratch, kTileSide);
}

// 16 rows of c = a b, or of c += a b, kColumns tiles wide; tiles 0 to 3 are c, 4 is a, 5 to 7 are
// b.
template <int kColumns>
void tile_rows(
    Broadcast a, int64_t m, const uint32_t* b, int64_t b_stride, int64_t k, bool add, float* c,
    int64_t c_stride) {
  alignas(64) uint32_t scratch[kTileSide * kTileSide];
  if (add) {
    tile_load<0>(c, c_stride);
    tile_load<1>(c + kTileSide, c_stride);
    if constexpr (kColumns == 4) tile_load<2>(c + 2 * kTileSide, c_stride);
    if constexpr (kColumns == 4) tile_load<3>(c + 3 * kTileSide, c_stride);
  } else {
    tile_zero<0>();
    tile_zero<1>();
    if constexpr (kColumns == 4) tile_zero<2>();
    if constexpr (kColumns == 4) tile_zero<3>();
  }
  for (int64_t i = 0; i < k; i += kTileSide, b += kTileSide * b_stride) {
    load_left_tile(a, m, i, scratch);
    tile_load<5>(b, b_stride);
    tile_multiply_add<0, 4, 5>();
    tile_load<6>(b + kTileSide, b_stride);
    tile_multiply_add<1, 4, 6>();
    if constexpr (kColumns == 4) {
      tile_load<7>(b + 2 * kTileSide, b_stride);
      tile_multiply_add<2, 4, 7>();
      tile_load<5>(b + 3 * kTileSide, b_stride);
      tile_multiply_add<3, 4, 5>();
    }
  }
  tile_store<0>(c, c_stride);
  tile_store<1>(c + kTileSide, c_stride);
  if constexpr (kColumns == 4) tile_store<2>(c + 2 * kTileSide, c_stride);
  if constexpr (kColumns == 4) tile_store<3>(c + 3 * kTileSide, c_stride);
}

template <int kColumns>
SPANBERT_FAST_INLINE void copy_rows(
    const float* from, int64_t from_stride, int64_t rows, float factor, float* to,
    int64_t to_stride) {
  for (int64_t row = 0; row < rows; ++row, from += from_stride, to += to_stride) {
    for (int64_t n = 0; n < kColumns * kTileSide; n += kWidth)
      store(to + n, load(from + n) * factor);
  }
}

// kColumns tiles of columns of c (m, .) = factor a b, or c += a b. A last group of fewer than 16
// rows is computed outside c, and reads 16 rows of a.
template <int kColumns>
void tile_columns(
    int64_t m, int64_t k, Broadcast a, const uint32_t* b, int64_t b_stride, float* c,
    int64_t c_stride, float factor, bool add) {
  constexpr int64_t kPartStride = kColumns * kTileSide;
  alignas(64) float part[kTileSide * kPartStride];
  for (int64_t row = 0; row < m; row += kTileSide, c += kTileSide * c_stride) {
    const int64_t rows = smaller(kTileSide, m - row);
    if (rows == kTileSide) {
      tile_rows<kColumns>(a, row, b, b_stride, k, add, c, c_stride);
      if (factor != 1.0f) copy_rows<kColumns>(c, c_stride, rows, factor, c, c_stride);
      continue;
    }
    if (add) copy_rows<kColumns>(c, c_stride, rows, 1.0f, part, kPartStride);
    tile_rows<kColumns>(a, row, b, b_stride, k, add, part, kPartStride);
    copy_rows<kColumns>(part, kPartStride, rows, factor, c, c_stride);
  }
}

template <>
inline void product<BfloatTiles>(
    int64_t m, int64_t n, int64_t k, Broadcast a, const uint32_t* b, int64_t b_stride, float* c,
    int64_t c_stride, float factor, bool add) {
  for (; n >= 4 * kTileSide; n -= 4 * kTileSide, b += 4 * kTileSide, c += 4 * kTileSide) {
    tile_columns<4>(m, k, a, b, b_stride, c, c_stride, factor, add);
  }
  if (n > 0) tile_columns<2>(m, k, a, b, b_stride, c, c_stride, factor, add);
}

}  // namespace spanbert_fast::SPANBERT_FAST_ISA
