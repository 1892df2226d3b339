// Kernels of antecedent_loss and antecedent_top_k: what happens to a tile of pairs' products.
//
// A tile has the products of some queries with some keys of one document. Query i's candidates are
// the keys before it: in a tile whose first key is c they are the first `count` columns, those
// whose distance is 64 or more first.
#pragma once

#include <cstdint>

#include "cpu/dispatch.h"
#include "cpu/kernels/format.h"

namespace spanbert_fast {

constexpr int64_t kMostPairColumns = 256;
constexpr int64_t kNumDistances = 10;

struct PairTile {
  void* products;  // (rows, columns), rows `stride` elements apart
  int64_t stride, rows, columns;
  int64_t first_query, first_key;  // mentions
  const float *mention_scores, *distance_scores;  // of all mentions: (mentions,), (mentions, 10)
  const int64_t* clusters;                        // of all mentions
};

// Of each row: the largest score and the sum of exp(score - largest), of all candidates and of
// those of its cluster. Updated: rows without any stay as they are.
struct PairStatistics {
  float *top, *sum, *gold_top, *gold_sum;
};
using AntecedentScan = void(const PairTile&, const PairStatistics&);

// d = dlosses (exp(s - lse) - [gold] exp(s - gold_lse)) in the products' memory, 0 where there is
// no candidate. The sums of rows go to row_sums and distance_sums, of columns to column_sums; those
// of the two that are null are not made. lse, gold_lse, dlosses, row_sums (rows,); distance_sums
// (rows, 10).
struct PairGradient {
  const float *lse, *gold_lse, *dlosses;
  float *row_sums, *distance_sums, *column_sums;
};
using AntecedentGradient = void(const PairTile&, const PairGradient&);

// The k best of each row, falling, ties in the order of keys. scores and antecedents (rows, k).
using AntecedentBest = void(const PairTile&, int64_t k, float* scores, int64_t* antecedents);

// total (rows, columns) += part (rows, columns), both contiguous.
using AntecedentAdd = void(const void* part, int64_t count, float* total);

struct AntecedentKernels {
  // by the format of the products: bfloat16 or float32
  PerFormat<AntecedentScan> scan;
  PerFormat<AntecedentGradient> gradient;
  PerFormat<AntecedentBest> best;
  PerFormat<AntecedentAdd> add;
};

}  // namespace spanbert_fast

SPANBERT_FAST_DECLARE_KERNELS(AntecedentKernels, antecedent_kernels)
