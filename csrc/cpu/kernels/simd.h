// Loads and stores of vectors in any format, loops over rows in vectors, and exp2.
#pragma once

#include "cpu/kernels/vector.h"

namespace spanbert_fast::SPANBERT_FAST_ISA {

// Loads kWidth elements, or the first `count` of them and zeros.

SPANBERT_FAST_INLINE vfloat load(const float* from) { return load_bits<vfloat>(from); }
template <class T>
SPANBERT_FAST_INLINE vfloat load(const T* from) {
  return widen(load_bits<vhalf>(from), T{});
}

SPANBERT_FAST_INLINE void store(float* to, vfloat x) { std::memcpy(to, &x, sizeof(x)); }
template <class T>
SPANBERT_FAST_INLINE void store(T* to, vfloat x) {
  const vhalf bits = narrow(x, T{});
  std::memcpy(to, &bits, sizeof(bits));
}

template <class T>
SPANBERT_FAST_INLINE vfloat load(const T* from, int64_t count) {
  T lanes[kWidth] = {};
  std::memcpy(lanes, from, count * sizeof(T));
  return load(lanes);
}

template <class T>
SPANBERT_FAST_INLINE void store(T* to, vfloat x, int64_t count) {
  T lanes[kWidth];
  store(lanes, x);
  std::memcpy(to, lanes, count * sizeof(T));
}

// The count of a whole vector, known to the compiler, which then loads and stores without a mask.
struct Whole {};
template <class T>
SPANBERT_FAST_INLINE vfloat load(const T* from, Whole) {
  return load(from);
}
template <class T>
SPANBERT_FAST_INLINE void store(T* to, vfloat x, Whole) {
  store(to, x);
}

SPANBERT_FAST_INLINE vuint lane_numbers() {
  vuint lanes;
  for (int i = 0; i < kWidth; ++i) lanes[i] = i;
  return lanes;
}

// x in the first `count` lanes, zero in the others.
SPANBERT_FAST_INLINE vfloat first_lanes(vfloat x, Whole) { return x; }
SPANBERT_FAST_INLINE vfloat first_lanes(vfloat x, int64_t count) {
  return keep_where(lane_numbers() < static_cast<uint32_t>(count), x);
}

// body(column, count) over [0, size) in vectors: count is Whole{}, or at the end what remains.
template <class Body>
SPANBERT_FAST_INLINE void for_vectors(int64_t size, const Body& body) {
  int64_t column = 0;
  for (; column + kWidth <= size; column += kWidth) body(column, Whole{});
  if (column < size) body(column, size - column);
}

// 2^x, relative error 6e-8 (3e-6 for 16-bit formats); x is at most 127, below -126 it counts as
// that.
template <class Format>
SPANBERT_FAST_INLINE vfloat exp2(vfloat x) {
  x = max(broadcast(-126.0f), x);  // in this order a NaN stays NaN
  // adding 1.5 * 2^23 rounds to an integer, which stays in the lowest bits
  const vfloat shifted = x + 0x1.8p23f;
  const vfloat f = x - (shifted - 0x1.8p23f);  // in [-1/2, 1/2]
  vfloat p;
  if constexpr (sizeof(Format) == 2) {
    p = f * 0x1.399996p-7f + 0x1.ca169ap-5f;
    p = p * f + 0x1.ec06d0p-3f;
    p = p * f + 0x1.62e0d6p-1f;
    p = p * f + 0x1.ffffe8p-1f;
  } else {
    p = f * 0x1.5c3926p-10f + 0x1.3d19f6p-7f;
    p = p * f + 0x1.c6b5fap-5f;
    p = p * f + 0x1.ebf8f6p-3f;
    p = p * f + 0x1.62e42cp-1f;
    p = p * f + 1.0f;
  }
  return bit_cast<vfloat>(bit_cast<vuint>(p) + (bit_cast<vuint>(shifted) << 23));
}

}  // namespace spanbert_fast::SPANBERT_FAST_ISA
