#include "cpu/kernels/span_representation.h"

#include "cpu/kernels/simd.h"

namespace spanbert_fast::SPANBERT_FAST_ISA {
namespace {

constexpr float kLog2E = 0x1.715476p+0f;
constexpr float kLn2 = 0x1.62e43p-1f;

SPANBERT_FAST_INLINE float exponential(float x) { return exp2<float>(broadcast(x * kLog2E))[0]; }

// log2 of a number in [1, 2^24], such as a span's sum of exponentials, by Newton steps on exp2.
SPANBERT_FAST_INLINE float logarithm(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const float exponent = static_cast<float>(static_cast<int32_t>(bits >> 23) - 127);
  const float mantissa = bit_cast<float>((bits & 0x7fffffu) | 0x3f800000u);  // in [1, 2)
  float y = mantissa - 1.0f;  // log2 to within 0.09
  for (int step = 0; step < 3; ++step) {
    const float power = exp2<float>(broadcast(y))[0];
    y += (mantissa - power) / power * kLog2E;
  }
  return (exponent + y) * kLn2;
}

template <class T>
SPANBERT_FAST_INLINE void copy(const void* from, int64_t row, int64_t width, T* to) {
  __builtin_memcpy(to, static_cast<const T*>(from) + row * width, width * sizeof(T));
}

SPANBERT_FAST_INLINE void clear(float* sums, int64_t width) {
  for_vectors(
      width, [&](int64_t i, auto n) SPANBERT_FAST_INLINE_BODY { store(sums + i, vfloat{}, n); });
}

template <class T>
SPANBERT_FAST_INLINE void add(const T* row, float weight, int64_t width, float* sums) {
  for_vectors(width, [&](int64_t i, auto n) SPANBERT_FAST_INLINE_BODY {
    store(sums + i, load(sums + i, n) + load(row + i, n) * weight, n);
  });
}

template <class T>
SPANBERT_FAST_INLINE void write(const float* sums, int64_t width, T* to) {
  for_vectors(width, [&](int64_t i, auto n) SPANBERT_FAST_INLINE_BODY {
    store(to + i, load(sums + i, n), n);
  });
}

template <class T>
SPANBERT_FAST_INLINE float dot(const T* x, const T* y, int64_t width) {
  vfloat total = {};
  for_vectors(width, [&](int64_t i, auto n) SPANBERT_FAST_INLINE_BODY {
    total += first_lanes(load(x + i, n) * load(y + i, n), n);
  });
  return sum(total);
}

template <class T>
void forward(
    const SpanRepresentation& op, void* y_data, float* lse, int64_t first, int64_t last,
    float* scratch) {
  T* y = static_cast<T*>(y_data) + first * (op.a + op.b + op.c);
  for (int64_t s = first; s < last; ++s, y += op.a + op.b + op.c) {
    const int64_t start = op.starts[s], end = op.ends[s];
    copy(op.firsts, start, op.a, y);
    copy(op.lasts, end, op.b, y + op.a);
    if (op.inner == nullptr) continue;
    float top = op.logits[start], total = 0.0f;
    for (int64_t t = start; t <= end; ++t) top = op.logits[t] > top ? op.logits[t] : top;
    clear(scratch, op.c);
    for (int64_t t = start; t <= end; ++t) {
      const float weight = exponential(op.logits[t] - top);
      total += weight;
      add(static_cast<const T*>(op.inner) + t * op.c, weight, op.c, scratch);
    }
    lse[s] = top + logarithm(total);
    const float scale = 1.0f / total;
    for_vectors(op.c, [&](int64_t i, auto n) SPANBERT_FAST_INLINE_BODY {
      store(y + op.a + op.b + i, load(scratch + i, n) * scale, n);
    });
  }
}

template <class T>
void along(
    const SpanRepresentation& op, const void* dy, const void* y, float* to, int64_t first,
    int64_t last) {
  const int64_t width = op.a + op.b + op.c, offset = op.a + op.b;
  for (int64_t s = first; s < last; ++s) {
    const int64_t at = s * width + offset;
    to[s] = dot(static_cast<const T*>(dy) + at, static_cast<const T*>(y) + at, op.c);
  }
}

template <class T>
void backward(
    const SpanRepresentation& op, const SpanRepresentationGradients& to, int64_t first,
    int64_t last, float* scratch) {
  const int64_t width = op.a + op.b + op.c;
  const T* dy = static_cast<const T*>(to.dy);
  for (int64_t t = first; t < last; ++t) {
    clear(scratch, op.a);
    for (int64_t i = to.by_start.bounds[t]; i < to.by_start.bounds[t + 1]; ++i) {
      add(dy + to.by_start.spans[i] * width, 1.0f, op.a, scratch);
    }
    write(scratch, op.a, static_cast<T*>(to.dfirsts) + t * op.a);
    clear(scratch, op.b);
    for (int64_t i = to.by_end.bounds[t]; i < to.by_end.bounds[t + 1]; ++i) {
      add(dy + to.by_end.spans[i] * width + op.a, 1.0f, op.b, scratch);
    }
    write(scratch, op.b, static_cast<T*>(to.dlasts) + t * op.b);
    if (op.inner == nullptr) continue;
    clear(scratch, op.c);
    const T* inner = static_cast<const T*>(op.inner) + t * op.c;
    float dlogit = 0.0f;
    for (int64_t i = to.reaching[t]; i < to.by_start.bounds[t + 1]; ++i) {
      const int64_t s = to.by_start.spans[i];
      if (op.ends[s] < t) continue;
      const T* dpooled = dy + s * width + op.a + op.b;
      const float weight = exponential(op.logits[t] - to.lse[s]);
      add(dpooled, weight, op.c, scratch);
      dlogit += weight * (dot(dpooled, inner, op.c) - to.along[s]);
    }
    write(scratch, op.c, static_cast<T*>(to.dinner) + t * op.c);
    to.dlogits[t] = dlogit;
  }
}

}  // namespace

const SpanRepresentationKernels span_representation_kernels = {
    {{&forward<bfloat16>, &forward<float16>, &forward<float>}},
    {{&along<bfloat16>, &along<float16>, &along<float>}},
    {{&backward<bfloat16>, &backward<float16>, &backward<float>}},
};

}  // namespace spanbert_fast::SPANBERT_FAST_ISA
