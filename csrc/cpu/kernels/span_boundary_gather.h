// Kernels of span_boundary_gather on spans [first, last). All matrices are contiguous, with rows of
// hidden_size.
#pragma once

#include <cstdint>

#include "cpu/dispatch.h"
#include "cpu/kernels/format.h"

namespace spanbert_fast {

struct SpanBoundaryGather {
  const void *spans, *places;
  const int32_t* targets;  // span s has the targets [targets[s], targets[s + 1])
  const float *weight, *bias;
  int64_t hidden_size;
  float eps;
  float *mean, *rstd;  // of each target: written by forward, read by backward
};

// Floats of scratch memory for a call of either kernel.
static inline int64_t span_scratch_size(int64_t hidden_size) { return 4 * hidden_size; }

using SpanBoundaryGatherForward =
    void(const SpanBoundaryGather& op, void* y, int64_t first, int64_t last, float* scratch);

// dspans is written; the spans' sums are added to dweight, dbias (hidden_size,) and dplaces
// (max_span_targets, hidden_size).
using SpanBoundaryGatherBackward = void(
    const SpanBoundaryGather& op, const void* dy, void* dspans, float* dweight, float* dbias,
    float* dplaces, int64_t first, int64_t last, float* scratch);

struct SpanBoundaryGatherKernels {
  PerFormat<SpanBoundaryGatherForward> forward;
  PerFormat<SpanBoundaryGatherBackward> backward;
};

}  // namespace spanbert_fast

SPANBERT_FAST_DECLARE_KERNELS(SpanBoundaryGatherKernels, span_boundary_gather_kernels)
