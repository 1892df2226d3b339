// Kernels of span_representation. All matrices are contiguous.
#pragma once

#include <cstdint>

#include "cpu/dispatch.h"
#include "cpu/kernels/format.h"

namespace spanbert_fast {

struct SpanRepresentation {
  const void *firsts, *lasts, *inner;  // (rows, a), (rows, b), (rows, c); inner may be null
  const float* logits;                 // (rows,); null without inner
  const int64_t *starts, *ends;        // (spans,)
  int64_t a, b, c;
};

// y (spans, a + b + c) and lse (spans,) of spans [first, last). scratch: c floats.
using SpanRepresentationForward = void(
    const SpanRepresentation& op, void* y, float* lse, int64_t first, int64_t last, float* scratch);

// along[s] = dy . y over the last c columns, for spans [first, last).
using SpanRepresentationAlong = void(
    const SpanRepresentation& op, const void* dy, const void* y, float* along, int64_t first,
    int64_t last);

// The spans in some order, and where the spans of each row begin in it.
struct SpanOrder {
  const int64_t *spans, *bounds;  // row t has spans[bounds[t]] to spans[bounds[t + 1] - 1]
};

struct SpanRepresentationGradients {
  const void* dy;
  const float *lse, *along;
  SpanOrder by_start, by_end;  // the row of a span is its start, its end
  const int64_t* reaching;  // (rows,): the first place in by_start whose span may reach the row
  void *dfirsts, *dlasts, *dinner;
  float* dlogits;
};

// The gradients of rows [first, last). scratch: max(a, b, c) floats.
using SpanRepresentationBackward = void(
    const SpanRepresentation& op, const SpanRepresentationGradients& to, int64_t first,
    int64_t last, float* scratch);

struct SpanRepresentationKernels {
  PerFormat<SpanRepresentationForward> forward;
  PerFormat<SpanRepresentationAlong> along;
  PerFormat<SpanRepresentationBackward> backward;
};

}  // namespace spanbert_fast

SPANBERT_FAST_DECLARE_KERNELS(SpanRepresentationKernels, span_representation_kernels)
