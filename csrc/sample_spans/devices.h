// Span sampling of a whole batch, by device: plain pointers in, plain pointers out.
#pragma once

#include "sample_spans/spans.h"

namespace spanbert_fast {

// Parallel over sequences; allocates nothing.
void sample_spans_cpu(
    const SpanInputs& in, const SpanLaw& law, const SpanOutputs& out, const SpanScratch& scratch);

// Enqueues four kernels on `stream`, a cudaStream_t, and no synchronisation, so that a CUDA graph
// can hold it. Returns a cudaError_t's text, or null.
const char* sample_spans_cuda(
    const SpanInputs& in, const SpanLaw& law, const SpanOutputs& out, const SpanScratch& scratch,
    void* stream);

}  // namespace spanbert_fast
