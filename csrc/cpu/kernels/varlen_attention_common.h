// Shared by the forward and the backward of varlen_attention: memory, rows, constants.
#pragma once

#include "cpu/kernels/varlen_attention.h"
#include "cpu/kernels/varlen_attention_dropout.h"
#include "cpu/kernels/varlen_attention_tiles.h"

namespace spanbert_fast::SPANBERT_FAST_ISA {
namespace {

constexpr int64_t kQueries = 16;  // queries of a block, whose dropout words are made together
static_assert(kTaskStep % kKeys == 0 && kTaskStep % kQueries == 0);

constexpr float kLog2E = 0x1.715476p+0f, kLn2 = 0x1.62e430p-1f;
constexpr float kInfinity = __builtin_inff();

// Hands out the thread's memory piece by piece. A first pass, without memory, finds how much is
// needed.
struct Scratch {
  uintptr_t next = 0;

  template <class X = uint32_t>
  X* take(int64_t count) {
    X* taken = reinterpret_cast<X*>(next);
    next += round_up(count * sizeof(X), 64);
    return taken;
  }
};

template <class Buffers>
Buffers reserved(const AttentionTask& task, int64_t padded, ReserveScratch* reserve) {
  Scratch size;
  Buffers(size, task, padded);
  Scratch scratch{reinterpret_cast<uintptr_t>(reserve(static_cast<int64_t>(size.next)))};
  return Buffers(scratch, task, padded);
}

template <class T>
const T* rows_of(const TokenRows& rows, const AttentionTask& task) {
  return static_cast<const T*>(rows.data) + task.first_token * rows.token_stride +
      task.head * rows.head_stride;
}

template <class T>
T* contiguous_row(void* data, const AttentionArguments& a, const AttentionTask& task, int64_t i) {
  return static_cast<T*>(data) + ((task.first_token + i) * a.heads + task.head) * a.head_dim;
}

AttentionDropout dropout_of(const AttentionArguments& a, const AttentionTask& task) {
  const uint32_t stream = a.site << 16 | static_cast<uint32_t>(task.head);
  return {a.seed, stream, static_cast<uint32_t>(task.sequence), a.threshold};
}

float dropout_scale(const AttentionArguments& a) { return 256.0f / (256 - a.threshold); }

void fill(float* from, float* to, float value) {
  for (; from < to; ++from) *from = value;
}

template <class T>
void store_scaled(T* to, const float* from, int64_t size, float factor) {
  for_vectors(size, [&](int64_t c, auto count) SPANBERT_FAST_INLINE_BODY {
    store(to + c, load(from + c, count) * factor, count);
  });
}

}  // namespace
}  // namespace spanbert_fast::SPANBERT_FAST_ISA
