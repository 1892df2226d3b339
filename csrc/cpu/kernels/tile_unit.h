// The matrix unit (Intel AMX, bfloat16): eight tiles of 16 rows of 64 bytes, and their product
//
//     c[m][n] += sum over k of a[m][2k] b[k][2n] + a[m][2k + 1] b[k][2n + 1]
//
// with 16 x 16 floats c and two tiles a, b of 16 x 16 pairs (Intel SDM, TDPBF16PS). All tiles have
// their full size here, so that one configuration serves every product.
#pragma once

#include <cstdint>

namespace spanbert_fast::SPANBERT_FAST_ISA {

constexpr int kTileSide = 16;  // rows, and dwords of a row

// The operand of LDTILECFG.
struct alignas(64) TileConfiguration {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_per_row[16] = {};
  uint8_t rows[16] = {};

  constexpr TileConfiguration() {
    for (int tile = 0; tile < 8; ++tile) {
      bytes_per_row[tile] = 4 * kTileSide;
      rows[tile] = kTileSide;
    }
  }
};
static_assert(sizeof(TileConfiguration) == 64);

// While it lives, this thread has configured tiles.
class TileUnit {
 public:
  TileUnit() {
    static constexpr TileConfiguration kConfiguration;
    __asm__ volatile("ldtilecfg\t%0" : : "m"(kConfiguration));
  }
  ~TileUnit() { __asm__ volatile("tilerelease"); }
};

template <int kTile>
inline void tile_zero() {
  __asm__ volatile("tilezero\t%%tmm%c0" : : "i"(kTile));
}

// Rows are `stride` dwords apart.
template <int kTile>
inline void tile_load(const void* from, int64_t stride) {
  __asm__ volatile("tileloadd\t(%0,%1,1), %%tmm%c2"
                   :
                   : "r"(from), "r"(4 * stride), "i"(kTile)
                   : "memory");
}

template <int kTile>
inline void tile_store(void* to, int64_t stride) {
  __asm__ volatile("tilestored\t%%tmm%c2, (%0,%1,1)"
                   :
                   : "r"(to), "r"(4 * stride), "i"(kTile)
                   : "memory");
}

template <int kC, int kA, int kB>
inline void tile_multiply_add() {
  __asm__ volatile("tdpbf16ps\t%%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kC), "i"(kA), "i"(kB));
}

}  // namespace spanbert_fast::SPANBERT_FAST_ISA
