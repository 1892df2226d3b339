// The passes over a block of scores, which is in cache after its product: the largest score and the
// sum of exponentials in the forward, the gradients and their sums in the backward.
#include "cpu/kernels/linear_cross_entropy.h"

#include "cpu/kernels/simd.h"

namespace spanbert_fast::SPANBERT_FAST_ISA {
namespace {

constexpr float kLog2E = 0x1.715476p+0f;
constexpr float kLowest = -0x1.fffffep127f;

// So many rows are summed before they are added to the total, which then is rounded a few times
// instead of once per row.
constexpr int64_t kSumRows = 32;

template <class T>
const T* row_of(const ScoreBlock& block, int64_t row) {
  return static_cast<const T*>(block.scores) + row * block.stride;
}

// A row's target among the block's columns, or -1.
int64_t target_column(const ScoreBlock& block, int64_t row) {
  const int64_t column = block.targets[row] - block.first_column;
  return 0 <= column && column < block.columns ? column : -1;
}

template <class T>
float score_at(const ScoreBlock& block, const T* scores, int64_t column) {
  return load(scores + column, int64_t{1})[0] + block.bias[column];
}

// Lanes beyond the end hold `filler`.
SPANBERT_FAST_INLINE vfloat fill_rest(vfloat x, float, Whole) { return x; }
SPANBERT_FAST_INLINE vfloat fill_rest(vfloat x, float filler, int64_t count) {
  return where(lane_numbers() < static_cast<uint32_t>(count), x, broadcast(filler));
}

SPANBERT_FAST_INLINE float largest_lane(vfloat x) {
  float lanes[kWidth], top = kLowest;
  store(lanes, x);
  for (float lane : lanes) top = lane > top ? lane : top;
  return top;
}

template <class T>
int64_t first_equal(const ScoreBlock& block, const T* scores, float top) {
  for (int64_t c = 0; c < block.columns; c += kWidth) {
    const int64_t count = block.columns - c < kWidth ? block.columns - c : kWidth;
    const vfloat z = load(scores + c, count) + load(block.bias + c, count);
    for (int64_t i = 0; i < count; ++i) {
      if (z[i] == top) return c + i;
    }
  }
  return 0;  // a row of NaN
}

template <class T>
void scan(const ScoreBlock& block, const ScoreStatistics& to) {
  for (int64_t row = 0; row < block.rows; ++row) {
    const T* scores = row_of<T>(block, row);
    // at least the lowest finite number, so that differences in a row of -inf are not NaN
    vfloat tops = broadcast(kLowest);
    for_vectors(block.columns, [&](int64_t c, auto count) SPANBERT_FAST_INLINE_BODY {
      const vfloat z = load(scores + c, count) + load(block.bias + c, count);
      tops = max(tops, fill_rest(z, kLowest, count));
    });
    const float top = largest_lane(tops);
    vfloat total = {};
    for_vectors(block.columns, [&](int64_t c, auto count) SPANBERT_FAST_INLINE_BODY {
      const vfloat z = load(scores + c, count) + load(block.bias + c, count);
      total += first_lanes(exp2<float>((z - top) * kLog2E), count);
    });
    to.top[row] = top;
    to.sum[row] = sum(total);
    const int64_t target = target_column(block, row);
    if (target >= 0) to.target_score[row] = score_at(block, scores, target);
    if (to.best) to.best[row] = block.first_column + first_equal(block, scores, top);
  }
}

template <class T>
void gradient(const ScoreBlock& block, const ScoreGradient& to) {
  float part[kMostScoreColumns] = {};
  for (int64_t row = 0; row < block.rows; ++row) {
    const T* scores = row_of<T>(block, row);
    T* d = static_cast<T*>(to.d) + row * to.stride;
    const float top = to.top[row], log_sum = to.log_sum[row], dloss = to.dlosses[row];
    const int64_t target = target_column(block, row);
    const float target_score = target < 0 ? 0.0f : score_at(block, scores, target);
    for_vectors(block.columns, [&](int64_t c, auto count) SPANBERT_FAST_INLINE_BODY {
      const vfloat z = load(scores + c, count) + load(block.bias + c, count);
      const vfloat p = exp2<float>((z - top - log_sum) * kLog2E) * dloss;
      store(d + c, p, count);
      store(part + c, load(part + c, count) + p, count);
    });
    if (target >= 0) {
      // subtracted before rounding: the terms cancel if a row is sure of its target
      const vfloat p = exp2<float>(broadcast((target_score - top - log_sum) * kLog2E));
      store(d + target, (p - 1.0f) * dloss, int64_t{1});
      part[target] -= dloss;
    }
    if ((row + 1) % kSumRows && row + 1 < block.rows) continue;
    for_vectors(block.columns, [&](int64_t c, auto count) SPANBERT_FAST_INLINE_BODY {
      store(to.sums + c, load(to.sums + c, count) + load(part + c, count), count);
      store(part + c, vfloat{}, count);
    });
  }
}

template <class T>
void add(const void* part_data, int64_t rows, int64_t columns, float* total, int64_t stride) {
  const T* part = static_cast<const T*>(part_data);
  for (int64_t row = 0; row < rows; ++row, part += columns, total += stride) {
    for_vectors(columns, [&](int64_t c, auto count) SPANBERT_FAST_INLINE_BODY {
      store(total + c, load(total + c, count) + load(part + c, count), count);
    });
  }
}

}  // namespace

const LinearCrossEntropyKernels linear_cross_entropy_kernels = {
    {{&scan<bfloat16>, nullptr, &scan<float>}},
    {{&gradient<bfloat16>, nullptr, &gradient<float>}},
    {{&add<bfloat16>, nullptr, &add<float>}},
};

}  // namespace spanbert_fast::SPANBERT_FAST_ISA
