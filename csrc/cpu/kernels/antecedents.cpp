// The passes over a tile of pairs, which is in cache after its product.
#include "cpu/kernels/antecedents.h"

#include "cpu/kernels/simd.h"

namespace spanbert_fast::SPANBERT_FAST_ISA {
namespace {

constexpr float kLog2E = 0x1.715476p+0f;
constexpr float kLowest = -0x1.fffffep127f;
constexpr int64_t kFar = 64;  // all distances from here on are one bucket

SPANBERT_FAST_INLINE int64_t bucket_of(int64_t distance) {
  int64_t bucket = distance < 4 ? distance : 4;
  for (int64_t bound = 5; bound <= kFar; bound = bound == 5 ? 8 : 2 * bound) {
    bucket += distance >= bound;
  }
  return bucket;
}

SPANBERT_FAST_INLINE float exponential(float x) { return exp2<float>(broadcast(x * kLog2E))[0]; }

template <class T>
T* row_of(const PairTile& tile, int64_t row) {
  return static_cast<T*>(tile.products) + row * tile.stride;
}

// How many of the tile's first columns are candidates of a row.
int64_t count_of(const PairTile& tile, int64_t row) {
  const int64_t count = tile.first_query + row - tile.first_key;
  return count < 0 ? 0 : count < tile.columns ? count : tile.columns;
}

// How many of these have a distance of kFar or more.
int64_t far_of(const PairTile& tile, int64_t row, int64_t count) {
  const int64_t far = tile.first_query + row - kFar - tile.first_key + 1;
  return far < 0 ? 0 : far < count ? far : count;
}

// z = the scores of a row's candidates.
template <class T>
void scores_of(const PairTile& tile, int64_t row, int64_t count, float* z) {
  const T* products = row_of<T>(tile, row);
  const int64_t query = tile.first_query + row;
  const float own = tile.mention_scores[query];
  const float* others = tile.mention_scores + tile.first_key;
  const float* distances = tile.distance_scores + query * kNumDistances;
  const float far_score = own + distances[kNumDistances - 1];
  const int64_t far = far_of(tile, row, count);
  for_vectors(count, [&](int64_t c, auto n) SPANBERT_FAST_INLINE_BODY {
    store(z + c, load(products + c, n) + load(others + c, n) + far_score, n);
  });
  for (int64_t c = far; c < count; ++c) {
    const float distance = distances[bucket_of(query - tile.first_key - c)];
    z[c] = load(products + c, int64_t{1})[0] + others[c] + (own + distance);
  }
}

// Joins a running (top, sum) with that of more scores.
SPANBERT_FAST_INLINE void join(float* top, float* sum, float new_top, float new_sum) {
  if (new_top > *top) {
    *sum = *sum * exponential(*top - new_top) + new_sum;
    *top = new_top;
  } else {
    *sum += new_sum * exponential(new_top - *top);
  }
}

template <class T>
void scan(const PairTile& tile, const PairStatistics& to) {
  float z[kMostPairColumns];
  const int64_t* clusters = tile.clusters + tile.first_key;
  for (int64_t row = 0; row < tile.rows; ++row) {
    const int64_t count = count_of(tile, row);
    if (count == 0) continue;
    scores_of<T>(tile, row, count, z);
    float top = kLowest;
    for (int64_t c = 0; c < count; ++c) top = z[c] > top ? z[c] : top;
    vfloat total = {};
    for_vectors(count, [&](int64_t c, auto n) SPANBERT_FAST_INLINE_BODY {
      total += first_lanes(exp2<float>((load(z + c, n) - top) * kLog2E), n);
    });
    join(to.top + row, to.sum + row, top, sum(total));
    const int64_t cluster = tile.clusters[tile.first_query + row];
    if (cluster < 0) continue;
    for (int64_t c = 0; c < count; ++c) {
      if (clusters[c] == cluster) join(to.gold_top + row, to.gold_sum + row, z[c], 1.0f);
    }
  }
}

template <class T>
void gradient(const PairTile& tile, const PairGradient& to) {
  float z[kMostPairColumns];
  const int64_t* clusters = tile.clusters + tile.first_key;
  for (int64_t row = 0; row < tile.rows; ++row) {
    T* out = row_of<T>(tile, row);
    const int64_t count = count_of(tile, row), query = tile.first_query + row;
    scores_of<T>(tile, row, count, z);
    const float lse = to.lse[row], dloss = to.dlosses[row];
    const int64_t cluster = tile.clusters[query];
    if (cluster >= 0) {
      // subtracted before rounding: the terms cancel if a row is sure of its antecedent
      for (int64_t c = 0; c < count; ++c) {
        const float score = z[c];
        z[c] = exponential(score - lse) * dloss;
        if (clusters[c] == cluster) z[c] -= exponential(score - to.gold_lse[row]) * dloss;
      }
    } else {
      for_vectors(count, [&](int64_t c, auto n) SPANBERT_FAST_INLINE_BODY {
        store(z + c, exp2<float>((load(z + c, n) - lse) * kLog2E) * dloss, n);
      });
    }
    for (int64_t c = count; c < tile.columns; ++c) z[c] = 0.0f;
    for_vectors(tile.columns, [&](int64_t c, auto n) SPANBERT_FAST_INLINE_BODY {
      store(out + c, load(z + c, n), n);
    });
    if (to.column_sums != nullptr) {
      for_vectors(count, [&](int64_t c, auto n) SPANBERT_FAST_INLINE_BODY {
        store(to.column_sums + c, load(to.column_sums + c, n) + load(z + c, n), n);
      });
    }
    if (to.row_sums == nullptr) continue;
    const int64_t far = far_of(tile, row, count);
    vfloat far_total = {};
    for_vectors(far, [&](int64_t c, auto n) SPANBERT_FAST_INLINE_BODY {
      far_total += first_lanes(load(z + c, n), n);
    });
    float* sums = to.distance_sums + row * kNumDistances;
    float near_total = 0.0f;
    for (int64_t c = far; c < count; ++c) {
      sums[bucket_of(query - tile.first_key - c)] += z[c];
      near_total += z[c];
    }
    const float of_far = sum(far_total);
    sums[kNumDistances - 1] += of_far;
    to.row_sums[row] += of_far + near_total;
  }
}

template <class T>
void best(const PairTile& tile, int64_t k, float* scores, int64_t* antecedents) {
  float z[kMostPairColumns];
  for (int64_t row = 0; row < tile.rows; ++row, scores += k, antecedents += k) {
    const int64_t count = count_of(tile, row);
    scores_of<T>(tile, row, count, z);
    for (int64_t c = 0; c < count; ++c) {
      if (!(z[c] > scores[k - 1])) continue;
      int64_t place = k - 1;
      for (; place > 0 && z[c] > scores[place - 1]; --place) {
        scores[place] = scores[place - 1];
        antecedents[place] = antecedents[place - 1];
      }
      scores[place] = z[c];
      antecedents[place] = tile.first_key + c;
    }
  }
}

template <class T>
void add(const void* part_data, int64_t count, float* total) {
  const T* part = static_cast<const T*>(part_data);
  for_vectors(count, [&](int64_t c, auto n) SPANBERT_FAST_INLINE_BODY {
    store(total + c, load(total + c, n) + load(part + c, n), n);
  });
}

}  // namespace

const AntecedentKernels antecedent_kernels = {
    {{&scan<bfloat16>, nullptr, &scan<float>}},
    {{&gradient<bfloat16>, nullptr, &gradient<float>}},
    {{&best<bfloat16>, nullptr, &best<float>}},
    {{&add<bfloat16>, nullptr, &add<float>}},
};

}  // namespace spanbert_fast::SPANBERT_FAST_ISA
