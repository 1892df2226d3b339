// embedding_layer_norm on the CPU: tasks over tokens, then over the tables' rows; kernels in
// kernels/embedding_layer_norm.cpp.
#include "cpu/kernels/embedding_layer_norm.h"

#include <numeric>
#include <vector>

#include "cpu/common.h"
#include "cpu/large_memory.h"
#include "cpu/ops.h"

namespace spanbert_fast {
namespace {

constexpr const char* kIdNames[] = {"input_ids", "position_ids", "token_type_ids"};

// The ids into a table of `rows` rows, checked: a kernel that followed a wrong one would read
// memory that is not the table's.
at::Tensor checked_ids(const char* name, const at::Tensor& ids_, int64_t tokens, int64_t rows) {
  const at::Tensor ids = int64_vector(name, ids_, tokens);
  const int64_t* values = ids.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < tokens; ++i) {
    TORCH_CHECK_VALUE(
        0 <= values[i] && values[i] < rows, name, " must be in [0, ", rows, "), got ", values[i]);
  }
  return ids;
}

// The op's inputs as the kernels take them; they live as long as `op` points into them.
struct Inputs {
  at::Tensor ids[3], tables[3], weight;
  EmbeddingLayerNorm op;

  Inputs(
      const std::optional<at::Tensor>& input_ids, const std::optional<at::Tensor>& inputs_embeds,
      const at::Tensor& position_ids, const at::Tensor& token_type_ids, const at::Tensor& word,
      const at::Tensor& position, const at::Tensor& token_type, const at::Tensor& weight_,
      const std::optional<at::Tensor>& seed, int64_t threshold, int64_t site) {
    TORCH_CHECK_VALUE(
        input_ids.has_value() != inputs_embeds.has_value(),
        "exactly one of input_ids and inputs_embeds must be given");
    const int64_t tokens = position_ids.size(0);
    op = {};
    op.hidden_size = word.size(1);
    const at::Tensor* rows[] = {input_ids ? &word : &*inputs_embeds, &position, &token_type};
    const at::Tensor* numbers[] = {
        input_ids ? &*input_ids : nullptr, &position_ids, &token_type_ids};
    EmbeddingRows* parts[] = {&op.words, &op.positions, &op.token_types};
    // the kernels take tables of one format: float where they differ
    const bool alike = rows[0]->scalar_type() == position.scalar_type() &&
                       position.scalar_type() == token_type.scalar_type();
    for (int i = 0; i < 3; ++i) {
      tables[i] = (alike ? *rows[i] : rows[i]->to(at::kFloat)).contiguous();
      TORCH_CHECK_VALUE(
          tables[i].dim() == 2 && tables[i].size(1) == op.hidden_size,
          "tables must have shape (rows, ", op.hidden_size, "), got ", tables[i].sizes());
      parts[i]->data = tables[i].const_data_ptr();
      if (numbers[i] != nullptr) {
        ids[i] = checked_ids(kIdNames[i], *numbers[i], tokens, tables[i].size(0));
        parts[i]->ids = ids[i].const_data_ptr<int64_t>();
      }
    }
    op.format = format_of("tables", tables[0]);
    TORCH_CHECK_VALUE(
        input_ids || tables[0].size(0) == tokens, "inputs_embeds must have shape (", tokens, ", ",
        op.hidden_size, "), got ", tables[0].sizes());
    weight = float_vector("weight", weight_, op.hidden_size);
    op.weight = weight.const_data_ptr<float>();
    op.dropout = dropout_key(seed, threshold, site);
  }
};

// The gradient of `table` whose row ids[t] token t has read. Tokens are sorted by row, stably.
at::Tensor table_gradient(
    const at::Tensor& dz, const at::Tensor& ids_, const at::Tensor& table, int64_t skipped_row) {
  const int64_t rows = table.size(0), hidden_size = table.size(1), tokens = dz.size(0);
  const int64_t* ids = ids_.const_data_ptr<int64_t>();
  std::vector<int64_t> starts(rows + 1, 0), next, order(tokens);
  for (int64_t t = 0; t < tokens; ++t) starts[ids[t] + 1] += ids[t] != skipped_row;
  std::partial_sum(starts.begin(), starts.end(), starts.begin());
  next = starts;
  for (int64_t t = 0; t < tokens; ++t) {
    if (ids[t] != skipped_row) order[next[ids[t]]++] = t;
  }
  const at::Tensor gradient = empty_large(table.sizes(), table.options());
  const EmbeddingGradient op = {
      dz.const_data_ptr<float>(), starts.data(), order.data(), hidden_size,
      gradient.mutable_data_ptr()};
  const auto gradient_rows =
      SPANBERT_FAST_KERNELS(embedding_layer_norm_kernels).gradient_rows[format_of("table", table)];
  // A table of few rows with many tokens each is split by columns as well.
  const int64_t width = rows < 256 ? 128 : std::max<int64_t>(hidden_size, 1);
  const int64_t blocks = at::divup(hidden_size, width);
  at::parallel_for(0, rows * blocks, rows_per_thread(width), [&](int64_t first, int64_t last) {
    std::vector<float> scratch(2 * width);
    for (int64_t i = first; i < last; ++i) {
      const int64_t row = i / blocks, column = i % blocks * width;
      gradient_rows(
          op, row, row + 1, column, std::min(width, hidden_size - column), scratch.data());
    }
  });
  return gradient;
}

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor> embedding_layer_norm_fwd(
    const std::optional<at::Tensor>& input_ids, const std::optional<at::Tensor>& inputs_embeds,
    const at::Tensor& position_ids, const at::Tensor& token_type_ids, const at::Tensor& word,
    const at::Tensor& position, const at::Tensor& token_type, const at::Tensor& weight,
    const at::Tensor& bias_, const std::optional<at::Tensor>& seed, int64_t threshold,
    int64_t site, int64_t padding_idx, double eps, at::ScalarType out_dtype) {
  Inputs in(
      input_ids, inputs_embeds, position_ids, token_type_ids, word, position, token_type, weight,
      seed, threshold, site);
  const int64_t tokens = position_ids.size(0), hidden_size = in.op.hidden_size;
  const at::Tensor bias = float_vector("bias", bias_, hidden_size);
  const at::Tensor y = at::empty({tokens, hidden_size}, word.options().dtype(out_dtype));
  const at::Tensor mean = at::empty({tokens, 1}, bias.options());
  const at::Tensor rstd = at::empty({tokens, 1}, bias.options());
  in.op.bias = bias.const_data_ptr<float>();
  in.op.eps = static_cast<float>(eps);
  in.op.mean = mean.mutable_data_ptr<float>();
  in.op.rstd = rstd.mutable_data_ptr<float>();
  const auto forward =
      SPANBERT_FAST_KERNELS(embedding_layer_norm_kernels).forward[format_of("y", y)];
  at::parallel_for(0, tokens, rows_per_thread(hidden_size), [&](int64_t first, int64_t last) {
    std::vector<float> scratch(norm_scratch_size(hidden_size));
    forward(in.op, y.mutable_data_ptr(), first, last, scratch.data());
  });
  return {y, mean, rstd};
}

std::vector<at::Tensor> embedding_layer_norm_bwd(
    const at::Tensor& dy_, const std::optional<at::Tensor>& input_ids,
    const std::optional<at::Tensor>& inputs_embeds, const at::Tensor& position_ids,
    const at::Tensor& token_type_ids, const at::Tensor& word, const at::Tensor& position,
    const at::Tensor& token_type, const at::Tensor& weight, const at::Tensor& bias,
    const std::optional<at::Tensor>& seed, const at::Tensor& mean, const at::Tensor& rstd,
    int64_t threshold, int64_t site, int64_t padding_idx) {
  Inputs in(
      input_ids, inputs_embeds, position_ids, token_type_ids, word, position, token_type, weight,
      seed, threshold, site);
  const int64_t tokens = position_ids.size(0), hidden_size = in.op.hidden_size;
  const at::Tensor dy = dy_.contiguous();
  TORCH_CHECK_VALUE(
      dy.dim() == 2 && dy.size(0) == tokens && dy.size(1) == hidden_size,
      "dy must have shape (", tokens, ", ", hidden_size, "), got ", dy.sizes());
  in.op.mean = mean.mutable_data_ptr<float>();
  in.op.rstd = rstd.mutable_data_ptr<float>();
  const at::Tensor dz = at::empty({tokens, hidden_size}, in.weight.options());
  const RowTasks tasks(tokens);
  const at::Tensor partials = at::zeros({tasks.count, 2, hidden_size}, in.weight.options());
  const auto backward =
      SPANBERT_FAST_KERNELS(embedding_layer_norm_kernels).backward[format_of("dy", dy)];
  tasks.run(hidden_size, [&](int64_t task) {
    std::vector<float> scratch(norm_scratch_size(hidden_size));
    float* sums = partials.mutable_data_ptr<float>() + task * 2 * hidden_size;
    backward(
        in.op, dy.const_data_ptr(), dz.mutable_data_ptr<float>(), sums, sums + hidden_size,
        tasks.begin(task), tasks.begin(task + 1), scratch.data());
  });
  const at::Tensor sums = sum_partials(partials);
  return {
      input_ids ? table_gradient(dz, in.ids[0], word, padding_idx)
                : as_output(dz, inputs_embeds->scalar_type()),
      table_gradient(dz, in.ids[1], position, -1), table_gradient(dz, in.ids[2], token_type, -1),
      as_output(sums[0], weight.scalar_type()), as_output(sums[1], bias.scalar_type())};
}

}  // namespace spanbert_fast
