// Shared by antecedent_loss and antecedent_top_k: their inputs, and tasks over tiles of pairs.
#pragma once

#include "cpu/common.h"
#include "cpu/kernels/antecedents.h"
#include "cpu/products.h"

namespace spanbert_fast {

constexpr int64_t kPairRows = 128;  // rows of a tile

// The inputs of both ops: checked, contiguous, scores in float.
struct Pairs {
  // The queries of one task, which lie in one document.
  struct Block {
    int64_t document_begin, document_end;
    Range rows;
  };

  Tensor queries, keys, mention_scores, distance_scores;
  int64_t mentions, features;
  Format format;
  std::vector<Block> blocks;

  Pairs(
      const Tensor& queries_, const Tensor& keys_, const Tensor& mention_scores_,
      const Tensor& distance_scores_, const Tensor& cu_mentions)
      : format(format_of("queries", queries_)) {
    SPANBERT_FAST_CHECK(
        queries_.dim() == 2, "queries must have shape (mentions, features), got ",
        shape_of(queries_));
    SPANBERT_FAST_CHECK(
        format != Format::float16, "queries must be bfloat16 or float32, got torch.float16");
    mentions = queries_.size(0);
    features = queries_.size(1);
    check_like("keys", keys_, queries_);
    check_shape("distance_scores", distance_scores_, {mentions, kNumDistances});
    check_dtype("cu_mentions", cu_mentions, kInt);
    SPANBERT_FAST_CHECK(
        cu_mentions.dim() == 1 && cu_mentions.size(0) > 0,
        "cu_mentions must have shape (documents + 1,), got ", shape_of(cu_mentions));
    queries = as_contiguous(queries_);
    keys = as_contiguous(keys_);
    mention_scores = float_vector("mention_scores", mention_scores_, mentions);
    distance_scores = cast(distance_scores_, kFloat);
    const Tensor values = as_contiguous(cu_mentions);
    const int32_t* bounds = data_of<int32_t>(values);
    const int64_t documents = cu_mentions.size(0) - 1;
    SPANBERT_FAST_CHECK(bounds[0] == 0, "cu_mentions must start at 0, got ", bounds[0]);
    SPANBERT_FAST_CHECK(
        bounds[documents] == mentions, "cu_mentions must end at ", mentions, ", got ",
        bounds[documents]);
    for (int64_t i = 0; i < documents; ++i) {
      SPANBERT_FAST_CHECK(
          bounds[i] <= bounds[i + 1], "cu_mentions must not fall, got ", bounds[i], " then ",
          bounds[i + 1], " at index ", i + 1);
      for (const Range rows : blocks_of(bounds[i], bounds[i + 1], kPairRows)) {
        blocks.push_back({bounds[i], bounds[i + 1], rows});
      }
    }
  }

  ScalarType dtype() const { return queries.scalar_type(); }

  // The tile of products of some queries and keys, in `buffer`.
  PairTile tile(
      Buffer& buffer, Range rows, Range columns, const int64_t* clusters = nullptr) const {
    const Matrix products = buffer.get(rows.size, columns.size, dtype());
    multiply(
        Matrix::of(queries).row_range(rows), Matrix::of(keys).row_range(columns).transposed(),
        products);
    return {
        products.row(0),
        columns.size,
        rows.size,
        columns.size,
        rows.first,
        columns.first,
        data_of<float>(mention_scores),
        data_of<float>(distance_scores),
        clusters};
  }
};

}  // namespace spanbert_fast
