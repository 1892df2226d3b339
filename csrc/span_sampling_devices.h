// Span sampling of a whole batch, by device: plain pointers in, plain pointers out.
#pragma once

#include "span_sampling.h"

#if defined(__CUDACC__) || defined(SPANBERT_FAST_WITH_CUDA)
#include <cuda_runtime_api.h>
#endif

namespace spanbert_fast {

// Parallel over sequences by at::parallel_for; allocates nothing.
void sample_spans_cpu(
    const SpanInputs& in, const SpanLaw& law, const SpanOutputs& out, const SpanScratch& scratch);

#if defined(__CUDACC__) || defined(SPANBERT_FAST_WITH_CUDA)
// Enqueues four kernels and no synchronisation, so that a CUDA graph can hold it.
cudaError_t sample_spans_cuda(const SpanInputs& in, const SpanLaw& law, const SpanOutputs& out,
                              const SpanScratch& scratch, cudaStream_t stream);
#endif

}  // namespace spanbert_fast
