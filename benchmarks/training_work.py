"""The work of a training step, and the number of tokens for a step on a GPU."""

from training_providers import BOTH, Batch, Case

# A provider of 24 layers of 1,024 keeps about 2.7 MB per token, beside ours, which stays in memory.
_TOKENS_PER_GIB = 340
_MOST_TOKENS, _STEP = 32_768, 2048


def gpu_shapes(memory: int) -> list[tuple[int, int]]:
    """(sequences, their length) of full batches of 512 and of 128 tokens that fill a GPU with so
    many bytes of memory, beside the largest model and its peer."""
    tokens = min(_MOST_TOKENS, int(memory / 2**30 * _TOKENS_PER_GIB))
    tokens = max(_STEP, tokens // _STEP * _STEP)
    return [(tokens // seqlen, seqlen) for seqlen in (512, 128)]


def product_flops(case: Case, batch: Batch, objective: str) -> float:
    """Operations of the matrix products that a step needs, forward and backward.

    The heads' products are counted only for rows that have a target, even if a provider computes
    more.
    """
    width, tokens = case.hidden_size, batch.tokens()
    scores = sum(length**2 for length in case.lengths)
    encoder = case.layers * (24 * width**2 * tokens + 4 * width * scores)
    rows = len(batch.packed["mlm_targets"])
    spans = 0
    if objective == BOTH:
        rows += len(batch.packed["sbo_targets"])
        spans = len(batch.packed["span_boundaries"])
    heads = rows * 2 * width * (width + case.vocab_size) + spans * 4 * width**2
    return 3.0 * (encoder + heads)
