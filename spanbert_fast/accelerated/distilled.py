"""DistilBERT's layer: the projection inside its attention, no dropout behind it."""

import torch
from torch import nn
from transformers.activations import GELUActivation

from spanbert_fast.accelerated.encoder import FastLayer
from spanbert_fast.accelerated.packed import Fast, Packed
from spanbert_fast.accelerated.parts import FastSelfAttention, add_norm
from spanbert_fast.nn.linear import apply_linear, is_plain, linear_gelu
from spanbert_fast.ops.dropout import Dropout, dropped


class DistilledAttention(FastSelfAttention):
    """Self-attention and its projection, without residual and norm."""

    linears = ("q_lin", "k_lin", "v_lin")

    def packed(self, x: torch.Tensor, packed: Packed) -> torch.Tensor:
        """(total_tokens, hidden_size) -> the same; (num_rows, hidden_size) with `packed.rows`."""
        context = super().packed(x, packed)
        context = context if packed.rows is None else context[packed.rows]
        return apply_linear(self.out_lin, context)


class DistilledFeedForward(Fast):
    """The feed-forward network without residual and norm."""

    gelu_name = "activation"

    def forward(self, x: torch.Tensor, *, packed: Packed | None = None) -> torch.Tensor:
        """With `packed`, a plain dropout is left to the layer, which drops, adds and norms."""
        if packed is None:
            return super().forward(x)
        if is_plain(self.activation, GELUActivation):
            y = linear_gelu(self.lin1, x)
        else:
            y = self.activation(self.lin1(x))
        y = apply_linear(self.lin2, y)
        return y if is_plain(self.dropout, nn.Dropout) else self.dropout(y)


class DistilledLayer(FastLayer):
    """Self-attention, then the feed-forward network."""

    parts = ("attention", "ffn")

    def packed(self, x: torch.Tensor, packed: Packed) -> torch.Tensor:
        y, _ = self.attention(x, packed=packed)
        x = x if packed.rows is None else x[packed.rows]
        x = _add_norm(self.sa_layer_norm, y, x, None)
        dropout = packed.after_feed_forward(self.ffn.dropout)
        return _add_norm(self.output_layer_norm, self.ffn(x, packed=packed), x, dropout)


def _add_norm(
    norm: nn.Module, y: torch.Tensor, residual: torch.Tensor, dropout: Dropout | None
) -> torch.Tensor:
    if is_plain(norm, nn.LayerNorm):
        return add_norm(norm, y, residual, None, dropout)
    return norm((y if dropout is None else dropped(y, dropout)) + residual)
