// Softmax attention of one head of one sequence, and its gradients (arXiv 1706.03762, 3.2; kept
// in cache by blocks and made again in the backward as in arXiv 2205.14135). With P = exp(S - lse)
// and S = scale q k^T, M what dropout keeps and r its scale:
//
//     out = r (P M) v        dv = r (P M)^T dout         dS = P (r M (dout v^T) - delta)
//     dq = scale dS k        dk = scale dS^T q           delta = sum over d of dout out
//
// Lanes are keys everywhere. Scores are in base 2: the scale holds log2(e).
#include "cpu/kernels/varlen_attention.h"

#include "cpu/kernels/varlen_attention_dropout.h"
#include "cpu/kernels/varlen_attention_tiles.h"

namespace spanbert_fast::SPANBERT_FAST_ISA {
namespace {

constexpr int64_t kForwardQueries = 48;  // whose scores are in cache at once
constexpr int64_t kForwardKeys = 512;    // above, the softmax goes on with a running maximum
constexpr int64_t kBackwardQueries = 256;
constexpr int64_t kBackwardKeys = 512;
constexpr int64_t kQueries = 16;  // the queries of a block, whose dropout words are made at once
static_assert(kTaskStep % kKeys == 0 && kTaskStep % kQueries == 0);

constexpr float kLog2E = 0x1.715476p+0f, kLn2 = 0x1.62e430p-1f;
constexpr float kInfinity = __builtin_inff();

// What of the thread's memory comes next. The first pass, over no memory, finds how much is needed.
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

// ---- Forward

template <class Kind>
struct ForwardBuffers {
  int64_t tile_keys;
  bool one_tile;
  uint32_t *k, *v, *q, *keep;
  float *scores, *out, *top, *sum;

  ForwardBuffers(Scratch& scratch, const AttentionTask& task, int64_t padded) {
    const int64_t tiles = (task.length + kForwardKeys - 1) / kForwardKeys;
    const int64_t queries = round_up(task.end - task.begin, kForwardQueries);
    tile_keys = round_up((task.length + tiles - 1) / tiles, kKeys);
    one_tile = tiles == 1;
    k = scratch.take(tile_keys * padded / Kind::kPair);
    v = scratch.take(tile_keys * padded / Kind::kPair);
    q = scratch.take(kForwardQueries * padded / Kind::kPair);
    keep = scratch.take(kForwardQueries / kQueries * tile_keys / kKeys * kKeepWords);
    scores = scratch.take<float>(kForwardQueries * tile_keys);
    out = scratch.take<float>((one_tile ? kForwardQueries : queries) * padded);
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

// Turns a row of scores, in its place, into the operand 2^(row - top) under its mask; returns the
// sum before the mask. `keep` has the words of the row's 16 queries, block after block.
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
  const T *q = rows_of<T>(a.q, task), *k = rows_of<T>(a.k, task), *v = rows_of<T>(a.v, task);
  const AttentionDropout dropout = dropout_of(a, task);
  const auto soften = a.threshold ? exponentiate<Kind, T, true> : exponentiate<Kind, T, false>;
  for (int64_t j0 = 0; j0 < task.length; j0 += to.tile_keys) {
    const int64_t keys = smaller(to.tile_keys, task.length - j0), row = round_up(keys, kKeys);
    const int64_t row_words = row / kKeys * kKeepWords;
    const bool first = j0 == 0, last = j0 + keys == task.length;
    pack_transposed<Kind>(k + j0 * a.k.token_stride, a.k.token_stride, keys, d, padded, to.k);
    pack_tokens<Kind>(v + j0 * a.v.token_stride, a.v.token_stride, keys, d, padded, to.v);
    for (int64_t i0 = task.begin; i0 < task.end; i0 += kForwardQueries) {
      const int64_t rows = smaller(kForwardQueries, task.end - i0);
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

// ---- Backward

template <class Kind>
struct BackwardBuffers {
  int64_t tile_keys, chunk;
  // operands: _t head_dim along the contraction, as b; _rows the same as a; _tokens tokens along it
  uint32_t *k_t, *v_t, *k_tokens, *q_rows, *dout_rows, *q_tokens, *dout_tokens;
  // P and dS of all queries of a chunk and one block of keys
  uint32_t *p, *ds, *ds_keys, *keep;
  float *scores, *dp, *lse, *delta, *dq, *dk, *dv;

  BackwardBuffers(Scratch& scratch, const AttentionTask& task, int64_t padded) {
    tile_keys = smaller(kBackwardKeys, round_up(task.end - task.begin, kKeys));
    chunk = smaller(kBackwardQueries, round_up(task.length, kQueries));
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

// Rows [first, first + rows) of P and dS as operands, out of their scores and dP; rows is even.
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
    to.delta[i] = dot(dout + i * dout_stride, out, d);
  }
  if (rows % 2) {  // rows go by twos: beside the last one comes a row of P = 0
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
        product<Kind>(
            valid, padded, row_dwords, {to.p, 1, kKeys}, to.dout_tokens, padded,
            to.dv + j * padded, padded, 1.0f, i0 > 0);
        product<Kind>(
            valid, padded, row_dwords, {to.ds, 1, kKeys}, to.q_tokens, padded,
            to.dk + j * padded, padded, 1.0f, i0 > 0);
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

#if defined(__AVX512BF16__)
using BfloatKind = BfloatPair;
#else
using BfloatKind = Single;
#endif

}  // namespace

const VarlenAttentionKernels varlen_attention_kernels = {
    {&forward<BfloatKind, bfloat16>, &forward<Single, float16>, &forward<Single, float>},
    {&backward<BfloatKind, bfloat16>, &backward<Single, float16>, &backward<Single, float>},
    {&sum_dq<bfloat16>, &sum_dq<float16>, &sum_dq<float>},
};

}  // namespace spanbert_fast::SPANBERT_FAST_ISA
