"""The heads of span pre-training. `span_losses` has their joint loss."""

import torch
from torch import nn

from spanbert_fast.nn.linear import apply_linear, linear_gelu, reset_linear
from spanbert_fast.ops import _checks
from spanbert_fast.ops.linear import linear
from spanbert_fast.ops.span_boundary_gather import span_boundary_gather


def _normalised(norm: nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
    """norm(x) in the dtype of the norm's parameters. PyTorch's CPU kernel sums their gradients in
    the dtype of x; in bf16 the sum over a thousand rows is 4 % off (contract C5)."""
    return norm(x.to(norm.weight.dtype))


class PredictionTransform(nn.Module):
    """LayerNorm(GELU(W x + b)) of (..., hidden_size), in the same shape."""

    def __init__(self, hidden_size: int, eps: float):
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.LayerNorm = nn.LayerNorm(hidden_size, eps=eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _normalised(self.LayerNorm, linear_gelu(self.dense, x))


class MaskedLMHead(nn.Module):
    """BERT's masked-LM head, under Hugging Face's names (contract C1).

    Calling it returns the transformed hidden states, which `SpanPretrainingLoss` and
    `linear_cross_entropy` take. `logits` returns the scores.

        >>> head = MaskedLMHead(hidden_size=8, vocab_size=20)
        >>> head.logits(torch.zeros(2, 5, 8)).shape
        torch.Size([2, 5, 20])

    Shapes:
        hidden_states: (..., hidden_size), packed or padded.
        output: as hidden_states; of `logits`: (..., vocab_size).

    Args:
        hidden_size, vocab_size: sizes.
        eps: added to the norm's variance.

    Attributes:
        decoder: nn.Linear from hidden_size to vocab_size. To tie it, set `decoder.weight` to the
            parameter of the word embeddings.
        bias: the decoder's bias, (vocab_size,), the same parameter under a second name.
    """

    def __init__(self, hidden_size: int, vocab_size: int, eps: float = 1e-12):
        super().__init__()
        self.transform = PredictionTransform(hidden_size, eps)
        self.decoder = nn.Linear(hidden_size, vocab_size)
        self.bias = self.decoder.bias
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal(0, 0.02) weights, zero biases, an identity norm; also of a tied decoder."""
        reset_linear(self.transform.dense)
        self.transform.LayerNorm.reset_parameters()
        reset_linear(self.decoder)

    def extra_repr(self) -> str:
        return f"hidden_size={self.decoder.in_features}, vocab_size={self.decoder.out_features}"

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.transform(hidden_states)

    def logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(..., vocab_size): every entry's score at every position."""
        return apply_linear(self.decoder, self(hidden_states))


class SpanBoundaryHead(nn.Module):
    """Predicts a span's tokens from its boundaries and their places (Joshi et al. 2020, 3.2).

    h = LN2(GELU(W2 LN1(GELU(W1 [x_l; x_r; p_k] + b1)) + b2)) for the token at place k of a span
    whose boundary tokens are l and r (contract C2). Only places that have a target are computed.

        >>> head = SpanBoundaryHead(hidden_size=8, vocab_size=20)
        >>> boundaries = torch.tensor([[0, 3]])  # a span of two tokens, in the rows 1 and 2
        >>> head(torch.zeros(5, 8), boundaries, torch.tensor([0, 2], dtype=torch.int32), 2).shape
        torch.Size([2, 8])

    Shapes:
        hidden_states: (total_tokens, hidden_size), or (batch, seqlen, hidden_size), whose rows are
            numbered as those of (batch * seqlen, hidden_size).
        span_boundaries: int64 (num_spans, 2), rows of hidden_states.
        cu_span_lengths: int32 (num_spans + 1,), prefix sums of the spans' target counts; a span has
            at most max_span_targets.
        num_targets: their sum, a Python int.
        output: (num_targets, decoder_size). The scores are the output times a decoder's weight,
            plus `bias`; the decoder (the word embeddings) is no part of this module.

    Args:
        hidden_size, vocab_size: sizes.
        max_span_targets: places that have an embedding p_k.
        span_position_embedding_size: features of p_k.
        eps: added to the norms' variance.
        decoder_size: features that the decoder takes; None for hidden_size.

    Attributes:
        linear1: W1, (hidden_size, 2 * hidden_size + span_position_embedding_size), with the columns
            of x_l, x_r and p_k in this order; and b1.
        bias: (vocab_size,), which this head does not share.
    """

    def __init__(
        self,
        hidden_size: int,
        vocab_size: int,
        max_span_targets: int = 20,
        span_position_embedding_size: int = 200,
        eps: float = 1e-12,
        decoder_size: int | None = None,
    ):
        super().__init__()
        decoder_size = hidden_size if decoder_size is None else decoder_size
        self.position_embeddings = nn.Embedding(max_span_targets, span_position_embedding_size)
        self.linear1 = nn.Linear(2 * hidden_size + span_position_embedding_size, hidden_size)
        self.layer_norm1 = nn.LayerNorm(hidden_size, eps=eps)
        self.linear2 = nn.Linear(hidden_size, decoder_size)
        self.layer_norm2 = nn.LayerNorm(decoder_size, eps=eps)
        self.bias = nn.Parameter(torch.empty(vocab_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal(0, 0.02) weights and embeddings, zero biases, identity norms, as BERT starts."""
        nn.init.normal_(self.position_embeddings.weight, std=0.02)
        for layer in (self.linear1, self.linear2):
            reset_linear(layer)
        for norm in (self.layer_norm1, self.layer_norm2):
            norm.reset_parameters()
        nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        return (
            f"hidden_size={self.linear2.in_features}, vocab_size={self.bias.shape[0]}, "
            f"max_span_targets={self.position_embeddings.num_embeddings}"
        )

    def forward(
        self,
        hidden_states: torch.Tensor,
        span_boundaries: torch.Tensor,
        cu_span_lengths: torch.Tensor,
        num_targets: int,
    ) -> torch.Tensor:
        _checks.check_shape("span_boundaries", span_boundaries, ("num_spans", 2))
        boundaries = rows_at("span_boundaries", hidden_states, span_boundaries).flatten(1)
        size = self.position_embeddings.embedding_dim
        of_boundaries, of_places = self.linear1.weight.split([boundaries.shape[1], size], dim=1)
        x = span_boundary_gather(
            linear(boundaries, of_boundaries),
            linear(self.position_embeddings.weight, of_places, self.linear1.bias),
            cu_span_lengths,
            num_targets,
            self.layer_norm1.weight,
            self.layer_norm1.bias,
            eps=self.layer_norm1.eps,
        )
        return _normalised(self.layer_norm2, linear_gelu(self.linear2, x))


def rows_at(name: str, hidden_states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """The rows of hidden_states at `positions`, some of which may occur twice."""
    rows = hidden_states.reshape(-1, hidden_states.shape[-1])
    _checks.check_integer(name, positions, (torch.int64,))
    _checks.check_ids(name, positions, rows.shape[0])  # indexing would take -1 for the last row
    return rows[positions]
