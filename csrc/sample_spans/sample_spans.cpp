// The op `spanbert_fast::sample_spans` over tensors, for CPU and CUDA: checks shapes, makes the
// outputs and calls the device's implementation.

#include <limits>
#include <tuple>

#include "sample_spans/devices.h"
#include "tensor.h"

#ifdef SPANBERT_FAST_WITH_CUDA
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#endif

namespace spanbert_fast {
namespace {

using Outputs =
    std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

void check(
    const char* name, const Tensor& tensor, const Shape& shape, ScalarType dtype,
    const Tensor& input_ids) {
  SPANBERT_FAST_CHECK(
      shape_of(tensor) == shape, name, " must have shape ", shape, ", got ", shape_of(tensor));
  SPANBERT_FAST_CHECK(
      tensor.scalar_type() == dtype, name, " must be ", name_of(dtype), ", got ",
      name_of(tensor.scalar_type()));
  SPANBERT_FAST_CHECK(
      tensor.device() == input_ids.device(), name, " must be on the device of input_ids");
}

SpanLaw law_of(
    int64_t budget_numerator, int64_t budget_denominator, int64_t min_span_words,
    const std::vector<int64_t>& length_thresholds, const std::vector<int64_t>& scheme_thresholds,
    int64_t max_span_targets, bool replace_per_token, bool internal_endpoints, bool complete_words,
    bool unbiased_edges) {
  SPANBERT_FAST_CHECK(
      0 < budget_numerator && budget_numerator <= budget_denominator &&
          budget_denominator <= 1'000'000,
      "budget_numerator / budget_denominator must be in (0, 1], got ", budget_numerator, " / ",
      budget_denominator);
  const int64_t lengths = static_cast<int64_t>(length_thresholds.size());
  SPANBERT_FAST_CHECK(
      1 <= min_span_words && min_span_words <= kMaxSpanWords - lengths,
      "min_span_words must be at least 1 and the longest span at most ", kMaxSpanWords, ", got ",
      min_span_words, " and ", lengths, " lengths above it");
  SPANBERT_FAST_CHECK(
      scheme_thresholds.size() == 3, "scheme_thresholds must be 3, got ", scheme_thresholds.size());
  SPANBERT_FAST_CHECK(
      0 <= scheme_thresholds[0] && scheme_thresholds[0] < int64_t{1} << 32,
      "scheme_thresholds must leave a share beside given spans, got ", scheme_thresholds[0]);
  SPANBERT_FAST_CHECK(
      max_span_targets >= 1, "max_span_targets must be at least 1, got ", max_span_targets);
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
  return tensor.has_value() ? data_of<T>(*tensor) : nullptr;
}

#ifdef SPANBERT_FAST_WITH_CUDA
// The current stream of the device. PyTorch's function for it is in its CUDA library, and is looked
// up here, so that an extension with CUDA code also loads beside a PyTorch without CUDA.
void* current_stream(int32_t device_index) {
  using Get = AOTITorchError(int32_t, void**);
  static auto* const get =
      reinterpret_cast<Get*>(dlsym(RTLD_DEFAULT, "aoti_torch_get_current_cuda_stream"));
  SPANBERT_FAST_CHECK(get != nullptr, "input_ids must be on the CPU: this PyTorch has no CUDA");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(get(device_index, &stream));
  return stream;
}
#endif

Outputs sample_spans(
    const Tensor& input_ids_in, const Tensor& cu_seqlens_in, const Tensor& word_starts_in,
    const std::optional<Tensor>& special_mask_in, const std::optional<Tensor>& given_spans_in,
    const Tensor& random_token_pool_in, const Tensor& sequence_ids_in, int64_t seed,
    int64_t mask_token_id, int64_t budget_numerator, int64_t budget_denominator,
    int64_t min_span_words, const std::vector<int64_t>& length_thresholds,
    const std::vector<int64_t>& scheme_thresholds, int64_t max_span_targets, bool replace_per_token,
    bool internal_endpoints, bool complete_words, bool unbiased_edges, int64_t capacity) {
  const SpanLaw law = law_of(
      budget_numerator, budget_denominator, min_span_words, length_thresholds, scheme_thresholds,
      max_span_targets, replace_per_token, internal_endpoints, complete_words, unbiased_edges);
  SPANBERT_FAST_CHECK(
      input_ids_in.dim() == 1 && cu_seqlens_in.dim() == 1 && cu_seqlens_in.numel() > 0,
      "input_ids must have shape (total_tokens,) and cu_seqlens (batch + 1,), got ",
      shape_of(input_ids_in), " and ", shape_of(cu_seqlens_in));
  const int64_t tokens = input_ids_in.numel(), batch = cu_seqlens_in.numel() - 1;
  const int64_t pool = random_token_pool_in.numel();
  const int64_t given = given_spans_in.has_value() ? given_spans_in->size(0) : 0;
  SPANBERT_FAST_CHECK(
      tokens <= std::numeric_limits<int32_t>::max(),
      "input_ids must have at most 2**31 - 1 tokens, got ", tokens);
  SPANBERT_FAST_CHECK(
      0 < pool && pool <= std::numeric_limits<int32_t>::max(),
      "random_token_pool must hold between 1 and 2**31 - 1 ids, got ", pool);
  check("input_ids", input_ids_in, {tokens}, kLong, input_ids_in);
  check("cu_seqlens", cu_seqlens_in, {batch + 1}, kInt, input_ids_in);
  check("word_starts", word_starts_in, {tokens}, kBool, input_ids_in);
  check("random_token_pool", random_token_pool_in, {pool}, kLong, input_ids_in);
  check("sequence_ids", sequence_ids_in, {batch}, kLong, input_ids_in);
  if (special_mask_in) check("special_mask", *special_mask_in, {tokens}, kBool, input_ids_in);
  if (given_spans_in) check("given_spans", *given_spans_in, {given, 2}, kLong, input_ids_in);
  // Unless words are completed, no sequence masks more than its budget, rounded up.
  const int64_t most = complete_words
      ? tokens
      : std::min(tokens, tokens * budget_numerator / budget_denominator + batch);
  SPANBERT_FAST_CHECK(capacity >= most, "capacity must be at least ", most, ", got ", capacity);

  const Tensor input_ids = as_contiguous(input_ids_in), cu_seqlens = as_contiguous(cu_seqlens_in);
  const Tensor word_starts = as_contiguous(word_starts_in), ids = as_contiguous(sequence_ids_in);
  const Tensor random_token_pool = as_contiguous(random_token_pool_in);
  const auto special_mask = as_contiguous(special_mask_in),
             given_spans = as_contiguous(given_spans_in);

  const auto device = input_ids.device();
  const auto longs = [&](const Shape& shape) { return empty(shape, kLong, device); };
  const auto ints = [&](const Shape& shape) { return empty(shape, kInt, device); };
  const Tensor masked_ids = longs({tokens});
  const Tensor mlm_positions = longs({capacity}), mlm_targets = longs({capacity});
  const Tensor boundaries = longs({capacity, 2});
  const Tensor starts = longs({capacity}), ends = longs({capacity});
  const Tensor cu_span_lengths = ints({capacity + 1});
  const Tensor sbo_targets = longs({capacity});
  const Tensor replacements = empty({capacity}, kChar, device);
  const Tensor counts = ints({kCounts});
  const int64_t words = scratch_words(tokens, batch);
  const Tensor bits = longs({3, words}), sums = ints({batch, 4});
  auto* bit_words = mutable_data_of<uint64_t>(bits);

  const SpanInputs in = {
      data_of<int64_t>(input_ids),
      data_of<int32_t>(cu_seqlens),
      data_of<uint8_t>(word_starts),
      pointer<uint8_t>(special_mask),
      pointer<int64_t>(given_spans),
      data_of<int64_t>(random_token_pool),
      data_of<int64_t>(ids),
      tokens,
      batch,
      given,
      pool,
      static_cast<uint64_t>(seed),
      mask_token_id,
  };
  const SpanOutputs out = {
      mutable_data_of<int64_t>(masked_ids),
      mutable_data_of<int64_t>(mlm_positions),
      mutable_data_of<int64_t>(mlm_targets),
      mutable_data_of<int64_t>(boundaries),
      mutable_data_of<int64_t>(starts),
      mutable_data_of<int64_t>(ends),
      mutable_data_of<int32_t>(cu_span_lengths),
      mutable_data_of<int64_t>(sbo_targets),
      mutable_data_of<int8_t>(replacements),
      mutable_data_of<int32_t>(counts),
      capacity,
  };
  const SpanScratch scratch = {
      bit_words, bit_words + words, bit_words + 2 * words,
      reinterpret_cast<SpanCounts*>(mutable_data_of<int32_t>(sums))};
#ifdef SPANBERT_FAST_WITH_CUDA
  if (input_ids.is_cuda()) {
    const torch::stable::accelerator::DeviceGuard guard(device.index());
    const char* error = sample_spans_cuda(in, law, out, scratch, current_stream(device.index()));
    if (error != nullptr) throw std::runtime_error(std::string("sample_spans: ") + error);
  } else
#endif
  {
    sample_spans_cpu(in, law, out, scratch);
  }
  return {masked_ids, mlm_positions,   mlm_targets, boundaries,   starts,
          ends,       cu_span_lengths, sbo_targets, replacements, counts};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(spanbert_fast, CPU, library) {
  library.impl("sample_spans", TORCH_BOX(&sample_spans));
}
#ifdef SPANBERT_FAST_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(spanbert_fast, CUDA, library) {
  library.impl("sample_spans", TORCH_BOX(&sample_spans));
}
#endif

}  // namespace spanbert_fast
