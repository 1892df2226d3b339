// Kernels of bias_gelu on consecutive rows of (rows, features) matrices, all contiguous.
#pragma once

#include <cstdint>

#include "cpu/dispatch.h"

namespace spanbert_fast {

// y = GELU(x + bias)
using BiasGeluForward = void(
    const void* x, const float* bias, void* y, int64_t rows, int64_t features);

// dx = dy GELU'(x + bias); dbias (features,), zeroed by the caller, gains the rows' sum of dx.
using BiasGeluBackward = void(
    const void* dy, const void* x, const float* bias, void* dx, float* dbias, int64_t rows,
    int64_t features);

struct BiasGeluKernels {
  // by Format (cpu/common.h): bfloat16, float16, float32
  BiasGeluForward* forward[3];
  BiasGeluBackward* backward[3];
};

}  // namespace spanbert_fast

SPANBERT_FAST_DECLARE_KERNELS(BiasGeluKernels, bias_gelu_kernels)
