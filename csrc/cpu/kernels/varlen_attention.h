// Kernels of varlen_attention: what one task computes (see cpu/varlen_attention.cpp for how the
// work is split into tasks).
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
  // of the backward alone
  TokenRows dout;
  void *dq, *dk, *dv;  // contiguous as out
};

// Queries (forward) or keys (backward) [begin, end) of one head of one sequence. begin is a
// multiple of kTaskStep.
struct AttentionTask {
  int64_t sequence, head, first_token, length, begin, end;
  // Where the keys of a sequence are split among tasks of the backward: (length, dq_width) for
  // this task's part of dq without its factor `scale`. Else null, and the task writes dq.
  float* dq_part;
};
constexpr int64_t kTaskStep = 64;
static inline int64_t dq_width(int64_t head_dim) { return (head_dim + 31) / 32 * 32; }

// Memory of the calling thread, of at least `bytes`, 64-byte aligned; valid until the next call.
using ReserveScratch = char*(int64_t bytes);

using AttentionTaskKernel =
    void(const AttentionArguments&, const AttentionTask&, ReserveScratch* reserve);

// dq of one head of one sequence out of its `parts`, which follow one another at task.dq_part.
using AttentionSumKernel = void(const AttentionArguments&, const AttentionTask&, int64_t parts);

struct VarlenAttentionKernels {
  PerFormat<AttentionTaskKernel> forward, backward;
  PerFormat<AttentionSumKernel> sum_dq;
};

}  // namespace spanbert_fast

SPANBERT_FAST_DECLARE_KERNELS(VarlenAttentionKernels, varlen_attention_kernels)
