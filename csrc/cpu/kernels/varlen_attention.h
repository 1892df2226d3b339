// Kernels of varlen_attention: the work of one task; cpu/varlen_attention.cpp splits the work into
// tasks.
#pragma once

#include <cstdint>

#include "cpu/dispatch.h"
#include "cpu/kernels/format.h"

namespace spanbert_fast {

// (tokens, heads, head_dim), head_dim contiguous; strides in elements.
struct TokenRows {
  const void* data;
  int64_t token_stride, head_stride;
};

struct AttentionArguments {
  TokenRows q, k, v;
  int64_t heads, head_dim;
  float scale;
  uint64_t seed;
  uint32_t site, threshold;  // threshold 0: no dropout
  void* out;                 // (tokens, heads, head_dim), contiguous
  float* lse;  // (tokens, heads), contiguous: log of each row's softmax denominator
  // used by the backward only
  TokenRows dout;
  void *dq, *dk, *dv;  // contiguous as out
};

// Queries (forward) or keys (backward) [begin, end) of one head of one sequence. begin is a
// multiple of kTaskStep.
struct AttentionTask {
  int64_t sequence, head, first_token, length, begin, end;
  // If tasks of the backward share the keys of a sequence: (length, dq_width), for this task's part
  // of dq without the factor `scale`. Otherwise null, and the task writes dq.
  float* dq_part;
};
constexpr int64_t kTaskStep = 64;
static inline int64_t dq_width(int64_t head_dim) { return (head_dim + 31) / 32 * 32; }

// Memory of the calling thread, at least `bytes`, 64-byte aligned; valid until the next call.
using ReserveScratch = char*(int64_t bytes);

using AttentionTaskKernel =
    void(const AttentionArguments&, const AttentionTask&, ReserveScratch* reserve);

// dq of one head of one sequence, summed from its `parts`, which are contiguous at task.dq_part.
using AttentionSumKernel = void(const AttentionArguments&, const AttentionTask&, int64_t parts);

struct VarlenAttentionKernels {
  PerFormat<AttentionTaskKernel> forward, backward;
  PerFormat<AttentionSumKernel> sum_dq;
};

}  // namespace spanbert_fast

SPANBERT_FAST_DECLARE_KERNELS(VarlenAttentionKernels, varlen_attention_kernels)
