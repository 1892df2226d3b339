// The CPU implementations of the custom ops that registration.cpp binds, under the ops' names and
// with their arguments. They take bfloat16, float16 and float32 (unpad and pad: any dtype); strides
// may be any.
#pragma once

#include <ATen/ATen.h>

#include <optional>
#include <tuple>
#include <vector>

namespace spanbert_fast {

at::Tensor bias_gelu_fwd(const at::Tensor& x, const at::Tensor& bias);
std::tuple<at::Tensor, at::Tensor> bias_gelu_bwd(
    const at::Tensor& dy, const at::Tensor& x, const at::Tensor& bias);

std::tuple<at::Tensor, at::Tensor, at::Tensor> dropout_add_layer_norm_fwd(
    const at::Tensor& x, const at::Tensor& residual, const at::Tensor& weight,
    const at::Tensor& bias, const std::optional<at::Tensor>& x_bias,
    const std::optional<at::Tensor>& seed, const std::optional<at::Tensor>& rows,
    int64_t threshold, int64_t site, double eps);
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> dropout_add_layer_norm_bwd(
    const at::Tensor& dy, const at::Tensor& x, const at::Tensor& residual,
    const at::Tensor& weight, const at::Tensor& bias, const std::optional<at::Tensor>& x_bias,
    const std::optional<at::Tensor>& seed, const std::optional<at::Tensor>& rows,
    const at::Tensor& mean, const at::Tensor& rstd, int64_t threshold, int64_t site);

std::tuple<at::Tensor, at::Tensor> varlen_attention_fwd(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& cu_seqlens,
    int64_t max_seqlen, double scale, const std::optional<at::Tensor>& seed, int64_t threshold,
    int64_t site);
std::tuple<at::Tensor, at::Tensor, at::Tensor> varlen_attention_bwd(
    const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const at::Tensor& out, const at::Tensor& lse, const at::Tensor& cu_seqlens,
    int64_t max_seqlen, double scale, const std::optional<at::Tensor>& seed, int64_t threshold,
    int64_t site);
std::tuple<at::Tensor, at::Tensor, at::Tensor> embedding_layer_norm_fwd(
    const std::optional<at::Tensor>& input_ids, const std::optional<at::Tensor>& inputs_embeds,
    const at::Tensor& position_ids, const at::Tensor& token_type_ids, const at::Tensor& word,
    const at::Tensor& position, const at::Tensor& token_type, const at::Tensor& weight,
    const at::Tensor& bias, const std::optional<at::Tensor>& seed, int64_t threshold, int64_t site,
    int64_t padding_idx, double eps, at::ScalarType out_dtype);
std::vector<at::Tensor> embedding_layer_norm_bwd(
    const at::Tensor& dy, const std::optional<at::Tensor>& input_ids,
    const std::optional<at::Tensor>& inputs_embeds, const at::Tensor& position_ids,
    const at::Tensor& token_type_ids, const at::Tensor& word, const at::Tensor& position,
    const at::Tensor& token_type, const at::Tensor& weight, const at::Tensor& bias,
    const std::optional<at::Tensor>& seed, const at::Tensor& mean, const at::Tensor& rstd,
    int64_t threshold, int64_t site, int64_t padding_idx);

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> linear_cross_entropy_fwd(
    const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& bias,
    const at::Tensor& targets, const std::vector<int64_t>& group_sizes, bool with_predictions,
    int64_t kept_columns);
std::tuple<at::Tensor, at::Tensor, at::Tensor> linear_cross_entropy_bwd(
    const at::Tensor& dlosses, const at::Tensor& hidden, const at::Tensor& weight,
    const at::Tensor& bias, const at::Tensor& targets, const at::Tensor& lse,
    const at::Tensor& kept, const std::vector<int64_t>& group_sizes);

std::tuple<at::Tensor, at::Tensor, at::Tensor> span_boundary_gather_fwd(
    const at::Tensor& spans, const at::Tensor& places, const at::Tensor& cu_span_lengths,
    int64_t num_targets, const at::Tensor& weight, const at::Tensor& bias, double eps);
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> span_boundary_gather_bwd(
    const at::Tensor& dy, const at::Tensor& spans, const at::Tensor& places,
    const at::Tensor& cu_span_lengths, const at::Tensor& weight, const at::Tensor& bias,
    const at::Tensor& mean, const at::Tensor& rstd);

at::Tensor unpad_fwd(const at::Tensor& x, const at::Tensor& indices);
at::Tensor pad_fwd(const at::Tensor& x, const at::Tensor& indices, int64_t rows);

}  // namespace spanbert_fast
