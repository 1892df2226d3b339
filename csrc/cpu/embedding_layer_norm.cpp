// embedding_layer_norm on the CPU: tasks over tokens, then over the tables' rows; kernels in
// kernels/embedding_layer_norm.cpp.
#include "cpu/kernels/embedding_layer_norm.h"

#include <numeric>

#include "cpu/common.h"
#include "cpu/large_memory.h"

namespace spanbert_fast {
namespace {

// The ids of a table of `rows` rows, checked, so that no kernel reads outside the table.
Tensor checked_ids(const char* name, const Tensor& ids_, int64_t tokens, int64_t rows) {
  const Tensor ids = int64_vector(name, ids_, tokens);
  const int64_t* values = data_of<int64_t>(ids);
  for (int64_t i = 0; i < tokens; ++i) {
    SPANBERT_FAST_CHECK(
        0 <= values[i] && values[i] < rows, name, " must be in [0, ", rows, "), got ", values[i]);
  }
  return ids;
}

// One of the three summands, for the kernels.
struct Summand {
  Tensor table;
  std::optional<Tensor> ids;

  // Without ids the table has a row for each token.
  EmbeddingRows rows(
      const char* table_name, const char* ids_name, const std::optional<Tensor>& ids_,
      int64_t tokens, int64_t hidden_size) {
    SPANBERT_FAST_CHECK(
        table.dim() == 2 && table.size(1) == hidden_size, table_name, " must have shape (",
        ids_ ? "rows" : "tokens", ", ", hidden_size, "), got ", shape_of(table));
    if (!ids_) {
      check_shape(table_name, table, {tokens, hidden_size});
      return {table.const_data_ptr(), nullptr};
    }
    ids = checked_ids(ids_name, *ids_, tokens, table.size(0));
    return {table.const_data_ptr(), data_of<int64_t>(*ids)};
  }
};

// The op's inputs for the kernels; they own the memory that `op` points to.
struct Inputs {
  Summand words, positions, token_types;
  Tensor weight, bias;
  int64_t tokens;
  EmbeddingLayerNorm op{};

  Inputs(
      const Tensor& words_, const std::optional<Tensor>& input_ids, const Tensor& positions_,
      const Tensor& position_ids, const std::optional<Tensor>& token_types_,
      const std::optional<Tensor>& token_type_ids, const Tensor& weight_, const Tensor& bias_,
      const std::optional<Tensor>& seed, int64_t threshold, int64_t site, double eps)
      : tokens(position_ids.numel()) {
    SPANBERT_FAST_CHECK(
        token_types_.has_value() == token_type_ids.has_value(),
        "token_type_ids and token_types must be given together");
    SPANBERT_FAST_CHECK(
        words_.dim() == 2, "words must have shape (rows, hidden_size), got ", shape_of(words_));
    op.hidden_size = words_.size(1);
    // the kernels take tables of one format: float if they differ
    const ScalarType dtype = words_.scalar_type();
    const bool alike = positions_.scalar_type() == dtype &&
        (!token_types_ || token_types_->scalar_type() == dtype);
    const auto table = [&](const Tensor& tensor) {
      return alike ? as_contiguous(tensor) : cast(tensor, kFloat);
    };
    words.table = table(words_);
    op.words = words.rows("words", "input_ids", input_ids, tokens, op.hidden_size);
    positions.table = table(positions_);
    op.positions =
        positions.rows("positions", "position_ids", position_ids, tokens, op.hidden_size);
    if (token_types_) {
      token_types.table = table(*token_types_);
      op.token_types =
          token_types.rows("token_types", "token_type_ids", token_type_ids, tokens, op.hidden_size);
    }
    op.format = format_of("words", words.table);
    weight = float_vector("weight", weight_, op.hidden_size);
    bias = float_vector("bias", bias_, op.hidden_size);
    op.weight = data_of<float>(weight);
    op.bias = data_of<float>(bias);
    op.dropout = dropout_key(seed, threshold, site);
    op.eps = static_cast<float>(eps);
  }
};

// The gradient of `table`, of which token t has read row ids[t]. A stable sort orders the tokens by
// row.
Tensor table_gradient(
    const std::vector<float>& dz, const Tensor& ids_, const Tensor& table, int64_t skipped_row) {
  const int64_t rows = table.size(0), hidden_size = table.size(1), tokens = ids_.numel();
  const int64_t* ids = data_of<int64_t>(ids_);
  std::vector<int64_t> starts(rows + 1, 0), next, order(tokens);
  for (int64_t t = 0; t < tokens; ++t) starts[ids[t] + 1] += ids[t] != skipped_row;
  std::partial_sum(starts.begin(), starts.end(), starts.begin());
  next = starts;
  for (int64_t t = 0; t < tokens; ++t) {
    if (ids[t] != skipped_row) order[next[ids[t]]++] = t;
  }
  const Tensor gradient = empty_large(shape_of(table), table.scalar_type());
  const EmbeddingGradient op = {
      dz.data(), starts.data(), order.data(), hidden_size, gradient.mutable_data_ptr()};
  const auto gradient_rows =
      SPANBERT_FAST_KERNELS(embedding_layer_norm_kernels).gradient_rows[format_of("table", table)];
  // A table with few rows and many tokens per row is split by columns, too.
  const int64_t width = rows < 256 ? 128 : std::max<int64_t>(hidden_size, 1);
  const int64_t blocks = divide_up(hidden_size, width);
  parallel_for(0, rows * blocks, rows_per_thread(width), [&](int64_t first, int64_t last) {
    std::vector<float> scratch(2 * width);
    for (int64_t i = first; i < last; ++i) {
      const int64_t row = i / blocks, column = i % blocks * width;
      gradient_rows(
          op, row, row + 1, column, std::min(width, hidden_size - column), scratch.data());
    }
  });
  return gradient;
}

std::tuple<Tensor, Tensor, Tensor> embedding_layer_norm_fwd(
    const Tensor& words, const std::optional<Tensor>& input_ids, const Tensor& positions,
    const Tensor& position_ids, const std::optional<Tensor>& token_types,
    const std::optional<Tensor>& token_type_ids, const Tensor& weight, const Tensor& bias,
    const std::optional<Tensor>& seed, int64_t threshold, int64_t site, int64_t padding_idx,
    double eps, ScalarType out_dtype) {
  Inputs in(
      words, input_ids, positions, position_ids, token_types, token_type_ids, weight, bias, seed,
      threshold, site, eps);
  const int64_t hidden_size = in.op.hidden_size;
  const Tensor y = empty({in.tokens, hidden_size}, out_dtype);
  const Tensor mean = empty({in.tokens, 1}, kFloat), rstd = empty({in.tokens, 1}, kFloat);
  in.op.mean = mutable_data_of<float>(mean);
  in.op.rstd = mutable_data_of<float>(rstd);
  const auto forward =
      SPANBERT_FAST_KERNELS(embedding_layer_norm_kernels).forward[format_of("y", y)];
  parallel_for(0, in.tokens, rows_per_thread(hidden_size), [&](int64_t first, int64_t last) {
    std::vector<float> scratch(norm_scratch_size(hidden_size));
    forward(in.op, y.mutable_data_ptr(), first, last, scratch.data());
  });
  return {y, mean, rstd};
}

// The gradients of words, positions, token_types ((0,) if there are none), weight and bias.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> embedding_layer_norm_bwd(
    const Tensor& dy_, const Tensor& words, const std::optional<Tensor>& input_ids,
    const Tensor& positions, const Tensor& position_ids, const std::optional<Tensor>& token_types,
    const std::optional<Tensor>& token_type_ids, const Tensor& weight, const Tensor& bias,
    const std::optional<Tensor>& seed, int64_t threshold, int64_t site, int64_t padding_idx,
    double eps, ScalarType out_dtype, const Tensor& mean_, const Tensor& rstd_) {
  Inputs in(
      words, input_ids, positions, position_ids, token_types, token_type_ids, weight, bias, seed,
      threshold, site, eps);
  const int64_t hidden_size = in.op.hidden_size;
  check_shape("dy", dy_, {in.tokens, hidden_size});
  const Tensor dy = as_contiguous(dy_);
  const Tensor mean = statistics("mean", mean_, in.tokens);
  const Tensor rstd = statistics("rstd", rstd_, in.tokens);
  in.op.mean = mutable_data_of<float>(mean);
  in.op.rstd = mutable_data_of<float>(rstd);
  std::vector<float> dz(in.tokens * hidden_size);
  const RowTasks tasks(in.tokens);
  Partials partials(tasks.count, 2 * hidden_size);
  const auto backward =
      SPANBERT_FAST_KERNELS(embedding_layer_norm_kernels).backward[format_of("dy", dy)];
  tasks.run(hidden_size, [&](int64_t task) {
    std::vector<float> scratch(norm_scratch_size(hidden_size));
    float* sums = partials.of(task);
    backward(
        in.op, dy.const_data_ptr(), dz.data(), sums, sums + hidden_size, tasks.begin(task),
        tasks.begin(task + 1), scratch.data());
  });
  const float* sums = partials.total();
  return {
      input_ids ? table_gradient(dz, *in.words.ids, words, padding_idx)
                : from_floats(dz.data(), {in.tokens, hidden_size}, words.scalar_type()),
      table_gradient(dz, *in.positions.ids, positions, -1),
      token_types ? table_gradient(dz, *in.token_types.ids, *token_types, -1) : empty({0}, kFloat),
      from_floats(sums, {hidden_size}, weight.scalar_type()),
      from_floats(sums + hidden_size, {hidden_size}, bias.scalar_type())};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(spanbert_fast, CPU, library) {
  library.impl("embedding_layer_norm_fwd", TORCH_BOX(&embedding_layer_norm_fwd));
  library.impl("embedding_layer_norm_bwd", TORCH_BOX(&embedding_layer_norm_bwd));
}

}  // namespace spanbert_fast
