// The forward of one task: the scores of 48 queries and up to 512 keys stay in cache, where they
// are turned into the operand of the second product.
#pragma once

#include "cpu/kernels/varlen_attention_common.h"

namespace spanbert_fast::SPANBERT_FAST_ISA {
namespace {

constexpr int64_t kCachedQueries = 48;  // queries whose scores are in cache at once
constexpr int64_t kForwardKeys = 512;    // for more keys the softmax has a running maximum

template <class Kind>
struct ForwardBuffers {
  int64_t tile_keys;
  bool one_tile;
  uint32_t *k, *v, *q, *keep;
  float *scores, *out, *top, *sum;

  ForwardBuffers(Scratch& scratch, const AttentionTask& task, int64_t padded) {
    const int64_t tiles = (task.length + kForwardKeys - 1) / kForwardKeys;
    const int64_t queries = round_up(task.end - task.begin, kCachedQueries);
    tile_keys = round_up((task.length + tiles - 1) / tiles, kKeys);
    one_tile = tiles == 1;
    k = scratch.take(tile_keys * padded / Kind::kPair);
    v = scratch.take(tile_keys * padded / Kind::kPair);
    q = scratch.take(kCachedQueries * padded / Kind::kPair);
    keep = scratch.take(kCachedQueries / kQueries * tile_keys / kKeys * kKeepWords);
    scores = scratch.take<float>(kCachedQueries * tile_keys);
    out = scratch.take<float>((one_tile ? kCachedQueries : queries) * padded);
    top = scratch.take<float>(queries);
    sum = scratch.take<float>(queries);
  }
};

float largest(const float* row, int64_t size) {
  vfloat left = load(row), right = left;
  for (int64_t j = 0; j < size; j += 2 * kWidth) {
    left = max(left, load(row + j));
    right = max(right, load(row + j + kWidth));
  }
  float lanes[kWidth];
  store(lanes, max(left, right));
  float top = lanes[0];
  for (float lane : lanes) top = lane > top ? lane : top;
  return top;
}

// Turns a row of scores in place into the operand 2^(row - top), with dropped elements zero;
// returns the sum before dropout. `keep` has the words of the row's 16 queries, block after block.
template <class Kind, class T, bool kDropout>
float exponentiate(float* row, int64_t keys, float top, const uint32_t* keep, int64_t query) {
  vfloat left_sum = {}, right_sum = {};
  uint32_t* to = reinterpret_cast<uint32_t*>(row);
  for (int64_t block = 0; block < keys; block += kKeys, row += kKeys, keep += kKeepWords) {
    const KeepRow kept(keep, query);
#pragma GCC unroll 8
    for (int64_t j = 0; j < kKeys; j += 2 * kWidth, to += 2 * kWidth / Kind::kPair) {
      vfloat left = exp2<T>(load(row + j) - top), right = exp2<T>(load(row + j + kWidth) - top);
      left_sum += left;
      right_sum += right;
      if constexpr (kDropout) {
        left = kept.apply(left, j);
        right = kept.apply(right, j + kWidth);
      }
      Kind::store_keys(to, left, right);
    }
  }
  return sum(left_sum + right_sum);
}

template <class Kind, class T>
void forward(const AttentionArguments& a, const AttentionTask& task, ReserveScratch* reserve) {
  const int64_t d = a.head_dim, padded = round_up(d, 32), width = padded / Kind::kPair;
  const auto to = reserved<ForwardBuffers<Kind>>(task, padded, reserve);
  [[maybe_unused]] const typename Kind::Unit unit{};
  const T *q = rows_of<T>(a.q, task), *k = rows_of<T>(a.k, task), *v = rows_of<T>(a.v, task);
  const AttentionDropout dropout = dropout_of(a, task);
  const auto soften = a.threshold ? exponentiate<Kind, T, true> : exponentiate<Kind, T, false>;
  for (int64_t j0 = 0; j0 < task.length; j0 += to.tile_keys) {
    const int64_t keys = smaller(to.tile_keys, task.length - j0), row = round_up(keys, kKeys);
    const int64_t row_words = row / kKeys * kKeepWords;
    const bool first = j0 == 0, last = j0 + keys == task.length;
    pack_transposed<Kind>(k + j0 * a.k.token_stride, a.k.token_stride, keys, d, padded, to.k);
    pack_tokens<Kind>(v + j0 * a.v.token_stride, a.v.token_stride, keys, d, padded, to.v);
    for (int64_t i0 = task.begin; i0 < task.end; i0 += kCachedQueries) {
      const int64_t rows = smaller(kCachedQueries, task.end - i0);
      float* out = to.out + (to.one_tile ? 0 : i0 - task.begin) * padded;
      float *top = to.top + (i0 - task.begin), *sum = to.sum + (i0 - task.begin);
      pack_rows<Kind>(q + i0 * a.q.token_stride, a.q.token_stride, rows, d, padded, to.q);
      for (int64_t j = 0; j < row; j += kKeys) {
        product<Kind>(
            rows, kKeys, width, {to.q, width, 1}, to.k + j * width, kKeys, to.scores + j, row,
            a.scale * kLog2E, false);
        for (int64_t i = 0; a.threshold && i < rows; i += kQueries) {
          uint32_t* words = to.keep + i / kQueries * row_words + j / kKeys * kKeepWords;
          dropout.keep_words(i0 + i, j0 + j, words);
        }
      }
      for (int64_t i = 0; i < rows; ++i) {
        float *scores = to.scores + i * row, *out_row = out + i * padded;
        fill(scores + keys, scores + row, -kInfinity);
        const float row_top = largest(scores, row);
        if (first) {
          top[i] = row_top;
          sum[i] = 0;
        } else if (row_top > top[i]) {
          const float factor = __builtin_exp2f(top[i] - row_top);
          top[i] = row_top;
          sum[i] *= factor;
          store_scaled(out_row, out_row, padded, factor);
        }
        sum[i] += soften(scores, row, top[i], to.keep + i / kQueries * row_words, i);
      }
      const uint32_t* p = reinterpret_cast<const uint32_t*>(to.scores);
      product<Kind>(
          rows, padded, (keys + Kind::kPair - 1) / Kind::kPair, {p, row, 1}, to.v, padded, out,
          padded, 1.0f, !first);
      for (int64_t i = 0; last && i < rows; ++i) {
        T* to_row = contiguous_row<T>(a.out, a, task, i0 + i);
        store_scaled(to_row, out + i * padded, d, dropout_scale(a) / sum[i]);
        float* lse = a.lse + (task.first_token + i0 + i) * a.heads + task.head;
        *lse = top[i] * kLn2 + __builtin_logf(sum[i]);
      }
    }
  }
}

}  // namespace
}  // namespace spanbert_fast::SPANBERT_FAST_ISA
