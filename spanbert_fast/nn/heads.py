"""The heads of span pre-training, and their joint loss over one decoder."""

from typing import NamedTuple

import torch
from torch import nn

from spanbert_fast.nn.linear import apply_linear, linear_gelu, reset_linear
from spanbert_fast.nn.targets import Denominators, SpanTargets
from spanbert_fast.ops import _checks
from spanbert_fast.ops.linear import linear
from spanbert_fast.ops.linear_cross_entropy import linear_cross_entropy
from spanbert_fast.ops.span_boundary_gather import span_boundary_gather
from spanbert_fast.values import IGNORED_TARGET


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
        output: (num_targets, hidden_size). The scores are the output times a decoder's weight, plus
            `bias`; the decoder (the word embeddings) is no part of this module.

    Args:
        hidden_size, vocab_size: sizes.
        max_span_targets: places that have an embedding p_k.
        span_position_embedding_size: features of p_k.
        eps: added to the norms' variance.

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
    ):
        super().__init__()
        self.position_embeddings = nn.Embedding(max_span_targets, span_position_embedding_size)
        self.linear1 = nn.Linear(2 * hidden_size + span_position_embedding_size, hidden_size)
        self.layer_norm1 = nn.LayerNorm(hidden_size, eps=eps)
        self.linear2 = nn.Linear(hidden_size, hidden_size)
        self.layer_norm2 = nn.LayerNorm(hidden_size, eps=eps)
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
        boundaries = _rows("span_boundaries", hidden_states, span_boundaries).flatten(1)
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


def _rows(name: str, hidden_states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """The rows of hidden_states at `positions`, some of which may occur twice."""
    rows = hidden_states.reshape(-1, hidden_states.shape[-1])
    _checks.check_integer(name, positions, (torch.int64,))
    _checks.check_ids(name, positions, rows.shape[0])  # indexing would take -1 for the last row
    return rows[positions]


class SpanPretrainingLosses(NamedTuple):
    """What `SpanPretrainingLoss` returns.

    Attributes:
        loss: 0-dim, what to minimise.
        mlm_loss, sbo_loss: 0-dim, the means over this batch's targets, for logs: detached, and
            independent of the denominators; 0 if there is no target.
        mlm_count, sbo_count: int64 0-dim, numbers of targets.
        mlm_predictions, sbo_predictions: int64 (num_masked,) and (num_targets,), the best entry of
            each target; None unless asked for.
    """

    loss: torch.Tensor
    mlm_loss: torch.Tensor
    sbo_loss: torch.Tensor
    mlm_count: torch.Tensor
    sbo_count: torch.Tensor
    mlm_predictions: torch.Tensor | None
    sbo_predictions: torch.Tensor | None


class SpanPretrainingLoss(nn.Module):
    """Masked LM and span boundaries in one loss (Joshi et al. 2020, section 3.3; contract C2).

    loss = mlm_sum / mlm_count + sbo_weight * sbo_sum / (sbo_count + denominator_offset), with sums
    of cross-entropies in nats. One op computes the losses of both heads over one decoder and never
    stores all scores.

        >>> loss = SpanPretrainingLoss(MaskedLMHead(8, 20), SpanBoundaryHead(8, 20))
        >>> ids, ends = torch.tensor([1, 2]), torch.tensor([[0, 3]])  # rows 1 and 2 are masked
        >>> targets = SpanTargets(ids, ids, ends, torch.tensor([0, 2], dtype=torch.int32), ids)
        >>> loss(torch.zeros(5, 8), torch.zeros(20, 8), targets).mlm_loss  # log 20
        tensor(2.9957)

    Shapes:
        hidden_states: (total_tokens, hidden_size), or (batch, seqlen, hidden_size), whose rows are
            numbered as those of (batch * seqlen, hidden_size).
        decoder_weight: (vocab_size, hidden_size), usually the word embeddings.
        targets: `SpanTargets` whose positions are rows of hidden_states.
        output: `SpanPretrainingLosses`, losses in fp32 (fp64 for fp64).

    Args:
        mlm_head: gives its transform and its bias.
        sbo_head: the span boundary head.
        sbo_weight: weight of the span boundary loss.
        denominator_offset: added to the count of span boundary targets; the released code has 1.

    If this batch is a part of a larger one, `denominators` replace the counts in `loss`. A
    denominator of 0 counts as 1, so that a batch without targets has the gradient 0 and not NaN.
    """

    def __init__(
        self,
        mlm_head: MaskedLMHead,
        sbo_head: SpanBoundaryHead,
        sbo_weight: float = 1.0,
        denominator_offset: int = 0,
    ):
        super().__init__()
        # the names of a SpanBERT checkpoint's `cls` module
        self.predictions = mlm_head
        self.span_boundary = sbo_head
        self.sbo_weight = sbo_weight
        self.denominator_offset = denominator_offset

    def reset_parameters(self) -> None:
        """Both heads' reset_parameters."""
        self.predictions.reset_parameters()
        self.span_boundary.reset_parameters()

    def extra_repr(self) -> str:
        return f"sbo_weight={self.sbo_weight}, denominator_offset={self.denominator_offset}"

    def forward(
        self,
        hidden_states: torch.Tensor,
        decoder_weight: torch.Tensor,
        targets: SpanTargets,
        denominators: Denominators = Denominators(),  # noqa: B008
        return_predictions: bool = False,
    ) -> SpanPretrainingLosses:
        mlm_positions, mlm_targets, span_boundaries, cu_span_lengths, sbo_targets = targets
        _checks.check_shape("mlm_positions", mlm_positions, ("num_masked",))
        _checks.check_shape("mlm_targets", mlm_targets, tuple(mlm_positions.shape))
        _checks.check_shape("sbo_targets", sbo_targets, ("num_targets",))
        sizes = [mlm_targets.shape[0], sbo_targets.shape[0]]
        both = torch.cat([mlm_targets, sbo_targets])
        real = both != IGNORED_TARGET
        masked = self.predictions(_rows("mlm_positions", hidden_states, mlm_positions))
        in_spans = self.span_boundary(hidden_states, span_boundaries, cu_span_lengths, sizes[1])
        losses, predictions = linear_cross_entropy(
            torch.cat([masked, in_spans]),
            decoder_weight,
            torch.stack([self.predictions.bias, self.span_boundary.bias]),
            torch.where(real, both, 0),
            group_sizes=sizes,
            return_predictions=return_predictions,
        )
        losses = torch.where(real, losses, 0.0)
        mlm_sum, sbo_sum = (part.sum() for part in losses.split(sizes))
        # counted on the device: with fixed shapes, only the data tells how many targets count
        mlm_count, sbo_count = (part.sum() for part in real.split(sizes))
        mlm_divisor = mlm_count if denominators.mlm is None else denominators.mlm
        sbo_divisor = sbo_count if denominators.sbo is None else denominators.sbo
        sbo_term = sbo_sum / _nonzero(sbo_divisor + self.denominator_offset)
        return SpanPretrainingLosses(
            mlm_sum / _nonzero(mlm_divisor) + self.sbo_weight * sbo_term,
            mlm_sum.detach() / mlm_count.clamp(min=1),
            sbo_sum.detach() / sbo_count.clamp(min=1),
            mlm_count,
            sbo_count,
            *((None, None) if predictions is None else predictions.split(sizes)),
        )


def _nonzero(divisor: torch.Tensor | float) -> torch.Tensor | float:
    """`divisor`, or 1 if it is 0. The host does not read a tensor."""
    if isinstance(divisor, torch.Tensor):
        return torch.where(divisor == 0, torch.ones_like(divisor), divisor)
    return divisor or 1
