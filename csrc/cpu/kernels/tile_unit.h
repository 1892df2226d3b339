// The matrix unit (Intel AMX, bfloat16): eight tiles of 16 rows of 64 bytes, and their product
//
//     c[m][n] += sum over k of a[m][2k] b[k][2n] + a[m][2k + 1] b[k][2n + 1]
//
// of 16 x 16 floats out of two tiles of 16 x 16 pairs (Intel SDM, TDPBF16PS). All tiles have their
// full size here, so that one configuration serves every product.
//
// With SPANBERT_FAST_EMULATE_TILES the same operations in plain C++, to test what is built on them
// on a CPU that has none: sums in the instruction's order, but denormals are kept.
#pragma once

#include <cstdint>
#include <cstring>

namespace spanbert_fast::SPANBERT_FAST_ISA {

constexpr int kTileSide = 16;  // rows, and dwords of a row

#if defined(SPANBERT_FAST_EMULATE_TILES)

struct EmulatedTiles {
  bool configured = false;
  uint32_t tile[8][kTileSide][kTileSide];
};
inline thread_local EmulatedTiles emulated_tiles;

// While it lives, this thread has tiles.
class TileUnit {
 public:
  TileUnit() {
    if (emulated_tiles.configured) __builtin_trap();
    std::memset(emulated_tiles.tile, 0, sizeof(emulated_tiles.tile));
    emulated_tiles.configured = true;
  }
  ~TileUnit() { emulated_tiles.configured = false; }
};

inline uint32_t (*configured_tile(int number))[kTileSide] {
  if (!emulated_tiles.configured) __builtin_trap();
  return emulated_tiles.tile[number];
}

template <int kTile>
inline void tile_zero() {
  std::memset(configured_tile(kTile), 0, sizeof(emulated_tiles.tile[0]));
}

// Rows are `stride` dwords apart.
template <int kTile>
inline void tile_load(const void* from, int64_t stride) {
  auto* tile = configured_tile(kTile);
  for (int row = 0; row < kTileSide; ++row) {
    std::memcpy(tile[row], static_cast<const uint32_t*>(from) + row * stride, 64);
  }
}

template <int kTile>
inline void tile_store(void* to, int64_t stride) {
  const auto* tile = configured_tile(kTile);
  for (int row = 0; row < kTileSide; ++row) {
    std::memcpy(static_cast<uint32_t*>(to) + row * stride, tile[row], 64);
  }
}

inline float emulated_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

template <int kC, int kA, int kB>
inline void tile_multiply_add() {
  auto *c = configured_tile(kC), *a = configured_tile(kA), *b = configured_tile(kB);
  for (int m = 0; m < kTileSide; ++m) {
    float even[kTileSide] = {}, odd[kTileSide] = {};
    for (int k = 0; k < kTileSide; ++k) {
      for (int n = 0; n < kTileSide; ++n) {
        even[n] = __builtin_fmaf(
            emulated_float(a[m][k] << 16), emulated_float(b[k][n] << 16), even[n]);
        odd[n] = __builtin_fmaf(
            emulated_float(a[m][k] & 0xFFFF0000u), emulated_float(b[k][n] & 0xFFFF0000u), odd[n]);
      }
    }
    for (int n = 0; n < kTileSide; ++n) {
      const float sum = emulated_float(c[m][n]) + (even[n] + odd[n]);
      std::memcpy(&c[m][n], &sum, sizeof(sum));
    }
  }
}

#else

// LDTILECFG's memory.
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

// While it lives, this thread has tiles.
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
  __asm__ volatile(
      "tileloadd\t(%0,%1,1), %%tmm%c2" : : "r"(from), "r"(4 * stride), "i"(kTile) : "memory");
}

template <int kTile>
inline void tile_store(void* to, int64_t stride) {
  __asm__ volatile(
      "tilestored\t%%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(4 * stride), "i"(kTile) : "memory");
}

template <int kC, int kA, int kB>
inline void tile_multiply_add() {
  __asm__ volatile(
      "tdpbf16ps\t%%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kC), "i"(kA), "i"(kB));
}

#endif

}  // namespace spanbert_fast::SPANBERT_FAST_ISA
