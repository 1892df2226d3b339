// The op `spanbert_fast::sample_spans` over tensors, for CPU and CUDA: checks shapes, makes the
// outputs and calls the device's implementation.

#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <tuple>

#ifdef SPANBERT_FAST_WITH_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

#include "span_sampling_devices.h"

namespace spanbert_fast {
namespace {

using at::Tensor;
using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
                           Tensor>;

void check(const char* name, const Tensor& tensor, at::IntArrayRef shape, at::ScalarType dtype,
           const Tensor& input_ids) {
  TORCH_CHECK_VALUE(tensor.sizes() == shape, name, " must have shape ", shape, ", got ",
                    tensor.sizes());
  TORCH_CHECK_TYPE(tensor.scalar_type() == dtype, name, " must be ", dtype, ", got ",
                   tensor.scalar_type());
  TORCH_CHECK_VALUE(tensor.device() == input_ids.device(), name, " must be on ",
                    input_ids.device(), " as input_ids is, got ", tensor.device());
}

SpanLaw law_of(int64_t budget_numerator, int64_t budget_denominator, int64_t min_span_words,
               at::IntArrayRef length_thresholds, at::IntArrayRef scheme_thresholds,
               int64_t max_span_targets, bool replace_per_token, bool internal_endpoints,
               bool complete_words, bool unbiased_edges) {
  TORCH_CHECK_VALUE(0 < budget_numerator && budget_numerator <= budget_denominator &&
                        budget_denominator <= 1'000'000,
                    "budget_numerator / budget_denominator must be in (0, 1], got ",
                    budget_numerator, " / ", budget_denominator);
  const int64_t lengths = static_cast<int64_t>(length_thresholds.size());
  TORCH_CHECK_VALUE(1 <= min_span_words && min_span_words + lengths <= kMaxSpanWords,
                    "min_span_words must be at least 1 and the longest span at most ",
                    kMaxSpanWords, ", got ", min_span_words, " and ", min_span_words + lengths);
  TORCH_CHECK_VALUE(scheme_thresholds.size() == 3, "scheme_thresholds must be 3, got ",
                    scheme_thresholds.size());
  TORCH_CHECK_VALUE(0 <= scheme_thresholds[0] && scheme_thresholds[0] < int64_t{1} << 32,
                    "scheme_thresholds must leave a share beside given spans, got ",
                    scheme_thresholds);
  TORCH_CHECK_VALUE(max_span_targets >= 1, "max_span_targets must be at least 1, got ",
                    max_span_targets);
  SpanLaw law = {};
  law.budget_numerator = budget_numerator;
  law.budget_denominator = budget_denominator;
  law.min_span_words = static_cast<int32_t>(min_span_words);
  law.num_lengths = static_cast<int32_t>(lengths);
  law.max_span_targets = static_cast<int32_t>(
      std::min<int64_t>(max_span_targets, std::numeric_limits<int32_t>::max()));
  law.replace_per_token = replace_per_token;
  law.internal_endpoints = internal_endpoints;
  law.complete_words = complete_words;
  law.unbiased_edges = unbiased_edges;
  for (int k = 0; k < 3; ++k) law.scheme_thresholds[k] = scheme_thresholds[k];
  for (int64_t k = 0; k < lengths; ++k) law.length_thresholds[k] = length_thresholds[k];
  return law;
}

template <typename T>
const T* pointer(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? static_cast<const T*>(tensor->const_data_ptr()) : nullptr;
}

std::optional<Tensor> contiguous(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? std::optional<Tensor>(tensor->contiguous()) : std::nullopt;
}

Outputs sample_spans(
    const Tensor& input_ids_in, const Tensor& cu_seqlens_in, const Tensor& word_starts_in,
    const std::optional<Tensor>& special_mask_in, const std::optional<Tensor>& given_spans_in,
    const Tensor& random_token_pool_in, const Tensor& sequence_ids_in, int64_t seed,
    int64_t mask_token_id, int64_t budget_numerator, int64_t budget_denominator,
    int64_t min_span_words, at::IntArrayRef length_thresholds, at::IntArrayRef scheme_thresholds,
    int64_t max_span_targets, bool replace_per_token, bool internal_endpoints, bool complete_words,
    bool unbiased_edges, int64_t capacity) {
  const SpanLaw law = law_of(budget_numerator, budget_denominator, min_span_words,
                             length_thresholds, scheme_thresholds, max_span_targets,
                             replace_per_token, internal_endpoints, complete_words, unbiased_edges);
  TORCH_CHECK_VALUE(input_ids_in.dim() == 1 && cu_seqlens_in.dim() == 1 &&
                        cu_seqlens_in.numel() > 0,
                    "input_ids must have shape (total_tokens,) and cu_seqlens (batch + 1,), got ",
                    input_ids_in.sizes(), " and ", cu_seqlens_in.sizes());
  const int64_t tokens = input_ids_in.numel(), batch = cu_seqlens_in.numel() - 1;
  const int64_t pool = random_token_pool_in.numel();
  const int64_t given = given_spans_in.has_value() ? given_spans_in->size(0) : 0;
  TORCH_CHECK_VALUE(tokens <= std::numeric_limits<int32_t>::max(),
                    "input_ids must have at most 2**31 - 1 tokens, got ", tokens);
  TORCH_CHECK_VALUE(0 < pool && pool <= std::numeric_limits<int32_t>::max(),
                    "random_token_pool must hold between 1 and 2**31 - 1 ids, got ", pool);
  check("input_ids", input_ids_in, {tokens}, at::kLong, input_ids_in);
  check("cu_seqlens", cu_seqlens_in, {batch + 1}, at::kInt, input_ids_in);
  check("word_starts", word_starts_in, {tokens}, at::kBool, input_ids_in);
  check("random_token_pool", random_token_pool_in, {pool}, at::kLong, input_ids_in);
  check("sequence_ids", sequence_ids_in, {batch}, at::kLong, input_ids_in);
  if (special_mask_in) check("special_mask", *special_mask_in, {tokens}, at::kBool, input_ids_in);
  if (given_spans_in) check("given_spans", *given_spans_in, {given, 2}, at::kLong, input_ids_in);
  // Without whole words no sequence masks more than its budget, rounded up.
  const int64_t most = complete_words ? tokens
      : std::min(tokens, tokens * budget_numerator / budget_denominator + batch);
  TORCH_CHECK_VALUE(capacity >= most, "capacity must be at least ", most, ", got ", capacity);

  const Tensor input_ids = input_ids_in.contiguous(), cu_seqlens = cu_seqlens_in.contiguous();
  const Tensor word_starts = word_starts_in.contiguous(), ids = sequence_ids_in.contiguous();
  const Tensor random_token_pool = random_token_pool_in.contiguous();
  const auto special_mask = contiguous(special_mask_in), given_spans = contiguous(given_spans_in);

  const auto longs = input_ids.options(), ints = longs.dtype(at::kInt);
  const Tensor masked_ids = at::empty({tokens}, longs);
  const Tensor mlm_positions = at::empty({capacity}, longs);
  const Tensor mlm_targets = at::empty({capacity}, longs);
  const Tensor boundaries = at::empty({capacity, 2}, longs);
  const Tensor starts = at::empty({capacity}, longs), ends = at::empty({capacity}, longs);
  const Tensor cu_span_lengths = at::empty({capacity + 1}, ints);
  const Tensor sbo_targets = at::empty({capacity}, longs);
  const Tensor replacements = at::empty({capacity}, longs.dtype(at::kChar));
  const Tensor counts = at::empty({kCounts}, ints);
  const int64_t words = scratch_words(tokens, batch);
  const Tensor bits = at::empty({3, words}, longs), sums = at::empty({batch, 4}, ints);
  auto* bit_words = reinterpret_cast<uint64_t*>(bits.mutable_data_ptr<int64_t>());

  const SpanInputs in = {
      input_ids.const_data_ptr<int64_t>(),
      cu_seqlens.const_data_ptr<int32_t>(),
      static_cast<const uint8_t*>(word_starts.const_data_ptr()),
      pointer<uint8_t>(special_mask),
      pointer<int64_t>(given_spans),
      random_token_pool.const_data_ptr<int64_t>(),
      ids.const_data_ptr<int64_t>(),
      tokens,
      batch,
      given,
      pool,
      static_cast<uint64_t>(seed),
      mask_token_id,
  };
  const SpanOutputs out = {
      masked_ids.mutable_data_ptr<int64_t>(),
      mlm_positions.mutable_data_ptr<int64_t>(),
      mlm_targets.mutable_data_ptr<int64_t>(),
      boundaries.mutable_data_ptr<int64_t>(),
      starts.mutable_data_ptr<int64_t>(),
      ends.mutable_data_ptr<int64_t>(),
      cu_span_lengths.mutable_data_ptr<int32_t>(),
      sbo_targets.mutable_data_ptr<int64_t>(),
      replacements.mutable_data_ptr<int8_t>(),
      counts.mutable_data_ptr<int32_t>(),
      capacity,
  };
  const SpanScratch scratch = {bit_words, bit_words + words, bit_words + 2 * words,
                               reinterpret_cast<SpanCounts*>(sums.mutable_data_ptr<int32_t>())};
#ifdef SPANBERT_FAST_WITH_CUDA
  if (input_ids.is_cuda()) {
    const c10::cuda::CUDAGuard guard(input_ids.device());
    C10_CUDA_CHECK(sample_spans_cuda(in, law, out, scratch, c10::cuda::getCurrentCUDAStream()));
  } else
#endif
  {
    sample_spans_cpu(in, law, out, scratch);
  }
  return {masked_ids, mlm_positions, mlm_targets, boundaries, starts, ends, cu_span_lengths,
          sbo_targets, replacements, counts};
}

}  // namespace

TORCH_LIBRARY_IMPL(spanbert_fast, CPU, m) { m.impl("sample_spans", &sample_spans); }
#ifdef SPANBERT_FAST_WITH_CUDA
TORCH_LIBRARY_IMPL(spanbert_fast, CUDA, m) { m.impl("sample_spans", &sample_spans); }
#endif

}  // namespace spanbert_fast
