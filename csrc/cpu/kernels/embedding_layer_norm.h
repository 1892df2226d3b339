// Kernels of embedding_layer_norm on tokens [first, last); `scratch` holds
// norm_scratch_size(hidden_size) floats.
#pragma once

#include "cpu/dispatch.h"
#include "cpu/kernels/dropout.h"
#include "cpu/kernels/format.h"

namespace spanbert_fast {

// Rows of a contiguous (rows, hidden_size) matrix, chosen by `ids`, or by the token's place if ids
// is null.
struct EmbeddingRows {
  const void* data;
  const int64_t* ids;
};

struct EmbeddingLayerNorm {
  EmbeddingRows words, positions, token_types;  // token_types.data may be null
  Format format;  // of all three
  const float *weight, *bias;
  int64_t hidden_size;
  DropoutKey dropout;
  float eps;
  float *mean, *rstd;  // (tokens,): written by forward, read by backward
};

using EmbeddingLayerNormForward =
    void(const EmbeddingLayerNorm& op, void* y, int64_t first, int64_t last, float* scratch);

// dz (tokens, hidden_size) is the gradient of each of the three rows of a token; the sums over
// tokens are added to dweight and dbias.
using EmbeddingLayerNormBackward = void(
    const EmbeddingLayerNorm& op, const void* dy, float* dz, float* dweight, float* dbias,
    int64_t first, int64_t last, float* scratch);

// Rows [first_row, last_row), columns [column, column + width) of a table's gradient (rows,
// hidden_size): row r is the sum of dz over tokens order[starts[r]] ... order[starts[r + 1] - 1],
// in that order, or zero without tokens. `scratch` holds 2 `width` floats.
struct EmbeddingGradient {
  const float* dz;
  const int64_t *starts, *order;
  int64_t hidden_size;
  void* out;
};
using EmbeddingGradientRows = void(
    const EmbeddingGradient& op, int64_t first_row, int64_t last_row, int64_t column, int64_t width,
    float* scratch);

struct EmbeddingLayerNormKernels {
  PerFormat<EmbeddingLayerNormForward> forward;        // by y's format
  PerFormat<EmbeddingLayerNormBackward> backward;      // by dy's
  PerFormat<EmbeddingGradientRows> gradient_rows;      // by the table's
};

}  // namespace spanbert_fast

SPANBERT_FAST_DECLARE_KERNELS(EmbeddingLayerNormKernels, embedding_layer_norm_kernels)
