"""Self-attention on packed tokens."""

import torch
from torch import nn

from spanbert_fast.nn.linear import draw_dropout_seed, reset_linear
from spanbert_fast.nn.packing import Packing
from spanbert_fast.ops import _common
from spanbert_fast.ops.varlen_attention import varlen_attention


class PackedSelfAttention(nn.Module):
    """Multi-head self-attention within each sequence; heads are concatenated, not yet projected.

    Shapes:
        hidden_states: (total_tokens, hidden_size) with cu_seqlens int32 (batch + 1,), or
            (batch, seqlen, hidden_size) with an optional attention_mask (batch, seqlen).
        output: as hidden_states; zeros where attention_mask is 0.

    Args:
        hidden_size: features; a multiple of num_attention_heads.
        num_attention_heads: heads.
        attention_dropout: probability of dropping an attention probability while training.
    """

    def __init__(self, hidden_size: int, num_attention_heads: int, attention_dropout: float = 0.1):
        super().__init__()
        if hidden_size % num_attention_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads = {num_attention_heads}, "
                f"got {hidden_size}"
            )
        self.num_attention_heads = num_attention_heads
        self.attention_dropout = attention_dropout
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal(0, 0.02) weights and zero biases, as BERT starts."""
        for linear in (self.query, self.key, self.value):
            reset_linear(linear)

    def extra_repr(self) -> str:
        return (
            f"num_attention_heads={self.num_attention_heads}, "
            f"attention_dropout={self.attention_dropout}"
        )

    def forward(
        self,
        hidden_states: torch.Tensor,
        cu_seqlens: torch.Tensor | None = None,
        max_seqlen: int | None = None,
        *,
        attention_mask: torch.Tensor | None = None,
        dropout_seed: torch.Tensor | None = None,
        dropout_site: int = 0,
    ) -> torch.Tensor:
        packing = Packing.of(hidden_states, attention_mask, cu_seqlens, max_seqlen)
        rows = packing.pack(hidden_states)
        rows = rows.to(_common.compute_dtype(rows))  # once, and not by autocast for each product
        dropout_p = self.attention_dropout if self.training else 0.0
        if dropout_p and dropout_seed is None:
            dropout_seed = draw_dropout_seed(rows.device)
        q, k, v = (
            linear(rows).unflatten(1, (self.num_attention_heads, -1))
            for linear in (self.query, self.key, self.value)
        )
        context = varlen_attention(
            q,
            k,
            v,
            packing.cu_seqlens,
            packing.max_seqlen,
            dropout_p=dropout_p,
            dropout_seed=dropout_seed,
            dropout_site=dropout_site,
        )
        return packing.unpack(context.flatten(1))
