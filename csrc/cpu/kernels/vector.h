// Vectors of kWidth floats, for every level of cpu/dispatch.h, in the compilers' own vector types,
// with intrinsics only where these cannot express an instruction.
//
// Only the sources in cpu/kernels/ include it: all of it is in the level's namespace. This file has
// the types, the arithmetic of lanes and the 16-bit formats; simd.h reads and writes memory.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__SSE2__)
#pragma GCC diagnostic push
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12's own header initialises undefined vectors with themselves
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#pragma GCC diagnostic pop
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define SPANBERT_FAST_INLINE static inline __attribute__((always_inline))
#define SPANBERT_FAST_INLINE_METHOD __attribute__((always_inline)) inline
#define SPANBERT_FAST_INLINE_BODY __attribute__((always_inline))  // behind a lambda's arguments

namespace spanbert_fast::SPANBERT_FAST_ISA {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the dropout rule reads bytes of words");

#if defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

typedef float vfloat __attribute__((vector_size(4 * kWidth)));
typedef int32_t vint __attribute__((vector_size(4 * kWidth)));
typedef uint32_t vuint __attribute__((vector_size(4 * kWidth)));
typedef uint64_t vulong __attribute__((vector_size(4 * kWidth)));
typedef uint8_t vbytes __attribute__((vector_size(4 * kWidth)));
typedef uint16_t vhalf __attribute__((vector_size(2 * kWidth)));
typedef int8_t vflags __attribute__((vector_size(kWidth)));

// Storage types; arithmetic is in float.
struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

template <class To, class From>
SPANBERT_FAST_INLINE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

template <class To>
SPANBERT_FAST_INLINE To load_bits(const void* from) {
  To to;
  std::memcpy(&to, from, sizeof(to));
  return to;
}

SPANBERT_FAST_INLINE vfloat broadcast(float value) { return value - vfloat{}; }
SPANBERT_FAST_INLINE vuint broadcast(uint32_t value) { return value - vuint{}; }

// where(mask, a, b): a in the lanes whose mask has all bits set, b where it has none.
SPANBERT_FAST_INLINE vfloat where(vint mask, vfloat a, vfloat b) { return mask ? a : b; }
SPANBERT_FAST_INLINE vuint where(vint mask, vuint a, vuint b) { return mask ? a : b; }
SPANBERT_FAST_INLINE vfloat keep_where(vint mask, vfloat a) {
  return bit_cast<vfloat>(mask & bit_cast<vint>(a));
}

SPANBERT_FAST_INLINE vfloat abs(vfloat x) {
  return bit_cast<vfloat>(bit_cast<vuint>(x) & 0x7fffffffu);
}

// The larger lanes; those of b where either is NaN.
SPANBERT_FAST_INLINE vfloat max(vfloat a, vfloat b) {
#if defined(__AVX512F__)
  return bit_cast<vfloat>(_mm512_max_ps(bit_cast<__m512>(a), bit_cast<__m512>(b)));
#elif defined(__AVX2__)
  return bit_cast<vfloat>(_mm256_max_ps(bit_cast<__m256>(a), bit_cast<__m256>(b)));
#elif defined(__SSE2__)
  return bit_cast<vfloat>(_mm_max_ps(bit_cast<__m128>(a), bit_cast<__m128>(b)));
#else
  return a > b ? a : b;
#endif
}

// Lanes are added in one fixed order, by halves.
SPANBERT_FAST_INLINE float sum(vfloat x) {
  float lanes[kWidth];
  std::memcpy(lanes, &x, sizeof(x));
  for (int half = kWidth / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

// ---- Lanes of other widths, each in one instruction of the level

SPANBERT_FAST_INLINE vuint widen_unsigned(vhalf x) {
#if defined(__AVX512F__)
  return bit_cast<vuint>(_mm512_cvtepu16_epi32(bit_cast<__m256i>(x)));
#elif defined(__AVX2__)
  return bit_cast<vuint>(_mm256_cvtepu16_epi32(bit_cast<__m128i>(x)));
#else
  return __builtin_convertvector(x, vuint);
#endif
}

SPANBERT_FAST_INLINE vint widen_signed(vflags x) {
#if defined(__AVX512F__)
  return bit_cast<vint>(_mm512_cvtepi8_epi32(bit_cast<__m128i>(x)));
#elif defined(__AVX2__)
  return bit_cast<vint>(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(bit_cast<int64_t>(x))));
#else
  return __builtin_convertvector(x, vint);
#endif
}

// For values below 2^16.
SPANBERT_FAST_INLINE vhalf narrow_unsigned(vuint x) {
#if defined(__AVX512F__)
  return bit_cast<vhalf>(_mm512_cvtepi32_epi16(bit_cast<__m512i>(x)));
#elif defined(__AVX2__)
  const __m256i v = bit_cast<__m256i>(x);
  return bit_cast<vhalf>(
      _mm_packus_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)));
#else
  return __builtin_convertvector(x, vhalf);
#endif
}

// ---- 16-bit floats <-> float, rounding to the nearest, ties to even

SPANBERT_FAST_INLINE vfloat widen(vhalf bits, bfloat16) {
  return bit_cast<vfloat>(widen_unsigned(bits) << 16);
}

SPANBERT_FAST_INLINE vhalf narrow(vfloat x, bfloat16) {
#if defined(__AVX512BF16__)
  return bit_cast<vhalf>(_mm512_cvtneps_pbh(bit_cast<__m512>(x)));
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
  return bit_cast<vhalf>(vcvt_bf16_f32(bit_cast<float32x4_t>(x)));
#else
  const vuint bits = bit_cast<vuint>(x);
  const vuint rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  // the carry of a NaN could make it infinite
  return narrow_unsigned(where(x != x, bits >> 16 | 0x40u, rounded));
#endif
}

#if defined(__F16C__)

SPANBERT_FAST_INLINE vfloat widen(vhalf bits, float16) {
#if defined(__AVX512F__)
  return bit_cast<vfloat>(_mm512_cvtph_ps(bit_cast<__m256i>(bits)));
#else
  return bit_cast<vfloat>(_mm256_cvtph_ps(bit_cast<__m128i>(bits)));
#endif
}

SPANBERT_FAST_INLINE vhalf narrow(vfloat x, float16) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
#if defined(__AVX512F__)
  return bit_cast<vhalf>(_mm512_cvtps_ph(bit_cast<__m512>(x), kNearest));
#else
  return bit_cast<vhalf>(_mm256_cvtps_ph(bit_cast<__m256>(x), kNearest));
#endif
}

#elif defined(__aarch64__)

SPANBERT_FAST_INLINE vfloat widen(vhalf bits, float16) {
  return bit_cast<vfloat>(vcvt_f32_f16(bit_cast<float16x4_t>(bits)));
}

SPANBERT_FAST_INLINE vhalf narrow(vfloat x, float16) {
  return bit_cast<vhalf>(vcvt_f16_f32(bit_cast<float32x4_t>(x)));
}

#else

SPANBERT_FAST_INLINE vfloat widen(vhalf half, float16) {
  const vuint bits = widen_unsigned(half);
  const vuint magnitude = (bits & 0x7fffu) << 13;
  // changes the exponent's bias from 15 to 127; a product does so for subnormals, too
  const vfloat scaled = bit_cast<vfloat>(magnitude) * 0x1p112f;
  const vuint finite = bit_cast<vuint>(scaled);
  const vuint value = where(magnitude >= (0x1fu << 23), magnitude | 0x7f800000u, finite);
  return bit_cast<vfloat>(value | (bits & 0x8000u) << 16);
}

SPANBERT_FAST_INLINE vhalf narrow(vfloat x, float16) {
  const vuint bits = bit_cast<vuint>(x), magnitude = bits & 0x7fffffffu;
  const vuint normal = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  // adding 1/2 leaves a subnormal's rounded bits at the lower end of the mantissa
  const vuint subnormal = bit_cast<vuint>(bit_cast<vfloat>(magnitude) + 0.5f) - (126u << 23);
  vuint value = where(magnitude < (113u << 23), subnormal, normal);
  value = where(magnitude >= 0x477ff000u, broadcast(0x7c00u), value);  // from 65520 on: infinite
  value = where(magnitude > (255u << 23), broadcast(0x7e00u), value);
  return narrow_unsigned(value | (bits >> 16 & 0x8000u));
}

#endif

}  // namespace spanbert_fast::SPANBERT_FAST_ISA
