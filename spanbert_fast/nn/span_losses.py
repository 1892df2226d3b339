"""The joint loss of the two heads of span pre-training, over one decoder."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from spanbert_fast.nn.heads import MaskedLMHead, SpanBoundaryHead, rows_at
from spanbert_fast.nn.targets import Denominators, SpanTargets
from spanbert_fast.ops import _checks
from spanbert_fast.ops.linear_cross_entropy import linear_cross_entropy
from spanbert_fast.values import IGNORED_TARGET


class PretrainingHeads(NamedTuple):
    """Two heads over one decoder.

    Attributes:
        features: (num_masked, hidden_size) -> (num_masked, decoder_size), what the masked-LM head
            does before the decoder.
        decoder_weight: (vocab_size, decoder_size), usually the word embeddings.
        decoder_bias: (vocab_size,), of the masked-LM head.
        span_boundary: the other head, which has a bias of its own.
        sbo_weight: weight of the span boundary loss.
        denominator_offset: added to the count of span boundary targets.
    """

    features: Callable[[torch.Tensor], torch.Tensor]
    decoder_weight: torch.Tensor
    decoder_bias: torch.Tensor
    span_boundary: SpanBoundaryHead
    sbo_weight: float = 1.0
    denominator_offset: int = 0


class SpanPretrainingLosses(NamedTuple):
    """What `SpanPretrainingLoss` and `span_pretraining_losses` return.

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


def span_pretraining_losses(
    heads: PretrainingHeads,
    hidden_states: torch.Tensor,
    targets: SpanTargets,
    denominators: Denominators = Denominators(),  # noqa: B008
    return_predictions: bool = False,
) -> SpanPretrainingLosses:
    """Both losses of a batch; `SpanPretrainingLoss` has the formula and the shapes."""
    mlm_positions, mlm_targets, span_boundaries, cu_span_lengths, sbo_targets = targets
    _checks.check_shape("mlm_positions", mlm_positions, ("num_masked",))
    _checks.check_shape("mlm_targets", mlm_targets, tuple(mlm_positions.shape))
    _checks.check_shape("sbo_targets", sbo_targets, ("num_targets",))
    sizes = [mlm_targets.shape[0], sbo_targets.shape[0]]
    both = torch.cat([mlm_targets, sbo_targets])
    real = both != IGNORED_TARGET
    masked = heads.features(rows_at("mlm_positions", hidden_states, mlm_positions))
    in_spans = heads.span_boundary(hidden_states, span_boundaries, cu_span_lengths, sizes[1])
    losses, predictions = linear_cross_entropy(
        torch.cat([masked, in_spans]),
        heads.decoder_weight,
        torch.stack([heads.decoder_bias, heads.span_boundary.bias]),
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
    sbo_term = sbo_sum / _nonzero(sbo_divisor + heads.denominator_offset)
    return SpanPretrainingLosses(
        mlm_sum / _nonzero(mlm_divisor) + heads.sbo_weight * sbo_term,
        mlm_sum.detach() / mlm_count.clamp(min=1),
        sbo_sum.detach() / sbo_count.clamp(min=1),
        mlm_count,
        sbo_count,
        *((None, None) if predictions is None else predictions.split(sizes)),
    )


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
        heads = self.over(decoder_weight)
        return span_pretraining_losses(
            heads, hidden_states, targets, denominators, return_predictions
        )

    def over(self, decoder_weight: torch.Tensor) -> PretrainingHeads:
        """The heads over a decoder."""
        return PretrainingHeads(
            self.predictions,
            decoder_weight,
            self.predictions.bias,
            self.span_boundary,
            self.sbo_weight,
            self.denominator_offset,
        )


def _nonzero(divisor: torch.Tensor | float) -> torch.Tensor | float:
    """`divisor`, or 1 if it is 0. The host does not read a tensor."""
    if isinstance(divisor, torch.Tensor):
        return torch.where(divisor == 0, torch.ones_like(divisor), divisor)
    return divisor or 1
