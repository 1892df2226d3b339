// y = dropout(n weight + bias), n = (z - mean(z)) rstd(z), z = word + position + token type.
//
// The backward makes z and the mask again and leaves dz in float; the gradient of a table is then
// written once, row by row, each the sum of its tokens' dz in their order: no atomics.
#include "cpu/kernels/embedding_layer_norm.h"

#include "cpu/kernels/layer_norm.h"
#include "cpu/kernels/philox.h"

namespace spanbert_fast::SPANBERT_FAST_ISA {
namespace {

template <class T>
SPANBERT_FAST_INLINE void add_row(const void* data, int64_t row, float* z, int64_t size) {
  const T* from = static_cast<const T*>(data) + row * size;
  for_vectors(size, [&](int64_t c, auto count) SPANBERT_FAST_INLINE_BODY {
    store(z + c, load(z + c, count) + load(from + c, count), count);
  });
}

// z of a token into scratch memory; returns the sum over its columns.
float embed(const EmbeddingLayerNorm& op, int64_t token, float* z) {
  std::memset(z, 0, op.hidden_size * sizeof(float));
  for (const EmbeddingRows& part : op.parts) {
    const int64_t row = part.ids == nullptr ? token : part.ids[token];
    switch (part.format) {
      case 0: add_row<bfloat16>(part.data, row, z, op.hidden_size); break;
      case 1: add_row<float16>(part.data, row, z, op.hidden_size); break;
      default: add_row<float>(part.data, row, z, op.hidden_size);
    }
  }
  vfloat total = {};
  for_vectors(op.hidden_size, [&](int64_t c, auto count) SPANBERT_FAST_INLINE_BODY {
    total += load(z + c, count);
  });
  return sum(total);
}

template <class T>
void forward(
    const EmbeddingLayerNorm& op, void* y_data, int64_t first, int64_t last, float* scratch) {
  const int64_t size = op.hidden_size;
  float* z = scratch;
  const HiddenDropout dropout(op.dropout, size, scratch + 2 * size);
  for (int64_t token = first; token < last; ++token) {
    T* y = static_cast<T*>(y_data) + token * size;
    const RowStatistics at = row_statistics(z, size, embed(op, token, z), op.eps);
    const uint8_t* keep = dropout.keep_row(token);
    for_vectors(size, [&](int64_t c, auto count) SPANBERT_FAST_INLINE_BODY {
      const vfloat n = (load(z + c, count) - at.mean) * at.rstd;
      const vfloat value = n * load(op.weight + c, count) + load(op.bias + c, count);
      store(y + c, keep_where(keep_mask(keep + c), value * dropout.scale), count);
    });
    op.mean[token] = at.mean;
    op.rstd[token] = at.rstd;
  }
}

template <class T>
void backward(
    const EmbeddingLayerNorm& op, const void* dy_data, float* dz_data, float* dweight,
    float* dbias, int64_t first, int64_t last, float* scratch) {
  const int64_t size = op.hidden_size;
  float *z = scratch, *g = scratch + size;
  const HiddenDropout dropout(op.dropout, size, scratch + 2 * size);
  for (int64_t token = first; token < last; ++token) {
    const T* dy = static_cast<const T*>(dy_data) + token * size;
    float* dz = dz_data + token * size;
    const float mean = op.mean[token], rstd = op.rstd[token];
    const uint8_t* keep = dropout.keep_row(token);
    embed(op, token, z);
    vfloat sum_g = {}, sum_gn = {};
    for_vectors(size, [&](int64_t c, auto count) SPANBERT_FAST_INLINE_BODY {
      const vfloat d = keep_where(keep_mask(keep + c), load(dy + c, count) * dropout.scale);
      const vfloat n = (load(z + c, count) - mean) * rstd;
      const vfloat gain = d * load(op.weight + c, count);  // 0 beyond the end, as d is
      store(z + c, n, count);
      store(g + c, gain, count);
      sum_g += gain;
      sum_gn += gain * n;
      store(dweight + c, load(dweight + c, count) + d * n, count);
      store(dbias + c, load(dbias + c, count) + d, count);
    });
    const RowBackward at = {rstd, sum(sum_g) / size, sum(sum_gn) / size};
    for_vectors(size, [&](int64_t c, auto count) SPANBERT_FAST_INLINE_BODY {
      store(dz + c, at.dz(load(g + c, count), load(z + c, count)), count);
    });
  }
}

template <class T>
void gradient_rows(
    const EmbeddingGradient& op, int64_t first_row, int64_t last_row, int64_t column,
    int64_t width, float* scratch) {
  for (int64_t row = first_row; row < last_row; ++row) {
    T* out = static_cast<T*>(op.out) + row * op.hidden_size + column;
    const int64_t begin = op.starts[row], end = op.starts[row + 1];
    std::memset(scratch, 0, width * sizeof(float));
    for (int64_t i = begin; i < end; ++i) {
      add_row<float>(op.dz + op.order[i] * op.hidden_size + column, 0, scratch, width);
    }
    for_vectors(width, [&](int64_t c, auto count) SPANBERT_FAST_INLINE_BODY {
      store(out + c, load(scratch + c, count), count);
    });
  }
}

}  // namespace

const EmbeddingLayerNormKernels embedding_layer_norm_kernels = {
    {&forward<bfloat16>, &forward<float16>, &forward<float>},
    {&backward<bfloat16>, &backward<float16>, &backward<float>},
    {&gradient_rows<bfloat16>, &gradient_rows<float16>, &gradient_rows<float>},
};

}  // namespace spanbert_fast::SPANBERT_FAST_ISA
