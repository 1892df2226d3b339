"""One BERT layer on packed tokens. Submodules have Hugging Face's names (contract C1)."""

from typing import NamedTuple

import torch
from torch import nn

from spanbert_fast.nn.attention import PackedSelfAttention
from spanbert_fast.nn.linear import linear_gelu, linear_without_bias, reset_linear
from spanbert_fast.nn.packing import Packing
from spanbert_fast.ops import _checks
from spanbert_fast.ops._precision import is_autocast
from spanbert_fast.ops.dropout import Dropout, DropoutPlan
from spanbert_fast.ops.dropout_add_layer_norm import dropout_add_layer_norm


class NormOptions(NamedTuple):
    """Options that both norms of a layer share.

    Attributes:
        dropout: probability of dropping an element of x while training.
        eps: added to the variance.
        residual_in_fp32: under autocast, read the residual and return the output in fp32.
    """

    dropout: float = 0.1
    eps: float = 1e-12
    residual_in_fp32: bool = False


class DropoutAddLayerNorm(nn.LayerNorm):
    """y = LayerNorm(dropout(x + x_bias) + residual).

        >>> norm = DropoutAddLayerNorm(4, NormOptions(dropout=0.0))
        >>> norm(torch.zeros(2, 4), torch.tensor([[1.0, -1.0, 1.0, -1.0]]).expand(2, 4))[0].tolist()
        [1.0, -1.0, 1.0, -1.0]

    Shapes:
        x, residual, output: (..., hidden_size).
        x_bias: (hidden_size,), optional.

    Args:
        hidden_size: features.
        options: see `NormOptions`.
    """

    def __init__(self, hidden_size: int, options: NormOptions = NormOptions()):  # noqa: B008
        super().__init__(hidden_size, eps=options.eps)
        self.options = options

    def extra_repr(self) -> str:
        return f"{self.normalized_shape[0]}, dropout={self.options.dropout}, eps={self.eps}"

    def forward(  # type: ignore[override]  # a LayerNorm of more inputs than one
        self,
        x: torch.Tensor,
        residual: torch.Tensor,
        x_bias: torch.Tensor | None = None,
        *,
        dropout: Dropout | None = None,
    ) -> torch.Tensor:
        """While training, the module draws its own dropout if none is given."""
        if not self.training:
            dropout = None
        elif dropout is None and self.options.dropout:
            dropout = DropoutPlan.draw(x.device).after_attention(0, self.options.dropout)
        in_fp32 = self.options.residual_in_fp32 and is_autocast(x.device)
        y = dropout_add_layer_norm(
            x.reshape(-1, x.shape[-1]),
            residual.reshape(-1, residual.shape[-1]),
            self.weight,
            self.bias,
            x_bias=x_bias,
            dropout=dropout,
            eps=self.eps,
            residual_in_fp32=in_fp32,
        )
        return y.view(x.shape)


class ProjectionOutput(nn.Module):
    """A linear layer back to hidden_size, then DropoutAddLayerNorm with the residual."""

    def __init__(self, in_features: int, hidden_size: int, norm: NormOptions):
        super().__init__()
        self.dense = nn.Linear(in_features, hidden_size)
        self.LayerNorm = DropoutAddLayerNorm(hidden_size, norm)

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor, dropout: Dropout | None
    ) -> torch.Tensor:
        y, bias = linear_without_bias(self.dense, x)
        return self.LayerNorm(y, residual, bias, dropout=dropout)


class SelfAttentionBlock(nn.Module):
    """Holds self-attention and its output projection under the names `self` and `output`."""

    def __init__(self, attention: PackedSelfAttention, hidden_size: int, norm: NormOptions):
        super().__init__()
        self.self = attention
        self.output = ProjectionOutput(hidden_size, hidden_size, norm)


class Intermediate(nn.Module):
    """GELU(W x + b), hidden_size to intermediate_size."""

    def __init__(self, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.dense = nn.Linear(hidden_size, intermediate_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear_gelu(self.dense, x)


class TransformerLayer(nn.Module):
    """Self-attention, then a feed-forward network, each with dropout, residual and LayerNorm.

        >>> layer = TransformerLayer(8, num_attention_heads=2, intermediate_size=16)
        >>> layer(torch.zeros(2, 5, 8), attention_mask=torch.ones(2, 5)).shape
        torch.Size([2, 5, 8])

    Shapes:
        hidden_states: (total_tokens, hidden_size) with a `packing` or cu_seqlens int32
            (batch + 1,); or (batch, seqlen, hidden_size) with an optional attention_mask (batch,
            seqlen).
        rows: int64 (num_rows,), with packed input only: the rows to compute after attention. Their
            values are the same as without `rows`.
        output: as hidden_states, or (num_rows, hidden_size).

    Args:
        hidden_size, num_attention_heads, intermediate_size: sizes.
        attention_dropout: probability of dropping an attention probability while training.
        norm: dropout, eps and precision of both residual branches.
        layer_index: the layer's number; the sites of its dropout follow from it (C4).
    """

    def __init__(
        self,
        hidden_size: int,
        num_attention_heads: int,
        intermediate_size: int,
        *,
        attention_dropout: float = 0.1,
        norm: NormOptions = NormOptions(),  # noqa: B008
        layer_index: int = 0,
    ):
        super().__init__()
        self.layer_index = layer_index
        attention = PackedSelfAttention(hidden_size, num_attention_heads, attention_dropout)
        self.attention = SelfAttentionBlock(attention, hidden_size, norm)
        self.intermediate = Intermediate(hidden_size, intermediate_size)
        self.output = ProjectionOutput(intermediate_size, hidden_size, norm)
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
        packing: Packing | None = None,
        *,
        rows: torch.Tensor | None = None,
        plan: DropoutPlan | None = None,
        **layout,
    ) -> torch.Tensor:
        """Without `packing`, `layout` holds arguments of `Packing.of`. `plan` is the model's
        dropout; while training, the layer draws one if it is None."""
        if packing is None:
            packing = Packing.of(hidden_states, **layout)
            if rows is not None and packing.padded_shape is not None:
                raise ValueError("rows must be None with padded hidden_states")
            x = self(packing.pack(hidden_states), packing, rows=rows, plan=plan)
            return x if rows is not None else packing.unpack(x)
        x, layer = hidden_states, self.layer_index
        after_attention = after_feed_forward = of_attention = None
        if self.training:
            plan = plan or DropoutPlan.draw(x.device)
            p = self.attention.output.LayerNorm.options.dropout
            of_attention = plan.attention(layer, self.attention.self.attention_dropout)
            after_attention = plan.after_attention(layer, p, rows)
            p = self.output.LayerNorm.options.dropout
            after_feed_forward = plan.after_feed_forward(layer, p, rows)
        context = self.attention.self(x, packing, dropout=of_attention)
        if rows is not None:
            _checks.check_ids("rows", rows, x.shape[0])  # indexing would take -1 for the last row
            # Plain indexing: on a GPU its backward sorts the rows, so that rows that occur twice
            # are added in a fixed order.
            x, context = x[rows], context[rows]
        x = self.attention.output(context, x, after_attention)
        return self.output(self.intermediate(x), x, after_feed_forward)
