// Kernels of bias_gelu on consecutive rows of (rows, features) matrices, all contiguous.
#pragma once

#include <cstdint>

#include "cpu/dispatch.h"
#include "cpu/kernels/format.h"

namespace spanbert_fast {

// y = GELU(x + bias)
using BiasGeluForward =
    void(const void* x, const float* bias, void* y, int64_t rows, int64_t features);

// dx = dy GELU'(x + bias); dbias (features,), zeroed by the caller, gains the rows' sum of dx.
using BiasGeluBackward = void(
    const void* dy, const void* x, const float* bias, void* dx, float* dbias, int64_t rows,
    int64_t features);

struct BiasGeluKernels {
  PerFormat<BiasGeluForward> forward;
  PerFormat<BiasGeluBackward> backward;
};

}  // namespace spanbert_fast

SPANBERT_FAST_DECLARE_KERNELS(BiasGeluKernels, bias_gelu_kernels)
