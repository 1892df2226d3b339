// Span sampling (contract C3) for host and device: the algorithm of
// spanbert_fast/reference/sample_spans.py, bit for bit; its text says what is drawn and why.
//
// A sequence is three bit sets of length / 64 + 1 words, which hold at least one bit beyond the
// end:
//   maskable  tokens that may be masked; 0 beyond the end
//   stops     tokens that begin a word or are not maskable; 1 beyond the end
//   masked    tokens that are masked
// A span grows token by token up to a stop; merged spans are the runs of `masked`.
#pragma once

#include "philox.h"
#include "sample_spans/bits.h"

namespace spanbert_fast {

constexpr int kMaxSpanWords = 256;
constexpr int kCounts = 5;  // elements of SpanOutputs::counts

enum Scheme : int { kGiven, kGeometric, kWord, kSubword };
enum Replacement : int8_t { kPerToken = -1, kMasked, kRandom, kKept };
enum Stream : uint32_t { kSpanStream, kReplacementStream };

// The options; as SpanLaw in spanbert_fast/reference/span_law.py.
struct SpanLaw {
  int64_t budget_numerator, budget_denominator;
  int32_t min_span_words;
  int32_t num_lengths;  // thresholds in use
  int32_t max_span_targets;
  bool replace_per_token, internal_endpoints, complete_words, unbiased_edges;
  uint64_t scheme_thresholds[3];
  uint64_t length_thresholds[kMaxSpanWords - 1];
};

struct SpanInputs {
  const int64_t* input_ids;
  const int32_t* cu_seqlens;
  const uint8_t* word_starts;
  const uint8_t* special_mask;  // may be null
  const int64_t* given_spans;   // (num_given, 2), may be null
  const int64_t* random_token_pool;
  const int64_t* sequence_ids;
  int64_t total_tokens, batch, num_given, pool_size;
  uint64_t seed;
  int64_t mask_token_id;
};

// Running totals of one sequence, or of all before it.
struct SpanCounts {
  int32_t masked, spans, spans_with_targets, targets;
};

// Arrays of `capacity` elements (boundaries have 2 each, cu_span_lengths 1 more). counts: the four
// of SpanCounts, then 1 if the input was refused, in which case the rest is void.
struct SpanOutputs {
  int64_t* input_ids;  // total_tokens
  int64_t* mlm_positions;
  int64_t* mlm_targets;
  int64_t* span_boundaries;
  int64_t* span_starts;
  int64_t* span_ends;
  int32_t* cu_span_lengths;
  int64_t* sbo_targets;
  int8_t* span_replacements;
  int32_t* counts;
  int64_t capacity;
};

// Bit sets of all sequences and their counts, made by the first pass and read by the second.
struct SpanScratch {
  uint64_t *maskable, *stops, *masked;  // scratch_words(total_tokens, batch) each
  SpanCounts* counts;                   // batch
};

SPANBERT_HOST_DEVICE int64_t scratch_words(int64_t total_tokens, int64_t batch) {
  return total_tokens / 64 + batch;
}

// Where a sequence's bit sets begin, so that the sequence before has length / 64 + 1 words.
SPANBERT_HOST_DEVICE int64_t scratch_offset(int64_t begin, int64_t sequence) {
  return begin / 64 + sequence;
}

struct SequenceBits {
  const uint64_t* maskable;
  const uint64_t* stops;
  uint64_t* masked;
  int length;

  SPANBERT_HOST_DEVICE int words() const { return length / 64 + 1; }
};

SPANBERT_HOST_DEVICE SequenceBits
bits_of(const SpanScratch& scratch, const SpanInputs& in, int64_t i) {
  const int64_t at = scratch_offset(in.cu_seqlens[i], i);
  return {
      scratch.maskable + at, scratch.stops + at, scratch.masked + at,
      in.cu_seqlens[i + 1] - in.cu_seqlens[i]};
}

// Word `w` of `stops`, from the bits of word_starts (`starts`) and all of `maskable`. The first
// token, and one after a special token, begins a word whatever word_starts says.
SPANBERT_HOST_DEVICE uint64_t stops_word(uint64_t starts, const uint64_t* maskable, int w) {
  const uint64_t special = ~maskable[w];
  return starts | special | special << 1 | (w == 0 ? 1 : ~maskable[w - 1] >> 63);
}

// A number below n from a random word, without division; n < 2**31.
SPANBERT_HOST_DEVICE int64_t below(uint32_t word, int64_t n) {
  return static_cast<int64_t>(word * static_cast<uint64_t>(n) >> 32);
}

SPANBERT_HOST_DEVICE PhiloxWords draw(uint32_t number, uint64_t id, Stream stream, uint64_t seed) {
  const PhiloxWords counter = {
      {number, static_cast<uint32_t>(id), static_cast<uint32_t>(id >> 32), stream}};
  return philox4x32<10>(counter, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
}

// The given spans of a sequence: `count` of them, from number `first` on.
struct GivenSpans {
  int64_t first, count;
};

// Whether the given spans are ranges of maskable tokens of the sequence.
SPANBERT_HOST_DEVICE bool given_spans_fit(
    const SequenceBits& text, const int64_t* spans, const GivenSpans& given, int64_t begin) {
  for (int64_t k = given.first; k < given.first + given.count; ++k) {
    const int64_t from = spans[2 * k] - begin, to = spans[2 * k + 1] - begin;
    if (from < 0 || to < from || to >= text.length) return false;
    if (next_bit(text.maskable, static_cast<int>(from), text.words(), kClear) <= to) return false;
  }
  return true;
}

// The first given span that begins at this row or later.
SPANBERT_HOST_DEVICE int64_t first_given(const SpanInputs& in, int64_t row) {
  int64_t low = 0, high = in.num_given;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (in.given_spans[2 * middle] < row)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

// The maskable tokens of a sequence: their number, the first and the last.
struct MaskableRange {
  int count, lowest, highest;
};

SPANBERT_HOST_DEVICE MaskableRange maskable_range(const SequenceBits& text) {
  MaskableRange range = {0, 0, 0};
  for (int w = 0; w < text.words(); ++w) {
    const uint64_t word = text.maskable[w];
    if (word == 0) continue;
    if (range.count == 0) range.lowest = 64 * w + lowest_bit(word);
    range.highest = 64 * w + highest_bit(word);
    range.count += count_bits(word);
  }
  return range;
}

SPANBERT_HOST_DEVICE int select_maskable(
    const SequenceBits& text, const MaskableRange& range, int rank) {
  if (range.highest - range.lowest + 1 == range.count) return range.lowest + rank;
  int w = 0;
  for (int here; rank >= (here = count_bits(text.maskable[w])); ++w) rank -= here;
  return 64 * w + select_bit(text.maskable[w], rank);
}

// The span of one draw: `words` words from `first` on, but nothing after `last`. In a ring the text
// has no end.
struct DrawnSpan {
  int first, last, words;
  bool ring;
};

// False if the draw's anchor is masked already, or there is none.
SPANBERT_HOST_DEVICE bool draw_span(
    const SequenceBits& text, const MaskableRange& range, const GivenSpans& given, int64_t begin,
    const PhiloxWords& word, const SpanInputs& in, const SpanLaw& law, DrawnSpan* drawn) {
  int scheme = kGiven;
  while (scheme < kSubword && word.x[2] >= law.scheme_thresholds[scheme]) ++scheme;
  if (scheme == kGiven) {
    if (given.count == 0) return false;
    const int64_t* span = in.given_spans + 2 * (given.first + below(word.x[3], given.count));
    *drawn = {
        static_cast<int>(span[0] - begin), static_cast<int>(span[1] - begin), text.length, false};
    return !test_bit(text.masked, drawn->first);
  }
  int anchor = select_maskable(text, range, static_cast<int>(below(word.x[1], range.count)));
  if (test_bit(text.masked, anchor)) return false;
  if (scheme == kSubword) {
    *drawn = {anchor, anchor, 1, false};
    return true;
  }
  while (!test_bit(text.stops, anchor)) --anchor;
  int words = 1;
  if (scheme == kGeometric) {
    words = law.min_span_words;
    for (int k = 0; k < law.num_lengths && word.x[0] >= law.length_thresholds[k]; ++k) ++words;
  }
  *drawn = {anchor, text.length - 1, words, law.unbiased_edges};
  return true;
}

// Masks the drawn span within the budget; returns the tokens spent so far.
SPANBERT_HOST_DEVICE int mask_span(
    const SequenceBits& text, const MaskableRange& range, DrawnSpan drawn, int spent, int budget,
    bool complete_words) {
  for (int i = drawn.first;; ++i) {
    if (drawn.ring && !test_bit(text.maskable, i)) {
      i = next_bit(text.maskable, i, text.words(), kSet);
      if (i >= text.length) i = range.lowest;
    } else if (i > drawn.last || !test_bit(text.maskable, i)) {
      return spent;
    }
    if (test_bit(text.stops, i)) {
      if (spent >= budget || drawn.words == 0) return spent;
      --drawn.words;
    } else if (spent >= budget && !complete_words) {
      return spent;
    }
    spent += !test_bit(text.masked, i);
    set_bit(text.masked, i);
  }
}

// Draws spans until the budget is spent, and sets their bits in `masked`, which must be all zero.
// Returns whether there is a maskable token and the given spans are valid; if not, masks nothing.
SPANBERT_HOST_DEVICE bool draw_spans(
    const SequenceBits& text, const SpanInputs& in, const SpanLaw& law, int64_t sequence) {
  const int64_t begin = in.cu_seqlens[sequence];
  GivenSpans given = {0, 0};
  if (in.given_spans != nullptr) {
    given.first = first_given(in, begin);
    given.count = first_given(in, begin + text.length) - given.first;
    // A negative count: the spans are not in order.
    if (given.count < 0 || !given_spans_fit(text, in.given_spans, given, begin)) return false;
  }
  const MaskableRange range = maskable_range(text);
  if (range.count == 0) return false;
  const int budget = static_cast<int>(
      (range.count * law.budget_numerator + law.budget_denominator - 1) / law.budget_denominator);
  const uint64_t id = static_cast<uint64_t>(in.sequence_ids[sequence]);
  int spent = 0;
  for (uint32_t number = 0; spent < budget; ++number) {
    const PhiloxWords word = draw(number, id, kSpanStream, in.seed);
    DrawnSpan drawn;
    if (draw_span(text, range, given, begin, word, in, law, &drawn)) {
      spent = mask_span(text, range, drawn, spent, budget, law.complete_words);
    }
  }
  return true;
}

}  // namespace spanbert_fast
