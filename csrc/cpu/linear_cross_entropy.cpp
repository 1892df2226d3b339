// linear_cross_entropy on the CPU. The products are PyTorch's (oneDNN's reach 95 % of the peak that
// a CPU's bfloat16 units have), on tiles; the passes between them are in
// kernels/linear_cross_entropy.cpp.
//
// The forward leaves its first columns' scores, as many as the caller asks for, in memory; the
// backward makes the others again.
//
// Work is split by the shapes alone and every product runs on one thread: the bits of a result do
// not depend on the number of threads.
#include "cpu/kernels/linear_cross_entropy.h"

#include <cmath>
#include <vector>

#include "cpu/common.h"
#include "cpu/large_memory.h"
#include "cpu/ops.h"
#include "cpu/products.h"

namespace spanbert_fast {
namespace {

constexpr int64_t kBlockColumns = kMostScoreColumns;  // of the vocabulary, in a task
constexpr int64_t kForwardRows = 4096;                // in a task
// Columns whose gradients are there at once in the backward: one term of dX each time.
constexpr int64_t kPanelColumns = 2048, kPanelElements = 1 << 21;
constexpr int64_t kInputRows = 256, kInputColumns = 384;  // of dX, in a task

// The op's inputs, checked.
struct Inputs {
  at::Tensor hidden, weight, bias, targets;
  std::vector<int64_t> groups;  // where each one's rows start, and the last one's end
  int64_t rows, hidden_size, vocab_size, format;

  Inputs(
      const at::Tensor& hidden_, const at::Tensor& weight_, const at::Tensor& bias_,
      const at::Tensor& targets_, const std::vector<int64_t>& group_sizes)
      : weight(weight_), groups{0} {
    TORCH_CHECK_VALUE(
        hidden_.dim() == 2, "hidden must have shape (rows, hidden_size), got ", hidden_.sizes());
    TORCH_CHECK_TYPE(
        hidden_.scalar_type() == at::kBFloat16 || hidden_.scalar_type() == at::kFloat,
        "hidden must be bfloat16 or float32, got ", hidden_.scalar_type());
    rows = hidden_.size(0);
    hidden_size = hidden_.size(1);
    format = hidden_.scalar_type() == at::kFloat;
    TORCH_CHECK_VALUE(
        weight.dim() == 2 && weight.size(1) == hidden_size,
        "weight must have shape (vocab_size, ", hidden_size, "), got ", weight.sizes());
    vocab_size = weight.size(0);
    const int64_t num_groups = group_sizes.size();
    TORCH_CHECK_VALUE(
        bias_.dim() == 2 && bias_.size(0) == num_groups && bias_.size(1) == vocab_size,
        "bias must have shape (", num_groups, ", ", vocab_size, "), got ", bias_.sizes());
    for (const int64_t size : group_sizes) {
      TORCH_CHECK_VALUE(size >= 0, "group_sizes must not be negative, got ", size);
      groups.push_back(groups.back() + size);
    }
    TORCH_CHECK_VALUE(
        groups.back() == rows, "group_sizes must sum to ", rows, " rows, got ", groups.back());
    hidden = hidden_.contiguous();
    bias = bias_.to(at::kFloat).contiguous();
    targets = int64_vector("targets", targets_, rows);
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t target = targets.const_data_ptr<int64_t>()[row];
      TORCH_CHECK_VALUE(
          0 <= target && target < vocab_size, "targets must be in [0, ", vocab_size, "), got ",
          target);
    }
  }

  bool casts_weight() const {
    return weight.scalar_type() != hidden.scalar_type() || !weight.is_contiguous();
  }

  // Some of the weight's rows as the products take them; `memory` is written if it is defined.
  at::Tensor weight_rows(Range columns, const at::Tensor& memory) const {
    const at::Tensor part = weight.narrow(0, columns.first, columns.size);
    return memory.defined() ? memory.copy_(part) : part;
  }

  // kernel(block, group, first row) for each group's part of rows [first, first + scores' rows),
  // whose scores are `scores`.
  template <class Kernel>
  void for_groups(
      int64_t first, const at::Tensor& scores, int64_t first_column, const Kernel& kernel) const {
    const int64_t last = first + scores.size(0);
    for (size_t group = 0; group + 1 < groups.size(); ++group) {
      const int64_t begin = std::max(first, groups[group]), end = std::min(last, groups[group + 1]);
      if (begin >= end) continue;
      const ScoreBlock block = {
          bytes(scores) + (begin - first) * scores.stride(0) * scores.element_size(),
          scores.stride(0), end - begin, scores.size(1), first_column,
          bias.const_data_ptr<float>() + group * vocab_size + first_column,
          targets.const_data_ptr<int64_t>() + begin};
      kernel(block, group, begin);
    }
  }
};

// What the forward's tasks find out about their rows: (blocks, rows).
struct Scan {
  at::Tensor top, sum, best;

  Scan(int64_t blocks, int64_t rows, bool with_best) {
    const auto shape = {blocks, rows};
    top = at::empty(shape, at::kFloat);
    sum = at::empty(shape, at::kFloat);
    if (with_best) best = at::empty(shape, at::kLong);
  }

  ScoreStatistics at_row(int64_t block, int64_t row, float* target_scores) const {
    const int64_t offset = block * top.size(1) + row;
    return {
        top.mutable_data_ptr<float>() + offset, sum.mutable_data_ptr<float>() + offset,
        target_scores + row, best.defined() ? best.mutable_data_ptr<int64_t>() + offset : nullptr};
  }
};

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> linear_cross_entropy_fwd(
    const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& bias,
    const at::Tensor& targets, const std::vector<int64_t>& group_sizes, bool with_predictions,
    int64_t kept_columns) {
  const Inputs in(hidden, weight, bias, targets, group_sizes);
  TORCH_CHECK_VALUE(
      0 <= kept_columns && kept_columns <= in.vocab_size &&
          (kept_columns % kBlockColumns == 0 || kept_columns == in.vocab_size),
      "kept_columns must be a multiple of ", kBlockColumns, " up to vocab_size, or vocab_size = ",
      in.vocab_size, ", got ", kept_columns);
  const auto& kernels = SPANBERT_FAST_KERNELS(linear_cross_entropy_kernels);
  const at::TensorOptions options = in.hidden.options();
  const at::Tensor losses = at::empty({in.rows}, at::kFloat);
  const at::Tensor lse = at::empty({2, in.rows}, at::kFloat);
  float *tops = lse.mutable_data_ptr<float>(), *log_sums = tops + in.rows;
  const at::Tensor predictions = at::empty({with_predictions ? in.rows : 0}, at::kLong);
  const at::Tensor kept = empty_large({in.rows, kept_columns}, options);
  const std::vector<Range> blocks = blocks_of(0, in.vocab_size, kBlockColumns);
  for (const Range rows : blocks_of(0, in.rows, kForwardRows)) {
    const at::Tensor x = in.hidden.narrow(0, rows.first, rows.size);
    const at::Tensor kept_rows = kept.narrow(0, rows.first, rows.size);
    const Scan found(blocks.size(), rows.size, with_predictions);
    float* loss = losses.mutable_data_ptr<float>() + rows.first;  // at first the target's score
    run_product_tasks(blocks.size(), [&](Buffers& buffers, int64_t i) {
      const Range columns = blocks[i];
      at::Tensor cast;
      if (in.casts_weight()) cast = buffers.weight.get(columns.size, in.hidden_size, options);
      at::Tensor scores = columns.first < kept_columns
          ? kept_rows.narrow(1, columns.first, columns.size)
          : buffers.scores.get(rows.size, columns.size, options);
      at::mm_out(scores, x, in.weight_rows(columns, cast).t());
      in.for_groups(
          rows.first, scores, columns.first, [&](const ScoreBlock& block, int64_t, int64_t row) {
            kernels.scan[in.format](block, found.at_row(i, row - rows.first, loss));
          });
    });
    const int64_t count = blocks.size();
    at::parallel_for(0, rows.size, 16, [&](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; ++row) {
        int64_t top_block = 0;
        for (int64_t i = 1; i < count; ++i) {
          const float top = *found.at_row(top_block, row, loss).top;
          if (*found.at_row(i, row, loss).top > top) top_block = i;
        }
        const ScoreStatistics best = found.at_row(top_block, row, loss);
        float sum = 0;  // at least 1, the largest score's own term: no loss is negative
        for (int64_t i = 0; i < count; ++i) {
          const ScoreStatistics part = found.at_row(i, row, loss);
          sum += *part.sum * std::exp(*part.top - *best.top);
        }
        tops[rows.first + row] = *best.top;
        log_sums[rows.first + row] = std::log(sum);
        loss[row] = *best.top - loss[row] + std::log(sum);
        if (with_predictions) {
          predictions.mutable_data_ptr<int64_t>()[rows.first + row] = *best.best;
        }
      }
    });
  }
  return {losses, lse, predictions, kept};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> linear_cross_entropy_bwd(
    const at::Tensor& dlosses_, const at::Tensor& hidden, const at::Tensor& weight,
    const at::Tensor& bias, const at::Tensor& targets, const at::Tensor& lse_,
    const at::Tensor& kept, const std::vector<int64_t>& group_sizes) {
  const Inputs in(hidden, weight, bias, targets, group_sizes);
  const at::Tensor dlosses = float_vector("dlosses", dlosses_, in.rows);
  const at::Tensor lse = float_vector("lse", lse_.flatten(), 2 * in.rows);
  const float *tops = lse.const_data_ptr<float>(), *log_sums = tops + in.rows;
  const auto& kernels = SPANBERT_FAST_KERNELS(linear_cross_entropy_kernels);
  const at::TensorOptions options = in.hidden.options();
  const int64_t num_groups = group_sizes.size(), kept_columns = kept.size(1);
  const at::Tensor dhidden = at::zeros({in.rows, in.hidden_size}, at::kFloat);
  const at::Tensor dweight = empty_large(weight.sizes(), weight.options());
  const at::Tensor dbias = at::zeros({num_groups, in.vocab_size}, at::kFloat);

  const int64_t panel_width = std::clamp(
      kPanelElements / std::max<int64_t>(1, in.rows) / kBlockColumns * kBlockColumns, kBlockColumns,
      kPanelColumns);
  Buffer weight_memory, d_memory;
  for (const Range panel : blocks_of(0, in.vocab_size, panel_width)) {
    const at::Tensor d = d_memory.get(in.rows, panel.size, options);
    at::Tensor cast;
    if (in.casts_weight()) cast = weight_memory.get(panel.size, in.hidden_size, options);
    const std::vector<Range> blocks = blocks_of(0, panel.size, kBlockColumns);
    run_product_tasks(blocks.size(), [&](Buffers& buffers, int64_t i) {
      const Range inside = blocks[i], columns = {panel.first + inside.first, inside.size};
      const at::Tensor w = in.weight_rows(
          columns, cast.defined() ? cast.narrow(0, inside.first, inside.size) : cast);
      at::Tensor d_block = d.narrow(1, inside.first, inside.size);
      const bool is_kept = columns.first < kept_columns;
      if (!is_kept) at::mm_out(d_block, in.hidden, w.t());
      const at::Tensor scores = is_kept ? kept.narrow(1, columns.first, columns.size) : d_block;
      in.for_groups(
          0, scores, columns.first, [&](const ScoreBlock& block, int64_t group, int64_t row) {
            kernels.gradient[in.format](
                block,
                {tops + row, log_sums + row, dlosses.const_data_ptr<float>() + row,
                 mutable_bytes(d_block) + row * d.stride(0) * d.element_size(), d.stride(0),
                 dbias.mutable_data_ptr<float>() + group * in.vocab_size + columns.first});
          });
      at::Tensor dw = dweight.narrow(0, columns.first, columns.size);
      if (dw.scalar_type() == d.scalar_type()) {
        at::mm_out(dw, d_block.t(), in.hidden);
      } else {
        at::Tensor product = buffers.product.get(columns.size, in.hidden_size, options);
        at::mm_out(product, d_block.t(), in.hidden);
        dw.copy_(product);
      }
    });
    const at::Tensor w = cast.defined() ? cast : in.weight_rows(panel, cast);
    const std::vector<Range> rows = blocks_of(0, in.rows, kInputRows);
    const std::vector<Range> columns = blocks_of(0, in.hidden_size, kInputColumns);
    run_product_tasks(rows.size() * columns.size(), [&](Buffers& buffers, int64_t i) {
      const Range r = rows[i / columns.size()], c = columns[i % columns.size()];
      at::Tensor product = buffers.product.get(r.size, c.size, options);
      at::mm_out(product, d.narrow(0, r.first, r.size), w.narrow(1, c.first, c.size));
      kernels.add[in.format](
          product.const_data_ptr(), r.size, c.size,
          dhidden.mutable_data_ptr<float>() + r.first * in.hidden_size + c.first, in.hidden_size);
    });
  }
  return {dhidden.to(hidden.scalar_type()), dweight, as_output(dbias, bias.scalar_type())};
}

}  // namespace spanbert_fast
