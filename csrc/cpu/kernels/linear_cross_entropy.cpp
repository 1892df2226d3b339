// The passes over a block of scores, which lies in cache after its product: bias, largest and sum
// of exponentials in one; softmax - onehot in another; see kernels/linear_cross_entropy.h.
#include "cpu/kernels/linear_cross_entropy.h"

#include "cpu/kernels/simd.h"

namespace spanbert_fast::SPANBERT_FAST_ISA {
namespace {

constexpr float kLog2E = 0x1.715476p+0f;
constexpr float kLowest = -0x1.fffffep127f;

template <class T>
T* row_of(const ScoreBlock& block, int64_t row) {
  return static_cast<T*>(block.scores) + row * block.stride;
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
    const T* scores = row_of<const T>(block, row);
    // not below the lowest finite number, so that a row of -inf keeps its differences
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
void gradient(const ScoreBlock& block, const float* tops, const float* log_sums) {
  for (int64_t row = 0; row < block.rows; ++row) {
    T* scores = row_of<T>(block, row);
    const float top = tops[row], log_sum = log_sums[row];
    const int64_t target = target_column(block, row);
    vfloat certainty = {};
    if (target >= 0) {
      // p - 1 cancels where a row is sure of its target: exponential and difference in float
      const float z = score_at(block, scores, target) - top - log_sum;
      certainty = exp2<float>(broadcast(z * kLog2E));
    }
    for_vectors(block.columns, [&](int64_t c, auto count) SPANBERT_FAST_INLINE_BODY {
      const vfloat z = load(scores + c, count) + load(block.bias + c, count);
      store(scores + c, exp2<T>((z - top - log_sum) * kLog2E), count);
    });
    if (target >= 0) store(scores + target, certainty - 1.0f, int64_t{1});
  }
}

template <class T>
void column_sums(const ScoreBlock& block, const float* factors, float* sums) {
  constexpr int kVectors = 4, kStrip = kVectors * kWidth;  // whose sums stay in registers
  int64_t column = 0;
  for (; column + kStrip <= block.columns; column += kStrip) {
    vfloat total[kVectors] = {};
    for (int64_t row = 0; row < block.rows; ++row) {
      const T* scores = row_of<const T>(block, row) + column;
#pragma GCC unroll 4
      for (int i = 0; i < kVectors; ++i) total[i] += load(scores + i * kWidth) * factors[row];
    }
    for (int i = 0; i < kVectors; ++i) store(sums + column + i * kWidth, total[i]);
  }
  for (; column < block.columns; column += kWidth) {
    const int64_t count = block.columns - column < kWidth ? block.columns - column : kWidth;
    vfloat total = {};
    for (int64_t row = 0; row < block.rows; ++row) {
      total += load(row_of<const T>(block, row) + column, count) * factors[row];
    }
    store(sums + column, total, count);
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
    {&scan<bfloat16>, &scan<float>},
    {&gradient<bfloat16>, &gradient<float>},
    {&column_sums<bfloat16>, &column_sums<float>},
    {&add<bfloat16>, &add<float>},
};

}  // namespace spanbert_fast::SPANBERT_FAST_ISA
