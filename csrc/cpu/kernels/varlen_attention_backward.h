// The backward of one task. For each block of 64 keys it computes P and dS of all queries of a
// chunk again, and uses them in three products; dk and dv of the block and dq of the chunk are
// summed in float.
#pragma once

#include "cpu/kernels/varlen_attention_common.h"

namespace spanbert_fast::SPANBERT_FAST_ISA {
namespace {

constexpr int64_t kChunkQueries = 256;  // queries of a chunk
constexpr int64_t kCachedKeys = 512;     // keys whose operands are in cache at once

template <class Kind>
struct BackwardBuffers {
  int64_t tile_keys, chunk;
  // operands: _t head_dim along the contraction, as b; _rows the same as a; _tokens tokens along it
  uint32_t *k_t, *v_t, *k_tokens, *q_rows, *dout_rows, *q_tokens, *dout_tokens;
  // P and dS of all queries of a chunk and one block of keys
  uint32_t *p, *ds, *ds_keys, *keep;
  float *scores, *dp, *lse, *delta, *dq, *dk, *dv;

  BackwardBuffers(Scratch& scratch, const AttentionTask& task, int64_t padded) {
    tile_keys = smaller(kCachedKeys, round_up(task.end - task.begin, kKeys));
    chunk = smaller(kChunkQueries, round_up(task.length, 2 * kQueries));
    const int64_t key_operand = tile_keys * padded / Kind::kPair;
    const int64_t query_operand = chunk * padded / Kind::kPair;
    const int64_t block = chunk * kKeys / Kind::kPair;
    k_t = scratch.take(key_operand);
    v_t = scratch.take(key_operand);
    k_tokens = scratch.take(key_operand);
    q_rows = scratch.take(query_operand);
    dout_rows = scratch.take(query_operand);
    q_tokens = scratch.take(query_operand);
    dout_tokens = scratch.take(query_operand);
    p = scratch.take(block);
    ds = scratch.take(block);
    ds_keys = Kind::kPair == 1 ? ds : scratch.take(block);  // one layout serves both products
    keep = scratch.take(kKeepWords);
    scores = scratch.take<float>(kQueries * kKeys);
    dp = scratch.take<float>(kQueries * kKeys);
    lse = scratch.take<float>(chunk);
    delta = scratch.take<float>(chunk);
    dk = scratch.take<float>(tile_keys * padded);
    dv = scratch.take<float>(tile_keys * padded);
    dq = task.dq_part ? task.dq_part : scratch.take<float>(task.length * padded);
  }
};

// Rows [first, first + rows) of P and dS as operands, from their scores and dP; rows is even.
template <class Kind, class T, bool kDropout>
void gradients_of_scores(const BackwardBuffers<Kind>& to, int64_t first, int64_t rows) {
  for (int64_t i = 0; i < rows; i += 2) {
    const KeepRow kept[2] = {{to.keep, i}, {to.keep, i + 1}};
    const int64_t row = (first + i) / Kind::kPair * kKeys;
#pragma GCC unroll 2
    for (int64_t j = 0; j < kKeys; j += 2 * kWidth) {
      vfloat p[2][2], ds[2][2];
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
#pragma GCC unroll 2
        for (int side = 0; side < 2; ++side) {
          const int64_t key = j + side * kWidth, at = (i + h) * kKeys + key;
          const vfloat whole = exp2<T>(load(to.scores + at) - to.lse[first + i + h]);
          vfloat dp = load(to.dp + at);
          p[h][side] = whole;
          if constexpr (kDropout) {
            p[h][side] = kept[h].apply(whole, key);
            dp = kept[h].apply(dp, key);
          }
          ds[h][side] = whole * (dp - to.delta[first + i + h]);
        }
      }
#pragma GCC unroll 2
      for (int side = 0; side < 2; ++side) {
        const int64_t at = row + j + side * kWidth;
        Kind::store_queries(to.p + at, kKeys, p[0][side], p[1][side]);
        Kind::store_queries(to.ds + at, kKeys, ds[0][side], ds[1][side]);
      }
      if constexpr (Kind::kPair == 2) {
#pragma GCC unroll 2
        for (int h = 0; h < 2; ++h) {
          Kind::store_keys(to.ds_keys + ((first + i + h) * kKeys + j) / 2, ds[h][0], ds[h][1]);
        }
      }
    }
  }
}

template <class T>
float dot(const T* a, const T* b, int64_t size) {
  vfloat total = {};
  for_vectors(size, [&](int64_t c, auto count) SPANBERT_FAST_INLINE_BODY {
    total += load(a + c, count) * load(b + c, count);
  });
  return sum(total);
}

// The operands and statistics of the queries [first, first + rows).
template <class Kind, class T>
void prepare_queries(
    const AttentionArguments& a, const AttentionTask& task, int64_t first, int64_t rows,
    int64_t padded, const BackwardBuffers<Kind>& to) {
  const int64_t d = a.head_dim, q_stride = a.q.token_stride, dout_stride = a.dout.token_stride;
  const T* q = rows_of<T>(a.q, task) + first * q_stride;
  const T* dout = rows_of<T>(a.dout, task) + first * dout_stride;
  pack_rows<Kind>(q, q_stride, rows, d, padded, to.q_rows);
  pack_rows<Kind>(dout, dout_stride, rows, d, padded, to.dout_rows);
  pack_tokens<Kind>(q, q_stride, rows, d, padded, to.q_tokens);
  pack_tokens<Kind>(dout, dout_stride, rows, d, padded, to.dout_tokens);
  for (int64_t i = 0; i < rows; ++i) {
    const T* out = contiguous_row<T>(a.out, a, task, first + i);
    to.lse[i] = a.lse[(task.first_token + first + i) * a.heads + task.head] * kLog2E;
    prefetch_next_head(out, d);
    to.delta[i] = dot(dout + i * dout_stride, out, d);
  }
  if (rows % 2) {  // rows come in pairs: an odd last one gets a row of P = 0
    const int64_t width = padded / Kind::kPair;
    std::memset(to.q_rows + rows * width, 0, width * sizeof(uint32_t));
    std::memset(to.dout_rows + rows * width, 0, width * sizeof(uint32_t));
    to.lse[rows] = kInfinity;
    to.delta[rows] = 0;
  }
}

template <class Kind, class T>
void backward(const AttentionArguments& a, const AttentionTask& task, ReserveScratch* reserve) {
  const int64_t d = a.head_dim, padded = round_up(d, 32), width = padded / Kind::kPair;
  const auto to = reserved<BackwardBuffers<Kind>>(task, padded, reserve);
  [[maybe_unused]] const typename Kind::Unit unit{};
  const T *k = rows_of<T>(a.k, task), *v = rows_of<T>(a.v, task);
  const AttentionDropout dropout = dropout_of(a, task);
  const auto gradients =
      a.threshold ? gradients_of_scores<Kind, T, true> : gradients_of_scores<Kind, T, false>;
  for (int64_t j0 = task.begin; j0 < task.end; j0 += to.tile_keys) {
    const int64_t keys = smaller(to.tile_keys, task.end - j0);
    const T *k0 = k + j0 * a.k.token_stride, *v0 = v + j0 * a.v.token_stride;
    pack_transposed<Kind>(k0, a.k.token_stride, keys, d, padded, to.k_t);
    pack_transposed<Kind>(v0, a.v.token_stride, keys, d, padded, to.v_t);
    pack_tokens<Kind>(k0, a.k.token_stride, keys, d, padded, to.k_tokens);
    for (int64_t i0 = 0; i0 < task.length; i0 += to.chunk) {
      const int64_t rows = smaller(to.chunk, task.length - i0);
      const int64_t row_dwords = (rows + Kind::kPair - 1) / Kind::kPair;
      prepare_queries<Kind, T>(a, task, i0, rows, padded, to);
      for (int64_t j = 0; j < keys; j += kKeys) {
        const int64_t valid = smaller(kKeys, keys - j);
        const int64_t key_dwords = (valid + Kind::kPair - 1) / Kind::kPair;
        for (int64_t i = 0; i < rows; i += kQueries) {
          const int64_t m = smaller(kQueries, round_up(rows - i, 2));
          product<Kind>(
              m, kKeys, width, {to.q_rows + i * width, width, 1}, to.k_t + j * width, kKeys,
              to.scores, kKeys, a.scale * kLog2E, false);
          product<Kind>(
              m, kKeys, width, {to.dout_rows + i * width, width, 1}, to.v_t + j * width, kKeys,
              to.dp, kKeys, dropout_scale(a), false);
          for (int64_t r = 0; valid < kKeys && r < m; ++r) {
            fill(to.scores + r * kKeys + valid, to.scores + (r + 1) * kKeys, -kInfinity);
          }
          if (a.threshold) dropout.keep_words(i0 + i, j0 + j, to.keep);
          gradients(to, i, m);
        }
        if (const int64_t more = round_up(rows, Kind::kDepth) / Kind::kPair - row_dwords;
            more > 0) {
          std::memset(to.p + row_dwords * kKeys, 0, more * kKeys * sizeof(uint32_t));
          std::memset(to.ds + row_dwords * kKeys, 0, more * kKeys * sizeof(uint32_t));
        }
        product<Kind>(
            valid, padded, row_dwords, {to.p, 1, kKeys}, to.dout_tokens, padded, to.dv + j * padded,
            padded, 1.0f, i0 > 0);
        product<Kind>(
            valid, padded, row_dwords, {to.ds, 1, kKeys}, to.q_tokens, padded, to.dk + j * padded,
            padded, 1.0f, i0 > 0);
        product<Kind>(
            rows, padded, key_dwords, {to.ds_keys, kKeys / Kind::kPair, 1},
            to.k_tokens + j / Kind::kPair * padded, padded, to.dq + i0 * padded, padded, 1.0f,
            j0 + j > task.begin);
      }
    }
    for (int64_t j = 0; j < keys; ++j) {
      store_scaled(contiguous_row<T>(a.dk, a, task, j0 + j), to.dk + j * padded, d, a.scale);
      store_scaled(
          contiguous_row<T>(a.dv, a, task, j0 + j), to.dv + j * padded, d, dropout_scale(a));
    }
  }
  for (int64_t i = 0; !task.dq_part && i < task.length; ++i) {
    store_scaled(contiguous_row<T>(a.dq, a, task, i), to.dq + i * padded, d, a.scale);
  }
}

template <class T>
void sum_dq(const AttentionArguments& a, const AttentionTask& task, int64_t parts) {
  const int64_t padded = dq_width(a.head_dim), part_size = task.length * padded;
  for (int64_t i = 0; i < task.length; ++i) {
    float* total = task.dq_part + i * padded;
    for (int64_t part = 1; part < parts; ++part) {
      for (int64_t c = 0; c < padded; ++c) total[c] += total[part * part_size + c];
    }
    store_scaled(contiguous_row<T>(a.dq, a, task, i), total, a.head_dim, a.scale);
  }
}

}  // namespace
}  // namespace spanbert_fast::SPANBERT_FAST_ISA
