// GELU(z) = z cdf(z) and GELU'(z) = cdf(z) + z pdf(z) with z = x + bias, for the normal
// distribution (Hendrycks and Gimpel, arXiv 1606.08415). Each way reads and writes memory once.
#include "cpu/kernels/bias_gelu.h"

#include "cpu/kernels/normal.h"

namespace spanbert_fast::SPANBERT_FAST_ISA {
namespace {

template <class T>
void forward(const void* x_data, const float* bias, void* y_data, int64_t rows, int64_t features) {
  const T* x = static_cast<const T*>(x_data);
  T* y = static_cast<T*>(y_data);
  for (int64_t row = 0; row < rows; ++row, x += features, y += features) {
    for_vectors(features, [&](int64_t c, auto count) SPANBERT_FAST_INLINE_BODY {
      const vfloat z = load(x + c, count) + load(bias + c, count);
      store(y + c, z * normal<T>(z).cdf, count);
    });
  }
}

template <class T>
void backward(
    const void* dy_data, const void* x_data, const float* bias, void* dx_data, float* dbias,
    int64_t rows, int64_t features) {
  constexpr float kPeak = 0x1.988454p-2f;  // 1 / sqrt(2 pi): the density at 0
  const T *dy = static_cast<const T*>(dy_data), *x = static_cast<const T*>(x_data);
  T* dx = static_cast<T*>(dx_data);
  for (int64_t row = 0; row < rows; ++row, dy += features, x += features, dx += features) {
    for_vectors(features, [&](int64_t c, auto count) SPANBERT_FAST_INLINE_BODY {
      const vfloat z = load(x + c, count) + load(bias + c, count);
      const Normal at = normal<T>(z);
      const vfloat dz = load(dy + c, count) * (z * kPeak * at.bell + at.cdf);
      store(dx + c, dz, count);
      store(dbias + c, load(dbias + c, count) + dz, count);
    });
  }
}

}  // namespace

const BiasGeluKernels bias_gelu_kernels = {
    {{&forward<bfloat16>, &forward<float16>, &forward<float>}},
    {{&backward<bfloat16>, &backward<float16>, &backward<float>}},
};

}  // namespace spanbert_fast::SPANBERT_FAST_ISA
