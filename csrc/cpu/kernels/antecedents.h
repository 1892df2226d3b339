// Kernels of antecedent_loss and antecedent_top_k, which work on the products of a tile of pairs.
//
// A tile has the products of some queries with some keys of one document. The candidates of a query
// are the keys before it: the first columns of a tile, of which those at a distance of 64 or more
// come first.
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
  const int64_t* clusters;  // of all mentions
};

// Updates each row's largest score and sum of exp(score - largest), over all candidates and over
// those of its cluster; rows without any are left alone.
struct PairStatistics {
  float *top, *sum, *gold_top, *gold_sum;
};
using AntecedentScan = void(const PairTile&, const PairStatistics&);

// d = dlosses (exp(s - lse) - [gold] exp(s - gold_lse)) in the products' memory, 0 where there is
// no candidate. Sums of rows go to row_sums and distance_sums, sums of columns to column_sums; what
// is null is not computed. lse, gold_lse, dlosses, row_sums: (rows,); distance_sums: (rows, 10).
struct PairGradient {
  const float *lse, *gold_lse, *dlosses;
  float *row_sums, *distance_sums, *column_sums;
};
using AntecedentGradient = void(const PairTile&, const PairGradient&);

// The k best of each row, from high to low, ties in the order of keys: (rows, k).
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
