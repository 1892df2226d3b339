// y = n weight + bias, n = (g - mean(g)) rstd(g), g = GELU(z), z = span + place, for each target.
//
// A span's row stays in cache for all its targets. The backward computes z and g again, and adds dz
// of a target to the gradients of its place and of its span.
#include "cpu/kernels/span_boundary_gather.h"

#include "cpu/kernels/layer_norm.h"
#include "cpu/kernels/normal.h"

namespace spanbert_fast::SPANBERT_FAST_ISA {
namespace {

template <class T>
void forward(
    const SpanBoundaryGather& op, void* y_data, int64_t first, int64_t last, float* scratch) {
  const int64_t size = op.hidden_size;
  for (int64_t s = first; s < last; ++s) {
    const T* span = static_cast<const T*>(op.spans) + s * size;
    const T* place = static_cast<const T*>(op.places);
    for (int64_t target = op.targets[s]; target < op.targets[s + 1]; ++target, place += size) {
      T* y = static_cast<T*>(y_data) + target * size;
      vfloat total = {};
      for_vectors(size, [&](int64_t c, auto count) SPANBERT_FAST_INLINE_BODY {
        const vfloat z = load(span + c, count) + load(place + c, count);
        const vfloat g = z * normal<T>(z).cdf;  // 0 beyond the end, as z is
        store(scratch + c, g, count);
        total += g;
      });
      const RowStatistics at = row_statistics(scratch, size, sum(total), op.eps);
      for_vectors(size, [&](int64_t c, auto count) SPANBERT_FAST_INLINE_BODY {
        const vfloat n = (load(scratch + c, count) - at.mean) * at.rstd;
        store(y + c, n * load(op.weight + c, count) + load(op.bias + c, count), count);
      });
      op.mean[target] = at.mean;
      op.rstd[target] = at.rstd;
    }
  }
}

template <class T>
void backward(
    const SpanBoundaryGather& op, const void* dy_data, void* dspans, float* dweight, float* dbias,
    float* dplaces, int64_t first, int64_t last, float* scratch) {
  constexpr float kPeak = 0x1.988454p-2f;  // 1 / sqrt(2 pi): the density at 0
  const int64_t size = op.hidden_size;
  float *normalised = scratch, *gain = scratch + size, *slope = scratch + 2 * size;
  float* dspan = scratch + 3 * size;
  for (int64_t s = first; s < last; ++s) {
    const T* span = static_cast<const T*>(op.spans) + s * size;
    const T* place = static_cast<const T*>(op.places);
    float* dplace = dplaces;
    std::memset(dspan, 0, size * sizeof(float));
    for (int64_t target = op.targets[s]; target < op.targets[s + 1];
         ++target, place += size, dplace += size) {
      const T* dy = static_cast<const T*>(dy_data) + target * size;
      const float mean = op.mean[target], rstd = op.rstd[target];
      vfloat sum_g = {}, sum_gn = {};
      for_vectors(size, [&](int64_t c, auto count) SPANBERT_FAST_INLINE_BODY {
        const vfloat z = load(span + c, count) + load(place + c, count);
        const Normal at = normal<T>(z);
        const vfloat n = (z * at.cdf - mean) * rstd, d = load(dy + c, count);
        const vfloat g = d * load(op.weight + c, count);  // 0 beyond the end, as d is
        store(normalised + c, n, count);
        store(gain + c, g, count);
        store(slope + c, z * kPeak * at.bell + at.cdf, count);
        sum_g += g;
        sum_gn += g * n;
        store(dweight + c, load(dweight + c, count) + d * n, count);
        store(dbias + c, load(dbias + c, count) + d, count);
      });
      const RowBackward at = {rstd, sum(sum_g) / size, sum(sum_gn) / size};
      for_vectors(size, [&](int64_t c, auto count) SPANBERT_FAST_INLINE_BODY {
        const vfloat dgelu = at.dz(load(gain + c, count), load(normalised + c, count));
        const vfloat dz = dgelu * load(slope + c, count);
        store(dspan + c, load(dspan + c, count) + dz, count);
        store(dplace + c, load(dplace + c, count) + dz, count);
      });
    }
    T* to = static_cast<T*>(dspans) + s * size;
    for_vectors(size, [&](int64_t c, auto count) SPANBERT_FAST_INLINE_BODY {
      store(to + c, load(dspan + c, count), count);
    });
  }
}

}  // namespace

const SpanBoundaryGatherKernels span_boundary_gather_kernels = {
    {{&forward<bfloat16>, &forward<float16>, &forward<float>}},
    {{&backward<bfloat16>, &backward<float16>, &backward<float>}},
};

}  // namespace spanbert_fast::SPANBERT_FAST_ISA
