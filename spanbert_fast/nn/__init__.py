"""torch.nn modules on packed tokens: building blocks for a model of one's own.

Each takes packed input, (total_tokens, hidden_size) with `cu_seqlens`, or padded input, (batch,
seqlen, hidden_size) with an optional `attention_mask`, where it attends across tokens.
"""

from spanbert_fast.nn.attention import PackedSelfAttention
from spanbert_fast.nn.heads import (
    MaskedLMHead,
    SpanBoundaryHead,
    SpanPretrainingLoss,
)
from spanbert_fast.nn.layer import DropoutAddLayerNorm, TransformerLayer
from spanbert_fast.nn.pair_losses import span_pair_losses

__all__ = [
    "DropoutAddLayerNorm",
    "MaskedLMHead",
    "PackedSelfAttention",
    "SpanBoundaryHead",
    "SpanPretrainingLoss",
    "TransformerLayer",
    "span_pair_losses",
]
