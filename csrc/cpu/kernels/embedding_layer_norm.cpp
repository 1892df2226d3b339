// y = dropout(n weight + bias), n = (z - mean(z)) rstd(z), z = word + position + token type.
//
// The backward computes z and the mask again and writes dz in float. The gradient of a table is
// then written once: each row is the sum of its tokens' dz in their order, without atomics.
#include "cpu/kernels/embedding_layer_norm.h"

#include "cpu/kernels/layer_norm.h"
#include "cpu/kernels/philox.h"

namespace spanbert_fast::SPANBERT_FAST_ISA {
namespace {

template <class T>
SPANBERT_FAST_INLINE const T* row_of(const EmbeddingRows& rows, int64_t token, int64_t size) {
  return static_cast<const T*>(rows.data) + (rows.ids == nullptr ? token : rows.ids[token]) * size;
}

template <class T, bool kTokenTypes>
float embed_as(const EmbeddingLayerNorm& op, int64_t token, int64_t next_token, float* z) {
  const int64_t size = op.hidden_size;
  const T* word = row_of<T>(op.words, token, size);
  const T* position = row_of<T>(op.positions, token, size);
  const T* token_type = kTokenTypes ? row_of<T>(op.token_types, token, size) : nullptr;
  const T* next_word = row_of<T>(op.words, next_token, size);
  vfloat total = {};
  for_vectors(size, [&](int64_t c, auto count) SPANBERT_FAST_INLINE_BODY {
    vfloat value = load(word + c, count) + load(position + c, count);
    if constexpr (kTokenTypes) value += load(token_type + c, count);
    store(z + c, value, count);
    __builtin_prefetch(next_word + c);
    total += value;
  });
  return sum(total);
}

// Writes z of a token to scratch memory; returns the sum over its columns. The rows of a text's
// words are anywhere in the table, so the next token's row is prefetched here.
float embed(const EmbeddingLayerNorm& op, int64_t token, int64_t last, float* z) {
  const int64_t next_token = token + 1 < last ? token + 1 : token;
  const bool typed = op.token_types.data != nullptr;
  switch (op.format) {
    case Format::bfloat16:
      return (typed ? embed_as<bfloat16, true> : embed_as<bfloat16, false>)(op, token, next_token,
                                                                            z);
    case Format::float16:
      return (typed ? embed_as<float16, true> : embed_as<float16, false>)(op, token, next_token, z);
    default:
      return (typed ? embed_as<float, true> : embed_as<float, false>)(op, token, next_token, z);
  }
}

template <class T>
void forward(
    const EmbeddingLayerNorm& op, void* y_data, int64_t first, int64_t last, float* scratch) {
  const int64_t size = op.hidden_size;
  float* z = scratch;
  const HiddenDropout dropout(op.dropout, size, scratch + 2 * size);
  for (int64_t token = first; token < last; ++token) {
    T* y = static_cast<T*>(y_data) + token * size;
    const RowStatistics at = row_statistics(z, size, embed(op, token, last, z), op.eps);
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
    const EmbeddingLayerNorm& op, const void* dy_data, float* dz_data, float* dweight, float* dbias,
    int64_t first, int64_t last, float* scratch) {
  const int64_t size = op.hidden_size;
  float *z = scratch, *g = scratch + size;
  const HiddenDropout dropout(op.dropout, size, scratch + 2 * size);
  for (int64_t token = first; token < last; ++token) {
    const T* dy = static_cast<const T*>(dy_data) + token * size;
    float* dz = dz_data + token * size;
    const float mean = op.mean[token], rstd = op.rstd[token];
    const uint8_t* keep = dropout.keep_row(token);
    embed(op, token, last, z);
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

// to += from
SPANBERT_FAST_INLINE void accumulate(float* to, const float* from, int64_t size) {
  for_vectors(size, [&](int64_t c, auto count) SPANBERT_FAST_INLINE_BODY {
    store(to + c, load(to + c, count) + load(from + c, count), count);
  });
}

template <class T>
void gradient_rows(
    const EmbeddingGradient& op, int64_t first_row, int64_t last_row, int64_t column, int64_t width,
    float* scratch) {
  // Tokens are added 64 at a time: a chain of thousands would lose digits to rounding.
  constexpr int64_t kBlock = 64;
  float *total = scratch, *part = scratch + width;
  for (int64_t row = first_row; row < last_row; ++row) {
    const int64_t begin = op.starts[row], end = op.starts[row + 1];
    T* out = static_cast<T*>(op.out) + row * op.hidden_size + column;
    if (begin == end) {  // most rows of a vocabulary
      std::memset(out, 0, width * sizeof(T));
      continue;
    }
    std::memset(total, 0, width * sizeof(float));
    for (int64_t block = begin; block < end; block += kBlock) {
      const int64_t block_end = end - block < kBlock ? end : block + kBlock;
      float* into = block == begin ? total : part;
      if (into == part) std::memset(part, 0, width * sizeof(float));
      for (int64_t i = block; i < block_end; ++i) {
        accumulate(into, op.dz + op.order[i] * op.hidden_size + column, width);
      }
      if (into == part) accumulate(total, part, width);
    }
    for_vectors(width, [&](int64_t c, auto count) SPANBERT_FAST_INLINE_BODY {
      store(out + c, load(total + c, count), count);
    });
  }
}

}  // namespace

const EmbeddingLayerNormKernels embedding_layer_norm_kernels = {
    {{&forward<bfloat16>, &forward<float16>, &forward<float>}},
    {{&backward<bfloat16>, &backward<float16>, &backward<float>}},
    {{&gradient_rows<bfloat16>, &gradient_rows<float16>, &gradient_rows<float>}},
};

}  // namespace spanbert_fast::SPANBERT_FAST_ISA
