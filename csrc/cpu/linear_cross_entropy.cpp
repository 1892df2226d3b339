// linear_cross_entropy on the CPU, in tiles. PyTorch computes the products (oneDNN reaches 95 % of
// the peak of a CPU's bfloat16 units); the passes between them are in
// kernels/linear_cross_entropy.cpp.
//
// The forward keeps the scores of its first columns, as many as the caller asks for; the backward
// computes the others again.
//
// The shapes alone determine how work is split, and every product runs on one thread, so the bits
// of a result do not depend on the number of threads.
#include "cpu/kernels/linear_cross_entropy.h"

#include <cmath>

#include "cpu/common.h"
#include "cpu/large_memory.h"
#include "cpu/products.h"

namespace spanbert_fast {
namespace {

constexpr int64_t kBlockColumns = kMostScoreColumns;  // columns of the vocabulary in a task
constexpr int64_t kForwardRows = 4096;  // rows in a task
// Columns whose gradients the backward holds at once; they give one term of dX.
constexpr int64_t kPanelColumns = 2048, kPanelElements = 1 << 21;
constexpr int64_t kInputRows = 256, kInputColumns = 384;  // of dX in a task

// The op's inputs, checked.
struct Inputs {
  Tensor hidden, weight, bias, targets;
  std::vector<int64_t> groups{0};  // the first row of each group, and the end
  int64_t rows, hidden_size, vocab_size;
  Format format;

  Inputs(
      const Tensor& hidden_, const Tensor& weight_, const Tensor& bias_, const Tensor& targets_,
      const std::vector<int64_t>& group_sizes)
      : weight(weight_), format(format_of("hidden", hidden_)) {
    SPANBERT_FAST_CHECK(
        hidden_.dim() == 2, "hidden must have shape (rows, hidden_size), got ", shape_of(hidden_));
    SPANBERT_FAST_CHECK(
        format != Format::float16, "hidden must be bfloat16 or float32, got torch.float16");
    rows = hidden_.size(0);
    hidden_size = hidden_.size(1);
    SPANBERT_FAST_CHECK(
        weight.dim() == 2 && weight.size(1) == hidden_size, "weight must have shape (vocab_size, ",
        hidden_size, "), got ", shape_of(weight));
    vocab_size = weight.size(0);
    check_shape("bias", bias_, {static_cast<int64_t>(group_sizes.size()), vocab_size});
    for (const int64_t size : group_sizes) {
      SPANBERT_FAST_CHECK(size >= 0, "group_sizes must not be negative, got ", size);
      SPANBERT_FAST_CHECK(  // before the sum may overflow an int64
          size <= rows - groups.back(), "group_sizes must sum to ", rows, " rows, got ",
          Shape(group_sizes));
      groups.push_back(groups.back() + size);
    }
    SPANBERT_FAST_CHECK(
        groups.back() == rows, "group_sizes must sum to ", rows, " rows, got ", Shape(group_sizes));
    hidden = as_contiguous(hidden_);
    bias = cast(bias_, kFloat);
    targets = int64_vector("targets", targets_, rows);
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t target = data_of<int64_t>(targets)[row];
      SPANBERT_FAST_CHECK(
          0 <= target && target < vocab_size, "targets must be in [0, ", vocab_size, "), got ",
          target);
    }
  }

  ScalarType dtype() const { return hidden.scalar_type(); }

  bool casts_weight() const { return weight.scalar_type() != dtype() || !weight.is_contiguous(); }

  // Some rows of the weight for the products; rows that must be cast are cast into `memory`.
  Matrix weight_rows(Range columns, const std::optional<Matrix>& memory) const {
    const Tensor part =
        torch::stable::narrow(const_cast<Tensor&>(weight), 0, columns.first, columns.size);
    if (!memory) return Matrix::of(part);
    Tensor to = memory->tensor;
    torch::stable::copy_(to, part);
    return *memory;
  }

  // kernel(block, group, first row) for each group's part of rows [first, first + scores.rows()).
  template <class Kernel>
  void for_groups(
      int64_t first, const Matrix& scores, int64_t first_column, const Kernel& kernel) const {
    const int64_t last = first + scores.rows();
    for (size_t group = 0; group + 1 < groups.size(); ++group) {
      const int64_t begin = std::max(first, groups[group]), end = std::min(last, groups[group + 1]);
      if (begin >= end) continue;
      const ScoreBlock block = {
          scores.row(begin - first),
          scores.stride(),
          end - begin,
          scores.columns(),
          first_column,
          data_of<float>(bias) + group * vocab_size + first_column,
          data_of<int64_t>(targets) + begin};
      kernel(block, group, begin);
    }
  }
};

// The results of the forward's tasks for their rows: (blocks, rows).
struct Scan {
  int64_t rows;
  std::vector<float> top, sum;
  std::vector<int64_t> best;

  Scan(int64_t blocks, int64_t rows_, bool with_best)
      : rows(rows_),
        top(blocks * rows_),
        sum(blocks * rows_),
        best(with_best ? blocks * rows_ : 0) {}

  ScoreStatistics at_row(int64_t block, int64_t row, float* target_scores) {
    const int64_t offset = block * rows + row;
    return {
        top.data() + offset, sum.data() + offset, target_scores + row,
        best.empty() ? nullptr : best.data() + offset};
  }
};

// The result of a whole row, joined from the blocks' parts in their order.
ScoreStatistics join(
    Scan& found, int64_t blocks, int64_t row, float* target_scores, float* log_sum) {
  int64_t top_block = 0;
  for (int64_t i = 1; i < blocks; ++i) {
    const float top = *found.at_row(top_block, row, target_scores).top;
    if (*found.at_row(i, row, target_scores).top > top) top_block = i;
  }
  const ScoreStatistics best = found.at_row(top_block, row, target_scores);
  float sum = 0;  // at least 1, the term of the largest score, so no loss is negative
  for (int64_t i = 0; i < blocks; ++i) {
    const ScoreStatistics part = found.at_row(i, row, target_scores);
    sum += *part.sum * std::exp(*part.top - *best.top);
  }
  *log_sum = std::log(sum);
  return best;
}

// (losses, predictions, lse, saved); see spanbert_fast/ops/linear_cross_entropy.py.
std::tuple<Tensor, Tensor, Tensor, Tensor> linear_cross_entropy_fwd(
    const Tensor& hidden_, const Tensor& weight, const Tensor& bias, const Tensor& targets,
    const std::vector<int64_t>& group_sizes, bool with_predictions, int64_t saved_columns) {
  const Inputs in(hidden_, weight, bias, targets, group_sizes);
  SPANBERT_FAST_CHECK(
      0 <= saved_columns && saved_columns <= in.vocab_size &&
          (saved_columns % kBlockColumns == 0 || saved_columns == in.vocab_size),
      "saved_columns must be a multiple of ", kBlockColumns,
      " up to vocab_size, or vocab_size = ", in.vocab_size, ", got ", saved_columns);
  const auto scan = SPANBERT_FAST_KERNELS(linear_cross_entropy_kernels).scan[in.format];
  const Tensor losses = empty({in.rows}, kFloat), lse = empty({2, in.rows}, kFloat);
  float *tops = mutable_data_of<float>(lse), *log_sums = tops + in.rows;
  const Tensor predictions = empty({with_predictions ? in.rows : 0}, kLong);
  const Tensor saved = empty_large({in.rows, saved_columns}, in.dtype());
  const Matrix hidden = Matrix::of(in.hidden), saved_scores = Matrix::of(saved);
  const std::vector<Range> blocks = blocks_of(0, in.vocab_size, kBlockColumns);
  for (const Range rows : blocks_of(0, in.rows, kForwardRows)) {
    const Matrix x = hidden.row_range(rows);
    Scan found(blocks.size(), rows.size, with_predictions);
    float* loss = mutable_data_of<float>(losses) + rows.first;  // initially the target's score
    run_product_tasks(blocks.size(), [&](Buffers& buffers, int64_t i) {
      const Range columns = blocks[i];
      std::optional<Matrix> cast;
      if (in.casts_weight()) cast = buffers.weight.get(columns.size, in.hidden_size, in.dtype());
      const Matrix scores = columns.first < saved_columns
          ? saved_scores.row_range(rows).column_range(columns)
          : buffers.scores.get(rows.size, columns.size, in.dtype());
      multiply(x, in.weight_rows(columns, cast).transposed(), scores);
      in.for_groups(
          rows.first, scores, columns.first, [&](const ScoreBlock& block, int64_t, int64_t row) {
            scan(block, found.at_row(i, row - rows.first, loss));
          });
    });
    parallel_for(0, rows.size, 16, [&](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; ++row) {
        float log_sum;
        const ScoreStatistics best = join(found, blocks.size(), row, loss, &log_sum);
        tops[rows.first + row] = *best.top;
        log_sums[rows.first + row] = log_sum;
        loss[row] = *best.top - loss[row] + log_sum;
        if (with_predictions) {
          mutable_data_of<int64_t>(predictions)[rows.first + row] = *best.best;
        }
      }
    });
  }
  return {losses, predictions, lse, saved};
}

// The gradients of hidden, weight and bias.
std::tuple<Tensor, Tensor, Tensor> linear_cross_entropy_bwd(
    const Tensor& dlosses_, const Tensor& hidden_, const Tensor& weight, const Tensor& bias,
    const Tensor& targets, const std::vector<int64_t>& group_sizes, bool with_predictions,
    int64_t saved_columns, const Tensor& lse_, const Tensor& saved_) {
  const Inputs in(hidden_, weight, bias, targets, group_sizes);
  const Tensor dlosses = float_vector("dlosses", dlosses_, in.rows);
  check_shape("lse", lse_, {2, in.rows});
  check_shape("saved", saved_, {in.rows, saved_columns});
  check_dtype("saved", saved_, in.dtype());
  const Tensor lse = cast(lse_, kFloat), saved = as_contiguous(saved_);
  const float *tops = data_of<float>(lse), *log_sums = tops + in.rows;
  const auto& kernels = SPANBERT_FAST_KERNELS(linear_cross_entropy_kernels);
  const int64_t num_groups = group_sizes.size();
  std::vector<float> dhidden(in.rows * in.hidden_size), dbias(num_groups * in.vocab_size);
  const Tensor dweight = empty_large(shape_of(weight), weight.scalar_type());
  const Matrix hidden = Matrix::of(in.hidden), saved_scores = Matrix::of(saved);
  const Matrix dweight_rows = Matrix::of(dweight);

  const int64_t panel_width = std::clamp(
      kPanelElements / std::max<int64_t>(1, in.rows) / kBlockColumns * kBlockColumns, kBlockColumns,
      kPanelColumns);
  Buffer weight_memory, d_memory;
  for (const Range panel : blocks_of(0, in.vocab_size, panel_width)) {
    const Matrix d = d_memory.get(in.rows, panel.size, in.dtype());
    std::optional<Matrix> cast;
    if (in.casts_weight()) cast = weight_memory.get(panel.size, in.hidden_size, in.dtype());
    const std::vector<Range> blocks = blocks_of(0, panel.size, kBlockColumns);
    run_product_tasks(blocks.size(), [&](Buffers& buffers, int64_t i) {
      const Range inside = blocks[i], columns = {panel.first + inside.first, inside.size};
      const Matrix w = in.weight_rows(
          columns, cast ? std::optional<Matrix>(cast->row_range(inside)) : std::nullopt);
      const Matrix d_block = d.column_range(inside);
      const bool is_saved = columns.first < saved_columns;
      if (!is_saved) multiply(hidden, w.transposed(), d_block);
      const Matrix scores = is_saved ? saved_scores.column_range(columns) : d_block;
      in.for_groups(
          0, scores, columns.first, [&](const ScoreBlock& block, int64_t group, int64_t row) {
            kernels.gradient[in.format](
                block,
                {tops + row, log_sums + row, data_of<float>(dlosses) + row, d_block.row(row),
                 d_block.stride(), dbias.data() + group * in.vocab_size + columns.first});
          });
      const Matrix dw = dweight_rows.row_range(columns);
      if (dw.dtype() == d.dtype()) {
        multiply(d_block.transposed(), hidden, dw);
      } else {
        const Matrix product = buffers.product.get(columns.size, in.hidden_size, in.dtype());
        multiply(d_block.transposed(), hidden, product);
        Tensor to = dw.tensor;
        torch::stable::copy_(to, product.tensor);
      }
    });
    const Matrix w = cast ? *cast : in.weight_rows(panel, std::nullopt);
    const std::vector<Range> rows = blocks_of(0, in.rows, kInputRows);
    const std::vector<Range> columns = blocks_of(0, in.hidden_size, kInputColumns);
    run_product_tasks(rows.size() * columns.size(), [&](Buffers& buffers, int64_t i) {
      const Range r = rows[i / columns.size()], c = columns[i % columns.size()];
      const Matrix product = buffers.product.get(r.size, c.size, in.dtype());
      multiply(d.row_range(r), w.column_range(c), product);
      kernels.add[in.format](
          product.row(0), r.size, c.size, dhidden.data() + r.first * in.hidden_size + c.first,
          in.hidden_size);
    });
  }
  return {
      from_floats(dhidden.data(), {in.rows, in.hidden_size}, hidden_.scalar_type()), dweight,
      from_floats(dbias.data(), {num_groups, in.vocab_size}, bias.scalar_type())};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(spanbert_fast, CPU, library) {
  library.impl("linear_cross_entropy_fwd", TORCH_BOX(&linear_cross_entropy_fwd));
  library.impl("linear_cross_entropy_bwd", TORCH_BOX(&linear_cross_entropy_bwd));
}

}  // namespace spanbert_fast
