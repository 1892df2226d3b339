// antecedent_top_k on the CPU: PyTorch computes the products of tiles of pairs, and each tile is
// merged into the k best antecedents of its queries.
#include <limits>

#include "cpu/antecedents.h"

namespace spanbert_fast {
namespace {

// (scores, antecedents); see spanbert_fast/ops/antecedent_top_k.py.
std::tuple<Tensor, Tensor> antecedent_top_k_fwd(
    const Tensor& queries, const Tensor& keys, const Tensor& mention_scores,
    const Tensor& distance_scores, const Tensor& cu_mentions, int64_t k) {
  const Pairs in(queries, keys, mention_scores, distance_scores, cu_mentions);
  SPANBERT_FAST_CHECK(k >= 1, "k must be at least 1, got ", k);
  const auto best = SPANBERT_FAST_KERNELS(antecedent_kernels).best[in.format];
  const Tensor scores = empty({in.mentions, k}, kFloat), found = empty({in.mentions, k}, kLong);
  float* const all_scores = mutable_data_of<float>(scores);
  int64_t* const all_found = mutable_data_of<int64_t>(found);
  std::fill_n(all_scores, in.mentions * k, -std::numeric_limits<float>::infinity());
  std::fill_n(all_found, in.mentions * k, int64_t{-1});
  run_product_tasks(in.blocks.size(), [&](Buffers& buffers, int64_t i) {
    const auto& [begin, document_end, rows] = in.blocks[i];
    for (const Range columns : blocks_of(begin, rows.first + rows.size, kMostPairColumns)) {
      best(
          in.tile(buffers.scores, rows, columns), k, all_scores + rows.first * k,
          all_found + rows.first * k);
    }
  });
  return {scores, found};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(spanbert_fast, CPU, library) {
  library.impl("antecedent_top_k_fwd", TORCH_BOX(&antecedent_top_k_fwd));
}

}  // namespace spanbert_fast
