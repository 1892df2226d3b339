"""How much work a training step is, and how many tokens a step on a GPU should have."""

from training_providers import BOTH, Batch, Case

# What a provider of 24 layers of 1,024 keeps beside ours, which stays in memory, is about 2.7 MB
# for a token.
_TOKENS_PER_GIB = 340
_MOST_TOKENS, _STEP = 32_768, 2048


def gpu_shapes(memory: int) -> list[tuple[int, int]]:
    """(sequences, their length) of full batches at 512 and at 128 tokens that fill a GPU of so many
    bytes of memory, but for what its largest model and a peer's need."""
    tokens = min(_MOST_TOKENS, int(memory / 2**30 * _TOKENS_PER_GIB))
    tokens = max(_STEP, tokens // _STEP * _STEP)
    return [(tokens // seqlen, seqlen) for seqlen in (512, 128)]


def product_flops(case: Case, batch: Batch, objective: str) -> float:
    """Operations of the matrix products that a step needs, forward and backward.

    The heads' products are counted for the rows alone that have a target, whoever computes more.
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
