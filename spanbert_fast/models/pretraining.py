"""SpanBertForPreTraining: the masked-LM head and the span boundary head over one encoder."""

import dataclasses

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import ModelOutput
from transformers.utils.generic import can_return_tuple

from spanbert_fast.config import SpanBertConfig
from spanbert_fast.models.base import SpanBertPreTrainedModel
from spanbert_fast.models.encoder import SpanBertModel
from spanbert_fast.models.masked_lm import TIED_DECODER
from spanbert_fast.nn.heads import MaskedLMHead, SpanBoundaryHead, SpanPretrainingLoss
from spanbert_fast.nn.pair_losses import span_pair_losses
from spanbert_fast.ops._common import IGNORED_TARGET
from spanbert_fast.ops.linear_cross_entropy import linear_cross_entropy


@dataclasses.dataclass
class SpanBertForPreTrainingOutput(ModelOutput):
    """What `SpanBertForPreTraining` returns.

    Attributes:
        loss: what to minimise: mlm + sbo_weight * sbo (+ pair_loss_weight * pair).
        mlm_loss, sbo_loss: the batch's own mean losses, fp32; 0 where there is no target.
        mlm_count, sbo_count: numbers of targets, int64 0-dim.
        pair_loss: the batch's own mean pair-likelihood loss per token, where
            config.pair_loss_weight is not 0.
        mlm_predictions, sbo_predictions: int64, the best token of each target, on request.
        logits: masked-LM scores of every position, where no targets were given.
        hidden_states: every stage, on request.
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


@dataclasses.dataclass
class SpanTargets:
    """What the two heads are asked, in packed rows."""

    mlm_positions: torch.Tensor
    mlm_targets: torch.Tensor
    span_boundaries: torch.Tensor
    cu_span_lengths: torch.Tensor
    sbo_targets: torch.Tensor

    def rows(self) -> torch.Tensor:
        """Every packed row that a head reads: the masked tokens', then the boundaries'."""
        return torch.cat([self.mlm_positions, self.span_boundaries.flatten()])

    def on_rows(self) -> "SpanTargets":
        """The same, numbered within `rows()`."""
        masked, spans = self.mlm_positions.shape[0], self.span_boundaries.shape[0]
        numbers = torch.arange(masked + 2 * spans, device=self.mlm_positions.device)
        return dataclasses.replace(
            self,
            mlm_positions=numbers[:masked],
            span_boundaries=numbers[masked:].view(spans, 2),
        )


class SpanBertForPreTraining(SpanBertPreTrainedModel):
    """SpanBERT with both heads (Joshi et al. 2020, section 3): masked LM and span boundaries."""

    _tied_weights_keys = TIED_DECODER

    def __init__(self, config: SpanBertConfig):
        super().__init__(config)
        self.bert = SpanBertModel(config, add_pooling_layer=False)
        self.cls = SpanPretrainingLoss(
            MaskedLMHead(config.hidden_size, config.vocab_size, config.layer_norm_eps),
            SpanBoundaryHead(
                config.hidden_size,
                config.vocab_size,
                config.max_span_targets,
                config.span_position_embedding_size,
                config.layer_norm_eps,
            ),
            config.sbo_weight,
            config.sbo_denominator_offset,
        )
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.cls.predictions.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.cls.predictions.decoder = new_embeddings
        self.cls.predictions.bias = new_embeddings.bias

    def resize_token_embeddings(self, *args, **kwargs) -> nn.Embedding:
        """As in Hugging Face; the span boundary head's own bias follows the vocabulary."""
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        old = self.cls.span_boundary.bias
        bias = old.new_zeros(embeddings.num_embeddings)
        kept = min(len(old), len(bias))
        bias[:kept] = old.detach()[:kept]
        self.cls.span_boundary.bias = nn.Parameter(bias, requires_grad=old.requires_grad)
        return embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        cu_seqlens: torch.Tensor | None = None,
        max_seqlen: int | None = None,
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
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> SpanBertForPreTrainingOutput:
        """Both losses of a batch, or, with no targets, the masked-LM scores.

        The span fields are those of `spanbert_fast.ops.sample_spans`, under its names. They are
        flat rows: of the packed batch, or of (batch * seqlen) where the input is padded.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, cu_seqlens,
                max_seqlen: see `SpanBertModel.forward`.
            labels: int64, shaped as input_ids, -100 where no loss is taken: another way to give
                mlm_positions and mlm_targets (costs a host sync on a GPU).
            mlm_positions, mlm_targets: int64 (num_masked,); a target that is -100, and so of
                sbo_targets, counts for nothing.
            span_boundaries: int64 (num_spans, 2), the tokens left and right of each span.
            cu_span_lengths: int32 (num_spans + 1,), prefix sums of the spans' target counts.
            sbo_targets: int64 (num_targets,).
            mlm_denominator, sbo_denominator, pair_denominator: what to divide the sums by in place
                of the batch's own counts (of targets; of tokens for the pair loss): those of the
                whole global batch under gradient accumulation and DDP.
            num_tokens: int64 0-dim, of a batch that `StaticShapes` has filled up: its own tokens,
                which come first; the others take no part in the pair loss.
            return_predictions: also return each target's best token.
            dropout_seed: int64 0-dim, in place of one drawn from torch's generator: makes dropout
                a function of the batch, whatever ran before it.

        Returns:
            `SpanBertForPreTrainingOutput`: losses, counts and predictions where targets are given;
            logits, in the input's layout and vocab_size wide, only where none are.

        Raises:
            ValueError: targets are given in part, or labels beside mlm_positions; or
                output_attentions.
            TypeError: an argument is none of these.
        """
        self.refuse_attentions(output_attentions, kwargs)
        packing = self.bert.packing_of(
            input_ids, attention_mask, inputs_embeds, cu_seqlens, max_seqlen
        )
        targets = self._targets(
            packing,
            labels,
            mlm_positions,
            mlm_targets,
            span_boundaries,
            cu_span_lengths,
            sbo_targets,
        )
        every_row = self.wants_hidden_states(output_hidden_states)
        every_row = every_row or targets is None or self.config.pair_loss_weight != 0
        encoded = self.bert.encode(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            packing=packing,
            rows=None if every_row else targets.rows(),
            output_hidden_states=self.wants_hidden_states(output_hidden_states),
            dropout_seed=dropout_seed,
        )
        if targets is None:
            logits = self.cls.predictions.logits(encoded.hidden_states)
            return SpanBertForPreTrainingOutput(
                logits=packing.unpack(logits), hidden_states=encoded.padded_stages()
            )
        losses = self.cls(
            encoded.hidden_states,
            self.cls.predictions.decoder.weight,
            **vars(targets if every_row else targets.on_rows()),
            mlm_denominator=mlm_denominator,
            sbo_denominator=sbo_denominator,
            return_predictions=return_predictions,
        )
        loss, pair_loss = losses.loss, None
        if self.config.pair_loss_weight:
            if input_ids is None:
                raise ValueError("input_ids must be given with pair_loss_weight > 0, got None")
            packed_ids = packing.pack(input_ids)
            pair_sum = self._pair_sum(encoded.hidden_states, packed_ids, targets, num_tokens)
            tokens = max(len(packed_ids), 1) if num_tokens is None else num_tokens.clamp(min=1)
            pair_loss = pair_sum.detach() / tokens
            pair_divisor = tokens if pair_denominator is None else pair_denominator
            loss = loss + self.config.pair_loss_weight * (pair_sum / pair_divisor)
        return SpanBertForPreTrainingOutput(
            **{**losses._asdict(), "loss": loss},
            pair_loss=pair_loss,
            hidden_states=encoded.padded_stages(),
        )

    def _targets(
        self, packing, labels, mlm_positions, mlm_targets, boundaries, cu_lengths, sbo_targets
    ) -> SpanTargets | None:
        """The targets in packed rows; None where there are none at all."""
        for name, group in (
            ("mlm_positions and mlm_targets", (mlm_positions, mlm_targets)),
            (
                "span_boundaries, cu_span_lengths and sbo_targets",
                (boundaries, cu_lengths, sbo_targets),
            ),
        ):
            if any(t is None for t in group) and any(t is not None for t in group):
                raise ValueError(f"{name} must be given together or not at all")
        if labels is not None and mlm_positions is not None:
            raise ValueError("labels must be None where mlm_positions is given")
        if labels is None and mlm_positions is None and boundaries is None:
            return None
        device = packing.cu_seqlens.device
        to_row = None
        if packing.indices is not None:
            batch, seqlen = packing.padded_shape
            # -1, which the gathers refuse, for a target that lies on padding
            to_row = torch.full((batch * seqlen,), -1, dtype=torch.int64, device=device)
            to_row[packing.indices] = torch.arange(packing.total_tokens, device=device)
        if labels is not None:
            packed_labels = packing.pack(labels)
            mlm_positions = (packed_labels != IGNORED_TARGET).nonzero().squeeze(1)
            mlm_targets = packed_labels[mlm_positions]
        elif mlm_positions is None:
            mlm_positions = mlm_targets = torch.zeros(0, dtype=torch.int64, device=device)
        elif to_row is not None:
            mlm_positions = to_row[mlm_positions]
        if boundaries is None:
            boundaries = torch.zeros((0, 2), dtype=torch.int64, device=device)
            cu_lengths = torch.zeros(1, dtype=torch.int32, device=device)
            sbo_targets = torch.zeros(0, dtype=torch.int64, device=device)
        elif to_row is not None:
            boundaries = to_row[boundaries]
        return SpanTargets(mlm_positions, mlm_targets, boundaries, cu_lengths, sbo_targets)

    def _pair_sum(
        self, hidden, packed_ids, targets: SpanTargets, num_tokens: torch.Tensor | None
    ) -> torch.Tensor:
        """The pair-likelihood loss of every token's own probability, summed over tokens."""
        head, tokens = self.cls.predictions, len(packed_ids)
        # what counts for nothing is written beyond the last token
        masked = torch.where(targets.mlm_targets == IGNORED_TARGET, tokens, targets.mlm_positions)
        originals = F.pad(packed_ids, (0, 1)).index_put((masked,), targets.mlm_targets)[:-1]
        in_span = originals.new_zeros(tokens + 1, dtype=torch.bool).index_fill(0, masked, True)[:-1]
        weight = head.decoder.weight
        log_p = -linear_cross_entropy(head(hidden), weight, head.bias, originals).losses
        if num_tokens is not None:
            # outside the spans a probability of 0 has no loss, and here no gradient
            log_p = log_p.where(torch.arange(tokens, device=log_p.device) < num_tokens, -torch.inf)
        return span_pair_losses(log_p, in_span, form=self.config.pair_loss_form).negative
