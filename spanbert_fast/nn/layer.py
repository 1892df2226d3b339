"""One BERT layer on packed tokens. Submodules carry Hugging Face's names (contract C1)."""

import torch
from torch import nn

from spanbert_fast.nn.attention import PackedSelfAttention
from spanbert_fast.nn.linear import (
    draw_dropout_seed,
    linear_gelu,
    linear_without_bias,
    reset_linear,
)
from spanbert_fast.nn.packing import Packing
from spanbert_fast.ops import _common
from spanbert_fast.ops.dropout_add_layer_norm import dropout_add_layer_norm


class DropoutAddLayerNorm(nn.LayerNorm):
    """y = LayerNorm(dropout(x + x_bias) + residual).

    Shapes:
        x, residual, output: (..., hidden_size).
        x_bias: (hidden_size,), optional.

    Args:
        hidden_size: features.
        dropout: probability of dropping an element of x while training.
        eps: added to the variance.
        residual_in_fp32: under autocast, read the residual and give the output in fp32.
    """

    def __init__(
        self,
        hidden_size: int,
        dropout: float = 0.1,
        eps: float = 1e-12,
        residual_in_fp32: bool = False,
    ):
        super().__init__(hidden_size, eps=eps)
        self.dropout = dropout
        self.residual_in_fp32 = residual_in_fp32

    def extra_repr(self) -> str:
        return f"{self.normalized_shape[0]}, dropout={self.dropout}, eps={self.eps}"

    def forward(
        self,
        x: torch.Tensor,
        residual: torch.Tensor,
        x_bias: torch.Tensor | None = None,
        *,
        dropout_seed: torch.Tensor | None = None,
        dropout_site: int = 0,
        dropout_rows: torch.Tensor | None = None,
    ) -> torch.Tensor:
        dropout_p = self.dropout if self.training else 0.0
        if dropout_p and dropout_seed is None:
            dropout_seed = draw_dropout_seed(x.device)
        y = dropout_add_layer_norm(
            x.reshape(-1, x.shape[-1]),
            residual.reshape(-1, residual.shape[-1]),
            self.weight,
            self.bias,
            x_bias=x_bias,
            dropout_p=dropout_p,
            dropout_seed=dropout_seed,
            dropout_site=dropout_site,
            dropout_rows=dropout_rows,
            eps=self.eps,
            residual_in_fp32=self.residual_in_fp32 and torch.is_autocast_enabled(x.device.type),
        )
        return y.view(x.shape)


class ProjectionOutput(nn.Module):
    """A linear layer back to hidden_size, then DropoutAddLayerNorm with the residual."""

    def __init__(self, in_features: int, hidden_size: int, *norm):
        super().__init__()
        self.dense = nn.Linear(in_features, hidden_size)
        self.LayerNorm = DropoutAddLayerNorm(hidden_size, *norm)

    def forward(self, x: torch.Tensor, residual: torch.Tensor, **dropout) -> torch.Tensor:
        y, bias = linear_without_bias(self.dense, x)
        return self.LayerNorm(y, residual, bias, **dropout)


class SelfAttentionBlock(nn.Module):
    """Self-attention and its output projection, under the names `self` and `output`."""

    def __init__(self, hidden_size, num_heads, attention_dropout, *norm):
        super().__init__()
        self.self = PackedSelfAttention(hidden_size, num_heads, attention_dropout)
        self.output = ProjectionOutput(hidden_size, hidden_size, *norm)


class Intermediate(nn.Module):
    """GELU(W x + b), hidden_size to intermediate_size."""

    def __init__(self, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.dense = nn.Linear(hidden_size, intermediate_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear_gelu(self.dense, x)


class TransformerLayer(nn.Module):
    """Self-attention, then a feed-forward network, each with dropout, residual and LayerNorm.

    Shapes:
        hidden_states: (total_tokens, hidden_size) with cu_seqlens int32 (batch + 1,), or
            (batch, seqlen, hidden_size) with an optional attention_mask (batch, seqlen).
        rows: int64 (num_rows,), with packed input only: the rows that are needed after
            attention; everything behind attention is computed for them alone, with the same
            values as without `rows`.
        output: as hidden_states, or (num_rows, hidden_size).

    Args:
        hidden_size, num_attention_heads, intermediate_size: sizes.
        attention_dropout, hidden_dropout: probabilities while training.
        layer_norm_eps: added to the variance.
        layer_index: the layer's number, which gives its dropout masks their sites (C4).
        residual_in_fp32: under autocast, keep the residual stream, the layer's output too, in fp32;
            the default keeps it in autocast's dtype.
    """

    def __init__(
        self,
        hidden_size: int,
        num_attention_heads: int,
        intermediate_size: int,
        attention_dropout: float = 0.1,
        hidden_dropout: float = 0.1,
        layer_norm_eps: float = 1e-12,
        layer_index: int = 0,
        residual_in_fp32: bool = False,
    ):
        super().__init__()
        self.layer_index = layer_index
        norm = (hidden_dropout, layer_norm_eps, residual_in_fp32)
        self.attention = SelfAttentionBlock(
            hidden_size, num_attention_heads, attention_dropout, *norm
        )
        self.intermediate = Intermediate(hidden_size, intermediate_size)
        self.output = ProjectionOutput(intermediate_size, hidden_size, *norm)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal(0, 0.02) weights, zero biases, identity norms, as BERT starts."""
        self.attention.self.reset_parameters()
        for linear in (self.attention.output.dense, self.intermediate.dense, self.output.dense):
            reset_linear(linear)
        self.attention.output.LayerNorm.reset_parameters()
        self.output.LayerNorm.reset_parameters()

    def extra_repr(self) -> str:
        return f"layer_index={self.layer_index}"

    def forward(
        self,
        hidden_states: torch.Tensor,
        cu_seqlens: torch.Tensor | None = None,
        max_seqlen: int | None = None,
        *,
        attention_mask: torch.Tensor | None = None,
        rows: torch.Tensor | None = None,
        dropout_seed: torch.Tensor | None = None,
    ) -> torch.Tensor:
        packing = Packing.of(hidden_states, attention_mask, cu_seqlens, max_seqlen)
        if rows is not None and packing.padded_shape is not None:
            raise ValueError("rows must be None with padded hidden_states")
        x = packing.pack(hidden_states)
        if self.training and dropout_seed is None:
            dropout_seed = draw_dropout_seed(x.device)
        context = self.attention.self(
            x,
            packing.cu_seqlens,
            packing.max_seqlen,
            dropout_seed=dropout_seed,
            dropout_site=self.layer_index,
        )
        if rows is not None:
            _common.check_ids("rows", rows, x.shape[0])  # indexing would take -1 for the last row
            # Plain indexing: its backward sorts the rows on a GPU, so that rows that come twice
            # add up in a fixed order.
            x, context = x[rows], context[rows]
        dropout = {"dropout_seed": dropout_seed, "dropout_rows": rows}
        x = self.attention.output(context, x, dropout_site=2 * self.layer_index, **dropout)
        x = self.output(self.intermediate(x), x, dropout_site=2 * self.layer_index + 1, **dropout)
        return packing.unpack(x)
