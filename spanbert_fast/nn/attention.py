"""Self-attention on packed tokens."""

import torch
from torch import nn

from spanbert_fast.nn.linear import apply_linears, reset_linear
from spanbert_fast.nn.packing import Packing
from spanbert_fast.ops._precision import compute_dtype
from spanbert_fast.ops.dropout import Dropout, DropoutPlan
from spanbert_fast.ops.varlen_attention import varlen_attention


class PackedSelfAttention(nn.Module):
    """Multi-head self-attention within each sequence, without the output projection.

        >>> attention = PackedSelfAttention(hidden_size=8, num_attention_heads=2)
        >>> attention(torch.zeros(2, 5, 8)).shape  # padded; or packed, with a Packing
        torch.Size([2, 5, 8])

    Shapes:
        hidden_states: (total_tokens, hidden_size) with a `packing` or cu_seqlens int32
            (batch + 1,); or (batch, seqlen, hidden_size) with an optional attention_mask (batch,
            seqlen).
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
        packing: Packing | None = None,
        *,
        dropout: Dropout | None = None,
        **layout,
    ) -> torch.Tensor:
        """Without `packing`, `layout` holds arguments of `Packing.of`. While training, the module
        draws its own dropout if none is given."""
        if packing is None:
            packing = Packing.of(hidden_states, **layout)
            return packing.unpack(self(packing.pack(hidden_states), packing, dropout=dropout))
        rows = hidden_states.to(compute_dtype(hidden_states))  # once, not for each product
        if not self.training:
            dropout = None
        elif dropout is None and self.attention_dropout:
            dropout = DropoutPlan.draw(rows.device).attention(0, self.attention_dropout)
        q, k, v = (
            y.unflatten(1, (self.num_attention_heads, -1))
            for y in apply_linears((self.query, self.key, self.value), rows)
        )
        context = varlen_attention(q, k, v, packing.cu_seqlens, packing.max_seqlen, dropout=dropout)
        return context.flatten(1)
