"""transformers' BERT modules on packed tokens: constructors, calls, outputs, names unchanged.

    from spanbert_fast.nn.bert import BertSelfAttention, BertLayer, BertEncoder, BertModel

in place of the same import from `transformers.models.bert.modeling_bert`, of whose classes these
are subclasses. Of a padded batch only the tokens are computed; what comes out where the mask is 0
is zero. A call that the packed path does not cover (output_attentions, caches, masks of more than
padding, padding in front) runs transformers' own code and says so once; so does, in silence, any
call with `spanbert_fast=False`.

Between these modules hidden states are (total_tokens, hidden_size), with the keyword arguments
`packing` and `plan` (of dropout) beside them: this is what a hook on one of them sees.
"""

import dataclasses
import functools
from collections.abc import Callable

import torch
from transformers import BertConfig
from transformers.modeling_outputs import (
    BaseModelOutputWithPastAndCrossAttentions,
    BaseModelOutputWithPoolingAndCrossAttentions,
)
from transformers.models.bert import modeling_bert as stock

from spanbert_fast.nn.bert_parts import (
    BertEmbeddings,
    BertSelfAttention,
    OnTokens,
    active_p,
    in_place_of,
    make_fast,
    named_arguments,
    not_covered,
    passed_on_to,
    warn_once,
)
from spanbert_fast.nn.key_masks import packing_of_mask, starts_are_tokens
from spanbert_fast.nn.packing import Packing
from spanbert_fast.ops.dropout import DropoutPlan

__all__ = ["BertEmbeddings", "BertEncoder", "BertLayer", "BertModel", "BertSelfAttention"]


@in_place_of(stock.BertLayer)
class BertLayer(OnTokens, stock.BertLayer):
    """Self-attention, then the feed-forward network."""

    def __init__(self, config: BertConfig, layer_idx: int | None = None):
        super().__init__(config, layer_idx)
        make_fast(self)

    @passed_on_to(stock.BertLayer)
    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *others,
        packing: Packing | None = None,
        plan: DropoutPlan | None = None,
        rows: torch.Tensor | None = None,
        **named,
    ) -> torch.Tensor:
        """hidden_states' shape; zeros where a padding mask is 0.

        With `packing`, `rows` int64 (num_rows,) are those that are needed after attention.
        """
        if packing is not None:
            return self._packed(hidden_states, packing, plan, rows)
        given = named_arguments(stock.BertLayer, 2, others, named)
        config = self.attention.self.config
        output = self.on_tokens(self._packed, hidden_states, attention_mask, config, given)
        if output is None:
            return super().forward(hidden_states, attention_mask, *others, **named)
        return output

    def _packed(self, x, packing: Packing, plan, rows=None) -> torch.Tensor:
        x, _ = self.attention(x, packing=packing, plan=plan, rows=rows)
        dropout, p = None, active_p(self.output.dropout)
        if plan is not None and p:
            dropout = plan.after_feed_forward(self.attention.self.layer_idx or 0, p, rows)
        return self.output(self.intermediate(x), x, dropout=dropout)


@in_place_of(stock.BertEncoder)
class BertEncoder(OnTokens, stock.BertEncoder):
    """The stack of layers: packed once in front of the first, padded once behind the last."""

    def __init__(self, config: BertConfig):
        super().__init__(config)
        make_fast(self)

    @passed_on_to(stock.BertEncoder)
    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *others,
        packing: Packing | None = None,
        plan: DropoutPlan | None = None,
        stages: list[torch.Tensor] | None = None,
        rows: torch.Tensor | None = None,
        **named,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """last_hidden_state, shaped as hidden_states; zeros where a padding mask is 0.

        With `packing`, `stages` is a list to which the hidden states of every stage are appended,
        and of the last layer only the packed `rows` are computed.
        """
        if packing is not None:
            output = self._packed(hidden_states, packing, plan, stages, rows)
            return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=output)
        given = named_arguments(stock.BertEncoder, 2, others, named)
        output = self.on_tokens(self._packed, hidden_states, attention_mask, self.config, given)
        if output is None:
            return super().forward(hidden_states, attention_mask, *others, **named)
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=output)

    def _packed(self, x, packing: Packing, plan, stages=None, rows=None) -> torch.Tensor:
        if plan is None and self.training:
            plan = DropoutPlan.draw(x.device)  # one for all layers, which have sites
        if stages is not None:
            stages.append(x)
        for index, layer in enumerate(self.layer):
            last = {"rows": rows} if rows is not None and index == len(self.layer) - 1 else {}
            # hidden states by position, the plan as an argument: checkpointing needs both
            x = layer(x, packing=packing, plan=plan, **last)
            if stages is not None:
                stages.append(x)
        return x


@in_place_of(stock.BertModel)
class BertModel(stock.BertModel):
    """transformers.BertModel that computes no padding (contract C7).

    last_hidden_state and hidden_states are zero where attention_mask is 0. Under autocast the
    residual stream has autocast's dtype inside, and the outputs come in transformers' dtypes.
    """

    def __init__(self, config: BertConfig, add_pooling_layer: bool = True):
        super().__init__(config, add_pooling_layer=add_pooling_layer)
        make_fast(self)

    @passed_on_to(stock.BertModel)
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        *others,
        **named,
    ) -> BaseModelOutputWithPoolingAndCrossAttentions | tuple[torch.Tensor, ...]:
        """See transformers.BertModel.forward; `spanbert_fast=False` runs that.

        A keyword argument `rows_of`, a function of the Packing, gives the packed rows, int64
        (num_rows,), of which alone the last hidden state is needed: the others may be zero.
        """
        rows_of: Callable[[Packing], torch.Tensor] | None = named.pop("rows_of", None)
        kwargs = named_arguments(stock.BertModel, 5, others, named)
        packing = None
        if kwargs.get("spanbert_fast") is not False and (input_ids is None) != (
            inputs_embeds is None
        ):
            given = input_ids if inputs_embeds is None else inputs_embeds
            packing, reason = self._packing(given, attention_mask, kwargs)
            if packing is None:
                warn_once(f"transformers' own code runs in place of spanbert_fast's: {reason}")
        if packing is None:
            _register_for_capture()
            return super().forward(
                input_ids,
                attention_mask,
                token_type_ids,
                position_ids,
                inputs_embeds,
                **{**kwargs, "spanbert_fast": False},
            )
        plan = DropoutPlan.draw(packing.cu_seqlens.device) if self.training else None
        x = self.embeddings(
            input_ids,
            token_type_ids,
            position_ids,
            inputs_embeds,
            packing=packing,
            plan=plan,
            num_layers=self.config.num_hidden_layers,
        )
        wanted = kwargs.get("output_hidden_states")
        wanted = self.config.output_hidden_states if wanted is None else wanted
        stages: list[torch.Tensor] | None = [] if wanted else None
        if rows_of is not None and stages is None:
            rows = rows_of(packing)
            x = self.encoder(x, packing=packing, plan=plan, rows=rows)
            packing = dataclasses.replace(
                packing, indices=rows if packing.indices is None else packing.indices[rows]
            )
        else:
            x = self.encoder(x, packing=packing, plan=plan, stages=stages)
        hidden_states = _padded(x.last_hidden_state, packing)
        output = BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=hidden_states,
            pooler_output=None if self.pooler is None else self.pooler(hidden_states),
        )
        if stages is not None:
            early = (_padded(stage, packing) for stage in stages[:-1])
            output.hidden_states = (*early, hidden_states)
        if kwargs.get("return_dict", self.config.return_dict) is False:
            return output.to_tuple()
        return output

    def _packing(
        self, given: torch.Tensor, attention_mask: torch.Tensor | None, kwargs: dict
    ) -> tuple[Packing | None, str | None]:
        """How the batch packs; or None and why transformers' own code has to run."""
        reason = not_covered(self.config, kwargs)
        if reason is not None:
            return None, reason
        if not isinstance(kwargs.get("output_hidden_states"), bool | None):
            return None, "output_hidden_states selects stages"
        shape = tuple(given.shape[:2])
        if len(shape) != 2:
            return None, "the input has no batch dimension"
        if attention_mask is not None and attention_mask.dim() != 2:
            return None, f"attention_mask has {attention_mask.dim()} dimensions and not 2"
        if attention_mask is not None and (torch.jit.is_tracing() or torch.compiler.is_exporting()):
            raise RuntimeError(
                "attention_mask must be None where torch.export or torch.jit.trace records a "
                "model on packed tokens, got a tensor; spanbert_fast.decelerate brings back one "
                "that takes masks"
            )
        packing = packing_of_mask(attention_mask, shape, given.device)
        if packing is None:
            return None, "attention_mask has another shape than the input"
        if not starts_are_tokens(packing):
            return None, "attention_mask is 0 at the first position of a sequence"
        return packing, None


def _padded(x: torch.Tensor, packing: Packing) -> torch.Tensor:
    """(total_tokens, hidden_size) -> (batch, seqlen, hidden_size)."""
    x = packing.unpack(x)
    # transformers' norms give fp32 there
    return x.float() if torch.is_autocast_enabled(x.device.type) else x


@functools.lru_cache
def _register_for_capture() -> None:
    """Let transformers' forward find out what this class can record.

    It keeps that by class, noted by the constructor, which a model that was given this class
    later, or unpickled with it, has never gone through.
    """
    with torch.device("meta"):
        BertModel(BertConfig(num_hidden_layers=0, hidden_size=1, num_attention_heads=1))
