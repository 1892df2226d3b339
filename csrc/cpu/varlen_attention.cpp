// varlen_attention on the CPU: checks, and tasks, each for one head of a sequence or a part of it.
// The split depends on the shapes alone, and no two tasks write the same number, so the bits of a
// result do not depend on the number of threads.
#include "cpu/kernels/varlen_attention.h"

#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>

#include "cpu/common.h"

namespace spanbert_fast {
namespace {

constexpr int64_t kTaskQueries = 512;  // the most queries of a task of the forward
// The backward splits keys only if there are few heads and sequences: each part of a sequence keeps
// its own dq in float until they are added.
constexpr int64_t kTaskKeys = 1024;  // the least keys of a task where the backward splits them
constexpr int64_t kEnoughTasks = 64;
constexpr int64_t kMostParts = 4;

int64_t step_up(int64_t n) { return divide_up(n, kTaskStep) * kTaskStep; }

struct Free {
  void operator()(void* data) const { std::free(data); }
};

char* thread_scratch(int64_t bytes) {
  constexpr int64_t kAlignment = 64;
  thread_local std::unique_ptr<void, Free> memory;
  thread_local int64_t size = 0;
  if (size < bytes) {
    memory.reset();
    size = 0;  // in case there is no more memory
    memory.reset(std::aligned_alloc(kAlignment, divide_up(bytes, kAlignment) * kAlignment));
    if (memory == nullptr) throw std::bad_alloc();
    size = bytes;
  }
  return static_cast<char*>(memory.get());
}

std::vector<int64_t> checked_bounds(const Tensor& cu_seqlens, int64_t max_seqlen, int64_t total) {
  check_dtype("cu_seqlens", cu_seqlens, kInt);
  SPANBERT_FAST_CHECK(
      cu_seqlens.dim() == 1 && cu_seqlens.numel() > 0,
      "cu_seqlens must have shape (batch + 1,), got ", shape_of(cu_seqlens));
  const Tensor values = as_contiguous(cu_seqlens);
  const int32_t* data = data_of<int32_t>(values);
  const std::vector<int64_t> bounds(data, data + values.numel());
  SPANBERT_FAST_CHECK(bounds.front() == 0, "cu_seqlens must start at 0, got ", bounds.front());
  int64_t longest = 0;
  for (size_t i = 1; i < bounds.size(); ++i) {
    SPANBERT_FAST_CHECK(
        bounds[i - 1] <= bounds[i], "cu_seqlens must not fall, got ", bounds[i - 1], " then ",
        bounds[i], " at index ", i);
    longest = std::max(longest, bounds[i] - bounds[i - 1]);
  }
  SPANBERT_FAST_CHECK(
      bounds.back() == total, "cu_seqlens must end at ", total, ", got ", bounds.back());
  SPANBERT_FAST_CHECK(
      longest <= max_seqlen, "max_seqlen must be at least the longest length ", longest, ", got ",
      max_seqlen);
  return bounds;
}

// The op's inputs for the kernels. Any strides will do, except that head_dim, which the kernels
// read in vectors, is contiguous.
struct Inputs {
  Tensor q, k, v;
  std::vector<int64_t> bounds;  // of the sequences
  Format format;
  AttentionArguments arguments{};

  Inputs(
      const Tensor& q_, const Tensor& k_, const Tensor& v_, const Tensor& cu_seqlens,
      int64_t max_seqlen, double scale, const std::optional<Tensor>& seed, int64_t threshold,
      int64_t site)
      : format(format_of("q", q_)) {
    SPANBERT_FAST_CHECK(
        q_.dim() == 3, "q must have shape (total_tokens, num_heads, head_dim), got ", shape_of(q_));
    check_like("k", k_, q_);
    check_like("v", v_, q_);
    bounds = checked_bounds(cu_seqlens, max_seqlen, q_.size(0));
    q = with_rows(q_);
    k = with_rows(k_);
    v = with_rows(v_);
    arguments.q = token_rows(q);
    arguments.k = token_rows(k);
    arguments.v = token_rows(v);
    arguments.heads = q.size(1);
    arguments.head_dim = q.size(2);
    arguments.scale = static_cast<float>(scale);
    const DropoutKey key = dropout_key(seed, threshold, site);
    arguments.seed = key.seed;
    arguments.site = key.site;
    arguments.threshold = key.threshold;
  }

  int64_t batch() const { return static_cast<int64_t>(bounds.size()) - 1; }
  int64_t length(int64_t sequence) const { return bounds[sequence + 1] - bounds[sequence]; }

  static Tensor with_rows(const Tensor& tensor) {
    return tensor.stride(2) == 1 ? tensor : torch::stable::contiguous(tensor);
  }
  static TokenRows token_rows(const Tensor& tensor) {
    return {tensor.const_data_ptr(), tensor.stride(0), tensor.stride(1)};
  }
};

// Longest tasks first, so that no thread is left alone with one at the end. A thread takes several
// neighbours at a time, since each task prefetches the memory of the next head.
template <class Run>
void run_tasks(std::vector<AttentionTask>& tasks, const Run& run) {
  std::stable_sort(tasks.begin(), tasks.end(), [](const auto& left, const auto& right) {
    return left.length * (left.end - left.begin) > right.length * (right.end - right.begin);
  });
  const int64_t count = tasks.size(), threads = std::min<int64_t>(count, num_threads());
  const int64_t neighbours = std::clamp<int64_t>(count / (16 * num_threads()), 1, 4);
  std::atomic<int64_t> next{0};
  parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t first; (first = next.fetch_add(neighbours)) < count;) {
      const int64_t last = std::min(count, first + neighbours);
      for (int64_t i = first; i < last; ++i) run(tasks[i]);
    }
  });
}

std::tuple<Tensor, Tensor> varlen_attention_fwd(
    const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_seqlens, int64_t max_seqlen,
    double scale, const std::optional<Tensor>& seed, int64_t threshold, int64_t site) {
  Inputs in(q, k, v, cu_seqlens, max_seqlen, scale, seed, threshold, site);
  AttentionArguments& a = in.arguments;
  const Tensor out = empty_as(q), lse = empty({q.size(0), a.heads}, kFloat);
  a.out = mutable_bytes(out);
  a.lse = mutable_data_of<float>(lse);
  std::vector<AttentionTask> tasks;
  for (int64_t sequence = 0; sequence < in.batch(); ++sequence) {
    const int64_t start = in.bounds[sequence], length = in.length(sequence);
    if (length == 0) continue;
    const int64_t queries = step_up(divide_up(length, divide_up(length, kTaskQueries)));
    for (int64_t head = 0; head < a.heads; ++head) {
      for (int64_t begin = 0; begin < length; begin += queries) {
        const int64_t end = std::min(length, begin + queries);
        tasks.push_back({sequence, head, start, length, begin, end, nullptr});
      }
    }
  }
  const auto forward = SPANBERT_FAST_KERNELS(varlen_attention_kernels).forward[in.format];
  run_tasks(tasks, [&](const AttentionTask& task) { forward(a, task, &thread_scratch); });
  return {out, lse};
}

// The gradients of q, k and v.
std::tuple<Tensor, Tensor, Tensor> varlen_attention_bwd(
    const Tensor& dout_, const Tensor& q, const Tensor& k, const Tensor& v,
    const Tensor& cu_seqlens, int64_t max_seqlen, double scale, const std::optional<Tensor>& seed,
    int64_t threshold, int64_t site, const Tensor& out_, const Tensor& lse_) {
  Inputs in(q, k, v, cu_seqlens, max_seqlen, scale, seed, threshold, site);
  check_like("dout", dout_, q);
  check_like("out", out_, q);
  check_shape("lse", lse_, {q.size(0), q.size(1)});
  check_dtype("lse", lse_, kFloat);
  const Tensor dout = Inputs::with_rows(dout_), out = as_contiguous(out_),
               lse = as_contiguous(lse_);
  const Tensor dq = empty_as(q), dk = empty_as(q), dv = empty_as(q);
  AttentionArguments& a = in.arguments;
  a.out = mutable_bytes(out);
  a.lse = mutable_data_of<float>(lse);
  a.dout = Inputs::token_rows(dout);
  a.dq = mutable_bytes(dq);
  a.dk = mutable_bytes(dk);
  a.dv = mutable_bytes(dv);

  const int64_t most_parts =
      std::clamp<int64_t>(kEnoughTasks / std::max<int64_t>(1, in.batch() * a.heads), 1, kMostParts);
  const auto parts_of = [&](int64_t length) {
    return std::clamp<int64_t>(length / kTaskKeys, 1, most_parts);
  };
  int64_t floats = 0;
  for (int64_t sequence = 0; sequence < in.batch(); ++sequence) {
    const int64_t length = in.length(sequence), parts = parts_of(length);
    if (parts > 1) floats += a.heads * parts * length * dq_width(a.head_dim);
  }
  const Tensor dq_parts = empty({floats}, kFloat);
  float* free_part = mutable_data_of<float>(dq_parts);
  std::vector<AttentionTask> tasks, sums;
  for (int64_t sequence = 0; sequence < in.batch(); ++sequence) {
    const int64_t start = in.bounds[sequence], length = in.length(sequence);
    if (length == 0) continue;
    const int64_t parts = parts_of(length), keys = step_up(divide_up(length, parts));
    for (int64_t head = 0; head < a.heads; ++head) {
      AttentionTask task{sequence, head, start, length, 0, length, nullptr};
      if (parts > 1) {
        task.dq_part = free_part;
        sums.push_back(task);
      }
      for (int64_t part = 0; part < parts; ++part) {
        task.begin = part * keys;
        task.end = std::min(length, task.begin + keys);
        tasks.push_back(task);
        if (parts > 1) task.dq_part = free_part += length * dq_width(a.head_dim);
      }
    }
  }
  const auto& kernels = SPANBERT_FAST_KERNELS(varlen_attention_kernels);
  const auto backward = kernels.backward[in.format];
  const auto sum_dq = kernels.sum_dq[in.format];
  run_tasks(tasks, [&](const AttentionTask& task) { backward(a, task, &thread_scratch); });
  run_tasks(sums, [&](const AttentionTask& task) { sum_dq(a, task, parts_of(task.length)); });
  return {dq, dk, dv};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(spanbert_fast, CPU, library) {
  library.impl("varlen_attention_fwd", TORCH_BOX(&varlen_attention_fwd));
  library.impl("varlen_attention_bwd", TORCH_BOX(&varlen_attention_bwd));
}

}  // namespace spanbert_fast
