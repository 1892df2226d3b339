// varlen_attention on the CPU: checks, and the work in tasks, one per head of a sequence or part of
// it. How work is split depends on the shapes alone and no two tasks write one number, so the bits
// of a result do not depend on the number of threads.
#include <atomic>
#include <optional>
#include <vector>

#include "cpu/common.h"
#include "cpu/kernels/varlen_attention.h"
#include "cpu/ops.h"

namespace spanbert_fast {
namespace {

constexpr int64_t kForwardQueries = 512;  // of a task at most
// The backward's keys are split only where there are few heads and sequences: each part of a
// sequence keeps a dq of its own in float, until they are added.
constexpr int64_t kBackwardKeys = 1024;  // of a task at least, where they are split
constexpr int64_t kEnoughTasks = 64;
constexpr int64_t kMostParts = 4;

int64_t step_up(int64_t n) { return at::divup(n, kTaskStep) * kTaskStep; }

char* thread_scratch(int64_t bytes) {
  thread_local at::DataPtr memory;
  thread_local int64_t size = 0;
  if (size < bytes) {
    memory.clear();
    size = 0;  // should the next line throw
    memory = at::getCPUAllocator()->allocate(bytes);
    size = bytes;
  }
  return static_cast<char*>(memory.get());
}

std::vector<int64_t> checked_bounds(
    const at::Tensor& cu_seqlens, int64_t max_seqlen, int64_t total) {
  TORCH_CHECK_TYPE(
      cu_seqlens.scalar_type() == at::kInt, "cu_seqlens must be int32, got ",
      cu_seqlens.scalar_type());
  TORCH_CHECK_VALUE(
      cu_seqlens.dim() == 1 && cu_seqlens.numel() > 0,
      "cu_seqlens must have shape (batch + 1,), got ", cu_seqlens.sizes());
  const at::Tensor values = cu_seqlens.contiguous();
  const int32_t* data = values.const_data_ptr<int32_t>();
  const std::vector<int64_t> bounds(data, data + values.numel());
  TORCH_CHECK_VALUE(bounds.front() == 0, "cu_seqlens must start at 0, got ", bounds.front());
  int64_t longest = 0;
  for (size_t i = 1; i < bounds.size(); ++i) {
    TORCH_CHECK_VALUE(
        bounds[i - 1] <= bounds[i], "cu_seqlens must not fall, got ", bounds[i - 1], " then ",
        bounds[i], " at index ", i);
    longest = std::max(longest, bounds[i] - bounds[i - 1]);
  }
  TORCH_CHECK_VALUE(
      bounds.back() == total, "cu_seqlens must end at ", total, ", got ", bounds.back());
  TORCH_CHECK_VALUE(
      longest <= max_seqlen, "max_seqlen must be at least the longest length ", longest, ", got ",
      max_seqlen);
  return bounds;
}

// Strides may be any but for head_dim's, which the kernels read in vectors.
at::Tensor with_rows(const at::Tensor& tensor) {
  return tensor.stride(2) == 1 ? tensor : tensor.contiguous();
}

TokenRows token_rows(const at::Tensor& tensor) {
  return {tensor.const_data_ptr(), tensor.stride(0), tensor.stride(1)};
}

AttentionArguments arguments(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& out,
    const at::Tensor& lse, double scale, const std::optional<at::Tensor>& seed, int64_t threshold,
    int64_t site) {
  AttentionArguments a{};
  a.q = token_rows(q);
  a.k = token_rows(k);
  a.v = token_rows(v);
  a.heads = q.size(1);
  a.head_dim = q.size(2);
  a.scale = static_cast<float>(scale);
  const DropoutKey key = dropout_key(seed, threshold, site);
  a.seed = key.seed;
  a.site = key.site;
  a.threshold = key.threshold;
  a.out = mutable_bytes(out);
  a.lse = lse.mutable_data_ptr<float>();
  return a;
}

void check_inputs(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  TORCH_CHECK_VALUE(
      q.dim() == 3, "q must have shape (total_tokens, num_heads, head_dim), got ", q.sizes());
  check_like("k", k, q);
  check_like("v", v, q);
}

// Longest tasks first, so that no thread is left with one at the end. A thread takes some
// neighbours at a time: each task asks for the memory of the next head.
template <class Run>
void run_tasks(std::vector<AttentionTask>& tasks, const Run& run) {
  std::stable_sort(tasks.begin(), tasks.end(), [](const auto& left, const auto& right) {
    return left.length * (left.end - left.begin) > right.length * (right.end - right.begin);
  });
  const int64_t count = tasks.size(), threads = std::min<int64_t>(count, at::get_num_threads());
  const int64_t neighbours = std::clamp<int64_t>(count / (16 * at::get_num_threads()), 1, 4);
  std::atomic<int64_t> next{0};
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t first; (first = next.fetch_add(neighbours)) < count;) {
      const int64_t last = std::min(count, first + neighbours);
      for (int64_t i = first; i < last; ++i) run(tasks[i]);
    }
  });
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> varlen_attention_fwd(
    const at::Tensor& q_, const at::Tensor& k_, const at::Tensor& v_, const at::Tensor& cu_seqlens,
    int64_t max_seqlen, double scale, const std::optional<at::Tensor>& seed, int64_t threshold,
    int64_t site) {
  const int format = format_of("q", q_);
  check_inputs(q_, k_, v_);
  const std::vector<int64_t> bounds = checked_bounds(cu_seqlens, max_seqlen, q_.size(0));
  const at::Tensor q = with_rows(q_), k = with_rows(k_), v = with_rows(v_);
  const at::Tensor out = at::empty(q.sizes(), q.options());
  const at::Tensor lse = at::empty({q.size(0), q.size(1)}, q.options().dtype(at::kFloat));
  const AttentionArguments a = arguments(q, k, v, out, lse, scale, seed, threshold, site);
  std::vector<AttentionTask> tasks;
  for (size_t sequence = 0; sequence + 1 < bounds.size(); ++sequence) {
    const int64_t start = bounds[sequence], length = bounds[sequence + 1] - start;
    if (length == 0) continue;
    const int64_t queries = step_up(at::divup(length, at::divup(length, kForwardQueries)));
    for (int64_t head = 0; head < a.heads; ++head) {
      for (int64_t begin = 0; begin < length; begin += queries) {
        const int64_t end = std::min(length, begin + queries);
        tasks.push_back({int64_t(sequence), head, start, length, begin, end, nullptr});
      }
    }
  }
  const auto forward = SPANBERT_FAST_KERNELS_AND_AMX(varlen_attention_kernels).forward[format];
  run_tasks(tasks, [&](const AttentionTask& task) { forward(a, task, &thread_scratch); });
  return {out, lse};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> varlen_attention_bwd(
    const at::Tensor& dout_, const at::Tensor& q_, const at::Tensor& k_, const at::Tensor& v_,
    const at::Tensor& out_, const at::Tensor& lse_, const at::Tensor& cu_seqlens,
    int64_t max_seqlen, double scale, const std::optional<at::Tensor>& seed, int64_t threshold,
    int64_t site) {
  const int format = format_of("q", q_);
  check_inputs(q_, k_, v_);
  check_like("dout", dout_, q_);
  check_like("out", out_, q_);
  const std::vector<int64_t> bounds = checked_bounds(cu_seqlens, max_seqlen, q_.size(0));
  const at::Tensor q = with_rows(q_), k = with_rows(k_), v = with_rows(v_), dout = with_rows(dout_);
  const at::Tensor out = out_.contiguous(), lse = lse_.contiguous();
  const at::Tensor dq = at::empty(q.sizes(), q.options()), dk = at::empty_like(dq),
                   dv = at::empty_like(dq);
  AttentionArguments a = arguments(q, k, v, out, lse, scale, seed, threshold, site);
  a.dout = token_rows(dout);
  a.dq = mutable_bytes(dq);
  a.dk = mutable_bytes(dk);
  a.dv = mutable_bytes(dv);

  const int64_t batch = bounds.size() - 1;
  const int64_t most_parts =
      std::clamp<int64_t>(kEnoughTasks / std::max<int64_t>(1, batch * a.heads), 1, kMostParts);
  const auto parts_of = [&](int64_t length) {
    return std::clamp<int64_t>(length / kBackwardKeys, 1, most_parts);
  };
  int64_t floats = 0;
  for (int64_t sequence = 0; sequence < batch; ++sequence) {
    const int64_t length = bounds[sequence + 1] - bounds[sequence], parts = parts_of(length);
    if (parts > 1) floats += a.heads * parts * length * dq_width(a.head_dim);
  }
  const at::Tensor dq_parts = at::empty({floats}, lse.options());
  float* free_part = dq_parts.mutable_data_ptr<float>();
  std::vector<AttentionTask> tasks, sums;
  for (int64_t sequence = 0; sequence < batch; ++sequence) {
    const int64_t start = bounds[sequence], length = bounds[sequence + 1] - start;
    if (length == 0) continue;
    const int64_t parts = parts_of(length), keys = step_up(at::divup(length, parts));
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
  const auto& kernels = SPANBERT_FAST_KERNELS_AND_AMX(varlen_attention_kernels);
  run_tasks(tasks, [&](const AttentionTask& task) {
    kernels.backward[format](a, task, &thread_scratch);
  });
  run_tasks(sums, [&](const AttentionTask& task) {
    kernels.sum_dq[format](a, task, parts_of(task.length));
  });
  return {dq, dk, dv};
}

}  // namespace spanbert_fast
