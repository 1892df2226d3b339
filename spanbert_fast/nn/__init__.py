"""torch.nn modules on packed tokens: building blocks for your own model.

Each takes packed input, (total_tokens, hidden_size) with a `Packing` or `cu_seqlens`. Those that
attend across tokens take padded input too, (batch, seqlen, hidden_size), with an optional
`attention_mask`.
"""

from spanbert_fast.nn.attention import PackedSelfAttention
from spanbert_fast.nn.heads import MaskedLMHead, SpanBoundaryHead
from spanbert_fast.nn.layer import DropoutAddLayerNorm, NormOptions, TransformerLayer
from spanbert_fast.nn.packing import Packing
from spanbert_fast.nn.pair_losses import span_pair_losses
from spanbert_fast.nn.span_losses import SpanPretrainingLoss
from spanbert_fast.nn.targets import Denominators, SpanTargets

__all__ = [
    "Denominators",
    "DropoutAddLayerNorm",
    "MaskedLMHead",
    "NormOptions",
    "PackedSelfAttention",
    "Packing",
    "SpanBoundaryHead",
    "SpanPretrainingLoss",
    "SpanTargets",
    "TransformerLayer",
    "span_pair_losses",
]
