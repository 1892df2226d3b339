// Span sampling on a GPU: the CPU's two passes with a warp per sequence, and the sums between them.
//
//   draw_kernel   32 lanes pack the sequence's flags into bits; lane 0 draws its spans (22 draws
//   for
//                 512 tokens, each a few dependent reads of bits in L1) and counts them
//   sum_kernel    one block: exclusive sums of the counts over the batch
//   write_kernel  32 lanes copy the ids, then each lane writes its share of the runs
//   fill_kernel   fills the elements beyond the counts
//
// Bytes moved: 18 read and 8 written per token, about 30 written per masked token.

#include <cuda_runtime.h>

#include <cub/block/block_scan.cuh>

#include "sample_spans/devices.h"
#include "sample_spans/writing.h"

namespace spanbert_fast {
namespace {

constexpr int kLanes = 32;
constexpr int kWarpsPerBlock = 4;
constexpr int kSumThreads = 512;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;

// Whether sequence i of cu_seqlens can be read; the host has not checked these values.
__device__ bool sequence_fits(const SpanInputs& in, int64_t i) {
  const int64_t begin = in.cu_seqlens[i], end = in.cu_seqlens[i + 1];
  if (i == 0 && begin != 0) return false;
  if (i == in.batch - 1 && end != in.total_tokens) return false;
  return 0 <= begin && begin < end && end <= in.total_tokens;
}

// Bits 64 w to 64 w + 63 of a sequence's flags, made by a whole warp.
__device__ uint64_t pack_word(const uint8_t* flags, int length, int w, int lane) {
  uint64_t word = 0;
  for (int half = 0; half < 2; ++half) {
    const int i = 64 * w + kLanes * half + lane;
    const bool flag = i < length && (flags[i] & 1);
    word |= static_cast<uint64_t>(__ballot_sync(kAllLanes, flag)) << (kLanes * half);
  }
  return word;
}

__global__ void draw_kernel(
    const SpanInputs in, const SpanLaw law, const SpanOutputs out, const SpanScratch scratch) {
  const int lane = threadIdx.x % kLanes;
  const int64_t thread = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const int64_t i = thread / kLanes;
  int64_t all_ids = 0;  // has a bit above 31 iff some id is negative or too large
  for (int64_t k = thread; k < in.pool_size; k += int64_t{gridDim.x} * blockDim.x) {
    all_ids |= in.random_token_pool[k];
  }
  if (i >= in.batch || !sequence_fits(in, i)) {
    if (i < in.batch && lane == 0) scratch.counts[i] = {0, 0, 0, 0};
    if (i < in.batch || all_ids >> 31 != 0) out.counts[kCounts - 1] = 1;
    return;
  }
  const int64_t begin = in.cu_seqlens[i];
  const SequenceBits text = bits_of(scratch, in, i);
  uint64_t* maskable = scratch.maskable + scratch_offset(begin, i);
  uint64_t* stops = scratch.stops + scratch_offset(begin, i);
  for (int w = 0; w < text.words(); ++w) {
    const int count = text.length - 64 * w < 64 ? text.length - 64 * w : 64;
    uint64_t word = count == 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1;
    if (in.special_mask != nullptr) {
      word &= ~pack_word(in.special_mask + begin, text.length, w, lane);
    }
    const uint64_t starts = pack_word(in.word_starts + begin, text.length, w, lane);
    if (lane == 0) {
      maskable[w] = word;
      stops[w] = stops_word(starts, maskable, w);
      text.masked[w] = 0;
    }
  }
  for (int k = lane; k < text.length; k += kLanes) all_ids |= in.input_ids[begin + k];
  bool good = all_ids >> 31 == 0;
  if (lane == 0) {
    if (in.given_spans != nullptr) {
      for (int64_t k = i + 1; k < in.num_given; k += in.batch) {
        good &= in.given_spans[2 * k - 2] <= in.given_spans[2 * k];
      }
      if (in.num_given > 0) {
        good &= 0 <= in.given_spans[0] && in.given_spans[2 * in.num_given - 2] < in.total_tokens;
      }
    }
    good &= draw_spans(text, in, law, i);
    scratch.counts[i] = count_runs(text, law);
  }
  if (!good) out.counts[kCounts - 1] = 1;
}

struct AddCounts {
  __device__ SpanCounts operator()(const SpanCounts& a, const SpanCounts& b) const {
    return {
        a.masked + b.masked, a.spans + b.spans, a.spans_with_targets + b.spans_with_targets,
        a.targets + b.targets};
  }
};

__global__ void sum_kernel(const SpanInputs in, const SpanOutputs out, SpanCounts* counts) {
  using Scan = cub::BlockScan<SpanCounts, kSumThreads>;
  __shared__ typename Scan::TempStorage storage;
  SpanCounts before = {0, 0, 0, 0};
  for (int64_t first = 0; first < in.batch; first += kSumThreads) {
    const int64_t i = first + threadIdx.x;
    const SpanCounts own = i < in.batch ? counts[i] : SpanCounts{0, 0, 0, 0};
    SpanCounts sum, total;
    Scan(storage).ExclusiveScan(own, sum, SpanCounts{0, 0, 0, 0}, AddCounts{}, total);
    if (i < in.batch) counts[i] = AddCounts{}(before, sum);
    before = AddCounts{}(before, total);
    __syncthreads();  // the storage is reused
  }
  if (threadIdx.x == 0) {
    out.counts[0] = before.masked;
    out.counts[1] = before.spans;
    out.counts[2] = before.spans_with_targets;
    out.counts[3] = before.targets;
    out.cu_span_lengths[0] = 0;
  }
}

__global__ void write_kernel(
    const SpanInputs in, const SpanLaw law, const SpanOutputs out, const SpanScratch scratch) {
  const int lane = threadIdx.x % kLanes;
  const int64_t i = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / kLanes;
  if (i >= in.batch || !sequence_fits(in, i)) return;
  const int64_t begin = in.cu_seqlens[i];
  const SequenceBits text = bits_of(scratch, in, i);
  for (int k = lane; k < text.length; k += kLanes) {
    out.input_ids[begin + k] = in.input_ids[begin + k];
  }
  __syncwarp();  // one lane's copies come before another's masks
  // Overlapping sequences, which are refused, could have more rows than there is room for.
  if (out.counts[kCounts - 1] == 0) {
    write_runs(text, i, scratch.counts[i], in, law, out, lane, kLanes);
  }
}

__global__ void fill_kernel(const SpanOutputs out) {
  const int64_t k = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (k >= out.capacity) return;
  SpanCounts counts = {0, 0, 0, 0};
  if (out.counts[kCounts - 1] == 0) {
    counts = {out.counts[0], out.counts[1], out.counts[2], out.counts[3]};
  }
  fill_unused(k, counts, out);
}

}  // namespace

const char* sample_spans_cuda(
    const SpanInputs& in, const SpanLaw& law, const SpanOutputs& out, const SpanScratch& scratch,
    void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  cudaError_t error = cudaMemsetAsync(out.counts, 0, kCounts * sizeof(int32_t), stream);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  const int threads = kWarpsPerBlock * kLanes;
  const unsigned blocks = static_cast<unsigned>((in.batch + kWarpsPerBlock - 1) / kWarpsPerBlock);
  if (blocks > 0) draw_kernel<<<blocks, threads, 0, stream>>>(in, law, out, scratch);
  sum_kernel<<<1, kSumThreads, 0, stream>>>(in, out, scratch.counts);
  if (blocks > 0) write_kernel<<<blocks, threads, 0, stream>>>(in, law, out, scratch);
  const unsigned fills = static_cast<unsigned>((out.capacity + 255) / 256);
  if (fills > 0) fill_kernel<<<fills, 256, 0, stream>>>(out);
  error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace spanbert_fast
