// Kernels of linear_cross_entropy, which work on scores between the matrix products.
#pragma once

#include <cstdint>

#include "cpu/dispatch.h"
#include "cpu/kernels/format.h"

namespace spanbert_fast {

constexpr int64_t kMostScoreColumns = 256;

// Scores of some rows, all of one group, for some columns of the vocabulary.
struct ScoreBlock {
  const void* scores;  // (rows, columns), rows `stride` elements apart
  int64_t stride, rows, columns, first_column;
  const float* bias;       // (columns,), to be added to the scores
  const int64_t* targets;  // (rows,), counted from the vocabulary's first column
};

// For each row: its largest score, the sum of exp(score - largest), and the column of the largest
// (the first of equal ones, counted from the vocabulary's first column; null if not asked for). The
// target's score is written for rows whose target is among the columns.
struct ScoreStatistics {
  float *top, *sum, *target_score;
  int64_t* best;
};
using LinearCrossEntropyScan = void(const ScoreBlock&, const ScoreStatistics&);

// d = dlosses (exp(scores + bias - top - log_sum) - onehot(targets)), rows `stride` elements apart;
// may be the scores' own memory. sums (columns,) gains the rows' sum of d before it is rounded.
struct ScoreGradient {
  const float *top, *log_sum, *dlosses;  // (rows,)
  void* d;
  int64_t stride;
  float* sums;
};
using LinearCrossEntropyGradient = void(const ScoreBlock&, const ScoreGradient&);

// total (rows, columns) += part (rows, columns, contiguous); rows of total `stride` apart.
using LinearCrossEntropyAdd =
    void(const void* part, int64_t rows, int64_t columns, float* total, int64_t stride);

struct LinearCrossEntropyKernels {
  // by the format of the products: bfloat16 or float32
  PerFormat<LinearCrossEntropyScan> scan;
  PerFormat<LinearCrossEntropyGradient> gradient;
  PerFormat<LinearCrossEntropyAdd> add;
};

}  // namespace spanbert_fast

SPANBERT_FAST_DECLARE_KERNELS(LinearCrossEntropyKernels, linear_cross_entropy_kernels)
