// Span sampling on the CPU, two passes over the sequences. The first draws each sequence's spans
// and counts them; after the counts are summed, the second writes every sequence's rows in place.

#include <atomic>
#include <cstring>

#include "cpu/common.h"
#include "cpu/dispatch.h"
#include "sample_spans/devices.h"
#include "sample_spans/writing.h"

namespace spanbert_fast {
namespace {

// The least tokens for a thread; with fewer, starting it takes longer than its work.
constexpr int64_t kTokensPerTask = 8192;

struct Arguments {
  const SpanInputs& in;
  const SpanLaw& law;
  const SpanOutputs& out;
  const SpanScratch& scratch;
};

// Up to 64 bytes of 0 or 1, packed into bits.
SPANBERT_HOST_DEVICE uint64_t pack_bytes(const uint8_t* bytes, int count) {
  uint64_t word = 0;
  int i = 0;
  for (; i + 8 <= count; i += 8) {
    uint64_t eight;
    std::memcpy(&eight, bytes + i, 8);
    // The product moves the lowest bit of byte k to bit 56 + k.
    word |= ((eight & 0x0101010101010101u) * 0x0102040810204080u >> 56) << i;
  }
  for (; i < count; ++i) word |= uint64_t{bytes[i] & 1u} << i;
  return word;
}

SPANBERT_HOST_DEVICE void pack_sequence(
    const SpanInputs& in, int64_t begin, const SequenceBits& text, uint64_t* maskable,
    uint64_t* stops) {
  for (int w = 0; w < text.words(); ++w) {
    const int64_t at = begin + 64 * w;
    const int count = text.length - 64 * w < 64 ? text.length - 64 * w : 64;
    const uint64_t all = count == 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1;
    maskable[w] = all;
    if (in.special_mask != nullptr) maskable[w] &= ~pack_bytes(in.special_mask + at, count);
    stops[w] = stops_word(pack_bytes(in.word_starts + at, count), maskable, w);
    text.masked[w] = 0;
  }
}

// First pass. Returns whether all sequences are valid.
SPANBERT_HOST_DEVICE bool draw_range(const Arguments& a, int64_t first, int64_t last) {
  bool good = true;
  for (int64_t i = first; i < last; ++i) {
    const int64_t begin = a.in.cu_seqlens[i];
    const SequenceBits text = bits_of(a.scratch, a.in, i);
    const int64_t at = scratch_offset(begin, i);
    pack_sequence(a.in, begin, text, a.scratch.maskable + at, a.scratch.stops + at);
    int64_t all_ids = 0;  // has a bit above 31 iff some id is negative or too large
    for (int k = 0; k < text.length; ++k) {
      const int64_t id = a.in.input_ids[begin + k];
      a.out.input_ids[begin + k] = id;
      all_ids |= id;
    }
    good &= all_ids >> 31 == 0;
    good &= draw_spans(text, a.in, a.law, i);
    a.scratch.counts[i] = count_runs(text, a.law);
  }
  return good;
}

// Second pass; the counts are now those of the sequences before.
SPANBERT_HOST_DEVICE void write_range(const Arguments& a, int64_t first, int64_t last) {
  for (int64_t i = first; i < last; ++i) {
    write_runs(bits_of(a.scratch, a.in, i), i, a.scratch.counts[i], a.in, a.law, a.out, 0, 1);
  }
}

// Both passes again for CPUs that count and find bits in one instruction; chosen at run time, at
// every level of cpu/dispatch.h but the lowest.
#if defined(__x86_64__)
#define SPANBERT_TARGET __attribute__((target("avx2,bmi,bmi2,lzcnt,popcnt")))
SPANBERT_TARGET bool draw_range_avx2(const Arguments& a, int64_t first, int64_t last) {
  return draw_range(a, first, last);
}
SPANBERT_TARGET void write_range_avx2(const Arguments& a, int64_t first, int64_t last) {
  write_range(a, first, last);
}
bool has_avx2() {
  static const bool has = isa_level() >= IsaLevel::avx2 && __builtin_cpu_supports("bmi") &&
      __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt") &&
      __builtin_cpu_supports("lzcnt");
  return has;
}
#else
bool draw_range_avx2(const Arguments& a, int64_t first, int64_t last) {
  return draw_range(a, first, last);
}
void write_range_avx2(const Arguments& a, int64_t first, int64_t last) {
  write_range(a, first, last);
}
bool has_avx2() { return false; }
#endif
bool draw_range_baseline(const Arguments& a, int64_t first, int64_t last) {
  return draw_range(a, first, last);
}
void write_range_baseline(const Arguments& a, int64_t first, int64_t last) {
  write_range(a, first, last);
}

// Checks that must hold before memory is read through cu_seqlens and given_spans.
bool inputs_fit(const SpanInputs& in) {
  if (in.cu_seqlens[0] != 0 || in.cu_seqlens[in.batch] != in.total_tokens) return false;
  for (int64_t i = 0; i < in.batch; ++i) {
    if (in.cu_seqlens[i + 1] <= in.cu_seqlens[i]) return false;
  }
  for (int64_t k = 1; k < in.num_given; ++k) {
    if (in.given_spans[2 * k] < in.given_spans[2 * k - 2]) return false;
  }
  if (in.num_given > 0 &&
      (in.given_spans[0] < 0 || in.given_spans[2 * in.num_given - 2] >= in.total_tokens)) {
    return false;
  }
  int64_t all_ids = 0;
  for (int64_t k = 0; k < in.pool_size; ++k) all_ids |= in.random_token_pool[k];
  return all_ids >> 31 == 0;
}

// Turns every sequence's counts into those of the sequences before it; returns the sums.
SpanCounts sum_counts(SpanCounts* counts, int64_t batch) {
  SpanCounts total = {0, 0, 0, 0};
  for (int64_t i = 0; i < batch; ++i) {
    const SpanCounts own = counts[i];
    counts[i] = total;
    total.masked += own.masked;
    total.spans += own.spans;
    total.spans_with_targets += own.spans_with_targets;
    total.targets += own.targets;
  }
  return total;
}

}  // namespace

void sample_spans_cpu(
    const SpanInputs& in, const SpanLaw& law, const SpanOutputs& out, const SpanScratch& scratch) {
  const Arguments arguments{in, law, out, scratch};
  const bool fast = has_avx2();
  std::atomic<bool> good = inputs_fit(in);
  const int64_t mean_tokens = in.batch == 0 ? 1 : in.total_tokens / in.batch + 1;
  const int64_t grain = kTokensPerTask / mean_tokens + 1;
  if (good) {
    parallel_for(0, in.batch, grain, [&](int64_t first, int64_t last) {
      const bool fits = fast ? draw_range_avx2(arguments, first, last)
                             : draw_range_baseline(arguments, first, last);
      if (!fits) good = false;
    });
  }
  SpanCounts total = {0, 0, 0, 0};
  if (good) {
    total = sum_counts(scratch.counts, in.batch);
    parallel_for(0, in.batch, grain, [&](int64_t first, int64_t last) {
      fast ? write_range_avx2(arguments, first, last)
           : write_range_baseline(arguments, first, last);
    });
  } else if (in.total_tokens > 0) {
    std::memcpy(out.input_ids, in.input_ids, in.total_tokens * sizeof(int64_t));
  }
  out.cu_span_lengths[0] = 0;
  for (int64_t k = total.spans_with_targets; k < out.capacity; ++k) fill_unused(k, total, out);
  const int32_t counts[kCounts] = {
      total.masked, total.spans, total.spans_with_targets, total.targets, !good};
  std::memcpy(out.counts, counts, sizeof(counts));
}

}  // namespace spanbert_fast
