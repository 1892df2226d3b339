// y = n weight + bias, n = (z - mean(z)) rstd(z), z = dropout(x + x_bias) + residual.
//
// A row is read once; z stays in scratch memory, in cache, for its statistics. The backward
// computes z and the mask again: with g = dy weight,
//     dresidual = dz = rstd (g - mean(g) - n mean(g n)),   dx = dropout(dz).
#include "cpu/kernels/dropout_add_layer_norm.h"

#include "cpu/kernels/layer_norm.h"
#include "cpu/kernels/philox.h"

namespace spanbert_fast::SPANBERT_FAST_ISA {
namespace {

// T: of x and dx; R: of the residual stream.
template <class T, class R>
void forward(
    const DropoutAddLayerNorm& op, void* y_data, int64_t first, int64_t last, float* scratch) {
  const int64_t size = op.hidden_size;
  float* z = scratch;
  const HiddenDropout dropout(op.dropout, size, scratch + 2 * size);
  for (int64_t row = first; row < last; ++row) {
    const T* x = static_cast<const T*>(op.x) + row * size;
    const R* residual = static_cast<const R*>(op.residual) + row * size;
    R* y = static_cast<R*>(y_data) + row * size;
    const uint8_t* keep = dropout.keep_row(op.rows == nullptr ? row : op.rows[row]);
    vfloat total = {};
    for_vectors(size, [&](int64_t c, auto count) SPANBERT_FAST_INLINE_BODY {
      const vfloat kept =
          keep_where(keep_mask(keep + c), load(x + c, count) + load(op.x_bias + c, count));
      const vfloat value = kept * dropout.scale + load(residual + c, count);
      store(z + c, value, count);
      total += value;
    });
    const RowStatistics at = row_statistics(z, size, sum(total), op.eps);
    for_vectors(size, [&](int64_t c, auto count) SPANBERT_FAST_INLINE_BODY {
      const vfloat n = (load(z + c, count) - at.mean) * at.rstd;
      store(y + c, n * load(op.weight + c, count) + load(op.bias + c, count), count);
    });
    op.mean[row] = at.mean;
    op.rstd[row] = at.rstd;
  }
}

template <class T, class R>
void backward(
    const DropoutAddLayerNorm& op, const void* dy_data, void* dx_data, void* dresidual_data,
    float* dweight, float* dbias, float* dx_bias, int64_t first, int64_t last, float* scratch) {
  const int64_t size = op.hidden_size;
  float *normalised = scratch, *g = scratch + size;
  const HiddenDropout dropout(op.dropout, size, scratch + 2 * size);
  for (int64_t row = first; row < last; ++row) {
    const T* x = static_cast<const T*>(op.x) + row * size;
    const R* residual = static_cast<const R*>(op.residual) + row * size;
    const R* dy = static_cast<const R*>(dy_data) + row * size;
    T* dx = static_cast<T*>(dx_data) + row * size;
    R* dresidual = static_cast<R*>(dresidual_data) + row * size;
    const uint8_t* keep = dropout.keep_row(op.rows == nullptr ? row : op.rows[row]);
    const float mean = op.mean[row], rstd = op.rstd[row];
    vfloat sum_g = {}, sum_gn = {};
    for_vectors(size, [&](int64_t c, auto count) SPANBERT_FAST_INLINE_BODY {
      const vfloat kept =
          keep_where(keep_mask(keep + c), load(x + c, count) + load(op.x_bias + c, count));
      const vfloat z = kept * dropout.scale + load(residual + c, count);
      const vfloat n = (z - mean) * rstd, d = load(dy + c, count);
      const vfloat gain = d * load(op.weight + c, count);  // 0 beyond the end, as d is
      store(normalised + c, n, count);
      store(g + c, gain, count);
      sum_g += gain;
      sum_gn += gain * n;
      store(dweight + c, load(dweight + c, count) + d * n, count);
      store(dbias + c, load(dbias + c, count) + d, count);
    });
    const RowBackward at = {rstd, sum(sum_g) / size, sum(sum_gn) / size};
    for_vectors(size, [&](int64_t c, auto count) SPANBERT_FAST_INLINE_BODY {
      const vfloat dz = at.dz(load(g + c, count), load(normalised + c, count));
      const vfloat kept = keep_where(keep_mask(keep + c), dz * dropout.scale);
      store(dresidual + c, dz, count);
      store(dx + c, kept, count);
      store(dx_bias + c, load(dx_bias + c, count) + kept, count);
    });
  }
}

}  // namespace

const DropoutAddLayerNormKernels dropout_add_layer_norm_kernels = {
    {{&forward<bfloat16, bfloat16>, &forward<float16, float16>, &forward<float, float>}},
    {{&forward<bfloat16, float>, &forward<float16, float>, &forward<float, float>}},
    {{&backward<bfloat16, bfloat16>, &backward<float16, float16>, &backward<float, float>}},
    {{&backward<bfloat16, float>, &backward<float16, float>, &backward<float, float>}},
};

}  // namespace spanbert_fast::SPANBERT_FAST_ISA
