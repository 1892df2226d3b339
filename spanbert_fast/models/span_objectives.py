"""Both objectives of span pre-training, for any encoder."""

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import ModelOutput

from spanbert_fast.models.inputs import Encoded, EncoderInputs, takes_encoder_inputs
from spanbert_fast.nn.packing import Packing
from spanbert_fast.nn.pair_losses import span_pair_losses
from spanbert_fast.nn.span_losses import (
    PretrainingHeads,
    SpanPretrainingLosses,
    span_pretraining_losses,
)
from spanbert_fast.nn.targets import Denominators, SpanTargets
from spanbert_fast.ops.dropout import DropoutPlan
from spanbert_fast.ops.linear import linear
from spanbert_fast.ops.linear_cross_entropy import linear_cross_entropy
from spanbert_fast.ops.padding import rows_where
from spanbert_fast.values import IGNORED_TARGET

if TYPE_CHECKING:
    from spanbert_fast.models.checked import CheckedCheckpoints

    class _Model(CheckedCheckpoints):
        """The model behind the mixin."""

        @property
        def max_positions(self) -> int: ...

        def encoder_inputs(self, *, every_stage: bool = False, **given) -> EncoderInputs: ...

else:
    _Model = object


@dataclasses.dataclass
class SpanBertForPreTrainingOutput(ModelOutput):
    """What `SpanBertForPreTraining`, and any other model with `SpanObjectives`, returns.

    Attributes:
        loss: what to minimise: mlm + sbo_weight * sbo (+ pair_loss_weight * pair).
        mlm_loss, sbo_loss: the mean losses over this batch's targets, fp32; 0 without a target.
        mlm_count, sbo_count: numbers of targets, int64 0-dim.
        pair_loss: this batch's mean pair-likelihood loss per token, if config.pair_loss_weight is
            not 0.
        mlm_predictions, sbo_predictions: int64, the best token of each target, on request.
        logits: masked-LM scores of every position, if no targets were given.
        hidden_states: of every stage, on request.
    """

    loss: torch.Tensor | None = None
    mlm_loss: torch.Tensor | None = None
    sbo_loss: torch.Tensor | None = None
    mlm_count: torch.Tensor | None = None
    sbo_count: torch.Tensor | None = None
    pair_loss: torch.Tensor | None = None
    mlm_predictions: torch.Tensor | None = None
    sbo_predictions: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None


class SpanObjectives(_Model):
    """The masked-LM and the span boundary objective over an encoder.

    A model says how it encodes (`encode`) and what its heads are (`pretraining_heads`); its span
    boundary head is `cls.span_boundary`.
    """

    cls: Any  # a module

    def encode(
        self,
        inputs: EncoderInputs,
        *,
        rows: torch.Tensor | None = None,
        plan: DropoutPlan | None = None,
    ) -> Encoded:
        """See `SpanBertModel.encode`."""
        raise NotImplementedError

    def pretraining_heads(self) -> PretrainingHeads:
        """Both heads over the decoder."""
        raise NotImplementedError

    def span_losses(
        self,
        hidden_states: torch.Tensor,
        targets: SpanTargets,
        denominators: Denominators,
        return_predictions: bool,
    ) -> SpanPretrainingLosses:
        """Both losses from packed hidden states."""
        return span_pretraining_losses(
            self.pretraining_heads(), hidden_states, targets, denominators, return_predictions
        )

    def masked_lm_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(..., vocab_size): every entry's score at every position."""
        heads = self.pretraining_heads()
        return linear(heads.features(hidden_states), heads.decoder_weight, heads.decoder_bias)

    def resize_token_embeddings(self, *args, **kwargs) -> nn.Embedding:
        """As in Hugging Face. The bias of the span boundary head is resized, too."""
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        old = self.cls.span_boundary.bias
        bias = old.new_zeros(embeddings.num_embeddings)
        kept = min(len(old), len(bias))
        bias[:kept] = old.detach()[:kept]
        self.cls.span_boundary.bias = nn.Parameter(bias, requires_grad=old.requires_grad)
        return embeddings

    @takes_encoder_inputs
    def forward(
        self,
        inputs: EncoderInputs,
        labels: torch.Tensor | None = None,
        mlm_positions: torch.Tensor | None = None,
        mlm_targets: torch.Tensor | None = None,
        span_boundaries: torch.Tensor | None = None,
        cu_span_lengths: torch.Tensor | None = None,
        sbo_targets: torch.Tensor | None = None,
        mlm_denominator: torch.Tensor | float | None = None,
        sbo_denominator: torch.Tensor | float | None = None,
        pair_denominator: torch.Tensor | float | None = None,
        num_tokens: torch.Tensor | None = None,
        return_predictions: bool = False,
        dropout_seed: torch.Tensor | None = None,
    ) -> SpanBertForPreTrainingOutput:
        """Compute both losses of a batch; without targets, the masked-LM scores.

        The span fields have the names and meanings of `spanbert_fast.ops.sample_spans`. Their
        positions are flat rows: of the packed batch, or of (batch * seqlen) if the input is padded.

        Args:
            labels: int64, shaped as input_ids, -100 where no loss is taken. Gives mlm_positions and
                mlm_targets in another way, at the cost of a host sync on a GPU.
            mlm_positions, mlm_targets: int64 (num_masked,). Targets of -100, here and in
                sbo_targets, are ignored.
            span_boundaries: int64 (num_spans, 2), the tokens left and right of each span.
            cu_span_lengths: int32 (num_spans + 1,), prefix sums of the spans' target counts.
            sbo_targets: int64 (num_targets,).
            mlm_denominator, sbo_denominator, pair_denominator: divide the sums by these in place of
                this batch's counts (of targets; of tokens for the pair loss). Under gradient
                accumulation and DDP they are the counts of the whole global batch.
            num_tokens: int64 0-dim, the number of a batch's own tokens if `StaticShapes` has filled
                it up. They come first; the others take no part in the pair loss.
            return_predictions: also return each target's best token.
            dropout_seed: int64 0-dim, in place of a seed drawn from torch's generator. It makes
                dropout a function of the batch, whatever ran before.
            others: see `SpanBertModel.forward`.

        Returns:
            `SpanBertForPreTrainingOutput`: with targets, losses, counts and predictions; without,
            logits in the input's layout, vocab_size wide.

        Raises:
            ValueError: targets are given in part, or labels beside mlm_positions; or
                output_attentions.
            TypeError: an argument is unknown.
        """
        given = (mlm_positions, mlm_targets, span_boundaries, cu_span_lengths, sbo_targets)
        targets = packed_targets(inputs.packing, labels, *given)
        plan = None if dropout_seed is None else DropoutPlan(dropout_seed)
        if targets is None:
            encoded = self.encode(inputs, plan=plan)
            logits = self.masked_lm_logits(encoded.hidden_states)
            return SpanBertForPreTrainingOutput(
                logits=encoded.packing.unpack(logits), hidden_states=encoded.padded_stages()
            )
        every_row = inputs.every_stage or self.config.pair_loss_weight != 0
        encoded = self.encode(inputs, rows=None if every_row else targets.rows(), plan=plan)
        denominators = Denominators(mlm_denominator, sbo_denominator, pair_denominator)
        losses = self.span_losses(
            encoded.hidden_states,
            targets if every_row else targets.on_rows(),
            denominators,
            return_predictions,
        )
        loss, pair_loss = losses.loss, None
        if self.config.pair_loss_weight:
            pair_sum, tokens = self._pair_sum(inputs, encoded.hidden_states, targets, num_tokens)
            pair_loss = pair_sum.detach() / tokens
            divisor = tokens if denominators.pair is None else denominators.pair
            loss = loss + self.config.pair_loss_weight * (pair_sum / divisor)
        return SpanBertForPreTrainingOutput(
            **{**losses._asdict(), "loss": loss},
            pair_loss=pair_loss,
            hidden_states=encoded.padded_stages(),
        )

    def _pair_sum(
        self,
        inputs: EncoderInputs,
        hidden: torch.Tensor,
        targets: SpanTargets,
        num_tokens: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | int]:
        """(the pair-likelihood loss summed over all tokens, the number of tokens, at least 1)."""
        if inputs.input_ids is None:
            raise ValueError("input_ids must be given with pair_loss_weight > 0, got None")
        heads, tokens = self.pretraining_heads(), inputs.packing.total_tokens
        # ignored targets are written behind the last token, which is cut off
        masked = torch.where(targets.mlm_targets == IGNORED_TARGET, tokens, targets.mlm_positions)
        originals = F.pad(inputs.input_ids, (0, 1)).index_put((masked,), targets.mlm_targets)[:-1]
        in_span = originals.new_zeros(tokens + 1, dtype=torch.bool).index_fill(0, masked, True)[:-1]
        log_p = -linear_cross_entropy(
            heads.features(hidden), heads.decoder_weight, heads.decoder_bias, originals
        ).losses
        if num_tokens is not None:
            # a token outside the spans with probability 0 has no loss and, here, no gradient
            log_p = log_p.where(torch.arange(tokens, device=log_p.device) < num_tokens, -torch.inf)
        total = span_pair_losses(log_p, in_span, form=self.config.pair_loss_form).negative
        return total, max(tokens, 1) if num_tokens is None else num_tokens.clamp(min=1)


def packed_targets(
    packing: Packing,
    labels: torch.Tensor | None,
    mlm_positions: torch.Tensor | None,
    mlm_targets: torch.Tensor | None,
    span_boundaries: torch.Tensor | None,
    cu_span_lengths: torch.Tensor | None,
    sbo_targets: torch.Tensor | None,
) -> SpanTargets | None:
    """The targets of a forward in packed rows; None if there are none.

    Raises:
        ValueError: they are given in part, or labels beside mlm_positions.
    """
    spans = (span_boundaries, cu_span_lengths, sbo_targets)
    for name, group in (
        ("mlm_positions and mlm_targets", (mlm_positions, mlm_targets)),
        ("span_boundaries, cu_span_lengths and sbo_targets", spans),
    ):
        if any(t is None for t in group) and any(t is not None for t in group):
            raise ValueError(f"{name} must be given together or not at all")
    if labels is not None and mlm_positions is not None:
        raise ValueError("labels must be None where mlm_positions is given")
    if labels is None and mlm_positions is None and span_boundaries is None:
        return None
    device = packing.cu_seqlens.device
    if labels is not None:
        packed_labels = packing.pack(labels)
        mlm_positions = rows_where(packed_labels != IGNORED_TARGET)
        mlm_targets = packed_labels[mlm_positions]
    elif mlm_positions is None or mlm_targets is None:
        mlm_positions = mlm_targets = torch.zeros(0, dtype=torch.int64, device=device)
    else:
        mlm_positions = packing.packed_rows(mlm_positions)
    if span_boundaries is None or cu_span_lengths is None or sbo_targets is None:
        span_boundaries = torch.zeros((0, 2), dtype=torch.int64, device=device)
        cu_span_lengths = torch.zeros(1, dtype=torch.int32, device=device)
        sbo_targets = torch.zeros(0, dtype=torch.int64, device=device)
    else:
        span_boundaries = packing.packed_rows(span_boundaries)
    return SpanTargets(mlm_positions, mlm_targets, span_boundaries, cu_span_lengths, sbo_targets)
