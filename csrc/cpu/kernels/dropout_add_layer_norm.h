// Kernels of dropout_add_layer_norm on rows [first, last) of contiguous (tokens, hidden_size)
// matrices; `scratch` holds norm_scratch_size(hidden_size) floats.
#pragma once

#include "cpu/dispatch.h"
#include "cpu/kernels/dropout.h"
#include "cpu/kernels/format.h"

namespace spanbert_fast {

struct DropoutAddLayerNorm {
  const void *x, *residual;  // residual is of y's format
  const float *x_bias, *weight, *bias;
  const int64_t* rows;  // each row's number for dropout; null: its place
  int64_t hidden_size;
  DropoutKey dropout;
  float eps;
  float *mean, *rstd;  // (tokens,): written by forward, read by backward
};

using DropoutAddLayerNormForward =
    void(const DropoutAddLayerNorm& op, void* y, int64_t first, int64_t last, float* scratch);

// The sums of the rows are added to dweight, dbias and dx_bias.
using DropoutAddLayerNormBackward = void(
    const DropoutAddLayerNorm& op, const void* dy, void* dx, void* dresidual, float* dweight,
    float* dbias, float* dx_bias, int64_t first, int64_t last, float* scratch);

struct DropoutAddLayerNormKernels {
  // by x's format; residual, y and their gradients have that format or (wide) float
  PerFormat<DropoutAddLayerNormForward> forward, wide_forward;
  PerFormat<DropoutAddLayerNormBackward> backward, wide_backward;
};

}  // namespace spanbert_fast

SPANBERT_FAST_DECLARE_KERNELS(DropoutAddLayerNormKernels, dropout_add_layer_norm_kernels)
