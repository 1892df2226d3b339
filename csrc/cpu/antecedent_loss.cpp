// antecedent_loss on the CPU: PyTorch computes the products of tiles of pairs, and
// kernels/antecedents.cpp has the passes over them. The backward goes over the pairs twice, by
// queries and by keys, so that one task computes each sum, in one order for any number of threads.
#include <cmath>

#include "cpu/antecedents.h"

namespace spanbert_fast {
namespace {

// (losses, lse, gold_lse); see spanbert_fast/ops/antecedent_loss.py.
std::tuple<Tensor, Tensor, Tensor> antecedent_loss_fwd(
    const Tensor& queries, const Tensor& keys, const Tensor& mention_scores,
    const Tensor& distance_scores, const Tensor& clusters_, const Tensor& cu_mentions) {
  const Pairs in(queries, keys, mention_scores, distance_scores, cu_mentions);
  const Tensor clusters = int64_vector("clusters", clusters_, in.mentions);
  const auto scan = SPANBERT_FAST_KERNELS(antecedent_kernels).scan[in.format];
  const Tensor losses = empty({in.mentions}, kFloat), lse = empty({in.mentions}, kFloat),
               gold_lse = empty({in.mentions}, kFloat);
  run_product_tasks(in.blocks.size(), [&](Buffers& buffers, int64_t i) {
    const auto& [begin, document_end, rows] = in.blocks[i];
    constexpr float kNone = -0x1.fffffep127f;
    // initially only "none", whose score is 0, and no gold antecedent
    std::vector<float> top(rows.size, 0.0f), sum(rows.size, 1.0f), gold_top(rows.size, kNone),
        gold_sum(rows.size, 0.0f);
    for (const Range columns : blocks_of(begin, rows.first + rows.size, kMostPairColumns)) {
      scan(
          in.tile(buffers.scores, rows, columns, data_of<int64_t>(clusters)),
          {top.data(), sum.data(), gold_top.data(), gold_sum.data()});
    }
    for (int64_t row = 0; row < rows.size; ++row) {
      const int64_t mention = rows.first + row;
      const float all = top[row] + std::log(sum[row]);
      const float gold = gold_sum[row] > 0 ? gold_top[row] + std::log(gold_sum[row]) : 0.0f;
      mutable_data_of<float>(losses)[mention] = all - gold;
      mutable_data_of<float>(lse)[mention] = all;
      mutable_data_of<float>(gold_lse)[mention] = gold;
    }
  });
  return {losses, lse, gold_lse};
}

// The gradients of queries, keys, mention_scores and distance_scores.
std::tuple<Tensor, Tensor, Tensor, Tensor> antecedent_loss_bwd(
    const Tensor& dlosses_, const Tensor& queries, const Tensor& keys, const Tensor& mention_scores,
    const Tensor& distance_scores, const Tensor& clusters_, const Tensor& cu_mentions,
    const Tensor& lse_, const Tensor& gold_lse_) {
  const Pairs in(queries, keys, mention_scores, distance_scores, cu_mentions);
  const Tensor clusters = int64_vector("clusters", clusters_, in.mentions);
  const Tensor dlosses = float_vector("dlosses", dlosses_, in.mentions);
  const Tensor lse = float_vector("lse", lse_, in.mentions);
  const Tensor gold_lse = float_vector("gold_lse", gold_lse_, in.mentions);
  const auto& kernels = SPANBERT_FAST_KERNELS(antecedent_kernels);
  std::vector<float> dqueries(in.mentions * in.features), dkeys(in.mentions * in.features),
      dscores(in.mentions), of_keys(in.mentions), ddistances(in.mentions * kNumDistances);
  const auto gradient_of = [&](Range rows, float* row_sums, float* distance_sums,
                               float* column_sums) -> PairGradient {
    return {
        data_of<float>(lse) + rows.first,
        data_of<float>(gold_lse) + rows.first,
        data_of<float>(dlosses) + rows.first,
        row_sums,
        distance_sums,
        column_sums};
  };
  const auto add_product = [&](Buffers& buffers, const Matrix& a, const Matrix& b, float* total) {
    const Matrix product = buffers.product.get(a.rows(), b.columns(), in.dtype());
    multiply(a, b, product);
    kernels.add[in.format](product.row(0), a.rows() * b.columns(), total);
  };
  const auto matrix_of = [&](const PairTile& tile) {
    return Matrix::at(tile.products, tile.rows, tile.columns, tile.stride, in.dtype());
  };
  run_product_tasks(in.blocks.size(), [&](Buffers& buffers, int64_t i) {
    const auto& [begin, document_end, rows] = in.blocks[i];
    for (const Range columns : blocks_of(begin, rows.first + rows.size, kMostPairColumns)) {
      const PairTile tile = in.tile(buffers.scores, rows, columns, data_of<int64_t>(clusters));
      float* distances = ddistances.data() + rows.first * kNumDistances;
      kernels.gradient[in.format](
          tile, gradient_of(rows, dscores.data() + rows.first, distances, nullptr));
      add_product(
          buffers, matrix_of(tile), Matrix::of(in.keys).row_range(columns),
          dqueries.data() + rows.first * in.features);
    }
  });
  run_product_tasks(in.blocks.size(), [&](Buffers& buffers, int64_t i) {
    const auto& [begin, document_end, columns] = in.blocks[i];
    for (const Range rows : blocks_of(columns.first, document_end, kPairRows)) {
      const PairTile tile = in.tile(buffers.scores, rows, columns, data_of<int64_t>(clusters));
      kernels.gradient[in.format](
          tile, gradient_of(rows, nullptr, nullptr, of_keys.data() + columns.first));
      add_product(
          buffers, matrix_of(tile).transposed(), Matrix::of(in.queries).row_range(rows),
          dkeys.data() + columns.first * in.features);
    }
  });
  for (int64_t i = 0; i < in.mentions; ++i) dscores[i] += of_keys[i];
  const Shape shape = {in.mentions, in.features};
  return {
      from_floats(dqueries.data(), shape, queries.scalar_type()),
      from_floats(dkeys.data(), shape, keys.scalar_type()),
      from_floats(dscores.data(), {in.mentions}, mention_scores.scalar_type()),
      from_floats(ddistances.data(), {in.mentions, kNumDistances}, distance_scores.scalar_type())};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(spanbert_fast, CPU, library) {
  library.impl("antecedent_loss_fwd", TORCH_BOX(&antecedent_loss_fwd));
  library.impl("antecedent_loss_bwd", TORCH_BOX(&antecedent_loss_bwd));
}

}  // namespace spanbert_fast
