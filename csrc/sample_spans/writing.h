// Turns masked bits into the sampler's outputs, for host and device. Merged spans are the runs of
// the bits; the runs before a run determine where its rows are.
#pragma once

#include "sample_spans/spans.h"

namespace spanbert_fast {

// A merged span of one sequence, and how many of its tokens are targets of the boundary objective.
struct Run {
  int first, last, targets;
};

// Finds the next run at `from` or later; false if there is none.
SPANBERT_HOST_DEVICE bool next_run(
    const SequenceBits& text, const SpanLaw& law, int from, Run* run) {
  run->first = next_bit(text.masked, from, text.words(), kSet);
  if (run->first >= text.length) return false;
  run->last = next_bit(text.masked, run->first, text.words(), kClear) - 1;
  const int length = run->last - run->first + 1;
  const bool has_targets = law.internal_endpoints ||
      (run->first > 0 && test_bit(text.maskable, run->first - 1) &&
       test_bit(text.maskable, run->last + 1));
  const int most = length < law.max_span_targets ? length : law.max_span_targets;
  run->targets = has_targets ? most : 0;
  return true;
}

SPANBERT_HOST_DEVICE void add_run(const Run& run, SpanCounts* counts) {
  counts->masked += run.last - run.first + 1;
  counts->spans += 1;
  counts->spans_with_targets += run.targets > 0;
  counts->targets += run.targets;
}

SPANBERT_HOST_DEVICE SpanCounts count_runs(const SequenceBits& text, const SpanLaw& law) {
  SpanCounts counts = {0, 0, 0, 0};
  Run run;
  for (int from = 0; next_run(text, law, from, &run); from = run.last + 1) add_run(run, &counts);
  return counts;
}

SPANBERT_HOST_DEVICE Replacement replacement_of(uint32_t word) {
  // 8/10 and 9/10 of 2**32, rounded
  return word < 3435973837u ? kMasked : word < 3865470566u ? kRandom : kKept;
}

// Writes all outputs of a run; `at` counts those of the runs before it.
SPANBERT_HOST_DEVICE void write_run(
    const Run& run, const SpanCounts& at, int64_t begin, uint64_t id, const SpanInputs& in,
    const SpanLaw& law, const SpanOutputs& out) {
  PhiloxWords word = draw(run.first, id, kReplacementStream, in.seed);
  Replacement replacement = replacement_of(word.x[0]);
  out.span_starts[at.spans] = begin + run.first;
  out.span_ends[at.spans] = begin + run.last;
  out.span_replacements[at.spans] = law.replace_per_token ? kPerToken : replacement;
  for (int i = run.first; i <= run.last; ++i) {
    if (i > run.first && (law.replace_per_token || replacement == kRandom)) {
      word = draw(i, id, kReplacementStream, in.seed);
      if (law.replace_per_token) replacement = replacement_of(word.x[0]);
    }
    const int64_t target = in.input_ids[begin + i];
    const int k = at.masked + i - run.first;
    out.mlm_positions[k] = begin + i;
    out.mlm_targets[k] = target;
    if (replacement == kMasked) {
      out.input_ids[begin + i] = in.mask_token_id;
    } else if (replacement == kRandom) {
      out.input_ids[begin + i] = in.random_token_pool[below(word.x[1], in.pool_size)];
    }
    if (i - run.first < run.targets) out.sbo_targets[at.targets + i - run.first] = target;
  }
  if (run.targets > 0) {
    const int outside = !law.internal_endpoints;
    out.span_boundaries[2 * at.spans_with_targets] = begin + run.first - outside;
    out.span_boundaries[2 * at.spans_with_targets + 1] = begin + run.last + outside;
    out.cu_span_lengths[at.spans_with_targets + 1] = at.targets + run.targets;
  }
}

// Writes every `lanes`-th run of a sequence, from run `lane` on; `at` counts the sequences before.
SPANBERT_HOST_DEVICE void write_runs(
    const SequenceBits& text, int64_t sequence, SpanCounts at, const SpanInputs& in,
    const SpanLaw& law, const SpanOutputs& out, int lane, int lanes) {
  const int64_t begin = in.cu_seqlens[sequence];
  const uint64_t id = static_cast<uint64_t>(in.sequence_ids[sequence]);
  Run run;
  int number = 0;
  for (int from = 0; next_run(text, law, from, &run); from = run.last + 1, ++number) {
    if (number % lanes == lane) write_run(run, at, begin, id, in, law, out);
    add_run(run, &at);
  }
}

// Fills element k beyond the counts: nothing is masked, spans are empty, labels are ignored.
SPANBERT_HOST_DEVICE void fill_unused(int64_t k, const SpanCounts& counts, const SpanOutputs& out) {
  if (k >= counts.masked) {
    out.mlm_positions[k] = 0;
    out.mlm_targets[k] = -100;
  }
  if (k >= counts.spans) {
    out.span_starts[k] = 0;
    out.span_ends[k] = -1;
    out.span_replacements[k] = kPerToken;
  }
  if (k >= counts.spans_with_targets) {
    out.span_boundaries[2 * k] = out.span_boundaries[2 * k + 1] = 0;
    out.cu_span_lengths[k + 1] = counts.targets;
  }
  if (k >= counts.targets) out.sbo_targets[k] = -100;
}

}  // namespace spanbert_fast
